"""What an assessment found: results, baselines, and results that are one finding."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.assess.printable import printable
from chamber.assess.verdict import (
    Verdict,
    baseline_complaints,
    baseline_fault,
    judge,
    own_evidence,
    verdict_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chamber.assess.verdict import Judgement
    from chamber.attacks.attack import AttackSpec
    from chamber.lab.observation import Evidence, Observation, Scenario

__all__ = ("SEVERITY", "Baseline", "Finding", "Report", "Result", "Sign", "column_name", "count", "group",
           "make_baseline", "make_result", "replay_line", "scenario_name")

SEVERITY: Final = (Verdict.BROKEN, Verdict.LEAKED, Verdict.DECEIVED, Verdict.DENIED, Verdict.INCONCLUSIVE, Verdict.HELD)
"""Verdicts, worst first, in the order in which they are reported."""

_EVIDENCE_LIMIT: Final = 16_000
_CONSOLE_LIMIT: Final = 200_000
_LINE_LIMIT: Final = 1_000


def scenario_name(target: str, attack: str, profile: str | None) -> str:
    """Name one attack on one target, as ``chamber replay`` takes it: ``target:attack[:profile]``."""
    return ":".join(filter(None, (target, attack, profile)))


def replay_line(target: str, attack: str, profile: str | None, seed: int, options: tuple[str, ...] = ()) -> str:
    """The command that runs one scenario again."""
    return shlex.join(["chamber", "replay", scenario_name(target, attack, profile), "--seed", str(seed), *options])


def column_name(target: str, profile: str | None) -> str:
    """Head of a matrix column: one target, with one set of protections if it has a choice of them."""
    return f"{target} {profile}" if profile else target


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of harm: what it alone comes to, and what tells it from others."""

    verdict: Verdict
    signature: str


@dataclass(frozen=True, slots=True)
class Result:
    """One attack on one target, judged. Every string in it is fit to be shown.

    Attributes:
        target: kind of target.
        attack: the entry of the catalogue.
        profile: the target's set of protections, or None.
        seed: what every random choice came from.
        verdict: what it came to.
        signature: tells findings apart; empty for what is none.
        signs: all signs of harm, where the verdict is a finding.
        evidence: what the oracles saw.
        note: how it held, or why nothing can be said.
        strikes: what the attack did.
        refusals: what the guest turned down.
        transcript: one line per event; kept for findings only, as is `console`.
        console: what the guest's kernel printed.
        seconds: wall time.
        replay: the command that runs it again.

    """

    target: str
    attack: AttackSpec
    profile: str | None
    seed: int
    verdict: Verdict
    signature: str
    signs: tuple[Sign, ...]
    evidence: str
    note: str
    strikes: tuple[str, ...]
    refusals: tuple[str, ...]
    transcript: tuple[str, ...] = field(repr=False)
    console: str = field(repr=False)
    seconds: float
    replay: str

    @property
    def device(self) -> str:
        """Short name of the device type."""
        return self.attack.device.short

    @property
    def column(self) -> str:
        """The column of the matrix that it belongs to."""
        return column_name(self.target, self.profile)


@dataclass(frozen=True, slots=True)
class Baseline:
    """An honest run.

    Attributes:
        target: kind of target.
        device: short name of the device type.
        stimuli: what the guest did.
        profile: the target's set of protections, or None.
        seed: what every random choice came from.
        ring: the kind of queue.
        fault: why it proves nothing about the attacks beside it; empty when it was served.
        complaints: what the guest's kernel said nevertheless.
        seconds: wall time.

    """

    target: str
    device: str
    stimuli: tuple[str, ...]
    profile: str | None
    seed: int
    ring: str
    fault: str
    complaints: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Results that show the same thing: same target, profile, device, verdict and signature.

    Attributes:
        id: stable name of the finding: the same wherever and whenever it is found.
        results: all of them, in the order of the report.

    """

    id: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The one that stands for all."""
        return self.results[0]

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that show it, each once."""
        return tuple(dict.fromkeys(r.attack.name for r in self.results))

    @property
    def surfaces(self) -> tuple[str, ...]:
        """Surfaces that those attacks act on, each once."""
        return tuple(dict.fromkeys(r.attack.surface.value for r in self.results))


@dataclass(frozen=True, slots=True)
class Report:
    """A whole assessment.

    Attributes:
        version: of Chamber.
        seed: the first seed.
        started: when it began, ISO 8601.
        seconds: how long it took.
        interrupted: it was stopped before its end.
        targets: what each target says about itself.
        results: in the order of the plan.
        baselines: the honest runs.

    """

    version: str
    seed: int
    started: str
    seconds: float
    interrupted: bool
    targets: tuple[dict[str, object], ...]
    results: tuple[Result, ...]
    baselines: tuple[Baseline, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the matrix, in the order of the results."""
        return tuple(dict.fromkeys(r.column for r in self.results))


def make_result(scenario: Scenario, observation: Observation, baseline: Observation | None, *, target: str,
                options: tuple[str, ...] = ()) -> Result:
    """Judge an observation and clean what is kept of it.

    The host that was played is hostile and the guest may be taken over: no string of theirs goes further as it is.
    """
    spec = scenario.attack
    assert spec is not None
    judgement = judge(observation, baseline)
    keep = judgement.verdict.is_finding
    return Result(
        target, spec, scenario.profile, scenario.seed, judgement.verdict,
        _line(judgement.signature), _signs(own_evidence(observation, baseline), judgement) if keep else (),
        printable(judgement.evidence, _EVIDENCE_LIMIT), _line(judgement.note),
        tuple(printable(s, _LINE_LIMIT) for s in observation.strikes[:200]),
        tuple(printable(r, _LINE_LIMIT) for r in observation.refusals[:200]),
        tuple(printable(line, _LINE_LIMIT) for line in observation.transcript) if keep else (),
        printable(observation.console, _CONSOLE_LIMIT) if keep else "",
        observation.seconds, replay_line(target, spec.name, scenario.profile, scenario.seed, options))


def _signs(evidence: list[Evidence], judgement: Judgement) -> tuple[Sign, ...]:
    """List what oracles saw; stimuli that did not end are a sign as well."""
    seen = [Sign(verdict_of(e.harm), _line(e.signature)) for e in evidence]
    return tuple(dict.fromkeys(seen or [Sign(judgement.verdict, _line(judgement.signature))]))


def _line(text: str) -> str:
    return " ".join(printable(text, _LINE_LIMIT).split())


def make_baseline(scenario: Scenario, observation: Observation, *, target: str) -> Baseline:
    """Keep what a report says of an honest run."""
    fault = _line(baseline_fault(observation))
    return Baseline(target, scenario.device.short, scenario.stimuli, scenario.profile, scenario.seed, scenario.ring,
                    fault, tuple(map(_line, baseline_complaints(observation))), observation.seconds)


def group(results: Iterable[Result]) -> tuple[Finding, ...]:
    """Put results that show the same thing together; worst first, else in the order of the results."""
    groups: dict[tuple[str, str | None, str, Verdict, str], list[Result]] = {}
    for result in results:
        if result.verdict.is_finding:
            key = (result.target, result.profile, result.device, result.verdict, result.signature)
            groups.setdefault(key, []).append(result)
    findings = [Finding(_identify(*key), tuple(members)) for key, members in groups.items()]
    return tuple(sorted(findings, key=lambda f: SEVERITY.index(f.first.verdict)))


def _identify(target: str, profile: str | None, device: str, verdict: Verdict, signature: str) -> str:
    digest = hashlib.sha256(signature.encode()).hexdigest()[:8]
    return "-".join(filter(None, (target, profile, device, verdict.value, digest)))


def count(results: Iterable[Result]) -> dict[Verdict, int]:
    """Count results by verdict; every verdict has an entry."""
    counts = dict.fromkeys(Verdict, 0)
    for result in results:
        counts[result.verdict] += 1
    return counts
