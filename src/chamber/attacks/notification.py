"""Interrupts at the wrong time, in the wrong number, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.device.catalogue import TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.queue import DeviceQueue

__all__ = ("notification_attacks",)

_STORM: Final = 1500
_TICKS: Final = 120


def _interrupt_all(attack: Attack, count: int) -> None:
    started = [queue for queue in attack.device.queues if queue.started]
    for _ in range(count // max(len(started), 1) or 1):
        for queue in started:
            queue.interrupt()


class EarlyInterrupt(Attack):
    """Interrupts a queue as soon as it exists, with nothing in it."""

    def queue_started(self, queue: DeviceQueue) -> None:
        """Interrupt before DRIVER_OK."""
        self.strike(f"queue {queue.index}: 4 interrupts before the driver is ready")
        for _ in range(4):
            queue.interrupt()


class EarlyConfigInterrupt(Attack):
    """Says that configuration changed before the driver is ready."""

    def queue_started(self, queue: DeviceQueue) -> None:
        """Interrupt before DRIVER_OK."""
        self.strike(f"configuration interrupt at the start of queue {queue.index}")
        self.device.config_interrupt()


class Storm(Attack):
    """Interrupts all queues again and again with nothing in them."""

    def __init__(self) -> None:
        super().__init__()
        self._left = _STORM

    def notified(self, queue: DeviceQueue) -> None:
        """Interrupt many times at each notification, up to a bound for the run."""
        if self._left <= 0:
            return
        self._left -= 100
        self.strike(f"queue {queue.index} was notified: 100 interrupts, shared by all queues")
        _interrupt_all(self, 100)


class ConfigStorm(Attack):
    """Says that configuration changed, many times, and changes all of it each time."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = False
        self._left = 300

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - the hook's signature
        """Serve the honest bytes or their complement."""
        return bytearray(b ^ 0xFF for b in config) if self._changed else config

    def generation(self, generation: int) -> int:  # noqa: ARG002 - the hook's signature
        """Change with every interrupt."""
        return self._left & 0xFF

    def driver_ok(self) -> None:
        """Begin."""
        self._round()

    def _round(self) -> None:
        if self._left <= 0 or not any(queue.started for queue in self.device.queues):
            self._changed = False
            return
        self._left -= 10
        self._changed = not self._changed
        self.strike("10 configuration interrupts, all bytes of the configuration inverted")
        for _ in range(10):
            self.device.config_interrupt()
        self.device.schedule(0.01, self._round)


class WrongQueue(Attack):
    """Interrupts every queue but the one that has something."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 40

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:
        """Interrupt the others; the right one, too, but later, so that the guest gets on."""
        if self._left <= 0:
            return wanted
        self._left -= 1
        self.strike(f"queue {queue.index} has something: the others are interrupted")
        for other in self.device.queues:
            if other is not queue:
                other.interrupt()
        self.device.schedule(0.005, queue.interrupt)
        return False


class NoInterrupt(Attack):
    """Never interrupts."""

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:
        """Stay silent."""
        if wanted:
            self.strike(f"queue {queue.index}: no interrupt although the driver wants it")
        return False


class RemovalInterrupt(Attack):
    """Interrupts while the driver takes its queues back, with nothing in them."""

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Interrupt the queue and say that configuration changed."""
        self.strike(f"queue {queue.index} is being stopped: interrupts and a configuration interrupt")
        _interrupt_all(self, 4)
        self.device.config_interrupt()


class SteadyInterrupt(Attack):
    """Goes on interrupting at a steady rate, whatever the driver does, as far as its shutdown and beyond."""

    def __init__(self) -> None:
        super().__init__()
        self._left = _TICKS

    def driver_ok(self) -> None:
        """Begin, once."""
        if self._left == _TICKS:
            self._tick()

    def _tick(self) -> None:
        if self._left <= 0:
            return
        if self._left % 10 == 0:
            self.strike("interrupts on all queues and for configuration, every 25 ms")
        self._left -= 1
        _interrupt_all(self, 1)
        self.device.config_interrupt()
        self.device.schedule(0.025, self._tick)


_KINDS: Final[tuple[tuple[str, str, str, Aim, Callable[[], Attack], tuple[str, ...]], ...]] = (
    ("early-interrupt", "3.1.1", "interrupts each queue before DRIVER_OK", Aim.MEMORY, EarlyInterrupt,
     ("use", "rebind")),
    ("early-config-interrupt", "3.1.1", "says that configuration changed before DRIVER_OK", Aim.MEMORY,
     EarlyConfigInterrupt, ("use", "rebind")),
    ("interrupt-storm", "2.7.7.2", "interrupts 1,500 times with nothing in the queues", Aim.DENIAL, Storm, ("use",)),
    ("config-storm", "2.5.1", "says 300 times that configuration changed, and inverts it each time", Aim.MEMORY,
     ConfigStorm, ("use", "inspect")),
    ("wrong-queue-interrupt", "2.7.7.2", "interrupts every queue but the one that has something", Aim.MEMORY,
     WrongQueue, ("use",)),
    ("no-interrupt", "2.7.7.2", "never interrupts", Aim.DENIAL, NoInterrupt, ("use",)),
    ("removal-interrupt", "2.4.1", "interrupts while the driver takes its queues back", Aim.MEMORY, RemovalInterrupt,
     ("use", "rebind")),
    ("shutdown-interrupt", "2.4.1", "goes on interrupting for three seconds, through shutdown", Aim.MEMORY,
     SteadyInterrupt, ("use", "shutdown")),
)

_KNOWN: Final = {
    "console-early-config-interrupt": "virtio_console: fix misc probe bugs",
    "net-early-interrupt": "virtio-net: fix race between ndo_open() and virtio_device_ready()",
}


def notification_attacks() -> Iterator[AttackSpec]:
    """Attacks with interrupts alone, for every device."""
    for device in TYPES:
        for what, spec, summary, aim, make, stimuli in _KINDS:
            name = f"{device.short}-{what}"
            yield AttackSpec(name, device, Surface.NOTIFICATION, aim, f"virtio 1.3, {spec}", f"The device {summary}.",
                             make, stimuli=stimuli, known=_KNOWN.get(name, ""))
