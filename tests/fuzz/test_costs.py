"""Turns are given so that every use gets its time: not by what it costs, and not by how many inputs have it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.fuzz import live_json
from chamber.fuzz.costs import Costs
from chamber.fuzz.live_json import write_live_json

if TYPE_CHECKING:
    from pathlib import Path


def test_without_costs_every_input_has_its_usual_turns(tmp_path: Path) -> None:
    reader = Costs(tmp_path / "costs")
    assert [reader.share(use) for use in range(5)] == [1.0] * 5


def test_what_takes_longer_gets_fewer_turns_but_some(tmp_path: Path) -> None:
    write_live_json(tmp_path / "costs", {0: 0.001, 1: 0.002, 2: 0.002, 3: 0.008, 4: 9.0})
    reader = Costs(tmp_path / "costs")
    for _ in range(100):  # each has its turn as often as the others
        shares = [reader.share(use) for use in range(5)]
    assert shares[0] == pytest.approx(1.0, abs=0.05)
    assert shares[1] == shares[2] == pytest.approx(1.0, abs=0.05)
    assert shares[3] == pytest.approx(0.25, abs=0.02)
    assert shares[4] == 0.1


def test_what_most_inputs_have_gets_fewer_turns_each(tmp_path: Path) -> None:
    write_live_json(tmp_path / "costs", dict.fromkeys(range(4), 0.001))
    reader = Costs(tmp_path / "costs")
    spent = dict.fromkeys(range(4), 0.0)
    for _ in range(400):
        for use in (0, 1, 1, 1, 1, 1, 2, 3):
            spent[use] += reader.share(use)
    assert spent[1] < 2.2 * spent[0], "with five times as many inputs"
    assert spent[0] == pytest.approx(spent[3], rel=0.1)


def test_a_number_means_what_it_means_to_who_executes(tmp_path: Path) -> None:
    write_live_json(tmp_path / "costs", {0: 0.001, 1: 0.1, 2: 0.001})
    reader = Costs(tmp_path / "costs")
    assert reader.share(4) == 0.1
    assert reader.share(3) > 0.5


def test_what_is_written_later_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_json, "_READ_SECONDS", 0.0)
    reader = Costs(tmp_path / "costs")
    write_live_json(tmp_path / "costs", {0: 0.1, 1: 0.001, 2: 0.001})
    assert reader.share(0) < 0.2
    write_live_json(tmp_path / "costs", {0: 0.001, 1: 0.001, 2: 0.001})
    assert reader.share(0) > 0.4


@given(st.one_of(st.binary(max_size=40), st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
).map(lambda value: json.dumps(value).encode())))
def test_any_file_is_read_or_ignored(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("costs") / "costs"
    path.write_bytes(data)
    assert 0 < Costs(path).share(3) <= 1.0
