"""Commands on a guest that does as it is told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from chamber.cli import targets
from chamber.cli.main import run
from chamber.lab.observation import Harm, Observation, TargetError
from tests.assess.fakes import HOSTILE, REFUSED, SERVED, FakeTarget, ReversedTarget, harmed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chamber.device.capture import CaptureFile
    from chamber.guest.policy import Policy
    from chamber.lab.observation import Scenario, Target

BROKEN, BROKEN_TOO, DENIED, HOSTILE_ONE, HELD = (
    "blk-used-id-size", "blk-used-id-repeated", "net-config-mtu-zero", "console-port-name-beyond", "rng-zeroes")
NAMES = (BROKEN, BROKEN_TOO, DENIED, HOSTILE_ONE, HELD)


@dataclass
class Bench:
    """What the commands find instead of real targets."""

    behaviour: dict[str, Observation]
    out: Path
    capsys: pytest.CaptureFixture[str]
    before: Callable[[Scenario], None] = lambda _scenario: None
    missing: dict[str, str] = field(default_factory=dict)
    made: list[FakeTarget] = field(default_factory=list)
    kernels: list[Path | None] = field(default_factory=list)
    policies: list[Policy | None] = field(default_factory=list)

    def make_target(self, kind: str, kernel: Path | None = None, capture: CaptureFile | None = None,
                    policy: Policy | None = None) -> Target:
        self.policies.append(policy)
        assert capture is None
        if kind in self.missing:
            raise TargetError(self.missing[kind])
        make = ReversedTarget if kind == "uml" else FakeTarget
        target = make(kind, self.behaviour, before=self.before)
        if kind == "uml":
            target.profiles = (None,)  # type: ignore[assignment]
        self.made.append(target)
        self.kernels.append(kernel)
        return target

    def chamber(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; return status, output and errors."""
        status = run(arguments)
        captured = self.capsys.readouterr()
        assert all(target.closed for target in self.made)
        return status, captured.out, captured.err

    def assess(self, *arguments: str, names: tuple[str, ...] = NAMES) -> tuple[int, str, str]:
        """Run ``chamber assess`` on some attacks."""
        chosen = [word for name in names for word in ("--attack", name)]
        return self.chamber("assess", "--jobs", "1", "--out", str(self.out), *chosen, *arguments)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    behaviour: dict[str, Observation] = defaultdict(lambda: SERVED)
    behaviour.update({
        BROKEN: harmed(Harm.MEMORY), BROKEN_TOO: harmed(Harm.MEMORY), DENIED: harmed(Harm.DENIAL),
        HOSTILE_ONE: harmed(Harm.LEAK, signature=HOSTILE), HELD: REFUSED})
    made = Bench(behaviour, tmp_path / "out", capsys)
    monkeypatch.setattr(targets, "make_target", made.make_target)
    return made
