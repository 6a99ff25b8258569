"""Lies in PCI configuration space: identities, capabilities and where they lead, and functions that are gone.

A guest follows what it reads here to memory that it maps and to registers that it writes, before any driver has a say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import PCI, PCI_LINUX, Aim, Attack, AttackSpec, Surface
from chamber.attacks.config import lies_about
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR
from chamber.wire.ide_capability import ASSOCIATION, SELECTIVE, IdeSupport, StreamControl
from chamber.wire.ide_capability import CAPABILITY as CAPABILITY_OF_IDE
from chamber.wire.pci import (
    CONFIG_SIZE,
    CONVENTIONAL_SIZE,
    EXPRESS,
    HEADER,
    MSIX,
    CapabilityId,
    ExtendedId,
    Status,
)
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import (
    CAPABILITY,
    DEVICE_ID_BASE,
    NOTIFY_CAPABILITY,
    TRANSITIONAL_IDS,
    VENDOR_ID,
    CapabilityType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chamber.device.virtio_pci import VirtioPci
    from chamber.wire.layout import Layout

__all__ = ("PCI_DEVICES", "Patch", "field_patch", "find_capability", "patched", "pci_attacks")

PCI_DEVICES: Final = (DeviceType.BLOCK, DeviceType.NET)
"""Whose functions lie: the code that believes them is the same for all types, but for how many queues there are."""
_SPEC: Final = "virtio 1.4, 4.1.4"
_PAGE: Final = 4096
_INTEGRATED_ENDPOINT: Final = 0x0092
"""PCI Express capability, version 2, endpoint of the root complex."""

Patch = dict[int, bytes]
"""Bytes of configuration space to say otherwise, by their offset."""


def patched(data: bytes, offset: int, patch: Patch) -> bytes:
    """Return bytes of configuration space from an offset on, with what of a patch is among them."""
    lie = bytearray(data)
    for at, piece in patch.items():
        begin, end = max(at, offset), min(at + len(piece), offset + len(data))
        if begin < end:
            lie[begin - offset:end - offset] = piece[begin - at:end - at]
    return bytes(lie)


class SpaceLie(Attack):
    """Says other bytes than the true ones in configuration space.

    Args:
        patch: makes them, given the function.
        alternate: tell the truth at every second read of one of them.

    """

    def __init__(self, patch: Callable[[VirtioPci], Patch], *, alternate: bool = False) -> None:
        super().__init__()
        self._patch = patch
        self._alternate = alternate
        self._reads = 0

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:
        """Lie to who reads one of them."""
        lie = patched(data, offset, self._patch(function))
        if lie == data:
            return data
        self._reads += 1
        if self._alternate and self._reads % 2:
            return data
        self.strike(f"configuration space at {offset:#x}: {lie.hex()} where {data.hex()} is true")
        return lie


class Gone(Attack):
    """Is gone from a moment on, as a device that was pulled out: all bits of all reads are one, and writes are lost.

    Args:
        after: accesses to registers until then; 0 for from the beginning of the driver's work on.
        back: accesses after which it is there again, 0 for never.

    """

    def __init__(self, after: int, back: int = 0) -> None:
        super().__init__()
        self._after = after
        self._back = back
        self._accesses = 0

    def _gone(self) -> bool:
        if not self._after < self._accesses or (self._back and self._accesses > self._after + self._back):
            return False
        self.strike("an access to a function that is gone")
        return True

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer as nobody."""
        return b"\xff" * len(data) if self._accesses and self._gone() else data

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - as above
        """Answer as nobody."""
        self._accesses += 1
        return b"\xff" * len(data) if self._gone() else data

    def register_written(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bool:  # noqa: ARG002 - as above
        """Lose it."""
        self._accesses += 1
        return not self._gone()


def field_patch(layout: Layout, at: int, name: str, value: int) -> Patch:
    """Return what has a field be a number."""
    field = layout[name]
    return {at + field.offset: (value & field.maximum).to_bytes(field.size, "little")}


def _of(kind: CapabilityType, lies: Mapping[str, int]) -> Callable[[VirtioPci], Patch]:
    """Lies in a capability of virtio's."""
    layout = NOTIFY_CAPABILITY if kind is CapabilityType.NOTIFY_CFG else CAPABILITY

    def patch(function: VirtioPci) -> Patch:
        made: Patch = {}
        for name, value in lies.items():
            made |= field_patch(layout, function.capabilities[kind], name, value)
        return made
    return patch


def _head(lies: Mapping[str, int]) -> Callable[[VirtioPci], Patch]:
    """Lies in the header."""
    def patch(_function: VirtioPci) -> Patch:
        made: Patch = {}
        for name, value in lies.items():
            made |= field_patch(HEADER, 0, name, value)
        return made
    return patch


def find_capability(function: VirtioPci, wanted: CapabilityId) -> int:
    """Return where a capability of PCI's is; 0 if there is none."""
    config = function.function.config
    at = config[HEADER["capabilities"].offset]
    while at and config[at] != wanted:
        at = config[at + 1]
    return int(at)


def _standard(wanted: CapabilityId, layout: Layout, lies: Mapping[str, int]) -> Callable[[VirtioPci], Patch]:
    """Lies in a capability of PCI's."""
    def patch(function: VirtioPci) -> Patch:
        made: Patch = {}
        for name, value in lies.items():
            made |= field_patch(layout, find_capability(function, wanted), name, value)
        return made
    return patch


_TYPES: Final = {CapabilityType.COMMON_CFG: "common", CapabilityType.NOTIFY_CFG: "notify",
                 CapabilityType.ISR_CFG: "isr", CapabilityType.DEVICE_CFG: "device"}

_PLACES: Final[tuple[tuple[str, str, dict[str, int]], ...]] = (
    ("bar-none", "leads to a BAR that there is not", {"bar": 4}),
    ("bar-wide", "leads to the upper half of a BAR", {"bar": 3}),
    ("bar-msix", "leads into the MSI-X table", {"bar": MSIX_BAR, "offset": 0}),
    ("offset-end", "leads to the last bytes of its BAR", {"offset": 4 * _PAGE - 4}),
    ("offset-beyond", "leads behind its BAR", {"offset": 4 * _PAGE}),
    ("offset-odd", "leads to an odd address", {"offset": 3}),
    ("offset-wrapping", "leads so far that offset and length together are small again",
     {"offset": (1 << 32) - 16, "length": 32}),
    ("length-zero", "has no length", {"length": 0}),
    ("length-short", "is too short for what is read of it", {"length": 3}),
    ("length-max", "is as long as can be said", {"length": (1 << 32) - 1}),
    ("type-none", "has a type that there is not", {"cfg_type": 0xFE}),
    ("cap-len-zero", "says that it is 0 bytes long itself", {"cap_len": 0}),
    ("cap-len-max", "says that it is 255 bytes long itself", {"cap_len": 0xFF}),
)
"""Where a capability leads, and what is wrong with that."""

_CHANGING: Final = ("bar-none", "offset-beyond", "length-zero")
"""Of these also what is true at every second read."""

_OVERLAPS: Final = (
    ("overlap-notify", CapabilityType.NOTIFY_CFG, {"offset": 0, "length": 64},
     "lets notifications fall into the common configuration"),
    ("overlap-isr", CapabilityType.ISR_CFG, {"offset": 20, "length": 1}, "lets the ISR be the device's status"),
    ("overlap-device", CapabilityType.DEVICE_CFG, {"offset": 0, "length": 64},
     "lets its configuration be the common configuration"),
    ("notify-multiplier-max", CapabilityType.NOTIFY_CFG, {"notify_off_multiplier": (1 << 32) - 1},
     "has the largest multiplier of notification offsets"),
    ("notify-multiplier-zero", CapabilityType.NOTIFY_CFG, {"notify_off_multiplier": 0},
     "has all queues notified at one place"),
    ("notify-multiplier-odd", CapabilityType.NOTIFY_CFG, {"notify_off_multiplier": 3},
     "has a multiplier that is no power of two"),
    ("notify-multiplier-wrapping", CapabilityType.NOTIFY_CFG,
     {"notify_off_multiplier": 1 << 31, "length": (1 << 32) - 1, "offset": 0},
     "has a multiplier whose product with a queue's number is small again"),
)


def _loop(function: VirtioPci) -> Patch:
    at = function.capabilities[CapabilityType.DEVICE_CFG]
    return {at + 1: bytes((function.capabilities[CapabilityType.COMMON_CFG],))}


def _self_loop(function: VirtioPci) -> Patch:
    at = function.capabilities[CapabilityType.COMMON_CFG]
    return {at + 1: bytes((at,))}


def _chain_beyond(function: VirtioPci) -> Patch:
    at = function.capabilities[CapabilityType.COMMON_CFG]
    return {at + 1: bytes((CONVENTIONAL_SIZE - 4,)), CONVENTIONAL_SIZE - 4: b"\x09\x00\x14\x02"}


def _all_common(function: VirtioPci) -> Patch:
    """Every capability of virtio's is a common configuration."""
    return {at + CAPABILITY["cfg_type"].offset: bytes((CapabilityType.COMMON_CFG,))
            for at in function.capabilities.values()}


def _extended_loop(_function: VirtioPci) -> Patch:
    return {CONVENTIONAL_SIZE: (0x0B | 1 << 16 | CONVENTIONAL_SIZE << 20).to_bytes(4, "little")}


def _extended_end(_function: VirtioPci) -> Patch:
    return {CONVENTIONAL_SIZE: (0x0B | 1 << 16 | 0xFFC << 20).to_bytes(4, "little"),
            0xFFC: (0x10 | 1 << 16).to_bytes(4, "little")}


def _ide(streams: int, ranges: int, control: int = 0) -> Patch:
    """An IDE extended capability alone, as many of its streams as fit into configuration space."""
    head = CAPABILITY_OF_IDE.pack(id=ExtendedId.IDE, version_next=1,
                                  capabilities=IdeSupport.SELECTIVE | streams - 1 << 16)
    block = SELECTIVE.pack(capabilities=ranges, control=control) + bytes(ASSOCIATION.size * ranges)
    return {CONVENTIONAL_SIZE: bytes(head + block * streams)[:CONFIG_SIZE - CONVENTIONAL_SIZE]}


def _ide_without_port(_function: VirtioPci) -> Patch:
    return _ide(1, 0)


def _integrated(patch: Patch) -> Callable[[VirtioPci], Patch]:
    """The same in an endpoint of the root complex, which has no port above it."""
    def made(function: VirtioPci) -> Patch:
        at = find_capability(function, CapabilityId.EXPRESS)
        return {**patch, **field_patch(EXPRESS, at, "capabilities", _INTEGRATED_ENDPOINT)}
    return made


_HEADERS: Final[tuple[tuple[str, str, Callable[[VirtioPci], Patch], str], ...]] = (
    ("next-loop", "links the capabilities into a circle", _loop, "PCIe 6.0, 7.5.3.1"),
    ("next-self", "has a capability follow on itself", _self_loop, "PCIe 6.0, 7.5.3.1"),
    ("next-beyond", "has a capability in the last four bytes", _chain_beyond, "PCIe 6.0, 7.5.3.1"),
    ("common-everywhere", "has several common configurations", _all_common, _SPEC),
    ("extended-loop", "links the extended capabilities into a circle", _extended_loop, "PCIe 6.0, 7.6.3"),
    ("extended-end", "has an SR-IOV capability in the last four bytes", _extended_end, "PCIe 6.0, 7.6.3"),
    ("no-capabilities", "says that it has no capabilities", _head({"status": 0}), "PCIe 6.0, 7.5.1.1.4"),
    ("capabilities-in-header", "has the list of capabilities begin in the header",
     _head({"capabilities": 4, "status": Status.CAPABILITIES}), "PCIe 6.0, 7.5.1.1.11"),
    ("bridge", "says that it is a bridge", _head({"header_type": 1}), "PCIe 6.0, 7.5.1.1.9"),
    ("multifunction", "says that it has further functions", _head({"header_type": 0x80}), "PCIe 6.0, 7.5.1.1.9"),
    ("class-bridge", "says that it is a bridge by its class alone",
     _head({"class.base": 6, "class.sub": 4, "class.interface": 0}), "PCIe 6.0, 7.5.1.1.6"),
    ("transitional", "is a transitional device",
     _head({"device": TRANSITIONAL_IDS.start, "revision": 0}), "virtio 1.4, 4.1.2.3"),
    ("device-none", "is a device of a type that there is not", _head({"device": DEVICE_ID_BASE + 63}), "virtio 1.4, 5"),
    ("device-changing", "is another device at every second read",
     _head({"device": DEVICE_ID_BASE + DeviceType.CONSOLE}), "virtio 1.4, 4.1.2"),
    ("vendor-changing", "is of another vendor at every second read", _head({"vendor": VENDOR_ID + 1}),
     "virtio 1.4, 4.1.2"),
    ("bars-zero", "says that it has no BARs", _head({f"bar{n}": 0 for n in range(6)}), "PCIe 6.0, 7.5.1.2.1"),
    ("bar-io", "says that its registers are I/O ports", _head({f"bar{REGISTER_BAR}": 0xFFFFFFE1}),
     "PCIe 6.0, 7.5.1.2.1"),
    ("bar-huge", "says that a BAR is 2 GiB long", _head({f"bar{REGISTER_BAR}": 1 << 31}), "PCIe 6.0, 7.5.1.2.1"),
    ("bar-moved", "says at every second read that the guest put the BAR elsewhere",
     _head({f"bar{REGISTER_BAR}": 0xF0F00000}), "PCIe 6.0, 7.5.1.2.1"),
    ("msix-huge", "says that it has 2,048 vectors", _standard(CapabilityId.MSIX, MSIX, {"control": 0x7FF}),
     "PCIe 6.0, 7.7.2.2"),
    ("msix-none", "says that it has a single vector", _standard(CapabilityId.MSIX, MSIX, {"control": 0}),
     "PCIe 6.0, 7.7.2.2"),
    ("msix-table-beyond", "has its MSI-X table behind its BAR",
     _standard(CapabilityId.MSIX, MSIX, {"table": 1 << 20 | MSIX_BAR}), "PCIe 6.0, 7.7.2.3"),
    ("msix-table-no-bar", "has its MSI-X table in a BAR that there is not",
     _standard(CapabilityId.MSIX, MSIX, {"table": 5}), "PCIe 6.0, 7.7.2.3"),
    ("msix-table-reserved", "has its MSI-X table in BAR 7", _standard(CapabilityId.MSIX, MSIX, {"table": 7}),
     "PCIe 6.0, 7.7.2.3"),
    ("msix-over-registers", "has its MSI-X table where the common configuration is",
     _standard(CapabilityId.MSIX, MSIX, {"table": REGISTER_BAR}), "PCIe 6.0, 7.7.2.3"),
    ("ide-without-port", "has an encrypted stream, and no root port", _ide_without_port, "PCIe 6.1, 7.9.26"),
    ("ide-streams-beyond", "has more encrypted streams than configuration space has room for",
     _integrated(_ide(256, 15)), "PCIe 6.1, 7.9.26"),
    ("ide-streams-on", "has encrypted streams that are on, all of one number",
     _integrated(_ide(4, 0, StreamControl.ENABLE | 1 << 24)), "PCIe 6.1, 7.9.26.5.2"),
    ("express-version", "has a PCI Express capability of version 15",
     _standard(CapabilityId.EXPRESS, EXPRESS, {"capabilities": 0xF}), "PCIe 6.0, 7.5.3.2"),
)

_ALTERNATING: Final = frozenset({"device-changing", "vendor-changing", "bar-moved"})
_LINUX_ONLY: Final = _ALTERNATING | {"extended-loop", "extended-end", "class-bridge", "express-version",
                               "ide-without-port", "ide-streams-beyond", "ide-streams-on"}
"""What the model never reads, or reads once."""

_GONE: Final = (
    ("gone-at-probe", 4, 0, "is gone in the middle of the probe"),
    ("gone-at-queues", 40, 0, "is gone while queues are set up"),
    ("gone-in-use", 120, 0, "is gone while it is used"),
    ("gone-for-a-while", 40, 25, "is gone for some accesses, and there again"),
)


def pci_attacks() -> Iterator[AttackSpec]:
    """Attacks by what is found on a PCI bus."""
    for device in PCI_DEVICES:
        stem = f"{device.short}-pci"

        def spec(what: str, summary: str, make: Callable[[], Attack], clause: str = _SPEC, *,
                 aim: Aim = Aim.MEMORY, targets: frozenset[str] = PCI, device: DeviceType = device,
                 stem: str = stem) -> AttackSpec:
            return AttackSpec(f"{stem}-{what}", device, Surface.DISCOVERY, aim, clause, f"The function {summary}.",
                              make, stimuli=("use", "rebind", "rescan"), targets=targets, pci=True)

        for kind, name in _TYPES.items():
            for what, summary, lies in _PLACES:
                patch = _of(kind, lies)
                yield spec(f"{name}-{what}", f"has a {name} capability that {summary}",
                           lambda patch=patch: SpaceLie(patch))  # type: ignore[misc]
                if what in _CHANGING:
                    yield spec(f"{name}-{what}-changing",
                               f"has a {name} capability that {summary}, at every second read",
                               lambda patch=patch: SpaceLie(patch, alternate=True),  # type: ignore[misc]
                               targets=PCI_LINUX)
        for what, kind, values, summary in _OVERLAPS:
            patch = _of(kind, values)
            yield spec(what, summary, lambda patch=patch: SpaceLie(patch))  # type: ignore[misc]
        for what, summary, patch, clause in _HEADERS:
            yield spec(what, summary,
                       lambda patch=patch, every=what in _ALTERNATING: SpaceLie(patch, alternate=every),  # type: ignore[misc]
                       clause, targets=PCI_LINUX if what in _LINUX_ONLY else PCI)
        for what, after, back, summary in _GONE:
            yield spec(what, summary, lambda after=after, back=back: Gone(after, back),  # type: ignore[misc]
                       "virtio 1.4, 2.1.2", aim=Aim.DENIAL)
        for field in HEADER:
            if field.name in {f"bar{REGISTER_BAR}", f"bar{MSIX_BAR}"}:
                for edge, value in lies_about(field).items():
                    patch = _head({field.name: value})
                    yield spec(f"{field.name}-{edge}", f"says {field.name} = {value:#x}",
                               lambda patch=patch: SpaceLie(patch), "PCIe 6.0, 7.5.1.2.1")  # type: ignore[misc]
