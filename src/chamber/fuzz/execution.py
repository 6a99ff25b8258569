"""What an execution of an input comes to, on whatever target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chamber.fuzz.lies import Program
    from chamber.fuzz.occasions import LearntOccasions
    from chamber.lab.observation import Evidence

__all__ = ("Execution", "Executor")


@dataclass(slots=True)
class Execution:
    """One execution.

    Attributes:
        use: what the guest did with the device, by name.
        evidence: what the oracles saw.
        strikes: the lies that were told, in words.
        told: which of the input's lies were told, and how often.
        transcript: one line per event, where asked for.
        console: what the kernel printed.

    """

    use: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    strikes: list[str] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)
    console: str = ""


class Executor(Protocol):
    """Executes inputs on a target, one after the other.

    Attributes:
        hurried: a guest that takes long is taken for one that hangs sooner, and now and then wrongly.
        occasions: what came up to lie about.

    """

    hurried: bool
    occasions: LearntOccasions

    @property
    def edges(self) -> memoryview:
        """How often each edge of the code under test was taken by the last execution: `chamber.lab.kernel.coverage`."""
        ...

    def taken(self) -> int:
        """Return which edges were taken by any execution so far: a byte for each, zero or not, all as one number."""
        ...

    @property
    def pid(self) -> int:
        """The process that executes: what to kill if it never ends."""
        ...

    @property
    def executions(self) -> int:
        """Inputs that the guest of the last execution has executed, that one included."""
        ...

    @property
    def boots(self) -> int:
        """Guests started."""
        ...

    @property
    def release(self) -> str:
        """What the guest's kernel says that it is; '' for one that has no such name."""
        ...

    @property
    def uses(self) -> tuple[str, ...]:
        """What the guest can do with the device, by the number that an input names."""
        ...

    def run(self, program: Program) -> Execution:
        """Execute an input.

        Raises:
            TargetError: the target can't be had.

        """
        ...

    def restart(self) -> None:
        """Have the next execution begin with a fresh guest."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
