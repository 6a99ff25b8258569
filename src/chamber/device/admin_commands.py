"""What an owner device does with group administration commands (virtio 1.4, 2.12).

A command that breaks a rule fails with the status and qualifier that the specification has for it, and changes nothing:
the queue goes on. A device offers all legacy commands or none (2.12.1.2), and does so where its members have doorbells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from chamber.device.device_parts import BadPart, read_parts, write_parts
from chamber.device.legacy_interface import LegacyInterface
from chamber.device.virtio_pci import DOORBELLS_AT, NOTIFY_MULTIPLIER
from chamber.wire.admin import (
    CAPABILITY_HEADER,
    CREATE,
    HEADER,
    LEGACY_ACCESS,
    MODE_STOPPED,
    MOST_NOTIFY_INFO,
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
    PartsRequest,
    PartsUse,
    Qualifier,
    Status,
    build_bits,
    parse_bits,
    parse_parts,
)
from chamber.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.virtio_pci import VirtioPci

__all__ = ("AdminCommands", "Members")

_MOST_OBJECTS: Final = 8
_LISTS: Final = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})


class Members(Protocol):
    """The devices of a group."""

    @property
    def exist(self) -> bool:
        """Whether there is such a group now."""
        ...

    def member(self, number: int) -> VirtioPci | None:
        """The member with such an identifier, if there is one."""
        ...


class _Failed(Exception):
    """A command fails."""

    def __init__(self, status: Status, qualifier: Qualifier = Qualifier.INVALID_FIELD) -> None:
        super().__init__(f"{status.name}, {qualifier.name}")
        self.status = status
        self.qualifier = qualifier


@dataclass(frozen=True, slots=True)
class _PartsObject:
    member: int
    use: PartsUse


class AdminCommands:
    """Executes commands; knows what the driver has said that it uses, and what it has made.

    Args:
        group: the members of the SR-IOV group, if the owner has one.
        legacy: whether members can be reached by their legacy interface; they and the owner have doorbells then.
        limits: objects to get parts with, and to set them, that there may be.
        for_linux: Linux (7.3) asks for the commands of the SR-IOV group alone, and takes them for those of the owner
            itself as well: they are listed there, too, and not refused where they were not.

    """

    def __init__(self, group: Members | None = None, *, legacy: bool = False,
                 limits: tuple[int, int] = (_MOST_OBJECTS, _MOST_OBJECTS), for_linux: bool = False) -> None:
        self._group = group
        self._limits = limits
        self._for_linux = for_linux
        self._handlers: dict[Group, dict[Opcode, Callable[[int, bytes, int], bytes]]] = {
            Group.SELF: {Opcode.CAP_ID_LIST_QUERY: self._capabilities, Opcode.DEVICE_CAP_GET: self._get_capability,
                         Opcode.DRIVER_CAP_SET: self._set_capability},
            Group.SRIOV: {Opcode.RESOURCE_OBJ_CREATE: self._create, Opcode.RESOURCE_OBJ_MODIFY: self._modify,
                          Opcode.RESOURCE_OBJ_QUERY: self._query, Opcode.RESOURCE_OBJ_DESTROY: self._destroy,
                          Opcode.DEV_PARTS_METADATA_GET: self._metadata, Opcode.DEV_PARTS_GET: self._get_parts,
                          Opcode.DEV_PARTS_SET: self._set_parts, Opcode.DEV_MODE_SET: self._set_mode}}
        if legacy:
            self._handlers[Group.SRIOV].update({
                Opcode.LEGACY_COMMON_CFG_WRITE: self._write_common, Opcode.LEGACY_COMMON_CFG_READ: self._read_common,
                Opcode.LEGACY_DEV_CFG_WRITE: self._write_device, Opcode.LEGACY_DEV_CFG_READ: self._read_device,
                Opcode.LEGACY_NOTIFY_INFO: self._notify_info})
        for group_type, handlers in self._handlers.items():
            handlers[Opcode.LIST_QUERY] = partial(self._list, group_type)
            handlers[Opcode.LIST_USE] = partial(self._use, group_type)
        self.reset()

    def reset(self) -> None:
        """The owner was reset: nothing is listed, nothing made, no limit set."""
        self._used: dict[Group, frozenset[int]] = dict.fromkeys(Group, _LISTS)
        self._driver_limits = 0, 0
        self._objects: dict[int, _PartsObject] = {}

    def execute(self, command: bytes, room: int) -> bytes:
        """Execute one; return what to write, which `room` bytes are there for behind its status."""
        try:
            result = self._execute(command.ljust(HEADER.size, b"\0"), room)
        except _Failed as error:
            return bytes(STATUS.pack(status=error.status, status_qualifier=error.qualifier))
        return bytes(STATUS.size) + result

    def _execute(self, command: bytes, room: int) -> bytes:
        opcode, number, member = (HEADER.get(command, name) for name in ("opcode", "group_type", "group_member_id"))
        # The order of the checks is the specification's (2.12.1.6).
        if number not in set(Group) or (number == Group.SRIOV and (self._group is None or not self._group.exist)):
            raise _Failed(Status.EINVAL, Qualifier.INVALID_GROUP)
        group = Group(number)
        listed = group is Group.SELF and self._for_linux
        if opcode not in self._handlers[group] or not (listed or opcode in self._used[group]):
            raise _Failed(Status.EINVAL, Qualifier.INVALID_OPCODE)
        return self._handlers[group][Opcode(opcode)](member, command[HEADER.size:], room)

    # Lists.

    def _listed(self, group: Group) -> set[int]:
        both = self._for_linux and group is Group.SRIOV
        return {*self._handlers[group], *(self._handlers[Group.SELF] if both else ())}

    def _list(self, group: Group, _member: int, _data: bytes, _room: int) -> bytes:
        return build_bits(self._listed(group))

    def _use(self, group: Group, _member: int, data: bytes, _room: int) -> bytes:
        wanted = parse_bits(data)
        if not wanted <= self._listed(group):
            raise _Failed(Status.EINVAL)
        self._used[group] = wanted
        return b""

    # Capabilities.

    def _capabilities(self, _member: int, _data: bytes, _room: int) -> bytes:
        return build_bits(CapabilityKind)

    def _capability(self, data: bytes) -> bytes:
        data = data.ljust(CAPABILITY_HEADER.size, b"\0")
        if CAPABILITY_HEADER.get(data, "id") not in set(CapabilityKind):
            raise _Failed(Status.ENXIO)
        return data[CAPABILITY_HEADER.size:]

    def _get_capability(self, _member: int, data: bytes, _room: int) -> bytes:
        self._capability(data)
        return bytes(self._limits)

    def _set_capability(self, _member: int, data: bytes, _room: int) -> bytes:
        limits = PARTS_CAPABILITY.unpack(self._capability(data).ljust(PARTS_CAPABILITY.size, b"\0"))
        get, put = limits.values()
        if get > self._limits[0] or put > self._limits[1]:
            raise _Failed(Status.EINVAL)
        if self._objects:
            raise _Failed(Status.EBUSY)
        self._driver_limits = get, put
        return b""

    # Members and objects.

    def _member(self, number: int, *, stopping: bool = False) -> VirtioPci:
        member = None if self._group is None else self._group.member(number)
        if member is None:
            raise _Failed(Status.EINVAL, Qualifier.INVALID_MEMBER)
        # What a guest has locked its owner neither reads nor writes, by no command (PCIe 6.1, 11.4.5); it may stop it,
        # as whoever owns the machine always can.
        if member.held and not stopping:
            raise _Failed(Status.EBUSY, Qualifier.TRYAGAIN)
        return member

    def _create(self, member: int, data: bytes, _room: int) -> bytes:
        self._member(member)
        data = data.ljust(CREATE.size + PARTS_OBJECT.size, b"\0")
        kind, number, flags = (CREATE.get(data, name) for name in ("type", "id", "flags"))
        use = PARTS_OBJECT.get(data, "type", CREATE.size)
        if kind != ObjectType.DEV_PARTS or flags or use not in set(PartsUse):
            raise _Failed(Status.EINVAL)
        if number in self._objects:
            raise _Failed(Status.EEXIST)
        made = sum(other.use == use for other in self._objects.values())
        if number >= max(self._driver_limits) or made >= self._driver_limits[use]:
            raise _Failed(Status.ENOSPC, Qualifier.NORESOURCE)
        self._objects[number] = _PartsObject(member, PartsUse(use))
        return b""

    def _object(self, member: int, data: bytes) -> tuple[int, _PartsObject]:
        self._member(member)
        kind, number = (OBJECT_HEADER.get(data.ljust(OBJECT_HEADER.size, b"\0"), name) for name in ("type", "id"))
        found = self._objects.get(number)
        if kind != ObjectType.DEV_PARTS or found is None or found.member != member:
            raise _Failed(Status.ENXIO)
        return number, found

    def _modify(self, member: int, data: bytes, _room: int) -> bytes:
        number, found = self._object(member, data)
        use = PARTS_OBJECT.get(data.ljust(CREATE.size + PARTS_OBJECT.size, b"\0"), "type", CREATE.size)
        others = sum(other.use == use for other in self._objects.values() if other is not found)
        if use not in set(PartsUse) or others >= self._driver_limits[use]:
            raise _Failed(Status.EINVAL)
        self._objects[number] = _PartsObject(member, PartsUse(use))
        return b""

    def _query(self, member: int, data: bytes, _room: int) -> bytes:
        return bytes(PARTS_OBJECT.pack(type=self._object(member, data)[1].use))

    def _destroy(self, member: int, data: bytes, _room: int) -> bytes:
        del self._objects[self._object(member, data)[0]]
        return b""

    # The legacy interface of a member.

    def _write_common(self, member: int, data: bytes, _room: int) -> bytes:
        legacy = LegacyInterface(self._member(member))
        legacy.write(*_written(data, legacy.size))
        return b""

    def _read_common(self, member: int, data: bytes, room: int) -> bytes:
        legacy = LegacyInterface(self._member(member))
        return legacy.read(*_to_read(data, room, legacy.size))

    def _write_device(self, member: int, data: bytes, _room: int) -> bytes:
        device = self._member(member).device
        device.write_config(*_written(data, len(device.config)))
        return b""

    def _read_device(self, member: int, data: bytes, room: int) -> bytes:
        device = self._member(member).device
        return device.read_config(*_to_read(data, room, len(device.config)))

    def _notify_info(self, member: int, _data: bytes, room: int) -> bytes:
        bar = self._member(member).register_bar
        places = ((NotifyFlags.MEMBER, 0), (NotifyFlags.OWNER, member - 1))
        listed = b"".join(
            bytes(NOTIFY_INFO.pack(flags=flags, bar=bar, offset=DOORBELLS_AT + NOTIFY_MULTIPLIER * number))
            for flags, number in places)
        return _fitting(listed.ljust(MOST_NOTIFY_INFO * NOTIFY_INFO.size, b"\0"), room)

    # Device parts.

    def _for_parts(self, member: int, data: bytes, use: PartsUse) -> VirtioPci:
        if self._object(member, data)[1].use is not use:
            raise _Failed(Status.EINVAL)
        return self._member(member)

    def _metadata(self, member: int, data: bytes, room: int) -> bytes:
        parts = read_parts(self._for_parts(member, data, PartsUse.GET))
        match PARTS_REQUEST.get(data.ljust(PARTS_REQUEST.size, b"\0"), "kind"):
            case MetadataType.SIZE:
                result = bytes(PARTS_LIST_HEADER.pack(count=sum(len(part.build()) for part in parts)))
            case MetadataType.COUNT:
                result = bytes(PARTS_LIST_HEADER.pack(count=len(parts)))
            case MetadataType.LIST:
                result = bytes(PARTS_LIST_HEADER.pack(count=len(parts))) + b"".join(
                    part.build(header=True) for part in parts)
            case _:
                raise _Failed(Status.EINVAL)
        return _fitting(result, room)

    def _get_parts(self, member: int, data: bytes, room: int) -> bytes:
        parts = read_parts(self._for_parts(member, data, PartsUse.GET))
        data = data.ljust(PARTS_REQUEST.size, b"\0")
        kind = PARTS_REQUEST.get(data, "kind")
        if kind not in set(PartsRequest):
            raise _Failed(Status.EINVAL)
        if kind == PartsRequest.SELECTED:
            try:
                wanted = {(part.type, part.selector) for part in parse_parts(data[PARTS_REQUEST.size:], headers=True)}
            except WireError:
                raise _Failed(Status.EINVAL) from None
            parts = tuple(part for part in parts if (part.type, part.selector) in wanted)
        return _fitting(b"".join(part.build() for part in parts), room)

    def _set_parts(self, member: int, data: bytes, _room: int) -> bytes:
        function = self._for_parts(member, data, PartsUse.SET)
        try:
            write_parts(function, parse_parts(data[OBJECT_HEADER.size:]))
        except (BadPart, WireError):
            raise _Failed(Status.EINVAL) from None
        return b""

    def _set_mode(self, member: int, data: bytes, _room: int) -> bytes:
        function = self._member(member, stopping=True)
        flags = data[0] if data else 0
        if flags & ~MODE_STOPPED:
            raise _Failed(Status.EINVAL)
        if flags:
            function.halt()
        else:
            function.resume()
        return b""


def _written(data: bytes, size: int) -> tuple[int, bytes]:
    """Return where registers are written, and what, within `size` bytes of them."""
    offset, written = (data.ljust(1, b"\0")[0], data[LEGACY_ACCESS.size:])
    if not written or offset + len(written) > size:
        raise _Failed(Status.EINVAL)
    return offset, written


def _to_read(data: bytes, room: int, size: int) -> tuple[int, int]:
    """Return where registers are read, and how many bytes: as many as there is room for."""
    offset = data.ljust(1, b"\0")[0]
    if not room or offset + room > size:
        raise _Failed(Status.EINVAL)
    return offset, room


def _fitting(result: bytes, room: int) -> bytes:
    if len(result) > room:
        raise _Failed(Status.ENOMEM, Qualifier.NORESOURCE)
    return result
