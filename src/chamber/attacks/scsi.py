"""Lies in the SCSI host's own protocol: responses, sense data, lengths, content, task management."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.attacks.scsi_events import EVENT_ROWS
from chamber.attacks.scsi_exchange import (
    FLUSH,
    LOOK,
    READS_BEFORE,
    USE,
    WILD,
    WRITE,
    ZERO,
    Exchange,
    Reply,
    Row,
    block_of,
    both,
    exchange_of,
    failing,
    is_capacity,
    is_inquiry,
    is_read,
    one_of,
    request_of,
    with_data,
    with_fields,
)
from chamber.attacks.scsi_units import UNIT_ROWS
from chamber.device.scsi import ScsiDevice
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.scsi import CONFIG, CONTROL_QUEUE, RESPONSE, Address, Response, parse_lun
from chamber.wire.scsi_commands import Opcode, Sense, SenseKey, Status
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("scsi_attacks",)

_SNAPSHOT: Final = 4 << 20


class ShortRead(Attack):
    """Leaves the second half of what it should have read unwritten, and says that all is well."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 50

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Write the response and half of the data; the rest is what the guest's memory held before."""
        true = exchange_of(self.device, queue, chain, data)
        if true is None or not is_read(true.cdb) or not true.data or not self._left:
            return data
        self._left -= 1
        half = len(true.data) // 2
        self.strike(f"read of {len(true.data)} bytes: {half} written")
        return replace(true, data=true.data[:half]).pack()

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Claim the whole, as an honest device would."""
        whole = self.device.queue_role(queue.index) == "requests" and is_read(request_of(chain)[1])
        return ((chain.head, chain.writable_size if whole else length),)


class Drop(Attack):
    """Says that commands succeeded, and does not carry them out.

    Args:
        which: tells by the CDB whether a command is one of them.

    """

    def __init__(self, which: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._which = which
        self._left = 200

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Answer with success."""
        lun, cdb = request_of(chain)
        if self.device.queue_role(queue.index) != "requests" or not cdb or not self._which(cdb) or not self._left:
            return True
        self._left -= 1
        length = chain.write(bytes(RESPONSE.size + CONFIG.get(self.device.config, "sense_size")))
        queue.push(chain.head, length)
        self.strike(f"{cdb[:10].hex()} of {lun[:4].hex()} acknowledged and dropped")
        return False


class Rollback(Attack):
    """Answers reads with what each disk held when the guest first used it."""

    def __init__(self) -> None:
        super().__init__()
        self._snapshots: dict[Address, bytes] = {}

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Keep the past."""
        if not self._snapshots and isinstance(self.device, ScsiDevice):
            self._snapshots = {a: bytes(u.disk.read(0, min(u.disk.size, _SNAPSHOT)))
                               for a, u in self.device.units.items()}
        return True

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer with it."""
        true = exchange_of(self.device, queue, chain, data)
        if true is None or not is_read(true.cdb) or not true.data or not isinstance(self.device, ScsiDevice):
            return data
        with suppress(WireError):
            address = parse_lun(true.lun)
            start = block_of(true.cdb) * self.device.units[address].block_size
            old = self._snapshots.get(address, b"")[start:start + len(true.data)]
            if len(old) == len(true.data) and old != true.data:
                self.strike(f"{address}, byte {start}: {len(old)} bytes of what it held before")
                return replace(true, data=old).pack()
        return data


class Peek(Attack):
    """Reads the buffers that it is to fill, before it fills them: what the guest left there."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 100

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Look at device-writable memory."""
        if self._left:
            self._left -= 1
            with suppress(DmaFault):
                found = b"".join(chain.dma.read(a, min(n, 4096)) for a, n in chain.writable[:16])
                self.capture(found)
                self.strike(f"queue {queue.index}: {len(found)} bytes to be written hold {len(found) - found.count(0)} "
                            f"that are not zero")
        return True


class Control(Attack):
    """Changes answers on the control queue.

    Args:
        change: makes another answer of the honest one.
        sizes: lengths of answers to change: 1 for task management, 5 for queries.

    """

    def __init__(self, change: Callable[[bytes], bytes], *, sizes: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self._change = change
        self._sizes = sizes

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer otherwise."""
        if queue.index != CONTROL_QUEUE or len(data) not in self._sizes:
            return data
        changed = self._change(data)
        self.strike(f"control request answered {changed.hex()} for {data.hex()}")
        return changed


_ATTENTION: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29).pack()
_BECOMING_READY: Final = Sense(SenseKey.NOT_READY, 0x04, 0x01).pack()
_BAD_BLOCK: Final = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 0xFFFFFFF0).pack()
_RECOVERED: Final = Sense(SenseKey.RECOVERED_ERROR, 0x17).pack()
_ABORTED: Final = Sense(SenseKey.ABORTED_COMMAND, 0x44).pack()
_LEN, _PAY = Surface.LENGTH, Surface.PAYLOAD


def _on_reads(name: str, surface: Surface, aim: Aim, summary: str, change: Callable[[Exchange], Exchange],
              times: int = 50) -> Row:
    return (name, surface, aim, summary, lambda: Reply(is_read, change, after=READS_BEFORE, times=times), USE)


_RESPONSES: Final = (
    *(_on_reads(f"response-{r.name.lower().replace('_', '-')}", Surface.PAYLOAD, Aim.DENIAL,
                f"answers reads with the response {r.name}", with_fields(response=r)) for r in (
        Response.OVERRUN, Response.BAD_TARGET, Response.RESET, Response.BUSY, Response.TRANSPORT_FAILURE,
        Response.FAILURE, Response.FUNCTION_REJECTED)),
    _on_reads("response-unknown", Surface.PAYLOAD, Aim.DECEPTION, "answers reads with the response 7Fh",
              with_fields(response=0x7F)),
    _on_reads("response-max", Surface.PAYLOAD, Aim.DECEPTION, "answers reads with the response FFh",
              with_fields(response=0xFF)),
    ("response-probe-failure", Surface.PAYLOAD, Aim.DENIAL, "answers every command from the first on with a failure",
     lambda: Reply(lambda _cdb: True, with_fields(response=Response.FAILURE), times=200), ("use", "rebind")),
    ("response-probe-busy", Surface.PAYLOAD, Aim.DENIAL, "is busy whenever it is asked what it is",
     lambda: Reply(is_inquiry, with_fields(status=Status.BUSY), times=200), ("use",)),
    *(_on_reads(f"status-{name}", Surface.PAYLOAD, aim, f"answers reads with the status {value:02X}h",
                with_fields(status=value)) for name, value, aim in (
        ("condition-met", Status.CONDITION_MET, Aim.DECEPTION), ("busy", Status.BUSY, Aim.DENIAL),
        ("reservation", Status.RESERVATION_CONFLICT, Aim.DENIAL), ("full", Status.TASK_SET_FULL, Aim.DENIAL),
        ("task-aborted", Status.TASK_ABORTED, Aim.DENIAL),
        ("odd", 0x01, Aim.DECEPTION), ("max", 0xFF, Aim.DECEPTION))),
    ("status-write", Surface.PAYLOAD, Aim.DECEPTION, "stores what is written and says that it failed",
     lambda: Reply(one_of(WRITE), failing(_ABORTED)), USE),
)

_SENSES: Final = (
    _on_reads("sense-length-beyond", Surface.LENGTH, Aim.MEMORY, "says that there is one byte of sense data too many",
              failing(b"\x70\0\5".ljust(96, b"S"), 97)),
    _on_reads("sense-length-max", Surface.LENGTH, Aim.MEMORY, "says that there are 2**32 - 1 bytes of sense data",
              failing(b"\x70\0\5".ljust(96, b"S"), WILD)),
    _on_reads("sense-length-good", Surface.LENGTH, Aim.MEMORY,
              "says with success that there are 2**32 - 1 bytes of sense data", with_fields(sense_length=WILD)),
    _on_reads("sense-unasked", Surface.PAYLOAD, Aim.DECEPTION, "sends sense data with success",
              both(with_fields(sense_length=18), lambda e: replace(e, sense=_BAD_BLOCK + e.sense[len(_BAD_BLOCK):]))),
    _on_reads("sense-missing", Surface.PAYLOAD, Aim.DECEPTION, "fails reads and says not why",
              failing(b"")),
    _on_reads("sense-one-byte", Surface.LENGTH, Aim.MEMORY, "sends one byte of sense data", failing(b"\x70")),
    _on_reads("sense-format", Surface.PAYLOAD, Aim.MEMORY, "sends sense data of no known format",
              failing(b"\x7f" * 96)),
    _on_reads("sense-additional", Surface.LENGTH, Aim.MEMORY, "sends sense data that says it has 255 bytes more",
              failing(b"\x70\0\3\xff\xff\xff\xff\xff".ljust(96, b"\xff"))),
    _on_reads("sense-descriptors", Surface.LENGTH, Aim.MEMORY, "sends descriptors in sense data that reach beyond it",
              failing(b"\x72\x03\x11\0\0\0\0\xff\x00\xff".ljust(96, b"\xff"))),
    _on_reads("sense-descriptor-empty", Surface.LENGTH, Aim.DENIAL, "sends descriptors in sense data without a length",
              failing(b"\x72\x03\x11\0\0\0\0\x58".ljust(96, b"\0"))),
    _on_reads("sense-deferred", Surface.PAYLOAD, Aim.DECEPTION, "says that an earlier command failed",
              failing(b"\x71" + _BAD_BLOCK[1:])),
    _on_reads("sense-block", Surface.PAYLOAD, Aim.MEMORY, "says that a block failed which nobody asked for",
              failing(_BAD_BLOCK)),
    _on_reads("sense-recovered", Surface.PAYLOAD, Aim.DECEPTION, "says that data was recovered, and sends none",
              failing(_RECOVERED)),
    _on_reads("sense-not-ready", Surface.PAYLOAD, Aim.DENIAL, "is becoming ready for ever", failing(_BECOMING_READY)),
    _on_reads("sense-attention", Surface.PAYLOAD, Aim.DENIAL, "has something to tell before every read",
              failing(_ATTENTION), times=200),
    ("sense-attention-always", Surface.PAYLOAD, Aim.DENIAL, "has something to tell before every command",
     lambda: Reply(lambda cdb: cdb[0] not in {Opcode.INQUIRY, Opcode.REPORT_LUNS}, failing(_ATTENTION), times=200),
     USE),
    *(_on_reads(f"sense-key-{key:x}", Surface.PAYLOAD, Aim.DENIAL, f"fails reads with the sense key {key:X}h",
                failing(Sense(key, 0xFF, 0xFF).pack())) for key in (0, 4, 14)),
)

_RESIDUALS: Final = (
    _on_reads("residual-beyond", Surface.LENGTH, Aim.MEMORY, "says that one byte more is left over than there was",
              lambda e: replace(e, residual=e.size + 1)),
    _on_reads("residual-max", Surface.LENGTH, Aim.MEMORY, "says that 2**32 - 1 bytes are left over",
              with_fields(residual=WILD)),
    _on_reads("residual-sign", Surface.LENGTH, Aim.MEMORY, "says that 2**31 bytes are left over",
              with_fields(residual=1 << 31)),
    _on_reads("residual-all", Surface.LENGTH, Aim.LEAK, "says that reads succeeded and moved nothing",
              lambda e: replace(e, residual=e.size, data=b"")),
    _on_reads("residual-none", Surface.LENGTH, Aim.LEAK, "writes no data and says that nothing is left over",
              lambda e: replace(e, residual=0, data=b"")),
    _on_reads("residual-odd", Surface.LENGTH, Aim.MEMORY, "says that all but one byte was moved",
              lambda e: replace(e, residual=1)),
    ("residual-write", Surface.LENGTH, Aim.DECEPTION, "says that writes succeeded and took nothing",
     lambda: Reply(one_of(WRITE), lambda e: replace(e, residual=e.size)), USE),
    ("residual-write-max", Surface.LENGTH, Aim.MEMORY, "says of writes that 2**32 - 1 bytes are left over",
     lambda: Reply(one_of(WRITE), with_fields(residual=WILD)), USE),
    ("residual-inquiry", Surface.LENGTH, Aim.MEMORY, "says what it is, and that more is left over than there was",
     lambda: Reply(is_inquiry, lambda e: replace(e, residual=e.size + 1)), USE),
)

_CONTENTS: Final = (
    ("read-short", Surface.PAYLOAD, Aim.LEAK, "fills half of a read, so that old memory is the rest", ShortRead, USE),
    _on_reads("read-foreign", Surface.CONTENT, Aim.DECEPTION, "answers reads with bytes of its own choice",
              with_data(lambda data: b"\xdb" * len(data))),
    _on_reads("read-flipped", Surface.CONTENT, Aim.DECEPTION, "answers reads with one bit changed",
              with_data(lambda data: bytes((data[0] ^ 0x80,)) + data[1:])),
    ("read-rolled-back", Surface.CONTENT, Aim.DECEPTION, "answers reads with what was there before a write",
     Rollback, USE),
    ("write-dropped", Surface.CONTENT, Aim.DECEPTION, "acknowledges writes and drops them",
     lambda: Drop(one_of(WRITE)), USE),
    ("flush-dropped", Surface.CONTENT, Aim.DECEPTION, "acknowledges flushes and does none",
     lambda: Drop(one_of(FLUSH)), USE),
    ("discard-dropped", Surface.CONTENT, Aim.DECEPTION, "acknowledges UNMAP and WRITE SAME and does none",
     lambda: Drop(one_of(ZERO)), ("use", "discard")),
    ("probe-dropped", Surface.PAYLOAD, Aim.LEAK, "says that it told what it is, and wrote nothing",
     lambda: Drop(lambda cdb: cdb[0] == Opcode.INQUIRY), LOOK),
    ("capacity-dropped", Surface.PAYLOAD, Aim.LEAK, "says that it told its size, and wrote nothing",
     lambda: Drop(is_capacity), LOOK),
    ("flush-fails", Surface.PAYLOAD, Aim.DENIAL, "fails every flush",
     lambda: Reply(one_of(FLUSH), failing(Sense(SenseKey.HARDWARE_ERROR, 0x44).pack()), times=200), USE),
    ("discard-fails", Surface.PAYLOAD, Aim.DENIAL, "says that it has no UNMAP and no WRITE SAME after all",
     lambda: Reply(one_of(ZERO), failing(Sense(SenseKey.ILLEGAL_REQUEST, 0x20).pack())), ("use", "discard")),
    ("peek", Surface.PAYLOAD, Aim.LEAK, "reads what the buffers hold that it is to fill", Peek, LOOK),
)

_CONTROLS: Final = (
    *((f"task-{name}", _PAY, aim, f"answers task management with the response {value}",
       lambda value=value: Control(lambda _data: bytes((value,))), LOOK) for name, value, aim in (
        ("bad-target", Response.BAD_TARGET, Aim.DENIAL), ("busy", Response.BUSY, Aim.DENIAL),
        ("rejected", Response.FUNCTION_REJECTED, Aim.DENIAL), ("incorrect-lun", Response.INCORRECT_LUN, Aim.DENIAL),
        ("succeeded", Response.FUNCTION_SUCCEEDED, Aim.DECEPTION), ("overrun", Response.OVERRUN, Aim.DECEPTION),
        ("unknown", 0x7F, Aim.DECEPTION), ("max", 0xFF, Aim.DECEPTION))),
    ("task-empty", _LEN, Aim.DECEPTION, "answers task management with no byte",
     lambda: Control(lambda _data: b""), LOOK),
    ("query-more", _PAY, Aim.DECEPTION, "reports more events than it was asked for",
     lambda: Control(lambda data: b"\xff" * 4 + data[4:], sizes=(5,)), ("inspect",)),
    ("query-short", _LEN, Aim.LEAK, "answers a query with 2 bytes",
     lambda: Control(lambda data: data[:2], sizes=(5,)), ("inspect",)),
    ("query-response", _PAY, Aim.DECEPTION, "answers a query with a response of task management",
     lambda: Control(lambda data: data[:4] + b"\x0b", sizes=(5,)), ("inspect",)),
)

_ROWS: Final[tuple[tuple[str, tuple[Row, ...]], ...]] = (
    ("5.6.6.1", (*_RESPONSES, *_SENSES, *_RESIDUALS, *_CONTENTS, *UNIT_ROWS)),
    ("5.6.6.2", _CONTROLS),
    ("5.6.6.3", EVENT_ROWS),
)
_MODEL_ONLY: Final = ("peek", "query-", "event-not-negotiated")
"""A driver that bounces nothing shows the device whatever its buffers held. Linux sends no queries, and lends nothing
for events that were not negotiated."""


def scsi_attacks() -> Iterator[AttackSpec]:
    """Attacks on the protocol of the SCSI host and of its disks."""
    for spec, rows in _ROWS:
        for what, surface, aim, summary, make, stimuli in rows:
            targets = MODEL if what.startswith(_MODEL_ONLY) else EVERYWHERE
            yield AttackSpec(f"scsi-{what}", DeviceType.SCSI, surface, aim, f"virtio 1.3, {spec}",
                             f"The device {summary}.", make, stimuli=stimuli, targets=targets)
