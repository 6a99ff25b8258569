"""The verdict rule, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chamber.assess.verdict import FAILURES, Verdict, judge
from chamber.lab.observation import Evidence, Harm, Observation

from .fakes import REFUSED, SERVED, harmed

V = Verdict
HUNG = Observation(strikes=["did it"], transcript=["0.1 began", "0.2 waits"])


@pytest.mark.parametrize(("observation", "verdict", "signature", "note"), [
    (REFUSED, V.HELD, "", "refused: read: used id 9 of 8"),
    (SERVED, V.HELD, "", "survived with the right data"),
    (harmed(Harm.MEMORY), V.BROKEN, "memory in f", ""),
    (harmed(Harm.LEAK), V.LEAKED, "leak in f", ""),
    (harmed(Harm.WRONG_DATA), V.DECEIVED, "wrong_data in f", ""),
    (harmed(Harm.DENIAL), V.DENIED, "denial in f", ""),
    (HUNG, V.DENIED, "hang", ""),
    (replace(SERVED, strikes=[]), V.INCONCLUSIVE, "", "the attack did not get to act"),
    (replace(SERVED, failure="no boot"), V.INCONCLUSIVE, "", "the harness failed: no boot"),
    (replace(SERVED, served=False), V.INCONCLUSIVE, "", "neither got its data nor refused"),
])
def test_rule(observation: Observation, verdict: Verdict, signature: str, note: str) -> None:
    judged = judge(observation, SERVED)
    assert (judged.verdict, judged.signature) == (verdict, signature)
    assert note in judged.note


@pytest.mark.parametrize(("harms", "verdict"), [
    ((Harm.DENIAL, Harm.WRONG_DATA, Harm.LEAK, Harm.MEMORY), V.BROKEN),
    ((Harm.DENIAL, Harm.WRONG_DATA, Harm.LEAK), V.LEAKED),
    ((Harm.DENIAL, Harm.WRONG_DATA), V.DECEIVED),
])
def test_worst_harm_decides_and_all_evidence_is_kept(harms: tuple[Harm, ...], verdict: Verdict) -> None:
    judged = judge(harmed(*harms), SERVED)
    assert judged.verdict is verdict
    assert judged.signature == f"{harms[-1].name.lower()} in f"
    assert judged.evidence.startswith(judged.signature)
    assert all(f"saw {harm.value}" in judged.evidence for harm in harms)


@pytest.mark.parametrize(("baseline", "why"), [
    (None, "was not run"),
    (Observation(failure="no boot"), "could not be run: no boot"),
    (Observation(completed=True), "was not served"),
    (Observation(completed=True, refusals=["open: EIO"]), "was not served: open: EIO"),
    (replace(harmed(Harm.DENIAL), served=True), "shows harm as well: denial in f"),
])
@pytest.mark.parametrize("observation", [SERVED, REFUSED, HUNG, harmed(Harm.MEMORY)])
def test_nothing_is_said_beside_a_bad_baseline(
        observation: Observation, baseline: Observation | None, why: str) -> None:
    judged = judge(observation, baseline)
    assert judged.verdict is V.INCONCLUSIVE
    assert why in judged.note
    assert not judged.signature


def test_a_kernel_that_complains_of_an_honest_device_is_not_held_against_an_attack() -> None:
    complaint = Evidence(Harm.DENIAL, "WARNING: f", "saw it", complaint=True)
    baseline = replace(SERVED, evidence=[complaint])
    assert judge(replace(SERVED, evidence=[complaint]), baseline).verdict is V.HELD
    later = replace(complaint, signature="afterwards: WARNING: f")
    assert judge(replace(SERVED, evidence=[complaint, later]), baseline).verdict is V.HELD
    assert judge(replace(SERVED, evidence=[complaint]), SERVED).verdict is V.DENIED
    judged = judge(replace(SERVED, evidence=[complaint, Evidence(Harm.MEMORY, "memory in f", "saw")]), baseline)
    assert (judged.verdict, judged.signature, judged.note) == (V.BROKEN, "memory in f", "")
    assert judge(SERVED, replace(baseline, served=False)).verdict is V.INCONCLUSIVE


def test_what_a_failed_run_showed_is_not_lost() -> None:
    judged = judge(replace(harmed(Harm.MEMORY), failure="agent died"), SERVED)
    assert judged.verdict is V.INCONCLUSIVE
    assert "memory in f" in judged.note


def test_failures_and_findings() -> None:
    assert FAILURES == (V.BROKEN, V.LEAKED, V.DECEIVED)
    assert [v for v in V if v.is_finding] == [V.BROKEN, V.LEAKED, V.DECEIVED, V.DENIED]
