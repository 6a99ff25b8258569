"""What shows a report is told from what others have as well, and then left out."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from chamber.fuzz import avoidance, mutator
from chamber.fuzz.avoidance import Avoidance, CommonTraits, kinds_of
from chamber.fuzz.lies import Change, Lie, Moment, Point, Program, Start

if TYPE_CHECKING:
    from pathlib import Path

_ANNOUNCE = Lie(Point.ACTION, offset=Moment.LATER, value=5)
_OTHERS = tuple(Lie(Point.RESPONSE, offset=8 * at, width=4, value=at) for at in range(8))


def _folders(tmp_path: Path) -> tuple[Path, Path]:
    findings, reports = tmp_path / "findings", tmp_path / "reports"
    findings.mkdir()
    reports.mkdir()
    return findings, reports


def test_what_a_lie_is_about() -> None:
    assert kinds_of(Lie(Point.CONFIG, offset=6, width=4)) == {(Point.CONFIG, at) for at in (6, 7, 8, 9)}
    filled = kinds_of(Lie(Point.CONFIG, offset=6, width=2, change=Change.FILL))
    assert {(Point.CONFIG, at) for at in (6, 7, 32)} <= filled
    assert (Point.CONFIG, 5) not in filled
    assert kinds_of(Lie(Point.FEATURES, offset=6, value=33)) == {(Point.FEATURES, 33)}
    assert kinds_of(Lie(Point.INTERRUPT, offset=Moment.TAKEN, value=1)) == {(Point.INTERRUPT, Moment.TAKEN)}
    assert kinds_of(_ANNOUNCE) != kinds_of(Lie(Point.ACTION, offset=Moment.LATER, value=6))


def test_what_inputs_have_in_common_is_avoided_for_that_use_alone(tmp_path: Path) -> None:
    findings, reports = _folders(tmp_path)
    told = CommonTraits(reports)
    dice = random.Random(1)
    for _ in range(8):
        told.showed("hang", Program(Start.SESSION, 3, 0, (*dice.sample(_OTHERS, 3), _ANNOUNCE)))
    avoided = Avoidance(findings, reports)
    assert avoided.shows(Program(Start.SESSION, 3, 0, (_OTHERS[0], _ANNOUNCE))) == kinds_of(_ANNOUNCE)
    assert not avoided.shows(Program(Start.SESSION, 4, 0, (_ANNOUNCE,)))
    assert not avoided.shows(Program(Start.SESSION, 3, 0, _OTHERS))


def test_two_reasons_are_kept_apart(tmp_path: Path) -> None:
    findings, reports = _folders(tmp_path)
    told = CommonTraits(reports)
    wrong = Lie(Point.CONFIG, offset=8, width=2)
    for number in range(6):
        told.showed("hang", Program(Start.SESSION, 3, 0, (_ANNOUNCE, _OTHERS[number])))
        told.showed("hang", Program(Start.PROBE, number, 0, (wrong,)))
    avoided = Avoidance(findings, reports)
    assert avoided.shows(Program(Start.SESSION, 3, 0, (_ANNOUNCE,)))
    assert avoided.shows(Program(Start.PROBE, 9, 0, (Lie(Point.CONFIG, offset=6, width=4),)))


def test_what_others_have_as_well_is_no_reason(tmp_path: Path) -> None:
    findings, reports = _folders(tmp_path)
    told = CommonTraits(reports)
    program = Program(Start.SESSION, 3, 0, (_OTHERS[0],))
    for _ in range(4):
        told.showed("leak", program)
        for _ in range(200):
            told.passed(program)
    assert not Avoidance(findings, reports).shows(program)


def test_processes_add_to_what_others_know(tmp_path: Path) -> None:
    findings, reports = _folders(tmp_path)
    for _ in range(3):
        CommonTraits(reports).showed("hang", Program(Start.SESSION, 3, 0, (_ANNOUNCE,)))
    assert Avoidance(findings, reports).shows(Program(Start.SESSION, 3, 0, (_ANNOUNCE,)))


def test_a_confirmed_finding_is_avoided_whatever_the_use(tmp_path: Path) -> None:
    findings, reports = _folders(tmp_path)
    for name, confirmed, lies in (("one", True, (_ANNOUNCE,)), ("other", False, (_OTHERS[0],)), ("none", True, ())):
        folder = findings / name
        folder.mkdir()
        (folder / "finding.json").write_text(json.dumps(
            {"confirmed": confirmed, "inputs": [Program(Start.SESSION, 0, 0, lies).build().hex()]}), encoding="utf-8")
    avoided = Avoidance(findings, reports)
    assert avoided.shows(Program(Start.SESSION, 7, 0, (_ANNOUNCE,))) == kinds_of(_ANNOUNCE)
    assert not avoided.shows(Program(Start.SESSION, 7, 0, _OTHERS))


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[[1]]", b"[[1, 2, [[1]]]]", b"[[1, 2, 3]]", b"3"])
def test_damaged_files_tell_nothing(tmp_path: Path, content: bytes) -> None:
    findings, reports = _folders(tmp_path)
    (reports / "x.traits").write_bytes(content)
    assert not Avoidance(findings, reports).shows(Program(Start.SESSION, 0, 0, (_ANNOUNCE,)))
    CommonTraits(reports).showed("x", Program(Start.SESSION, 0, 0, (_ANNOUNCE,)))
    assert list(avoidance._read_reasons(reports / "x.traits"))


def test_reasons_do_not_add_up(tmp_path: Path) -> None:
    _, reports = _folders(tmp_path)
    told = CommonTraits(reports)
    for at in range(100):
        told.showed("hang", Program(Start.SESSION, 0, 0, (Lie(Point.CONFIG, offset=8 * at, width=4),)))
    assert len(avoidance._read_reasons(reports / "hang.traits")) == avoidance._REASONS


def test_the_mutator_leaves_out_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings, reports = _folders(tmp_path)
    told = CommonTraits(reports)
    lie = Lie(Point.RESPONSE, offset=4, width=1, change=Change.XOR, value=1)
    for start in Start:
        for _ in range(3):
            told.showed("hang", Program(start, 3, 0, (lie,)))
    monkeypatch.setitem(os.environ, mutator.FINDINGS, str(findings))
    monkeypatch.setitem(os.environ, mutator.REPORTS, str(reports))
    monkeypatch.setattr(mutator, "_KNOWN", [])
    mutator.init(1)
    data = bytearray(Program(Start.SESSION, 3, 0, (lie,)).build())
    varied = [Program.parse(bytes(mutator.fuzz(data, None, 200))) for _ in range(300)]
    shown = sum((Point.RESPONSE, 4) in kinds_of(one) for program in varied if program.use == 3 for one in program.lies)
    assert shown <= 6
