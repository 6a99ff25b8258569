"""From what was seen to what it means.

An attack runs beside an honest baseline: the same device, stimuli and protections, without the attack. The rule, in the
order in which it is applied:

==============  ========================================================================================
inconclusive    the baseline was not run, failed, was not served or showed harm of its own
                (a kernel that is served and complains is no such; what it says then is not held against an attack)
inconclusive    the harness could not run the scenario
inconclusive    the attack did not get to act, and no policy kept the device from being probed
broken          an oracle saw memory safety lost
leaked          an oracle saw bytes on the host's side that the guest never meant to share
deceived        an oracle saw the guest take wrong, stale or foreign data for genuine
denied          an oracle saw a hang, a BUG or WARN, a panic, or a device that stays unusable even with an honest host
denied          the stimuli did not end
held            the guest refused with a clean error, or survived with the right data
inconclusive    it did neither: nothing says that it held
==============  ========================================================================================

The worst harm that was seen decides. A host can always deny service, so ``denied`` is told apart and is no failure of
the guest's confidentiality or integrity.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import Harm

if TYPE_CHECKING:
    from chamber.lab.observation import Evidence, Observation

__all__ = ("FAILURES", "Judgement", "Verdict", "baseline_complaints", "baseline_fault", "judge", "own_evidence",
           "verdict_of")


class Verdict(enum.Enum):
    """What an attack came to."""

    HELD = "held"
    BROKEN = "broken"
    LEAKED = "leaked"
    DECEIVED = "deceived"
    DENIED = "denied"
    INCONCLUSIVE = "inconclusive"

    @property
    def is_finding(self) -> bool:
        """Whether it is reported with evidence."""
        return self not in {Verdict.HELD, Verdict.INCONCLUSIVE}


FAILURES: Final = (Verdict.BROKEN, Verdict.LEAKED, Verdict.DECEIVED)
"""Verdicts that say that the guest lost what it protects, worst first."""

_OF_HARM: Final = {
    Harm.MEMORY: Verdict.BROKEN,
    Harm.LEAK: Verdict.LEAKED,
    Harm.WRONG_DATA: Verdict.DECEIVED,
    Harm.DENIAL: Verdict.DENIED,
}
"""Worst first."""


def verdict_of(harm: Harm) -> Verdict:
    """What harm alone comes to."""
    return _OF_HARM[harm]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reasons.

    Attributes:
        verdict: what it came to.
        signature: what tells findings apart; empty unless the verdict is a finding.
        evidence: what was seen, the deciding evidence first.
        note: one line: how it held, or why nothing can be said.

    """

    verdict: Verdict
    signature: str = ""
    evidence: str = ""
    note: str = ""


def baseline_fault(baseline: Observation | None) -> str:
    """Say why a baseline proves nothing about an attack run beside it; empty if it does."""
    if baseline is None:
        return "its honest baseline was not run"
    if baseline.failure:
        return f"its honest baseline could not be run: {baseline.failure}"
    harm = [e for e in baseline.evidence if not e.complaint]
    if harm:
        return f"its honest baseline shows harm as well: {harm[0].signature}"
    if not baseline.served and not baseline.unprobed:
        return "its honest baseline was not served" + "".join(f": {r}" for r in baseline.refusals[:1])
    return ""


def baseline_complaints(baseline: Observation | None) -> tuple[str, ...]:
    """What a kernel complains of with an honest device, and goes on."""
    return () if baseline is None else tuple(e.signature for e in baseline.evidence if e.complaint)


def own_evidence(observation: Observation, baseline: Observation | None) -> list[Evidence]:
    """What oracles saw of an attack, and not of an honest device."""
    known = baseline_complaints(baseline)
    return [e for e in observation.evidence if e.signature.removeprefix("afterwards: ") not in known]


def judge(observation: Observation, baseline: Observation | None) -> Judgement:
    """Judge one attack by what was seen of it and of its baseline, by the rule in this module's description."""
    evidence = own_evidence(observation, baseline)
    seen = "; ".join(e.signature for e in evidence)
    reason = baseline_fault(baseline)
    if not reason and observation.failure:
        reason = f"the harness failed: {observation.failure}"
    if not reason and not observation.strikes and not observation.unprobed:
        reason = "the attack did not get to act"
    if reason:
        return Judgement(Verdict.INCONCLUSIVE, note=f"{reason} (seen nevertheless: {seen})" if seen else reason)
    for harm, verdict in _OF_HARM.items():
        deciding = [e for e in evidence if e.harm is harm]
        if deciding:
            others = [e for e in evidence if e.harm is not harm]
            return Judgement(verdict, deciding[0].signature,
                             "\n\n".join(f"{e.signature}\n{e.text}" for e in deciding + others),
                             note=f"{len(evidence)} signs of harm" if others or deciding[1:] else "")
    if not observation.completed:
        last = observation.transcript[-1] if observation.transcript else "nothing"
        return Judgement(Verdict.DENIED, "hang", f"the stimuli did not end; the last event was: {last}")
    if observation.refusals:
        return Judgement(Verdict.HELD, note=f"refused: {observation.refusals[0]}")
    if observation.served:
        return Judgement(Verdict.HELD, note="survived with the right data")
    return Judgement(Verdict.INCONCLUSIVE, note="the guest neither got its data nor refused, and no oracle saw harm")
