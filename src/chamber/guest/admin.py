"""The driver's side of group administration commands (virtio 1.4, 2.12), for whoever owns a group.

What the owner device answers is as untrusted as the rest: lengths, lists and parts are checked before they are used,
and what is unknown is a failure, never a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.admin import (
    CAPABILITY_HEADER,
    CREATE,
    HEADER,
    LEGACY_ACCESS,
    LEGACY_OPCODES,
    MODE_STOPPED,
    MOST_NOTIFY_INFO,
    MOST_PARTS_BYTES,
    NOTIFY_INFO,
    OBJECT_HEADER,
    PARTS_CAPABILITY,
    PARTS_LIST_HEADER,
    PARTS_OBJECT,
    PARTS_REQUEST,
    STATUS,
    CapabilityKind,
    Group,
    MetadataType,
    NotifyFlags,
    ObjectType,
    Opcode,
    Part,
    PartsRequest,
    PartsUse,
    PartType,
    Qualifier,
    Status,
    build_bits,
    parse_bits,
    parse_parts,
)
from chamber.wire.errors import WireError
from chamber.wire.pci import BAR_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.guest.driver import VirtioDriver

__all__ = ("AdminClient", "CommandFailed")

_SPEC: Final = "2.12.1"
_LIST_BYTES: Final = 64
_RETRIES: Final = 3
_NEEDED: Final = {Group.SELF: frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE, Opcode.CAP_ID_LIST_QUERY,
                                         Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET}),
                  Group.SRIOV: frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE, Opcode.RESOURCE_OBJ_CREATE,
                                          Opcode.RESOURCE_OBJ_DESTROY, Opcode.DEV_PARTS_METADATA_GET,
                                          Opcode.DEV_PARTS_GET, Opcode.DEV_PARTS_SET, Opcode.DEV_MODE_SET})}

_NEVER_MISSING: Final = {PartType.DRV_FEATURES, PartType.DEVICE_STATUS}
"""A device that went on without them would be another one than its guest knows."""


class CommandFailed(Refused):
    """The owner device says that a command failed.

    Attributes:
        status: how; a number that is reserved counts as EINVAL.
        qualifier: why; a number that is reserved counts as INVALID_COMMAND.

    """

    def __init__(self, opcode: Opcode, status: Status, qualifier: Qualifier) -> None:
        super().__init__(f"{opcode.name} fails: {status.name}, {qualifier.name}")
        self.status = status
        self.qualifier = qualifier


class AdminClient:
    """Sends commands.

    Args:
        driver: the driver of the owner device, which has an administration queue.

    """

    def __init__(self, driver: VirtioDriver) -> None:
        if driver.admin is None:
            raise Refused("the device has no administration queue")
        self._driver = driver
        self._queue = driver.admin
        self._checks = driver.checks

    def command(self, opcode: Opcode, group: Group, *, member: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        """Execute a command; return its result, at most `room` bytes, which nothing is known of yet.

        Raises:
            CommandFailed: the device says so.
            DeviceViolation: the device broke a rule.

        """
        for _ in range(_RETRIES):
            try:
                return self._once(opcode, group, member, data, room)
            except CommandFailed as error:
                if error.status is not Status.EAGAIN:
                    raise
                last = error
        raise last

    def _once(self, opcode: Opcode, group: Group, member: int, data: bytes, room: int) -> bytes:
        heap = self._driver.machine.heap
        head = bytes(HEADER.pack(opcode=opcode, group_type=group, group_member_id=member)) + data
        size = STATUS.size + room
        command, answer = heap.alloc(len(head), "administration command"), heap.alloc(size, "its answer", zero=True)
        try:
            command.write(head)
            written = self._driver.transact(self._driver.queue(self._queue), [command], [answer])
            # What the device did not write is zero (2.13): also the status, were it not for its rule.
            length = self._checks.number(written).between(STATUS.size, size, "an answer has its status", "2.13")
            reply = answer.read(0, length)
        finally:
            self._driver.release(command, answer)
        status = self._checks.number(STATUS.get(reply, "status")).masked(0xFFFF)
        if status:
            qualifier = self._checks.number(STATUS.get(reply, "status_qualifier")).masked(0xFFFF)
            raise CommandFailed(opcode, Status(status) if status in set(Status) else Status.EINVAL,
                                Qualifier(qualifier) if qualifier in set(Qualifier) else Qualifier.INVALID_COMMAND)
        return reply[STATUS.size:STATUS.size + room]

    def use(self, group: Group) -> frozenset[Opcode]:
        """Say which commands are used for a group, of those that the device has; return them."""
        offered = parse_bits(self.command(Opcode.LIST_QUERY, group, room=_LIST_BYTES))
        legacy = LEGACY_OPCODES & offered
        self._checks.require(legacy in {frozenset(), LEGACY_OPCODES}, "legacy commands are there all, or not at all",
                             f"{_SPEC}.2")
        wanted = frozenset(_NEEDED[group] & offered | legacy)
        self._checks.require({Opcode.LIST_QUERY, Opcode.LIST_USE} <= offered, "lists can always be asked for", _SPEC)
        self.command(Opcode.LIST_USE, group, data=build_bits(wanted))
        return frozenset(Opcode(opcode) for opcode in wanted)

    def allow_parts(self) -> tuple[int, int]:
        """Say that objects for device parts are used, as many as there may be; return how many to get, and to set."""
        known = parse_bits(self.command(Opcode.CAP_ID_LIST_QUERY, Group.SELF, room=_LIST_BYTES))
        if CapabilityKind.DEV_PARTS not in known:
            raise Refused("the device has no device parts")
        head = bytes(CAPABILITY_HEADER.pack(id=CapabilityKind.DEV_PARTS))
        limits = self.command(Opcode.DEVICE_CAP_GET, Group.SELF, data=head,
                              room=PARTS_CAPABILITY.size).ljust(PARTS_CAPABILITY.size, b"\0")
        self.command(Opcode.DRIVER_CAP_SET, Group.SELF, data=head + limits)
        get, put = (self._checks.number(PARTS_CAPABILITY.get(limits, field.name)).masked(0xFF)
                    for field in PARTS_CAPABILITY)
        return get, put

    # Members.

    def stop(self, member: int) -> None:
        """Have a member touch nothing of its guest's."""
        self.command(Opcode.DEV_MODE_SET, Group.SRIOV, member=member, data=bytes((MODE_STOPPED,)))

    def resume(self, member: int) -> None:
        """Have a member go on."""
        self.command(Opcode.DEV_MODE_SET, Group.SRIOV, member=member, data=bytes(1))

    # The legacy interface of a member (2.12.1.2).

    def read_legacy(self, member: int, offset: int, size: int, *, device: bool = False) -> bytes:
        """Read registers of its common configuration, or of the device's own."""
        opcode = Opcode.LEGACY_DEV_CFG_READ if device else Opcode.LEGACY_COMMON_CFG_READ
        data = self.command(opcode, Group.SRIOV, member=member, data=bytes((offset,)), room=size)
        self._checks.require(len(data) == size, "a read of registers gives as many bytes as there is room for", _SPEC)
        return data

    def write_legacy(self, member: int, offset: int, data: bytes, *, device: bool = False) -> None:
        """Write them."""
        opcode = Opcode.LEGACY_DEV_CFG_WRITE if device else Opcode.LEGACY_COMMON_CFG_WRITE
        self.command(opcode, Group.SRIOV, member=member, data=bytes(LEGACY_ACCESS.pack(offset=offset)) + data)

    def legacy_doorbells(self, member: int) -> tuple[tuple[NotifyFlags, int, int], ...]:
        """Return where queues are notified: whose BAR, its number, the offset; which is not known to be within it."""
        size = MOST_NOTIFY_INFO * NOTIFY_INFO.size
        data = self.command(Opcode.LEGACY_NOTIFY_INFO, Group.SRIOV, member=member, room=size).ljust(size, b"\0")
        found = []
        for at in range(0, size, NOTIFY_INFO.size):
            entry = NOTIFY_INFO.unpack(data, at)
            flags = self._checks.number(entry["flags"]).between(0, max(NotifyFlags), "a doorbell is the owner's or the "
                                                                "member's", f"{_SPEC}.2")
            if flags == NotifyFlags.END:
                break
            bar = self._checks.number(entry["bar"]).between(0, BAR_COUNT - 1, "a function has six BARs", f"{_SPEC}.2")
            offset = self._checks.number(entry["offset"]).masked((1 << 64) - 1)
            found.append((NotifyFlags(flags), bar, offset))
        return tuple(found)

    def _create(self, member: int, number: int, use: PartsUse) -> bytes:
        head = {"type": ObjectType.DEV_PARTS, "id": number}
        self.command(Opcode.RESOURCE_OBJ_CREATE, Group.SRIOV, member=member,
                     data=bytes(CREATE.pack(**head)) + bytes(PARTS_OBJECT.pack(type=use)))
        return bytes(OBJECT_HEADER.pack(**head))

    def read_parts(self, member: int, number: int = 0) -> tuple[Part, ...]:
        """Return the state of a member, in its order, each part once; `number` is of an object that is free."""
        head = self._create(member, number, PartsUse.GET)
        try:
            request = PARTS_REQUEST.pack(kind=MetadataType.SIZE)
            request[:len(head)] = head
            answer = self.command(Opcode.DEV_PARTS_METADATA_GET, Group.SRIOV, member=member, data=bytes(request),
                                  room=PARTS_LIST_HEADER.size).ljust(PARTS_LIST_HEADER.size, b"\0")
            size = self._checks.number(PARTS_LIST_HEADER.get(answer, "count")).at_most(
                MOST_PARTS_BYTES, "the parts of a device have a size that fits", "2.12.1.5")
            PARTS_REQUEST.put(request, "kind", PartsRequest.ALL)
            data = self.command(Opcode.DEV_PARTS_GET, Group.SRIOV, member=member, data=bytes(request), room=size)
        finally:
            self._destroy(member, head)
        try:
            parts = parse_parts(data)
        except WireError as error:
            raise DeviceViolation(error.rule, "2.14", error.detail) from None
        order = [list(PartType).index(PartType(part.type)) for part in parts if part.type in set(PartType)]
        once = len({(part.type, part.selector) for part in parts}) == len(parts)
        self._checks.require(once and order == sorted(order), "parts stand in their order, and once", "2.12.1.5.4")
        self._checks.require({part.type for part in parts} >= _NEVER_MISSING,
                             "the parts that no device is without are there", "2.14.1")
        return parts

    def write_parts(self, member: int, parts: Sequence[Part], number: int = 0) -> None:
        """Set the state of a member that is stopped."""
        head = self._create(member, number, PartsUse.SET)
        try:
            self.command(Opcode.DEV_PARTS_SET, Group.SRIOV, member=member,
                         data=head + b"".join(part.build() for part in parts))
        finally:
            self._destroy(member, head)

    def _destroy(self, member: int, head: bytes) -> None:
        self.command(Opcode.RESOURCE_OBJ_DESTROY, Group.SRIOV, member=member, data=head)
