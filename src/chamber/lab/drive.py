"""Drives a foreign device with the model guest's driver, and says step by step what worked."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.bounce import PoolFull
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead, QueueFull
from chamber.lab.backend import BackendTransport, RealTimeMachine
from chamber.lab.drive_use import steps
from chamber.lab.model_stimuli import DRIVERS
from chamber.lab.model_use.right_data import WrongData
from chamber.link.frontend import BackendError
from chamber.platform.heap import MemoryViolation
from chamber.platform.scheduler import BudgetExhausted
from chamber.wire.balloon import BalloonFeature
from chamber.wire.blk import BlkFeature
from chamber.wire.console import ConsoleFeature
from chamber.wire.fs import CONFIG as FS_CONFIG
from chamber.wire.net import CONFIG as NET_CONFIG
from chamber.wire.net import NetFeature, NetStatus
from chamber.wire.vhost_user import ProtocolFeature
from chamber.wire.virtio import DeviceType, feature_names

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

    from chamber.guest.driver import VirtioDriver
    from chamber.guest.profile import Profile
    from chamber.link.frontend import Frontend

__all__ = ("Step", "drive", "own_config")

_FEATURES: Final[dict[DeviceType, type[enum.IntEnum]]] = {
    DeviceType.BALLOON: BalloonFeature, DeviceType.BLOCK: BlkFeature, DeviceType.CONSOLE: ConsoleFeature,
    DeviceType.NET: NetFeature}

_REFUSALS: Final = (DeviceViolation, Refused, DeviceTimeout, QueueDead, QueueFull, PoolFull, WrongData)
"""After these the next step may work."""
_ENDS: Final = (BackendError, MemoryViolation, BudgetExhausted,
                # What a driver without checks runs into.
                ArithmeticError, LookupError, MemoryError, TypeError, ValueError)
"""After these none does."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried.

    Attributes:
        name: what.
        worked: whether it did.
        detail: figures, or why it did not; parts of it are the back end's words.

    """

    name: str
    worked: bool
    detail: str


def own_config(kind: DeviceType, queues: int) -> bytes:
    """Configuration space for a back end that leaves it to its front end, as those of fs and net mostly do."""
    if kind is DeviceType.FS:
        return bytes(FS_CONFIG.pack(tag=b"chamber", num_request_queues=max(1, queues - 1)))
    if kind is DeviceType.NET:
        return bytes(NET_CONFIG.pack(mac=bytes.fromhex("52540063686d"), status=NetStatus.LINK_UP,
                                     max_virtqueue_pairs=1, mtu=1500))
    return b""


def drive(frontend: Frontend, kind: DeviceType, profile: Profile, tell: Callable[[Step], None], *,
          scratch: str | None = None) -> bool:
    """Probe a device, use it, give it back.

    Args:
        frontend: the connection; stays the caller's to close.
        kind: what is behind it.
        profile: which protections the driver has.
        tell: called after each step.
        scratch: where to write, if anywhere; see `chamber.lab.drive_use.steps`.

    Returns:
        Whether everything worked.

    Raises:
        ScratchError: `scratch` is no place to write to on such a device; nothing was done.

    """
    machine = RealTimeMachine(profile, 1)
    run = _Run(tell)
    try:
        run.step("negotiate", lambda: _negotiated(frontend))
        transport: list[BackendTransport] = []
        if not run.step("share memory", lambda: _share(machine, frontend, kind, transport)):
            return False
        driver = DRIVERS[kind](machine, transport[0])
        todo = steps(driver, scratch)
        try:
            if run.step("probe", lambda: _probed(driver)):
                for name, act in todo:
                    run.step(name, act)
                    if run.over:
                        break
        finally:
            with contextlib.suppress(*_REFUSALS, *_ENDS):
                todo.close()
            run.step("give back", driver.remove)
        return run.fine
    finally:
        machine.close()


class _Run:
    """Tells of steps, and remembers whether all of them worked and whether there can be more."""

    def __init__(self, tell: Callable[[Step], None]) -> None:
        self._tell = tell
        self.fine = True
        self.over = False

    def step(self, name: str, act: Callable[[], str | None]) -> bool:
        if self.over:
            return False
        try:
            done = Step(name, True, act() or "")
        except _REFUSALS as why:
            done = Step(name, False, str(why))
        except _ENDS as why:
            self.over = True
            done = Step(name, False, str(why) or repr(why))
        self.fine = self.fine and done.worked
        self._tell(done)
        return done.worked


def _negotiated(frontend: Frontend) -> str:
    return (f"protocol features {' '.join(feature_names(frontend.protocol_features, ProtocolFeature)) or 'none'}; "
            f"{frontend.queue_count} queues")


def _share(machine: RealTimeMachine, frontend: Frontend, kind: DeviceType, made: list[BackendTransport]) -> str:
    made.append(BackendTransport(machine, frontend, kind, config=own_config(kind, frontend.queue_count)))
    shared = machine.memory.shared_ranges()
    return f"{sum(size for _, size in shared):,} of {machine.memory.size:,} bytes"


def _probed(driver: VirtioDriver) -> str:
    driver.probe()
    space = _FEATURES.get(driver.type)
    return f"features {' '.join(feature_names(driver.features, *([] if space is None else [space])))}"
