"""SCSI host device (virtio 1.3, 5.6)."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.blk import pattern_sectors
from chamber.device.disk import MemoryDisk
from chamber.device.errors import DriverError
from chamber.device.scsi_lun import (
    INVALID_FIELD,
    INVALID_OPCODE,
    LUN_NOT_SUPPORTED,
    LUNS_CHANGED,
    POWER_ON,
    UNIT_RESET,
    CheckCondition,
    DataOut,
    LogicalUnit,
    Overrun,
    Reply,
)
from chamber.device.scsi_pages import inquiry
from chamber.wire.errors import WireError
from chamber.wire.scsi import (
    AN_ANSWER,
    AN_REQUEST,
    CDB_SIZE,
    COMMAND,
    CONFIG,
    CONTROL_QUEUE,
    EVENT,
    EVENT_QUEUE,
    EVENTS_MISSED,
    MAX_LUN,
    MAX_TARGET,
    REPORT_LUNS_UNIT,
    REQUEST_QUEUE,
    RESPONSE,
    SENSE_SIZE,
    TASK_MANAGEMENT,
    Address,
    ControlType,
    EventType,
    ResetReason,
    Response,
    ScsiFeature,
    TaskFunction,
    parse_lun,
)
from chamber.wire.scsi_commands import FORMATS, Cdb, Opcode, Status, parse_cdb
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("EXTRA_UNIT", "ScsiDevice", "unit_pattern")

EXTRA_UNIT: Final = Address(1, 0)
"""Where the host action ``plug`` puts a disk."""
_EXTRA_SIZE: Final = 64 << 10

_DEFAULT: Final = bit(ScsiFeature.HOTPLUG, ScsiFeature.CHANGE)
_CDB_SIZES: Final = range(16, 261)
"""From what disks need on, to the longest CDB that there is."""
_SENSE_SIZES: Final = range(18, 4097)
_EVENT_LIMIT: Final = 16
"""Events that wait for a driver which is about to look; what is more is lost, and the driver told so."""
_UNIT_SHIFT: Final = 32
_SECTOR: Final = 512


def unit_pattern(address: Address, size: int) -> bytearray:
    """Content that names its place: sectors as `chamber.device.blk.pattern` makes them, others for each unit."""
    first = (address.target << 14 | address.lun) << _UNIT_SHIFT
    return pattern_sectors(first, size // _SECTOR)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A response, and how many bytes of data were moved."""

    response: Response
    reply: Reply
    moved: int


class ScsiDevice(Device):
    """A SCSI host with disks, which come and go.

    T10_PI is not offered, so no request holds protection information. INOUT is not either: a request that both brings
    data and has room for some fails.

    Args:
        units: disks by address, closed with the device; by default one of 4 MiB at 0:0.
        max_target: highest target that the driver shall look for.
        max_lun: highest LUN that it shall look for.
        num_queues: request queues.
        features: feature bits to offer instead of HOTPLUG and CHANGE.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any. A request's response, sense data and data come as one; so do events.

    Attributes:
        units: what is there.

    """

    type: ClassVar[DeviceType] = DeviceType.SCSI

    def __init__(self, units: Mapping[Address, LogicalUnit] | None = None, *, max_target: int = 3, max_lun: int = 7,
                 num_queues: int = 1, features: int | None = None, config: Mapping[str, int | bytes] | None = None,
                 queue_size: int = 256, hooks: Hooks | None = None) -> None:
        self.units: dict[Address, LogicalUnit] = {}
        self._events: deque[bytes] = deque()
        self._missed = False
        values: dict[str, int | bytes] = {
            "num_queues": num_queues,
            # Header and response take a descriptor each.
            "seg_max": queue_size - 2,
            "max_sectors": (16 << 20) // _SECTOR,
            "cmd_per_lun": 64,
            "event_info_size": EVENT.size,
            "sense_size": SENSE_SIZE,
            "cdb_size": CDB_SIZE,
            "max_target": max_target,
            "max_lun": max_lun,
            **(config or {}),
        }
        self._cdb_size = CDB_SIZE
        self._sense_size = SENSE_SIZE
        super().__init__(features=_DEFAULT if features is None else features, config=CONFIG.pack(**values),
                         queues=REQUEST_QUEUE + num_queues, queue_size=queue_size, hooks=hooks)
        if units is None:
            units = {Address(0, 0): LogicalUnit(MemoryDisk(bytearray(4 << 20)))}
        for address, unit in units.items():
            self.attach(address, unit)

    def queue_role(self, index: int) -> str:
        """``control``, ``events`` or ``requests`` (5.6.2)."""
        return {CONTROL_QUEUE: "control", EVENT_QUEUE: "events"}.get(index, "requests")

    def close(self) -> None:
        """Close all disks."""
        for unit in self.units.values():
            unit.disk.close()

    # What the host does.

    def attach(self, address: Address, unit: LogicalUnit) -> None:
        """Plug a disk in, also while the guest runs.

        Raises:
            ValueError: there is one already, or no such address.

        """
        if address in self.units or not (0 <= address.target <= MAX_TARGET and 0 <= address.lun <= MAX_LUN):
            raise ValueError(f"no disk can be put at {address}")
        self._luns_changed(address.target)
        self.units[address] = unit
        if self.has(ScsiFeature.HOTPLUG):
            self._tell(EventType.TRANSPORT_RESET, address, ResetReason.RESCAN)

    def detach(self, address: Address) -> None:
        """Unplug a disk, also while the guest runs, and close it.

        Raises:
            KeyError: there is none.

        """
        self.units.pop(address).disk.close()
        self._luns_changed(address.target)
        if self.has(ScsiFeature.HOTPLUG):
            self._tell(EventType.TRANSPORT_RESET, address, ResetReason.REMOVED)

    def resize(self, address: Address, blocks: int) -> None:
        """Show that many blocks of a disk, also while the guest runs.

        Raises:
            KeyError: there is no such disk.
            ValueError: none, or more than the disk has.

        """
        self.units[address].resize(blocks)
        sense = self.units[address].attentions[-1]
        if self.has(ScsiFeature.CHANGE):
            self._tell(EventType.PARAM_CHANGE, address, sense.asc | sense.ascq << 8)

    def reset_unit(self, address: Address) -> None:
        """Reset a disk, as after a failure of its own.

        Raises:
            KeyError: there is no such disk.

        """
        self.units[address].reset(POWER_ON)
        self._tell(EventType.TRANSPORT_RESET, address, ResetReason.HARD)

    def host_action(self, action: str) -> None:
        """Plug or unplug a further disk, shrink the first one to half or grow it again, or reset it.

        The actions are ``plug``, ``unplug``, ``shrink``, ``grow`` and ``reset``; one that has nothing to act on does
        nothing.
        """
        first = min(self.units, key=Address.pack, default=None)
        if action == "plug" and EXTRA_UNIT not in self.units:
            self.attach(EXTRA_UNIT, LogicalUnit(MemoryDisk(unit_pattern(EXTRA_UNIT, _EXTRA_SIZE)), serial=b"extra"))
        elif action == "unplug" and EXTRA_UNIT in self.units:
            self.detach(EXTRA_UNIT)
        elif first is not None and action in {"shrink", "grow"}:
            whole = self.units[first].disk.size // self.units[first].block_size
            self.resize(first, whole if action == "grow" else max(whole // 2, 1))
        elif first is not None and action == "reset":
            self.reset_unit(first)

    def _luns_changed(self, target: int) -> None:
        for address, unit in self.units.items():
            if address.target == target:
                unit.attention(LUNS_CHANGED)

    # Events.

    def _tell(self, event: EventType, address: Address, reason: int) -> None:
        """Report an event, or that one was lost (5.6.6.3)."""
        self.log(f"event: {event.name} of {address}, reason {reason:#x}")
        self._events.append(EVENT.pack(event, address.pack(), reason))
        self.pump(self.queues[EVENT_QUEUE])
        if len(self._events) > _EVENT_LIMIT:
            self._events.pop()
            self._missed = True

    def available(self, queue: DeviceQueue) -> bool:
        """Serve a queue: events as far as there are buffers, requests all."""
        if queue.index != EVENT_QUEUE:
            return super().available(queue)
        while self._events or self._missed:
            chain = self.take_buffer(queue, EVENT.size)
            if chain is None:
                return False
            event = self._events.popleft() if self._events else EVENT.pack(EventType.NO_EVENT, bytes(8), 0)
            # What was lost came after all that is kept, so it is told with the last of them.
            if self._missed and not self._events:
                self._missed = False
                event = (int.from_bytes(event[:4], "little") | EVENTS_MISSED).to_bytes(4, "little") + event[4:]
            self.complete(queue, chain, self.respond(queue, chain, event))
        return False

    # What the driver causes.

    def reset(self) -> None:
        """Forget the driver, and what it wrote to configuration space."""
        super().reset()
        self._resize_fields(CDB_SIZE, SENSE_SIZE)

    def features_accepted(self) -> None:
        """Start anew: every disk was just powered on, as far as this driver knows."""
        self._resize_fields(CDB_SIZE, SENSE_SIZE)
        self._events.clear()
        self._missed = False
        for unit in self.units.values():
            unit.reset(POWER_ON)

    def config_written(self, offset: int, data: bytes) -> None:
        """Take sense_size and cdb_size; no other field can be written (5.6.4)."""
        start, end = CONFIG["sense_size"].offset, CONFIG["cdb_size"].offset + 4
        config = bytearray(self.config)
        config[offset:offset + len(data)] = data[:max(len(config) - offset, 0)]
        cdb_size, sense_size = CONFIG.get(config, "cdb_size"), CONFIG.get(config, "sense_size")
        if config[:start] != self.config[:start] or config[end:] != self.config[end:]:
            self.report(DriverError("only sense_size and cdb_size are written", spec="5.6.4.1", detail=f"at {offset}"))
        elif cdb_size not in _CDB_SIZES or sense_size not in _SENSE_SIZES:
            self.report(DriverError("CDBs and sense data have a size that can be served", spec="5.6.4",
                                    detail=f"{cdb_size} and {sense_size} bytes"))
        else:
            self._resize_fields(cdb_size, sense_size)

    def _resize_fields(self, cdb_size: int, sense_size: int) -> None:
        self._cdb_size, self._sense_size = cdb_size, sense_size
        CONFIG.put(self.config, "cdb_size", cdb_size)
        CONFIG.put(self.config, "sense_size", sense_size)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request, or one for control."""
        if queue.index == CONTROL_QUEUE:
            self._control(queue, chain)
        else:
            self._request(queue, chain)

    def _request(self, queue: DeviceQueue, chain: Chain) -> None:
        header = COMMAND.size + self._cdb_size
        raw = chain.read(0, header)
        answer = RESPONSE.size + self._sense_size
        room = chain.writable_size - answer
        if len(raw) < header or room < 0:
            self.report(DriverError("a request has a header, a CDB, and room for a response and sense data",
                                    spec="5.6.6.1", detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        sent = chain.readable_size - header
        lun = COMMAND.unpack_from(raw)[0]
        out = DataOut(sent, lambda length: chain.read(header, length))
        outcome = self._execute(lun, raw[COMMAND.size:], out, room)
        reply = outcome.reply
        if self.trace is not None:
            self.log(f"queue {queue.index}: {lun[:4].hex()} {raw[COMMAND.size:COMMAND.size + 16].hex()}, {sent} bytes "
                     f"out, {room} in: {outcome.response.name} {reply.status.name} {reply.sense[2:14].hex()}")
        head = RESPONSE.pack(len(reply.sense), min(sent + room - outcome.moved, 0xFFFFFFFF), 0, reply.status,
                             outcome.response) + reply.sense.ljust(self._sense_size, b"\0")
        if self.hooks is None:
            chain.write(head)
            chain.write(reply.data, answer)
            queue.push(chain.head, answer + len(reply.data))
        else:
            self.complete(queue, chain, self.respond(queue, chain, head + bytes(reply.data)))

    def _execute(self, lun: bytes, raw: bytes, out: DataOut, room: int) -> _Outcome:
        """Carry out a command: at the unit, or in its place where it does not exist."""
        nothing = Reply(Status.GOOD)
        try:
            address = None if lun == REPORT_LUNS_UNIT else parse_lun(lun)
        except WireError as error:
            self.report(DriverError(error.rule, spec="5.6.6.1", detail=error.detail))
            return _Outcome(Response.BAD_TARGET, nothing, 0)
        if address is not None and not self._has_target(address.target):
            return _Outcome(Response.BAD_TARGET, nothing, 0)
        if out.size and room and not self.has(ScsiFeature.INOUT):
            return _Outcome(Response.FAILURE, nothing, 0)
        try:
            reply = self._command(address, raw, out, room)
        except Overrun:
            return _Outcome(Response.OVERRUN, nothing, 0)
        except CheckCondition as condition:
            reply = Reply(Status.CHECK_CONDITION, condition.sense.pack())
        return _Outcome(Response.OK, reply, out.taken + len(reply.data))

    def _command(self, address: Address | None, raw: bytes, out: DataOut, room: int) -> Reply:
        unit = None if address is None else self.units.get(address)
        try:
            cdb = parse_cdb(raw)
        except WireError:
            if unit is None and address is not None:
                raise CheckCondition(LUN_NOT_SUPPORTED) from None
            known = any(code == raw[0] for code, _ in FORMATS)
            raise CheckCondition(INVALID_FIELD if known else INVALID_OPCODE) from None
        if cdb.opcode is Opcode.REPORT_LUNS:
            return self._report_luns(address, cdb, room)
        if unit is not None:
            return unit.execute(cdb, out, room)
        return self._absent(address, cdb, room)

    def _absent(self, address: Address | None, cdb: Cdb, room: int) -> Reply:
        """Answer for a LUN that its target does not have, or for the well-known unit (SPC-4, 6.6.1)."""
        data = b""
        if cdb.opcode is Opcode.INQUIRY and not cdb.flags and not cdb.raw[2]:
            # Device type 1Eh is a well-known unit; qualifier 3 and type 1Fh say that nothing can be there.
            data = bytes((0x1E if address is None else 0x7F,)) + inquiry()[1:]
        elif cdb.opcode is Opcode.REQUEST_SENSE and not cdb.flags and address is not None:
            data = LUN_NOT_SUPPORTED.pack()
        elif cdb.opcode is not Opcode.TEST_UNIT_READY or address is not None:
            raise CheckCondition(INVALID_OPCODE if address is None else LUN_NOT_SUPPORTED)
        if cdb.length > room:
            raise Overrun
        return Reply(Status.GOOD, data=data[:cdb.length])

    def _report_luns(self, address: Address | None, cdb: Cdb, room: int) -> Reply:
        """List the LUNs of a target, or by the well-known unit those of all, as requests address them."""
        select = cdb.raw[2]
        if select > 2 or cdb.length < 16:
            raise CheckCondition(INVALID_FIELD)
        if cdb.length > room:
            raise Overrun
        luns = []
        if select != 1:  # which asks for well-known units only
            known = sorted(self.units, key=Address.pack)
            luns = [a.pack() if address is None else a.pack_lun() for a in known
                    if address is None or a.target == address.target]
        data = struct.pack(">I4x", 8 * len(luns)) + b"".join(luns)
        return Reply(Status.GOOD, data=data[:cdb.length])

    def _has_target(self, target: int) -> bool:
        return any(address.target == target for address in self.units)

    # The control queue.

    def _control(self, queue: DeviceQueue, chain: Chain) -> None:
        raw = chain.read(0, TASK_MANAGEMENT.size)
        kind = int.from_bytes(raw[:4], "little")
        room = chain.writable_size
        if kind == ControlType.TMF and len(raw) == TASK_MANAGEMENT.size and room >= 1:
            _, function, lun, _ = TASK_MANAGEMENT.unpack(raw)
            answer = bytes((self._manage(function, lun),))
        elif kind in {ControlType.AN_QUERY, ControlType.AN_SUBSCRIBE} and len(raw) >= AN_REQUEST.size and (
                room >= AN_ANSWER.size):
            _, lun, _ = AN_REQUEST.unpack_from(raw)
            # Disks have none of these events.
            answer = AN_ANSWER.pack(0, self._addressed(lun)[0])
        else:
            self.report(DriverError("a control request has a type, its fields, and room for its response",
                                    spec="5.6.6.2", detail=f"type {kind}, {chain!r}"))
            self.complete(queue, chain, 0)
            return
        self.log(f"control request: {raw.hex()}: {answer.hex()}")
        self.complete(queue, chain, self.respond(queue, chain, answer))

    def _addressed(self, lun: bytes) -> tuple[Response, Address]:
        """Find what a control request addresses; the response is OK if it is there."""
        try:
            address = parse_lun(lun)
        except WireError as error:
            self.report(DriverError(error.rule, spec="5.6.6.1", detail=error.detail))
            return Response.BAD_TARGET, Address(0, 0)
        if not self._has_target(address.target):
            return Response.BAD_TARGET, address
        return (Response.OK if address in self.units else Response.INCORRECT_LUN), address

    def _manage(self, function: int, lun: bytes) -> Response:
        """Carry out a task management function. No task is ever under way: each ends before the next is looked at."""
        response, address = self._addressed(lun)
        if function == TaskFunction.I_T_NEXUS_RESET and response is not Response.BAD_TARGET:
            for known, unit in self.units.items():
                if known.target == address.target:
                    unit.reset(UNIT_RESET)
            return Response.OK
        if response is not Response.OK:
            return response
        if function == TaskFunction.LOGICAL_UNIT_RESET:
            self.units[address].reset(UNIT_RESET)
        elif function == TaskFunction.CLEAR_ACA or function not in list(TaskFunction):
            return Response.FUNCTION_REJECTED  # there is no auto contingent allegiance here
        return Response.OK
