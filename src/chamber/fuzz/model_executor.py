"""Executes inputs on the model guest, and counts which lines of its drivers they reach."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import chamber.guest
from chamber.attacks.attack import Aim, AttackSpec, Surface
from chamber.device.catalogue import RINGS
from chamber.fuzz.execution import Execution
from chamber.fuzz.liar import Liar
from chamber.fuzz.occasions import LearntOccasions
from chamber.lab.kernel.coverage import EDGES
from chamber.lab.model import ModelTarget
from chamber.lab.model_stimuli import STIMULI
from chamber.lab.observation import Harm, Scenario

if TYPE_CHECKING:
    from types import FrameType

    from chamber.fuzz.lies import Program
    from chamber.lab.observation import Evidence
    from chamber.wire.virtio import DeviceType

__all__ = ("ModelExecutor",)

_GUEST: Final = str(Path(chamber.guest.__file__).parent) + os.sep
_TOO_QUIET: Final = ("no answer", "afterwards: device lost", "hang: ")
"""What a silent device comes to on any guest, the time-out of an honest one: nothing to report."""


class _Edges:
    """Counts which line of the guest follows which."""

    def __init__(self) -> None:
        self.counts = bytearray(EDGES)
        self._files: dict[str, int] = {}
        self._before = 0

    def clear(self) -> None:
        self.counts[:] = bytes(EDGES)
        self._before = 0

    def called(self, frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401 - sys.settrace's type
        """Follow calls into the guest's code, and nothing else's."""
        name = frame.f_code.co_filename
        base = self._files.get(name)
        if base is None:
            base = zlib.crc32(name[len(_GUEST):].encode()) if name.startswith(_GUEST) else 0
            self._files[name] = base
        if not base:
            return None
        return self.line(frame, event, _argument)

    def line(self, frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401 - as above
        """Count."""
        place = (self._files[frame.f_code.co_filename] + frame.f_lineno * 0x9E3779B1) & 0xFFFF_FFFF
        at = (place >> 8 ^ self._before) % EDGES
        if self.counts[at] != 0xFF:
            self.counts[at] += 1
        self._before = place >> 9
        return self.line


class ModelExecutor:
    """Executes inputs for one type of device, each on a guest of its own: where they begin makes no difference.

    Args:
        device: the type.
        profile: the guest's protections.
        trace: keep a transcript of each execution.

    Attributes:
        release: nothing: the model is as old as this program.
        uses: what the guest can do with the device, by the number that an input names.
        boots: guests started.
        executions: always 1: every guest is fresh.
        occasions: what came up to lie about.

    """

    def __init__(self, device: DeviceType, profile: str = "hardened", *, trace: bool = False) -> None:
        self.boots = 0
        self.executions = 1
        self.release = ""
        self.occasions = LearntOccasions()
        self._type = device
        self._profile = profile
        self._trace = trace
        self.hurried = False
        self._target = ModelTarget()
        self._edges = _Edges()
        self._taken = 0
        self.uses = (*STIMULI[device], "rebind", "reset")

    @property
    def edges(self) -> memoryview:
        """What the last execution covered."""
        return memoryview(self._edges.counts)

    def taken(self) -> int:
        """Return which edges were taken by any execution so far, as `Executor` says."""
        return self._taken

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def run(self, program: Program) -> Execution:
        """Execute an input."""
        self.boots += 1
        number = program.use % len(self.uses)
        use = self.uses[number]
        occasions = self.occasions.look(program.start, number)
        liar = Liar(program.lies, occasions)
        spec = AttackSpec(f"{self._type.short}-fuzz", self._type, Surface.PAYLOAD, Aim.MEMORY, "", "", lambda: liar)
        scenario = Scenario(self._type, (use,), spec, self._profile, 1, tuple(RINGS)[program.ring % len(RINGS)])
        self._edges.clear()
        before = sys.gettrace()
        sys.settrace(self._edges.called)
        try:
            observation = self._target.run(scenario)
        finally:
            sys.settrace(before)
            self._taken |= int.from_bytes(self._edges.counts, "little")
        if occasions is not None:
            self.occasions.add(program.start, number, occasions)
        evidence = [e for e in observation.evidence if not _usual(e)]
        return Execution(use, evidence, liar.strikes, dict(liar.told), observation.transcript if self._trace else [])

    def restart(self) -> None:
        """Every guest is fresh."""

    def close(self) -> None:
        """Nothing is held."""
        self._target.close()


def _usual(evidence: Evidence) -> bool:
    """Whether it is what any lying device can have: silence, and other content than there was."""
    return evidence.harm is Harm.WRONG_DATA or evidence.signature.startswith(_TOO_QUIET)
