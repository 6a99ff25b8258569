"""Recall: found is what the kernel with the bug shows, and the fixed one does not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chamber.assess import recall
from chamber.assess.recall import Search, measure_recall
from chamber.assess.truth import read_truth
from chamber.attacks.catalogue import catalogue
from chamber.cli.main import run
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.observation import Harm, Observation, TargetError
from tests.assess.fakes import SERVED, FakeTarget, harmed
from tests.assess.test_truth import ROW

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from chamber.lab.kernel.edits import Edit

ATTACK, OTHER = "blk-used-id-size", "blk-used-id-repeated"
_FIRST = Search()


@dataclass(frozen=True)
class Built:
    """A kernel that was not built."""

    binary: Path


class Kernels:
    """Kernels that need no building: each is a behaviour under attack."""

    def __init__(self, fixed: dict[str, Observation], vulnerable: dict[str, Observation] | TargetError) -> None:
        self.behaviours: dict[str, dict[str, Observation] | TargetError] = {"fixed": fixed, "vulnerable": vulnerable}
        self.built: list[str] = []
        self.removed: list[str] = []
        self.attacked: list[str] = []
        self.smp: list[bool] = []
        self.targets: list[FakeTarget] = []
        self.later: dict[str, dict[str, Observation]] = {}

    def build(self, _source: object, options: KernelOptions, edits: Sequence[Edit] = (), **_more: object) -> Built:
        name = "vulnerable" if edits else "fixed"
        self.built.append(name)
        self.smp.append(options.smp)
        behaviour = self.behaviours[name]
        if isinstance(behaviour, TargetError):
            raise behaviour
        return Built(Path(name))

    def target(self, binary: Path) -> FakeTarget:
        behaviour = self.behaviours[binary.name]
        if binary.name in self.attacked:
            behaviour = self.later.get(binary.name, behaviour)
        self.attacked.append(binary.name)
        assert isinstance(behaviour, dict)
        self.targets.append(FakeTarget("uml", behaviour))
        return self.targets[-1]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recall, "find_source", lambda name: name)
        monkeypatch.setattr(recall, "build_kernel", self.build)
        monkeypatch.setattr(recall, "remove_built", lambda _kernel: self.removed.append("vulnerable"))
        monkeypatch.setattr(recall, "UmlTarget", self.target)


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels, text: str = ROW,
             search: Search = _FIRST) -> recall.Recall:
    kernels.install(monkeypatch)
    path = tmp_path / "truth.toml"
    path.write_text(text, encoding="utf-8")
    specs = [spec for spec in catalogue() if spec.name in {ATTACK, OTHER}]
    return measure_recall(read_truth(path), KernelOptions(), specs, search, tell=lambda _line: None,
                          on_row=lambda _row: None)


BROKEN = harmed(Harm.MEMORY, signature="KASAN: f")


def test_what_only_the_bug_shows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    result = measured(tmp_path, monkeypatch, kernels)
    (row,) = result.rows
    assert (row.found, row.attacks, row.signature) == (True, (ATTACK,), "KASAN: f")
    assert result.alarms == ()
    assert kernels.removed == ["vulnerable"]


def test_what_does_not_show_again_is_neither_find_nor_false_alarm(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = {ATTACK: SERVED, OTHER: SERVED}
    kernels = Kernels({ATTACK: SERVED, OTHER: BROKEN}, {ATTACK: BROKEN, OTHER: SERVED})
    kernels.later = {"fixed": quiet, "vulnerable": quiet}
    text = ROW + '[[open]]\ndriver = "blk"\nsignature = "nothing"\nreason = "x"\n'
    result = measured(tmp_path, monkeypatch, kernels, text)
    assert not result.rows[0].found
    assert result.alarms == ()
    assert [(alarm.attack, alarm.signature) for alarm in result.unrepeated] == [(OTHER, "KASAN: f")]


def test_a_find_that_does_not_show_again_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    kernels.later = {"vulnerable": {ATTACK: SERVED, OTHER: SERVED}}
    (row,) = measured(tmp_path, monkeypatch, kernels).rows
    assert not row.found
    assert row.reason == "1 of 2 attacks showed something, and none of them the same again"
    assert kernels.removed == ["vulnerable"]


def attacks_on_vulnerable(kernels: Kernels) -> list[list[str]]:
    return [[scenario.attack.name for scenario in target.ran if scenario.attack is not None]
            for target, name in zip(kernels.targets, kernels.attacked, strict=True) if name == "vulnerable"]


def test_a_bug_is_looked_for_until_it_shows_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: BROKEN})
    (row,) = measured(tmp_path, monkeypatch, kernels).rows
    first, again = attacks_on_vulnerable(kernels)
    assert len(first) == 1
    assert tuple(first) == tuple(again) == row.attacks


def test_what_does_not_show_twice_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    kernels.later = {"vulnerable": {ATTACK: SERVED, OTHER: BROKEN}}
    (row,) = measured(tmp_path, monkeypatch, kernels, search=Search(first={"one": (ATTACK,)})).rows
    assert attacks_on_vulnerable(kernels) == [[ATTACK], [ATTACK], [OTHER], [OTHER]]
    assert row.attacks == (OTHER,)


def test_all_attacks_are_run_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: BROKEN})
    (row,) = measured(tmp_path, monkeypatch, kernels, search=Search(every=True)).rows
    assert set(row.attacks) == {ATTACK, OTHER}


def test_what_showed_a_bug_earlier_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "truth.toml", tmp_path / "recall.json"
    path.write_text(ROW, encoding="utf-8")
    command = ("bench", "recall", "--truth", str(path), "--attack", ATTACK, "--attack", OTHER)
    for behaviour, name in (({ATTACK: BROKEN, OTHER: SERVED}, ATTACK), ({ATTACK: SERVED, OTHER: BROKEN}, OTHER)):
        Kernels({ATTACK: SERVED, OTHER: SERVED}, behaviour).install(monkeypatch)
        assert run((*command, "--json", str(out))) == 0
        kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: BROKEN})
        kernels.install(monkeypatch)
        assert run((*command, "--earlier", str(out))) == 0
        assert attacks_on_vulnerable(kernels)[0] == [name]


def test_a_file_that_is_no_earlier_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    for text in ("", "[]", "{}", '{"rows": [7]}', "\0"):
        path.write_text(text, encoding="utf-8")
        assert run(("bench", "recall", "--earlier", str(path))) == 2
        error = capsys.readouterr().err
        assert "is not what --json writes" in error
        assert len(error.splitlines()) == 1


def test_a_row_may_ask_for_two_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    measured(tmp_path, monkeypatch, kernels, ROW + "smp = true\n")
    assert set(kernels.smp) == {True}
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    measured(tmp_path, monkeypatch, kernels)
    assert set(kernels.smp) == {False}


def test_what_both_kernels_show_is_a_false_alarm_and_no_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: BROKEN, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: BROKEN})
    result = measured(tmp_path, monkeypatch, kernels)
    assert not result.rows[0].found
    assert "none of 2 attacks" in result.rows[0].reason
    assert [(alarm.attack, alarm.signature) for alarm in result.alarms] == [(ATTACK, "KASAN: f")]


def test_a_bug_that_the_file_calls_open_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: BROKEN, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    text = ROW + '[[open]]\ndriver = "blk"\nsignature = "KASAN: f"\nreason = "not fixed"\n'
    assert measured(tmp_path, monkeypatch, kernels, text).alarms == ()


def test_what_follows_on_corrupt_memory_of_the_fixed_kernel_is_no_find(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    worse = replace(BROKEN, evidence=[*BROKEN.evidence, *harmed(Harm.DENIAL, signature="null pointer: g").evidence])
    kernels = Kernels({ATTACK: BROKEN, OTHER: SERVED}, {ATTACK: worse, OTHER: SERVED})
    text = ROW + 'expected = ["broken", "denied"]\n'
    assert not measured(tmp_path, monkeypatch, kernels, text).rows[0].found


def test_what_the_file_calls_open_is_no_find_where_the_fixed_kernel_did_not_show_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    text = ROW + f'[[open]]\ndriver = "blk"\nattack = "{ATTACK}"\nreason = "not fixed"\n'
    (row,) = measured(tmp_path, monkeypatch, kernels, text).rows
    assert not row.found
    assert row.reason == ("none of 2 attacks showed anything that the fixed kernel does not; "
                          "what 1 showed is called open")


def test_an_attack_that_the_file_calls_open_is_no_alarm_whatever_it_shows(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: BROKEN, OTHER: BROKEN}, {ATTACK: BROKEN, OTHER: BROKEN})
    text = ROW + f'[[open]]\ndriver = "blk"\nattack = "{ATTACK}"\nreason = "not fixed"\n'
    assert [alarm.attack for alarm in measured(tmp_path, monkeypatch, kernels, text).alarms] == [OTHER]


def test_a_denial_is_no_find_where_a_broken_guest_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: harmed(Harm.DENIAL), OTHER: SERVED})
    assert not measured(tmp_path, monkeypatch, kernels).rows[0].found


def test_a_bug_is_told_from_a_request_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug, silent, other = (harmed(Harm.DENIAL, signature=s) for s in ("BUG: f", "no answer: use", "no answer: read"))
    kernels = Kernels({ATTACK: silent, OTHER: silent}, {ATTACK: bug, OTHER: other})
    text = ROW + 'expected = ["denied"]\n'
    assert measured(tmp_path, monkeypatch, kernels, text).rows[0].attacks == (ATTACK,)


def test_a_guest_deceived_at_the_same_step_by_another_attack_is_a_find(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = harmed(Harm.WRONG_DATA, signature="wrong data taken: use: read")
    kernels = Kernels({ATTACK: SERVED, OTHER: wrong}, {ATTACK: wrong, OTHER: wrong})
    text = ROW + 'expected = ["deceived"]\n'
    assert measured(tmp_path, monkeypatch, kernels, text).rows[0].attacks == (ATTACK,)


def test_a_second_sign_of_harm_is_a_find_where_both_kernels_take_wrong_data(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = harmed(Harm.WRONG_DATA, signature="wrong data taken: use: read")
    warns = replace(wrong, evidence=[*wrong.evidence, *harmed(Harm.DENIAL, signature="WARNING f").evidence])
    text = ROW + 'expected = ["denied"]\n'
    (row,) = measured(tmp_path, monkeypatch, Kernels({ATTACK: wrong, OTHER: SERVED}, {ATTACK: warns, OTHER: SERVED}),
                      text).rows
    assert (row.attacks, row.signature) == ((ATTACK,), "WARNING f")
    assert not measured(tmp_path, monkeypatch, Kernels({ATTACK: warns, OTHER: SERVED}, {ATTACK: warns, OTHER: SERVED}),
                        text).rows[0].found


def test_a_pattern_chooses_attacks_and_one_that_fits_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    Kernels({ATTACK: SERVED}, {ATTACK: BROKEN}).install(monkeypatch)
    path = tmp_path / "truth.toml"
    path.write_text(ROW, encoding="utf-8")
    assert run(("bench", "recall", "--truth", str(path), "--attack", "blk-used-id-si?e")) == 0
    assert "(1 attacks, blk-used-id-size)" in capsys.readouterr().out
    assert run(("bench", "recall", "--truth", str(path), "--attack", "blq-*")) == 2
    assert "no attack has a name like blq-*" in capsys.readouterr().err


def test_a_kernel_that_cannot_be_built_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, TargetError("undo-one does not apply"))
    assert measured(tmp_path, monkeypatch, kernels).rows[0].reason == "undo-one does not apply"


def test_a_fixed_kernel_is_attacked_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED})
    second = ROW.partition("[[bug]]")[2].replace('"one"', '"two"')
    assert len(measured(tmp_path, monkeypatch, kernels, ROW + "[[bug]]" + second).rows) == 2
    # Each find is looked at once more on both; a kernel that was built is there.
    assert kernels.built == ["fixed", "vulnerable", "fixed", "vulnerable", "fixed"]
    assert kernels.attacked == ["fixed", "vulnerable", "vulnerable", "fixed", "vulnerable", "vulnerable", "fixed"]


def test_the_command_prints_and_writes_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    Kernels({ATTACK: SERVED, OTHER: SERVED}, {ATTACK: BROKEN, OTHER: SERVED}).install(monkeypatch)
    path, out = tmp_path / "truth.toml", tmp_path / "recall.json"
    path.write_text(ROW, encoding="utf-8")
    assert run(("bench", "recall", "--truth", str(path), "--json", str(out), "--attack", ATTACK,
                "--attack", OTHER)) == 0
    printed = capsys.readouterr().out
    assert "found   blk      one" in printed
    assert "Found 1 of 1 bugs, 1 of 1 that could be brought back; 0 false alarms, 0 that did not come again." in printed
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["rows"][0]["attacks"] == [ATTACK]
    assert document["rows"][0]["driver"] == "blk"
