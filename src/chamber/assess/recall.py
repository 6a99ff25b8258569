"""How many known bugs are found: each is brought back into a kernel, which is attacked beside the fixed one."""

from __future__ import annotations

import random
import re
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from chamber.assess.engine import Enough, Outcome, run_plan
from chamber.assess.plan import make_plan
from chamber.assess.verdict import Verdict
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.source import find_source
from chamber.lab.kernel.store import remove_built
from chamber.lab.observation import TargetError
from chamber.lab.uml import UmlTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from chamber.assess.result import Result, Sign
    from chamber.assess.truth import KnownBug, OpenBug, Truth
    from chamber.attacks.attack import AttackSpec
    from chamber.lab.kernel.config import KernelOptions
    from chamber.lab.kernel.edits import Edit
    from chamber.lab.kernel.store import BuiltKernel
    from chamber.wire.virtio import DeviceType

__all__ = ("Alarm", "Recall", "Row", "Search", "measure_recall")

_UNPLACED: Final = frozenset({Verdict.DECEIVED, Verdict.LEAKED})
"""Whose signatures name no place in a kernel."""
_ALARMING: Final = frozenset({Verdict.BROKEN, Verdict.LEAKED})
_KIND: Final = UmlTarget.kind
_CONFIRMED: Final = 8
"""So many of the attacks that show a bug are run again on both kernels; one that shows it again will do."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one bug.

    Attributes:
        bug: the bug.
        brought_back: whether a kernel with it was built, and could be attacked.
        attacks: those that showed it; only the first ones, unless all were asked for.
        signature: what the first of them showed.
        reason: why it was not found, in words.
        seconds: to build the kernel and to attack it.

    """

    bug: KnownBug
    brought_back: bool
    attacks: tuple[str, ...]
    signature: str
    reason: str
    seconds: float

    @property
    def found(self) -> bool:
        """Whether an attack showed it."""
        return bool(self.attacks)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A finding on a fixed kernel that no open bug explains, or an honest device that was not served there."""

    source: str
    device: DeviceType
    attack: str
    signature: str


@dataclass(frozen=True, slots=True)
class Recall:
    """All of it.

    Attributes:
        rows: what became of each bug.
        alarms: false ones, which came again when it was tried once more.
        unrepeated: those that did not come again.
        interrupted: whether it was cut short.

    """

    rows: tuple[Row, ...]
    alarms: tuple[Alarm, ...]
    unrepeated: tuple[Alarm, ...]
    interrupted: bool

    @property
    def found(self) -> int:
        """How many bugs were found."""
        return sum(row.found for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A kernel without any of the bugs, attacked for one device."""

    source: str
    device: DeviceType
    smp: bool


@dataclass(frozen=True, slots=True)
class Search:
    """How to look for bugs.

    Attributes:
        jobs: guests to attack, and files to compile, at once.
        every: run all attacks, also after one that shows the bug.
        first: of each bug, by its name, the attacks to begin with.

    """

    jobs: int = 1
    every: bool = False
    first: Mapping[str, Sequence[str]] = field(default_factory=dict)


class _Bench:
    """Builds kernels and attacks them; a fixed kernel once for each device."""

    def __init__(self, options: KernelOptions, attacks: Sequence[AttackSpec], known: Sequence[OpenBug], search: Search,
                 tell: Callable[[str], None]) -> None:
        self._options = options
        self._known = known
        self._attacks = attacks
        self._search = search
        self._tell = tell
        self._fixed: dict[_Fixed, Outcome] = {}

    def _build(self, fixed: _Fixed, *edits: Edit) -> BuiltKernel:
        return build_kernel(find_source(fixed.source), replace(self._options, smp=fixed.smp), edits,
                            jobs=self._search.jobs)

    def _attack(self, kernel: BuiltKernel, attacks: Sequence[AttackSpec],
                enough: Callable[[Result], bool] = lambda _result: False) -> Outcome:
        """Attack a kernel in this order, until a result is enough.

        Raises:
            KeyboardInterrupt: the run was cut short.

        """
        def look(result: Result | None) -> None:
            if result is not None and enough(result):
                raise Enough

        with closing(UmlTarget(kernel.binary)) as target:
            outcome = run_plan(make_plan(target, attacks), jobs=self._search.jobs, on_done=look)
        if outcome.interrupted:
            raise KeyboardInterrupt
        return outcome

    def _on(self, device: DeviceType, names: Collection[str] = ()) -> list[AttackSpec]:
        """Return what was asked for and is for one device, or these of them.

        Raises:
            TargetError: there is no such attack.

        """
        attacks = [spec for spec in self._attacks if spec.device is device and _KIND in spec.targets
                   and (not names or spec.name in names)]
        if not attacks:
            raise TargetError(f"no attack that was asked for is one on {device.short} of {_KIND}")
        return attacks

    def fixed(self, fixed: _Fixed) -> Outcome:
        """Attack a fixed kernel, or remember what came of it.

        Raises:
            TargetError: it can't be built, or not be attacked.

        """
        if fixed not in self._fixed:
            self._tell(f"{fixed.source}: {fixed.device.short}, all fixed")
            self._fixed[fixed] = self._attack(self._build(fixed), self._on(fixed.device))
        return self._fixed[fixed]

    def row(self, bug: KnownBug) -> Row:
        """Bring a bug back, and look for it."""
        begin = time.monotonic()
        where = _Fixed(bug.source, bug.device, bug.smp)
        try:
            fixed = self.fixed(where)
            self._tell(f"{bug.id}: {bug.subject}")
            kernel = self._build(where, bug.undo)
            try:
                results, hits, seen = self._look(bug, kernel, where, fixed)
            finally:
                remove_built(kernel)
        except TargetError as error:
            return Row(bug, False, (), "", str(error), time.monotonic() - begin)
        attacked = any(result.verdict is not Verdict.INCONCLUSIVE for result in results)
        reason = "" if hits else _why_missed(results, attacked=attacked, unrepeated=seen,
                                             known=len(_difference(results, fixed.results, bug.expected)) - seen)
        return Row(bug, attacked, tuple(name for name, _ in hits), hits[0][1] if hits else "", reason,
                   time.monotonic() - begin)

    def _look(self, bug: KnownBug, kernel: BuiltKernel, where: _Fixed,
              fixed: Outcome) -> tuple[list[Result], list[tuple[str, str]], int]:
        """Attack the kernel with the bug until it shows.

        Returns:
            What was run, what showed it twice, and how many attacks showed something once.

        """
        left = self._in_order(bug)
        results: list[Result] = []
        seen = 0
        while left:
            outcome = self._attack(kernel, left, lambda result: not self._search.every
                                   and bool(self._hits(bug, (result,), fixed.results)))
            results += outcome.results
            hits = self._hits(bug, outcome.results, fixed.results)
            seen += len(hits)
            if hits and (hits := self._confirmed(bug, kernel, where, hits)):
                return results, hits, seen
            done = {result.attack.name for result in outcome.results}
            left = [spec for spec in left if done and spec.name not in done]
        return results, [], seen

    def _in_order(self, bug: KnownBug) -> list[AttackSpec]:
        """Return all attacks on a device: first those to begin with, then at random, as neighbours do much the same."""
        attacks = self._on(bug.device)
        random.Random(bug.id).shuffle(attacks)  # noqa: S311 - no secret
        first = self._search.first.get(bug.id, ())
        return sorted(attacks, key=lambda spec: spec.name not in first)

    def _hits(self, bug: KnownBug, vulnerable: Sequence[Result], fixed: Sequence[Result]) -> list[tuple[str, str]]:
        # What is open shows in some runs and not in others: it is no find, whatever the fixed kernel showed this time.
        return [(attack, signature)
                for attack, signature in _difference(vulnerable, fixed, bug.expected)
                if not self._is_open(bug.device, attack, signature)]

    def _confirmed(self, bug: KnownBug, kernel: BuiltKernel, where: _Fixed,
                   hits: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return what both kernels show once more: a machine that was busy makes guests hang that never would."""
        names = {attack for attack, _ in hits[:_CONFIRMED]}
        attacks = self._on(bug.device, names)
        again = dict(self._hits(bug, self._attack(kernel, attacks).results,
                                self._attack(self._build(where), attacks).results))
        return [(attack, again[attack]) for attack, _ in hits if attack in again]

    def _is_open(self, device: DeviceType, attack: str, signature: str) -> bool:
        return any(bug.explains(device, attack, signature) for bug in self._known)

    def alarms(self) -> tuple[list[Alarm], list[Alarm]]:
        """Return what fixed kernels showed and nobody expects of them: what they show again, and what they do not."""
        repeated: list[Alarm] = []
        unrepeated: list[Alarm] = []
        for where, outcome in self._fixed.items():
            first = self._unexpected(where, outcome)
            if not first:
                continue
            # An honest device is run again beside every attack.
            names = {alarm.attack for alarm in first} & {result.attack.name for result in outcome.results}
            again = self._unexpected(where, self._attack(self._build(where), self._on(where.device, names)))
            for alarm in first:
                (repeated if any(alarm.attack == other.attack for other in again) else unrepeated).append(alarm)
        return repeated, unrepeated

    def _unexpected(self, where: _Fixed, outcome: Outcome) -> list[Alarm]:
        found = [Alarm(where.source, where.device, result.attack.name, sign.signature)
                 for result in outcome.results for sign in result.signs
                 if sign.verdict in _ALARMING and not self._is_open(where.device, result.attack.name, sign.signature)]
        return found + [Alarm(where.source, where.device, "an honest device", baseline.fault)
                        for baseline in outcome.baselines if baseline.fault]


def _difference(vulnerable: Sequence[Result], fixed: Sequence[Result],
                expected: frozenset[Verdict]) -> list[tuple[str, str]]:
    """Return attacks and signatures that the one kernel shows, as expected, and the other neither there nor elsewhere.

    Every sign of harm counts, not only the worst: both kernels may take wrong data, and one of them warn besides. An
    attack that both kernels deny service at shows something if they do it in another way: one drops a packet, the
    other stops at a BUG. What deceives a guest, or leaks, is told by the attack alone: the signature says no more than
    which step took wrong data, or that a secret was seen. An attack that breaks the fixed kernel shows nothing of the
    other: in memory that is corrupt anything may follow.
    """
    before = {result.attack.name: {_way(sign) for sign in result.signs} for result in fixed}
    shown = {sign.signature for result in fixed for sign in result.signs}
    hits: dict[str, str] = {}
    for result in vulnerable:
        if any(verdict is Verdict.BROKEN for verdict, _ in before.get(result.attack.name, ())):
            continue
        for sign in result.signs:
            if (sign.verdict in expected and _way(sign) not in before.get(result.attack.name, ())
                    and (sign.verdict in _UNPLACED or sign.signature not in shown)):
                hits.setdefault(result.attack.name, sign.signature)
    return list(hits.items())


def _way(sign: Sign) -> tuple[Verdict, str]:
    """Return a verdict, and for a denial what the signature begins with: BUG, WARNING, lockup, no answer."""
    return sign.verdict, re.split(r"[ :]", sign.signature)[0] if sign.verdict is Verdict.DENIED else ""


def _why_missed(results: Sequence[Result], *, attacked: bool, unrepeated: int, known: int) -> str:
    if not attacked:
        return f"nothing could be run: {results[0].note}"
    of_them = f"of {len(results)} attacks showed"
    reason = (f"{unrepeated} {of_them} something, and none of them the same again" if unrepeated
              else f"none {of_them} anything that the fixed kernel does not")
    return f"{reason}; what {known} showed is called open" if known else reason


def measure_recall(truth: Truth, options: KernelOptions, attacks: Sequence[AttackSpec], search: Search, *,
                   tell: Callable[[str], None], on_row: Callable[[Row], None]) -> Recall:
    """Look for every bug of a file with these attacks; Ctrl-C ends it with what is done."""
    bench = _Bench(options, attacks, truth.open, search, tell)
    rows: list[Row] = []
    repeated: list[Alarm] = []
    unrepeated: list[Alarm] = []
    interrupted = False
    try:
        for bug in truth.bugs:
            rows.append(bench.row(bug))
            on_row(rows[-1])
        repeated, unrepeated = bench.alarms()
    except KeyboardInterrupt:
        interrupted = True
    return Recall(tuple(rows), tuple(repeated), tuple(unrepeated), interrupted)
