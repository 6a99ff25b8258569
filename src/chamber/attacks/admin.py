"""Answers of an owner device to administration commands that are none, or lies (virtio 1.4, 2.12 and 2.14).

Whoever owns a group is a hypervisor as a rule, or a guest that was given one whole: both believe a device's firmware.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.admin import (
    HEADER,
    LEGACY_OPCODES,
    NOTIFY_INFO,
    PARTS_LIST_HEADER,
    STATUS,
    NotifyFlags,
    Opcode,
    Part,
    PartType,
    Qualifier,
    Status,
    build_bits,
    parse_parts,
)
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("ADMINISTER", "admin_attacks")

ADMINISTER: Final = "administer"
"""The stimulus of a guest that owns a group of devices, and uses commands."""
_TARGETS: Final = frozenset({"model", "uml-pci"})
"""The functions of a machine in QEMU keep the BARs that they were made with, and owners have others."""
_LINUX: Final = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE, Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET,
                           Opcode.DRIVER_CAP_SET})
"""Commands that Linux's driver (7.3) sends by itself."""
_QUIET: Final = 40


class AnswerLie(Attack):
    """Answers commands with something else.

    Args:
        lie: makes the answer, given the honest one, its status included, and the room for it.
        opcodes: which commands, by default all.

    """

    def __init__(self, lie: Callable[[bytes, int], bytes], opcodes: frozenset[Opcode] = frozenset(Opcode)) -> None:
        super().__init__()
        self._lie = lie
        self._opcodes = opcodes

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Lie about the result of a command."""
        if queue.index < self.device.queue_count or len(self.strikes) >= _QUIET:
            return data
        opcode = HEADER.get(chain.read(0, HEADER.size).ljust(HEADER.size, b"\0"), "opcode")
        if opcode not in self._opcodes:
            return data
        answer = self._lie(data, chain.writable_size)
        if answer == data:
            return data
        self.strike(f"{Opcode(opcode).name} answered with {len(answer)} bytes: {answer[:24].hex(' ')}")
        return answer


class Silence(Attack):
    """Takes commands and answers none."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's
        """Keep it."""
        if queue.index < self.device.queue_count:
            return True
        self.strike("a command is never answered")
        return False


def _failing(status: int, qualifier: int) -> Callable[[bytes, int], bytes]:
    return lambda _honest, _room: bytes(STATUS.pack(status=status, status_qualifier=qualifier))


def _result(change: Callable[[bytes], bytes]) -> Callable[[bytes, int], bytes]:
    return lambda honest, room: (honest[:STATUS.size] + change(honest[STATUS.size:]))[:room]


def _parts(change: Callable[[list[Part]], list[Part]]) -> Callable[[bytes, int], bytes]:
    def lie(honest: bytes) -> bytes:
        return b"".join(part.build() for part in change(list(parse_parts(honest))))
    return _result(lie)


def _longer(parts: list[Part]) -> list[Part]:
    """Have the last one say that it is longer than all bytes."""
    return [*parts[:-1], Part(parts[-1].type, parts[-1].value, parts[-1].selector, length=0xFFFFFFFF)]


def _info(flags: int, bar: int, offset: int) -> Callable[[bytes, int], bytes]:
    entry = bytes(NOTIFY_INFO.pack(flags=flags, bar=bar, offset=offset))
    return _result(lambda honest: entry + honest[len(entry):])


_ALL: Final = frozenset(Opcode)
_LISTS: Final = frozenset({Opcode.LIST_QUERY})
_CAPABILITIES: Final = frozenset({Opcode.CAP_ID_LIST_QUERY})
_LIMITS: Final = frozenset({Opcode.DEVICE_CAP_GET})
_SIZE: Final = frozenset({Opcode.DEV_PARTS_METADATA_GET})
_STATE: Final = frozenset({Opcode.DEV_PARTS_GET})
_DOORBELL: Final = frozenset({Opcode.LEGACY_NOTIFY_INFO})
_READS: Final = frozenset({Opcode.LEGACY_COMMON_CFG_READ, Opcode.LEGACY_DEV_CFG_READ})
_KNOWN: Final = 64

_ANSWERS: Final[tuple[tuple[str, str, Callable[[bytes, int], bytes], frozenset[Opcode], Aim], ...]] = (
    ("again", "has each command be tried again, for ever", _failing(Status.EAGAIN, Qualifier.TRYAGAIN), _ALL,
     Aim.DENIAL),
    ("fails", "fails each command", _failing(Status.EINVAL, Qualifier.INVALID_OPCODE), _ALL, Aim.DENIAL),
    ("status-unknown", "ends commands with a status that there is not", _failing(0xFFFF, 0xFFFF), _ALL, Aim.MEMORY),
    ("answer-none", "answers with no bytes", lambda _honest, _room: b"", _ALL, Aim.MEMORY),
    ("answer-short", "answers with half a status", lambda honest, _room: honest[:STATUS.size // 2], _ALL, Aim.MEMORY),
    ("result-none", "answers with a status alone", lambda honest, _room: honest[:STATUS.size],
     frozenset(Opcode) - {Opcode.LIST_USE}, Aim.MEMORY),
    ("answer-full", "fills all of the room with ones", lambda honest, room: honest[:STATUS.size].ljust(room, b"\xff"),
     _ALL, Aim.MEMORY),
    ("list-all", "lists commands that nobody knows", _result(lambda _: b"\xff" * _KNOWN), _LISTS, Aim.MEMORY),
    ("list-none", "lists no command", _result(lambda _: bytes(8)), _LISTS, Aim.DENIAL),
    ("legacy-some", "lists one legacy command and not the others",
     _result(lambda _: build_bits((_ALL - LEGACY_OPCODES) | {Opcode.LEGACY_COMMON_CFG_WRITE})), _LISTS, Aim.MEMORY),
    ("capabilities-all", "has capabilities that nobody knows", _result(lambda _: b"\xff" * _KNOWN), _CAPABILITIES,
     Aim.MEMORY),
    ("capabilities-none", "has no capability", _result(lambda _: bytes(8)), _CAPABILITIES, Aim.DENIAL),
    ("limits-zero", "allows no objects", _result(lambda _: bytes(2)), _LIMITS, Aim.DENIAL),
    ("limits-most", "allows 255 objects where it has room for 8", _result(lambda _: b"\xff\xff"), _LIMITS, Aim.MEMORY),
    ("parts-size-most", "says that the parts of a device have 4 GiB",
     _result(lambda _: bytes(PARTS_LIST_HEADER.pack(count=0xFFFFFFFF))), _SIZE, Aim.MEMORY),
    ("parts-size-zero", "says that the parts of a device have no bytes",
     _result(lambda _: bytes(PARTS_LIST_HEADER.size)), _SIZE, Aim.DECEPTION),
    ("parts-size-short", "says that the parts of a device have 20 bytes",
     _result(lambda _: bytes(PARTS_LIST_HEADER.pack(count=20))), _SIZE, Aim.DENIAL),
    ("parts-cut", "cuts the last part", _result(lambda honest: honest[:-1]), _STATE, Aim.MEMORY),
    ("parts-none", "gives no part", _result(lambda _: b""), _STATE, Aim.DECEPTION),
    ("parts-longer", "gives a part that is longer than all of them", _parts(_longer), _STATE, Aim.MEMORY),
    ("parts-twice", "gives a part twice", _parts(lambda parts: [*parts[:2], *parts[1:-1]]), _STATE, Aim.DECEPTION),
    ("parts-backwards", "gives parts in the wrong order", _parts(lambda parts: parts[::-1]), _STATE, Aim.DECEPTION),
    ("parts-of-nothing", "gives a part of a type that there is not",
     _parts(lambda parts: [Part(0x7777, bytes(16)), *parts[1:-1]]), _STATE, Aim.MEMORY),
    ("parts-other-queue", "gives the part of a queue that the device does not have",
     _parts(lambda parts: [Part(part.type, part.value, 0xFFFF) if part.type == PartType.VQ_CFG else part
                           for part in parts]), _STATE, Aim.MEMORY),
    ("doorbell-bar", "has a doorbell in BAR 255", _info(NotifyFlags.MEMBER, 0xFF, 0), _DOORBELL, Aim.MEMORY),
    ("doorbell-beyond", "has a doorbell far beyond its BAR", _info(NotifyFlags.OWNER, 4, 1 << 63), _DOORBELL,
     Aim.MEMORY),
    ("doorbell-nobody", "has a doorbell that is neither the owner's nor the member's", _info(0xFF, 0, 0), _DOORBELL,
     Aim.MEMORY),
    ("legacy-short", "gives half of the registers that were read",
     _result(lambda honest: honest[:len(honest) // 2]), _READS, Aim.MEMORY),
)


def admin_attacks() -> Iterator[AttackSpec]:
    """Attacks by the administration queue, on types whose members have a legacy interface as well."""
    for device in (DeviceType.NET, DeviceType.BLOCK):
        for what, summary, lie, opcodes, aim in _ANSWERS:
            yield AttackSpec(
                f"{device.short}-admin-{what}", device, Surface.PAYLOAD, aim, "virtio 1.4, 2.12.1",
                f"The owner device {summary}.", lambda lie=lie, opcodes=opcodes: AnswerLie(lie, opcodes),  # type: ignore[misc]
                stimuli=("use", ADMINISTER), targets=_TARGETS if opcodes & _LINUX else frozenset({"model"}), pci=True)
        yield AttackSpec(f"{device.short}-admin-silent", device, Surface.NOTIFICATION, Aim.DENIAL, "virtio 1.4, 2.13",
                         "The owner device takes commands and answers none.", Silence, stimuli=("use", ADMINISTER),
                         targets=_TARGETS, pci=True)
