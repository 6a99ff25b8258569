"""A root port as its host's kernel finds it on the bus: a bridge with an encrypted stream, and what takes its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.ide_capability import IdeCapability
from chamber.platform.pci import PciFunction
from chamber.platform.port_keys import PortKeys
from chamber.wire.pci import BRIDGE, Command
from chamber.wire.virtio_pci import VENDOR_ID

if TYPE_CHECKING:
    from chamber.platform.root_port import RootPort

__all__ = ("make_root_port_function",)

_DEVICE: Final = 0x1111
_CLASS: Final = 0x060400
_ROOT_PORT: Final = 0x0042
"""PCI Express capability, version 2, root port."""
_BRIDGE_TYPE: Final = 1
_RANGES: Final = 2
"""As Linux uses at most: one for memory, one for memory that can be prefetched."""
_WIDE: Final = 1
"""Prefetchable memory has 64 bits of address."""
_MASK: Final = {
    "primary_bus": 0xFF, "secondary_bus": 0xFF, "subordinate_bus": 0xFF, "memory_base": 0xFFF0, "memory_limit": 0xFFF0,
    "prefetchable_base": 0xFFF0, "prefetchable_limit": 0xFFF0, "prefetchable_base_high": 0xFFFFFFFF,
    "prefetchable_limit_high": 0xFFFFFFFF, "interrupt_line": 0xFF, "control": 0x43}


def make_root_port_function(port: RootPort) -> PciFunction:
    """Make the function of a port."""
    function = PciFunction(vendor=VENDOR_ID, device=_DEVICE, class_code=_CLASS, express=_ROOT_PORT,
                           device_capabilities=0)
    # What the header of another kind has where this one has buses and windows.
    function.config[BRIDGE["bar0"].offset:BRIDGE["capabilities"].offset] = bytes(
        BRIDGE["capabilities"].offset - BRIDGE["bar0"].offset)
    function.mask[BRIDGE["header_type"].offset - 2:BRIDGE.size] = bytes(BRIDGE.size - BRIDGE["header_type"].offset + 2)
    BRIDGE.put(function.config, "header_type", _BRIDGE_TYPE)
    for name in ("prefetchable_base", "prefetchable_limit"):
        BRIDGE.put(function.config, name, _WIDE)
    for name, bits in _MASK.items():
        BRIDGE.put(function.mask, name, bits)
    command = function.mask[4] | Command.IO | Command.MEMORY | Command.BUS_MASTER
    function.mask[4] = command
    IdeCapability(function, port.stream, ranges=_RANGES)
    PortKeys(function, port)
    return function
