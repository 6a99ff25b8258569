"""SCSI host driver: commands, task management, events (virtio 1.3, 5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import REQUEST_SECONDS, TRANSPORT_FEATURES, DeviceTimeout, Refused, VirtioDriver
from chamber.guest.drivers.scsi_disk import CommandFailed, NoTarget, ScsiDisk, UnitAttention, read_luns
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
from chamber.wire.scsi_commands import Sense, SenseKey, Status, parse_sense
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("ScsiDriver",)

_TARGETS: Final = 8
_LUNS: Final = 16
"""Targets, and LUNs of each, that this guest has use for; the device may have more."""
_EVENTS: Final = 8
_EVENT_ROOM: Final = 4096
_TRIES: Final = 4
_PAUSE_SECONDS: Final = 0.05
_UNANSWERED: Final = 0xFF
_COMMAND_RESPONSES: Final = tuple(r for r in Response if r <= Response.FAILURE)
_TASK_RESPONSES: Final = tuple(r for r in Response if r not in {
    Response.OVERRUN, Response.ABORTED, Response.RESET})
_AN_RESPONSES: Final = tuple(r for r in _TASK_RESPONSES if r not in {
    Response.FUNCTION_SUCCEEDED, Response.FUNCTION_REJECTED})
_BUSY_STATUS: Final = (Status.BUSY, Status.TASK_SET_FULL)
_LUN_BYTES: Final = slice(4, 12)


class ScsiDriver(VirtioDriver):
    """Finds disks, and uses them. What a block holds is the host's word: integrity is for a layer above.

    Attributes:
        disks: what was found, by address.
        max_target: highest target that is looked for.
        max_lun: highest LUN that is looked for.
        max_sectors: sectors of 512 bytes that one request may move.

    """

    type = DeviceType.SCSI
    known = TRANSPORT_FEATURES | bit(ScsiFeature.INOUT, ScsiFeature.HOTPLUG, ScsiFeature.CHANGE)
    allowed = TRANSPORT_FEATURES | bit(ScsiFeature.HOTPLUG, ScsiFeature.CHANGE)
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.disks: dict[Address, ScsiDisk] = {}
        self._known: dict[int, ScsiDisk] = {}
        self._table: Object | None = None
        self._sense: Object | None = None
        self._lent: dict[Request, Object] = {}
        self._rescan: set[int] = set()
        self._tag = 0

    def queue_indexes(self) -> list[int]:
        """Control, events, and one request queue: the guest has one processor."""
        return [CONTROL_QUEUE, EVENT_QUEUE, REQUEST_QUEUE]

    def initialise(self) -> None:
        """Read the limits of the host, and make the table of disks: a place for each that it says there may be."""
        spec = "5.6.4"
        self.read_config("num_queues").between(1, 65534, "there is a request queue", spec)
        self.read_config("seg_max").between(1, 0xFFFFFFFF, "a request has one segment", spec)
        self.read_config("cmd_per_lun").between(1, 0xFFFFFFFF, "a unit takes one command", spec)
        self.max_sectors = self.read_config("max_sectors").between(
            8, 0xFFFFFFFF, "a request moves a block of any size at least", spec)
        self._event_size = self.read_config("event_info_size").between(
            EVENT.size, _EVENT_ROOM, "an event has room for its fields", spec)
        self.read_config("max_channel").equals(0, "there is one channel", spec)
        self.max_target = self.read_config("max_target").at_most(MAX_TARGET, "a target can be addressed", spec)
        self.max_lun = self.read_config("max_lun").at_most(MAX_LUN, "a unit can be addressed", spec)
        if self.checks.enforcing:
            self.max_target, self.max_lun = min(self.max_target, _TARGETS - 1), min(self.max_lun, _LUNS - 1)
        # Said once more, as they are what each request is laid out by.
        for name, size in (("sense_size", SENSE_SIZE), ("cdb_size", CDB_SIZE)):
            self.transport.write_config(CONFIG[name].offset, size.to_bytes(4, "little"))
            self.read_config(name).equals(size, "the driver's sizes are taken", spec)
        heap = self.machine.heap
        self._sense = heap.alloc(SENSE_SIZE, "sense data", zero=True)
        self._table = heap.alloc(8 * (self.max_target + 1) * (self.max_lun + 1), "disk table", zero=True)
        self._rescan.clear()

    def started(self) -> None:
        """Lend buffers for events, then look for disks."""
        queue = self.queues[EVENT_QUEUE]
        for _ in range(_EVENTS):
            self._lend(queue, self.machine.heap.alloc(self._event_size, "event"))
        self.kick(queue)
        self._rescan.update(range(min(self.max_target, _TARGETS - 1) + 1))
        self.attend()

    def free_buffers(self) -> None:
        """Free what was lent and known."""
        heap = self.machine.heap
        for request, buffer in self._lent.items():
            heap.free(request.record)
            heap.free(buffer)
        self._lent.clear()
        for disk in self.disks.values():
            heap.free(disk.memory)
        self.disks.clear()
        self._known.clear()
        for memory in (self._table, self._sense):
            if memory is not None:
                heap.free(memory)
        self._table = self._sense = None

    # Commands.

    def command(self, address: Address, cdb: bytes, *, into: Object | None = None, outof: Object | None = None) -> int:
        """Have a unit carry out a command, and try again for a while if it is busy; return the bytes moved.

        Raises:
            NoTarget: there is no such target.
            UnitAttention: the unit had something to tell; the command was not carried out.
            CommandFailed: it was not carried out, for good.
            DeviceViolation: the device broke a rule.
            DeviceTimeout: no answer.

        """
        for _ in range(_TRIES):
            moved = self._command(address, cdb, into, outof)
            if moved is not None:
                return moved
            self.machine.settle(_PAUSE_SECONDS)
        raise CommandFailed("the unit is busy for ever")

    def _command(self, address: Address, cdb: bytes, into: Object | None, outof: Object | None) -> int | None:
        """Have a command carried out once; None if the unit is busy."""
        heap = self.machine.heap
        header = heap.alloc(COMMAND.size + CDB_SIZE, "command")
        self._tag += 1
        header.write(COMMAND.pack(address.pack(), self._tag, 0, 0, 0) + cdb.ljust(CDB_SIZE, b"\0"))
        response = heap.alloc(RESPONSE.size + SENSE_SIZE, "response")
        # What the device leaves out must not read as success.
        response.write(bytes((_UNANSWERED,)) * response.size)
        size = sum(memory.size for memory in (into, outof) if memory is not None)
        try:
            written = self.transact(self.queue(REQUEST_QUEUE), [header, *([outof] if outof is not None else [])],
                                    [response, *([into] if into is not None else [])])
            filled = self.checks.number(written).minus(
                response.size, 0xFFFFFFFF, "a request is answered with a whole response", "5.6.6.1")
            return self._outcome(response, size, filled if into is not None else size)
        finally:
            self.release(header, response)

    def _outcome(self, response: Object, size: int, filled: int) -> int | None:
        spec = "5.6.6.1"
        sense_length, residual, _, status_byte, code = RESPONSE.unpack(response.read(0, RESPONSE.size))
        answer = self.checks.number(code).one_of(_COMMAND_RESPONSES, "a response is one of those defined", spec)
        if answer == Response.BAD_TARGET:
            raise NoTarget("there is no such target")
        if answer == Response.BUSY:
            return None
        if answer != Response.OK:
            raise CommandFailed(f"the device answers with response {answer}")
        status = self.checks.number(status_byte).one_of(tuple(Status), "a status is one that SAM defines", spec)
        length = self.checks.number(sense_length).at_most(SENSE_SIZE, "sense data fits into sense_size", spec)
        left = self.checks.number(residual).at_most(size, "no more is left over than there was", spec)
        if status in _BUSY_STATUS:
            return None
        if length:
            assert self._sense is not None
            self._sense.write(response.read(RESPONSE.size, length))
        if status == Status.CHECK_CONDITION:
            self._condition(length)
        if status != Status.GOOD:
            raise CommandFailed(f"the unit answers with status {status}")
        moved = (size - left) & 0xFFFFFFFF
        # Without this, what the device did not write would pass for what the unit returned.
        self.checks.require(moved <= filled, "what was moved was written", spec, f"{moved} of {filled} bytes")
        return moved

    def _condition(self, length: int) -> None:
        """Raise what sense data says.

        A driver that does not ask for its length takes what the last command left in the buffer.
        """
        assert self._sense is not None
        raw = self._sense.read(0, length if self.checks.enforcing else SENSE_SIZE)
        try:
            sense = parse_sense(raw)
        except WireError as error:
            self.checks.require(False, "CHECK CONDITION comes with sense data", "5.6.6.1", str(error))
            sense = Sense(SenseKey.ABORTED_COMMAND, 0)
        kind = UnitAttention if sense.key == SenseKey.UNIT_ATTENTION else CommandFailed
        raise kind(f"the unit says {sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}", sense)

    # Task management.

    def manage(self, function: TaskFunction, address: Address) -> Response:
        """Have a task management function carried out.

        Raises:
            DeviceViolation: the device broke a rule.
            DeviceTimeout: no answer.

        """
        request = TASK_MANAGEMENT.pack(ControlType.TMF, function, address.pack(), self._tag)
        answer = self._control(request, 1)
        return Response(self.checks.number(answer[0]).one_of(
            _TASK_RESPONSES, "a response is one that task management has", "5.6.6.2"))

    def asynchronous_events(self, address: Address, wanted: int, *, subscribe: bool = False) -> int:
        """Ask which of some events a unit can report, or subscribe to them; return those that it has.

        Raises:
            Refused: there is no such unit.
            DeviceViolation: the device broke a rule.

        """
        kind = ControlType.AN_SUBSCRIBE if subscribe else ControlType.AN_QUERY
        actual, code = AN_ANSWER.unpack(self._control(AN_REQUEST.pack(kind, address.pack(), wanted), AN_ANSWER.size))
        answer = self.checks.number(code).one_of(_AN_RESPONSES, "a response is one that queries have", "5.6.6.2")
        if answer != Response.OK:
            raise Refused(f"the device answers with response {answer}")
        return self.checks.number(actual).flags(wanted, "no events are reported but those asked for", "5.6.6.2")

    def _control(self, request: bytes, room: int) -> bytes:
        heap = self.machine.heap
        readable = heap.alloc(len(request), "control request")
        readable.write(request)
        answer = heap.alloc(room, "control answer")
        answer.write(bytes((_UNANSWERED,)) * room)
        try:
            written = self.transact(self.queue(CONTROL_QUEUE), [readable], [answer])
            self.checks.number(written).equals(room, "a control request is answered in full", "5.6.6.2")
            return answer.read(0, room)
        finally:
            self.release(readable, answer)

    # Events.

    def _lend(self, queue: VirtQueue, buffer: Object) -> None:
        self._lent[self.lend(queue, [], [buffer])] = buffer

    def used(self, queue: VirtQueue) -> None:
        """Take what came in; events are noted here, and acted on by `attend`."""
        while (request := queue.get()) is not None:
            buffer = self._lent.pop(request, None)
            if buffer is None:
                continue  # a request came back; whoever waits for it frees it
            self.machine.heap.free(request.record)
            try:
                self._event(buffer, request.written)
            finally:
                self._lend(queue, buffer)
                self.kick(queue)

    def _event(self, buffer: Object, written: int) -> None:
        spec = "5.6.6.3"
        self.checks.number(written).between(EVENT.size, self._event_size, "an event is 16 bytes", spec)
        raw = buffer.read(0, EVENT.size)
        event, _, reason = EVENT.unpack(raw)
        kind = self.checks.number(event & ~EVENTS_MISSED).one_of(
            tuple(EventType), "an event is one of those defined", spec)
        if event & EVENTS_MISSED:
            self._rescan.update(range(min(self.max_target, _TARGETS - 1) + 1))
        if kind == EventType.NO_EVENT:
            return
        self.checks.require(kind != EventType.ASYNC_NOTIFY, "events are reported that were subscribed to", spec)
        address = self._address(raw[_LUN_BYTES])
        slot = self._slot(address)
        why = -1
        if kind == EventType.TRANSPORT_RESET:
            why = self.checks.number(reason).one_of(tuple(ResetReason), "a reset has a reason", spec)
            hotplug = why in {ResetReason.RESCAN, ResetReason.REMOVED}
            self.checks.require(not hotplug or self.has(ScsiFeature.HOTPLUG), "hot plug was negotiated", spec)
            if hotplug:
                self._rescan.add(address.target)
        if why == ResetReason.RESCAN:
            return
        assert self._table is not None
        disk = self._known.get(self._table.get(slot, 8))
        if disk is None:
            return  # gone already, by a scan that was quicker than its event
        disk.memory.put(8, 8, reason)  # what it was last told of
        disk.stale = True
        if why == ResetReason.REMOVED:
            disk.gone = True
            if not self.machine.profile.ordered:
                self._remove(address, disk)

    def _address(self, lun: bytes) -> Address:
        """Read what an event names."""
        try:
            return parse_lun(lun)
        except WireError as error:
            self.checks.require(False, error.rule, "5.6.6.1", error.detail)
            return Address(lun[1], (lun[2] << 8 | lun[3]) & MAX_LUN)

    def _slot(self, address: Address) -> int:
        """Return where in the table of disks an address has its place."""
        target = self.checks.number(address.target).index(
            self.max_target + 1, "a target is one that the device has", "5.6.4")
        lun = self.checks.number(address.lun).index(self.max_lun + 1, "a LUN is one that the device has", "5.6.4")
        return 8 * (target * (self.max_lun + 1) + lun)

    # Finding disks.

    def attend(self) -> None:
        """Do what events called for: forget disks that are gone, look for new ones.

        Raises:
            DeviceViolation: the device broke a rule.

        """
        for target in sorted(self._rescan):
            self._rescan.discard(target)
            for address in [a for a in self.disks if a.target == target and self.disks[a].gone]:
                self._remove(address, self.disks[address])
            try:
                found = read_luns(self, target)
            except NoTarget:
                found = set()
            for address in [a for a in self.disks if a.target == target and a.lun not in found]:
                self._remove(address, self.disks[address])
            for lun in sorted(found):
                self._look(Address(target, lun))

    def _look(self, address: Address) -> None:
        """See what a unit is, and whether it still is what it was."""
        known = self.disks.get(address)
        if known is not None:
            known.stale = True
            return
        assert self._table is not None
        slot = self._slot(address)
        disk = ScsiDisk(self, address, self.machine.heap.alloc(64, "scsi disk", zero=True))
        try:
            disk.identify()
        except Refused:
            self.machine.heap.free(disk.memory)  # no disk, or not ready to be one
            return
        except Exception:
            self.machine.heap.free(disk.memory)
            raise
        handle = len(self._known) + 1
        self._known[handle] = self.disks[address] = disk
        self._table.put(slot, 8, handle)

    def _remove(self, address: Address, disk: ScsiDisk) -> None:
        if self.disks.get(address) is disk:
            del self.disks[address]
        disk.gone = True  # for those who hold it still
        self.machine.heap.free(disk.memory)
        if self.checks.enforcing and self._table is not None:
            # Left out, the table goes on pointing to what was freed: harmless until an event names the disk again.
            self._table.put(self._slot(address), 8, 0)

    def wait_for(self, address: Address) -> ScsiDisk:
        """Wait for a disk to appear.

        Raises:
            DeviceTimeout: it does not.

        """
        def heard() -> bool:
            return address in self.disks or bool(self._rescan) or bool(self.violations)

        self.machine.wait(heard, REQUEST_SECONDS)
        self.attend()
        if address not in self.disks:
            raise DeviceTimeout(f"no disk appears at {address}")
        return self.disks[address]
