"""Lies in the console's own protocol: control messages, ports that come and go, input."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.attacks.lifecycle import EarlyUsed
from chamber.device.errors import DriverError
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("console_attacks",)

_CONTROL: Final = struct.Struct("<IHH")
"""id, event, value (virtio 1.3, 5.3.6.2)."""

_DEVICE_READY, _PORT_ADD, _PORT_REMOVE, _PORT_READY, _CONSOLE_PORT, _RESIZE, _PORT_OPEN, _PORT_NAME = range(8)
_SIZE_AND_MULTIPORT: Final = bit(0, 1)
_PORT: Final = -1
"""Stands for the port that set an attack off."""
_MAX_PORTS: Final = -2
"""Stands for max_nr_ports, the first id beyond the ports."""
_FILL: Final = -1
"""Stands for a claim of the whole buffer."""


@dataclass(frozen=True, slots=True)
class Msg:
    """A control message to the driver.

    Attributes:
        event: what it says.
        port: id, or `_PORT`, or `_MAX_PORTS`.
        value: its value.
        extra: what follows the header.
        claim: used.len instead of the true length; `_FILL` for the whole buffer.
        pad: fill the buffer up to its end with the last byte of `extra`.

    """

    event: int
    port: int = _PORT
    value: int = 1
    extra: bytes = b""
    claim: int | None = None
    pad: bool = False


class Script(Attack):
    """Sends control messages of its own when the driver sent a given one.

    Args:
        trigger: event of the driver's message.
        messages: what to send, in order.
        delay: seconds to wait; 0 to be first, before the honest device answers the same message.
        times: how often to do it in a run.

    """

    def __init__(self, trigger: int, messages: tuple[Msg, ...], *, delay: float = 0.0, times: int = 2) -> None:
        super().__init__()
        self._trigger = trigger
        self._messages = messages
        self._delay = delay
        self._times = times

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """See what the driver says."""
        if self._times and self.device.queue_role(queue.index) == "control-tx":
            raw = chain.read(0, _CONTROL.size)
            if len(raw) == _CONTROL.size:
                port, event, _ = _CONTROL.unpack(raw)
                if event == self._trigger:
                    self._times -= 1
                    self._start(port)
        return True

    def _start(self, port: int) -> None:
        pending = list(self._messages)
        retries = 100

        def send() -> None:
            nonlocal retries
            queue = self.device.queues[2]
            while pending and queue.started and (chain := self._take(queue)) is not None:
                self._send(queue, chain, port, pending.pop(0))
            self.device.flush(queue)
            retries -= 1
            if pending and retries and queue.started:
                self.device.schedule(0.01, send)

        if self._delay:
            self.device.schedule(self._delay, send)
        else:
            send()

    @staticmethod
    def _take(queue: DeviceQueue) -> Chain | None:
        with suppress(DriverError, DmaFault):
            return queue.pop()
        return None

    def _send(self, queue: DeviceQueue, chain: Chain, port: int, message: Msg) -> None:
        ident = {_PORT: port, _MAX_PORTS: int.from_bytes(self.device.config[4:8], "little")}.get(
            message.port, message.port)
        data = _CONTROL.pack(ident & 0xFFFFFFFF, message.event, message.value) + message.extra
        if message.pad:
            data = data.ljust(chain.writable_size, data[-1:])
        with suppress(DmaFault):
            chain.write(data)
        length = min(len(data), chain.writable_size)
        claim = chain.writable_size if message.claim == _FILL else length if message.claim is None else message.claim
        queue.push(chain.head, claim)
        self.strike(f"control message: port {ident}, event {message.event}, value {message.value}, "
                    f"{len(message.extra)} bytes more, used.len {claim}")


class SinglePortBreak(EarlyUsed):
    """Breaks the receive queue before it is used, on a console of one port, then says that the size changed.

    A driver whose port could not be set up has no port to resize.
    """

    def __init__(self) -> None:
        super().__init__(0xFFFF, config=True)

    def features(self, offered: int) -> int:
        """Offer a console of one port with a size."""
        return offered & ~_SIZE_AND_MULTIPORT | 1

    def queue_started(self, queue: DeviceQueue) -> None:
        """Break the receive queue; the size changes now and when the driver may have finished its probe."""
        if queue.index == 0:
            super().queue_started(queue)
            for delay in (0.02, 0.1, 0.3):
                self.device.schedule(delay, self.device.config_interrupt)


class Input(Attack):
    """Sends input to a port as soon as its queue has buffers, asked for or not.

    Args:
        data: bytes for each buffer; empty for none at all.
        claim: used.len, None for the true one.
        count: buffers to use in a run.

    """

    def __init__(self, data: bytes, *, claim: int | None = None, count: int = 64) -> None:
        super().__init__()
        self._data = data
        self._claim = claim
        self._left = count

    def notified(self, queue: DeviceQueue) -> None:
        """Use up what the driver gave."""
        if self.device.queue_role(queue.index) != "rx":
            return
        with suppress(DriverError, DmaFault):
            while self._left and (chain := queue.pop()) is not None:
                self._left -= 1
                length = chain.write(self._data)
                queue.push(chain.head, length if self._claim is None else self._claim)
                self.strike(f"queue {queue.index}: input of {length} bytes nobody asked for")
        self.device.flush(queue)


class SizeChanges(Attack):
    """Changes the size of a console of one port again and again."""

    _SIZES = ((0, 0), (0xFFFF, 0xFFFF), (1, 1), (0, 0xFFFF), (80, 25))

    def __init__(self) -> None:
        super().__init__()
        self._round = 0

    def features(self, offered: int) -> int:
        """Offer a console of one port with a size."""
        return offered & ~_SIZE_AND_MULTIPORT | 1

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - the hook's signature
        """Serve another size in each round."""
        config[:4] = struct.pack("<HH", *self._SIZES[self._round % len(self._SIZES)])
        return config

    def driver_ok(self) -> None:
        """Begin."""
        self._change()

    def _change(self) -> None:
        if self._round < 100 and any(queue.started for queue in self.device.queues):
            self._round += 1
            self.strike(f"size {self._SIZES[self._round % len(self._SIZES)]}")
            self.device.config_interrupt()
            self.device.schedule(0.005, self._change)


class Swallow(Attack):
    """Takes control messages from the driver and answers none of them."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Complete, and do nothing."""
        if self.device.queue_role(queue.index) != "control-tx":
            return True
        queue.push(chain.head, 0)
        self.strike(f"control message of {chain.readable_size} bytes ignored")
        return False


class ControlType(Attack):
    """Changes the event of each honest control message after it was written.

    Args:
        event: the event to put in its place.

    """

    def __init__(self, event: int) -> None:
        super().__init__()
        self._event = event
        self._left = 50

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Rewrite the event before the driver sees the message."""
        if self._left and length and self.device.queue_role(queue.index) == "control":
            self._left -= 1
            chain.write(struct.pack("<H", self._event), 4)
            self.strike(f"event {self._event} in place of the true one")
        return ((chain.head, length),)


_NEXT: Final = _PORT_READY
_NAME: Final = b"chamber\0"
_WILD: Final = 0xFFFFFFFF

_Row = tuple[str, Surface, Aim, str, int, tuple[Msg, ...], tuple[str, ...]]

_SCRIPTS: Final[tuple[_Row, ...]] = (
    ("port-name-underflow", Surface.LENGTH, Aim.MEMORY, "sends a PORT_NAME with used.len 7, less than its header",
     _NEXT, (Msg(_PORT_NAME, extra=_NAME, claim=7),), ("use", "inspect")),
    *((f"port-name-len-{n}", Surface.LENGTH, Aim.MEMORY, f"sends a PORT_NAME with used.len {n}, less than its header",
       _NEXT, (Msg(_PORT_NAME, extra=_NAME, claim=n),), ("use", "inspect")) for n in (0, 1, 4, 6)),
    ("port-name-bare", Surface.LENGTH, Aim.MEMORY, "sends a PORT_NAME with no name, of 8 bytes",
     _NEXT, (Msg(_PORT_NAME),), ("use", "inspect")),
    ("port-name-empty", Surface.PAYLOAD, Aim.MEMORY, "sends a PORT_NAME with an empty name",
     _NEXT, (Msg(_PORT_NAME, extra=b"\0"),), ("use", "inspect")),
    ("port-name-huge", Surface.LENGTH, Aim.MEMORY, "sends a PORT_NAME that fills the buffer and has no end",
     _NEXT, (Msg(_PORT_NAME, extra=b"A", pad=True),), ("use", "inspect")),
    ("port-name-beyond", Surface.LENGTH, Aim.MEMORY, "sends a PORT_NAME with used.len 2**32 - 1",
     _NEXT, (Msg(_PORT_NAME, extra=b"A", pad=True, claim=_WILD),), ("use", "inspect")),
    ("port-name-stale", Surface.LENGTH, Aim.LEAK, "sends a PORT_NAME of 8 bytes and claims the whole buffer",
     _NEXT, (Msg(_PORT_NAME, claim=_FILL),), ("use", "inspect")),
    ("port-name-binary", Surface.PAYLOAD, Aim.DECEPTION, "sends a name that is not UTF-8 and has formats in it",
     _NEXT, (Msg(_PORT_NAME, extra=b"\xff\xfe%s%n\n\x1b[2J\x80\0"),), ("use", "inspect")),
    ("port-name-path", Surface.PAYLOAD, Aim.DECEPTION, "sends a name that leads out of a directory",
     _NEXT, (Msg(_PORT_NAME, extra=b"../../../dev/null\0"),), ("use", "inspect")),
    ("port-name-nul-inside", Surface.PAYLOAD, Aim.MEMORY, "sends a name with a NUL in its middle",
     _NEXT, (Msg(_PORT_NAME, extra=b"one\0two" + b"\0" * 64),), ("use", "inspect")),
    ("port-name-repeated", Surface.PAYLOAD, Aim.MEMORY, "sends the name again and again, longer each time",
     _NEXT, tuple(Msg(_PORT_NAME, extra=b"N" * (8 << i) + b"\0") for i in range(6)), ("use", "inspect")),
    ("port-name-removed", Surface.LIFECYCLE, Aim.MEMORY, "names a port that it just removed",
     _NEXT, (Msg(_PORT_REMOVE), Msg(_PORT_NAME, extra=_NAME)), ("use", "inspect")),
    ("port-add-max", Surface.PAYLOAD, Aim.MEMORY, "adds the port with the id max_nr_ports, the first beyond",
     _NEXT, (Msg(_PORT_ADD, _MAX_PORTS),), ("use",)),
    ("port-add-wild", Surface.PAYLOAD, Aim.MEMORY, "adds ports with ids 2**31 and 2**32 - 1",
     _NEXT, (Msg(_PORT_ADD, 1 << 31), Msg(_PORT_ADD, _WILD)), ("use",)),
    ("port-add-repeated", Surface.LIFECYCLE, Aim.MEMORY, "adds the same port 20 times",
     _NEXT, (Msg(_PORT_ADD),) * 20, ("use", "hotplug")),
    ("port-add-all", Surface.LIFECYCLE, Aim.MEMORY, "adds every port that could exist, and 16 that could not",
     _NEXT, tuple(Msg(_PORT_ADD, i) for i in range(64)), ("use", "hotplug")),
    ("events-unknown-port", Surface.PAYLOAD, Aim.MEMORY, "sends every event for a port that does not exist",
     _NEXT, tuple(Msg(e, _WILD, extra=_NAME) for e in range(8)), ("use",)),
    ("events-beyond-max", Surface.PAYLOAD, Aim.MEMORY, "sends every event for the port max_nr_ports",
     _NEXT, tuple(Msg(e, _MAX_PORTS, extra=_NAME) for e in range(8)), ("use",)),
    ("events-unknown", Surface.PAYLOAD, Aim.MEMORY, "sends events that do not exist, and those that only drivers send",
     _NEXT, tuple(Msg(e, extra=_NAME) for e in (0, 3, 8, 9, 0x100, 0x7FFF, 0x8000, 0xFFFF)), ("use",)),
    ("remove-at-ready", Surface.LIFECYCLE, Aim.MEMORY, "removes each port as soon as the driver says that it is ready",
     _NEXT, (Msg(_PORT_REMOVE),), ("use",)),
    ("remove-repeated", Surface.LIFECYCLE, Aim.MEMORY, "removes the same port 20 times",
     _NEXT, (Msg(_PORT_REMOVE),) * 20, ("use", "hotplug")),
    ("remove-in-use", Surface.LIFECYCLE, Aim.MEMORY, "removes a port when the guest opens it",
     _PORT_OPEN, (Msg(_PORT_REMOVE),), ("use", "hangup")),
    ("remove-and-add", Surface.LIFECYCLE, Aim.MEMORY, "removes and adds a port 16 times",
     _NEXT, (Msg(_PORT_REMOVE), Msg(_PORT_ADD)) * 16, ("use", "hotplug")),
    ("remove-and-add-in-use", Surface.LIFECYCLE, Aim.MEMORY, "removes and adds a port 16 times while the guest uses it",
     _PORT_OPEN, (Msg(_PORT_REMOVE), Msg(_PORT_ADD)) * 16, ("use", "hangup")),
    ("remove-renamed", Surface.LIFECYCLE, Aim.MEMORY, "removes a port, adds it again and gives it another name",
     _NEXT, (Msg(_PORT_NAME, extra=b"first\0"), Msg(_PORT_REMOVE), Msg(_PORT_ADD), Msg(_PORT_NAME, extra=b"second\0")),
     ("use", "inspect")),
    ("console-port-zero", Surface.PAYLOAD, Aim.MEMORY, "says CONSOLE_PORT with value 0",
     _NEXT, (Msg(_CONSOLE_PORT, value=0),), ("use",)),
    ("console-port-all", Surface.LIFECYCLE, Aim.MEMORY, "makes every port a console, twice",
     _NEXT, (Msg(_CONSOLE_PORT),) * 2, ("use",)),
    ("console-port-in-use", Surface.LIFECYCLE, Aim.MEMORY, "makes a port a console while the guest has it open",
     _PORT_OPEN, (Msg(_CONSOLE_PORT), Msg(_RESIZE, extra=b"\x19\0\x50\0")), ("use", "hangup")),
    ("console-port-removed", Surface.LIFECYCLE, Aim.MEMORY, "makes a port a console, removes and resizes it",
     _NEXT, (Msg(_CONSOLE_PORT), Msg(_PORT_REMOVE), Msg(_RESIZE, extra=b"\0\0\0\0"), Msg(_CONSOLE_PORT),
             Msg(_PORT_ADD), Msg(_CONSOLE_PORT)), ("use", "hotplug")),
    ("resize-extremes", Surface.PAYLOAD, Aim.MEMORY, "resizes a console to nothing and to 65,535 in both directions",
     _NEXT, tuple(m for size in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xff\xff", b"\1\0\0\0")
                  for m in (Msg(_CONSOLE_PORT), Msg(_RESIZE, extra=size))), ("use", "inspect")),
    ("resize-short", Surface.LENGTH, Aim.LEAK, "sends RESIZE without a size, or with part of one",
     _NEXT, (Msg(_CONSOLE_PORT), *(Msg(_RESIZE, extra=b"\x07\x07\x07\x07"[:n]) for n in range(4))), ("use", "inspect")),
    ("resize-not-console", Surface.PAYLOAD, Aim.MEMORY, "resizes a port that is no console",
     _NEXT, (Msg(_RESIZE, extra=b"\x19\0\x50\0"),), ("use",)),
    ("resize-storm", Surface.PAYLOAD, Aim.DENIAL, "resizes a console 200 times",
     _NEXT, (Msg(_CONSOLE_PORT), *(Msg(_RESIZE, extra=struct.pack("<HH", i, i)) for i in range(200))), ("use",)),
    ("open-values", Surface.PAYLOAD, Aim.MEMORY, "says PORT_OPEN with values that are neither 0 nor 1",
     _NEXT, tuple(Msg(_PORT_OPEN, value=v) for v in (2, 0x8000, 0xFFFF)), ("use", "hangup")),
    ("open-storm", Surface.LIFECYCLE, Aim.MEMORY, "opens and closes its side of a port 100 times",
     _PORT_OPEN, tuple(Msg(_PORT_OPEN, value=i % 2) for i in range(200)), ("use", "hangup")),
    ("close-in-use", Surface.LIFECYCLE, Aim.DENIAL, "closes its side when the guest opens a port",
     _PORT_OPEN, (Msg(_PORT_OPEN, value=0),), ("use", "hangup")),
    *((f"message-len-{n}", Surface.LENGTH, Aim.MEMORY, f"sends messages with used.len {n}, less than a header",
       _NEXT, tuple(Msg(e, claim=n) for e in (_PORT_ADD, _PORT_OPEN, _CONSOLE_PORT, _RESIZE, _PORT_REMOVE)),
       ("use",)) for n in (0, 4, 7)),
    ("before-ports", Surface.LIFECYCLE, Aim.MEMORY, "sends every event for port 0 before it adds any port",
     _DEVICE_READY, tuple(Msg(e, 0, extra=_NAME) for e in (7, 6, 5, 4, 2, 1, 7, 2, 1)), ("use", "rebind")),
)

_OTHERS: Final = (
    AttackSpec("console-single-port-broken", DeviceType.CONSOLE, Surface.LIFECYCLE, Aim.MEMORY, "virtio 1.3, 3.1.1",
               "The device breaks the receive queue of a one-port console before its use, then changes the size.",
               SinglePortBreak, stimuli=("use", "inspect", "rebind")),
    AttackSpec("console-size-changes", DeviceType.CONSOLE, Surface.CONFIG, Aim.MEMORY, "virtio 1.3, 5.3.5",
               "The device changes a one-port console's size 100 times, to extremes.",
               SizeChanges, stimuli=("use", "inspect")),
    AttackSpec("console-input-flood", DeviceType.CONSOLE, Surface.LIFECYCLE, Aim.MEMORY, "virtio 1.3, 5.3.6",
               "The device fills receive buffers before a port is open.",
               lambda: Input(b"\x00\xff\x03\x04\x1a\x7f\r\n" * 8), stimuli=("use", "hangup")),
    AttackSpec("console-input-empty", DeviceType.CONSOLE, Surface.LENGTH, Aim.DENIAL, "virtio 1.3, 5.3.6",
               "The device returns receive buffers with nothing in them.",
               lambda: Input(b""), stimuli=("use", "hangup")),
    AttackSpec("console-input-stale", DeviceType.CONSOLE, Surface.LENGTH, Aim.LEAK, "virtio 1.3, 2.7.8.2",
               "The device writes one byte of input and claims 4,096.",
               lambda: Input(b"x", claim=4096)),
    AttackSpec("console-control-ignored", DeviceType.CONSOLE, Surface.LIFECYCLE, Aim.DENIAL, "virtio 1.3, 5.3.6.2",
               "The device answers no control message.", Swallow),
    AttackSpec("console-control-all-remove", DeviceType.CONSOLE, Surface.PAYLOAD, Aim.MEMORY, "virtio 1.3, 5.3.6.2",
               "The device turns every control message into PORT_REMOVE.", lambda: ControlType(_PORT_REMOVE),
               stimuli=("use",)),
    AttackSpec("console-control-all-name", DeviceType.CONSOLE, Surface.PAYLOAD, Aim.MEMORY, "virtio 1.3, 5.3.6.2",
               "The device turns every control message into PORT_NAME.", lambda: ControlType(_PORT_NAME),
               stimuli=("use", "inspect")),
)

_KNOWN: Final = {
    "port-name-underflow": "virtio_console PORT_NAME underflow, open in Linux 6.1.192",
    "port-name-bare": "virtio_console PORT_NAME of size zero, open in Linux 6.12.117",
}


def console_attacks() -> Iterator[AttackSpec]:
    """Attacks on the console's protocol."""
    for what, surface, aim, summary, trigger, messages, stimuli in _SCRIPTS:
        yield AttackSpec(
            f"console-{what}", DeviceType.CONSOLE, surface, aim, "virtio 1.3, 5.3.6.2", f"The device {summary}.",
            lambda trigger=trigger, messages=messages: Script(trigger, messages),  # type: ignore[misc]
            stimuli=stimuli, known=_KNOWN.get(what, ""))
    yield from _OTHERS
