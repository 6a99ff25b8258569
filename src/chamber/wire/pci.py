"""PCI configuration space: registers, capabilities, base addresses, MSI-X (PCI Express Base Specification 6.0, 7)."""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "BAR_COUNT",
    "BAR_IO",
    "BAR_MEMORY_64",
    "BAR_PREFETCHABLE",
    "BRIDGE",
    "CONFIG_SIZE",
    "CONVENTIONAL_SIZE",
    "DESIGNATED",
    "DEVICE_TEE_IO",
    "EXPRESS",
    "EXTENDED_HEADER",
    "FIRST_CAPABILITY",
    "HEADER",
    "MSIX",
    "MSIX_ENTRY",
    "NO_DEVICE",
    "SRIOV",
    "CapabilityId",
    "Command",
    "ExpressControl",
    "ExtendedId",
    "MsixControl",
    "SriovControl",
    "Status",
    "bar_address",
)

CONFIG_SIZE: Final = 4096
"""Bytes of a function's configuration space, extended part included (7.2)."""
CONVENTIONAL_SIZE: Final = 256
"""Bytes that capabilities lie in; extended ones begin behind them."""
FIRST_CAPABILITY: Final = 0x40
BAR_COUNT: Final = 6
NO_DEVICE: Final = 0xFFFF
"""What the vendor of a function reads as that is not there (2.3.2)."""
DEVICE_TEE_IO: Final = 1 << 30
"""Of device capabilities: the function can be locked by TDISP (7.5.3.3)."""

BAR_IO: Final = 1
BAR_MEMORY_64: Final = 4
BAR_PREFETCHABLE: Final = 8
"""Low bits of a base address register (7.5.1.2.1)."""


class Command(enum.IntFlag):
    """Command register (7.5.1.1.3)."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


class Status(enum.IntFlag):
    """Status register (7.5.1.1.4)."""

    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4


class CapabilityId(enum.IntEnum):
    """Capability ids (PCI Code and ID Assignment Specification 1.11, 2)."""

    POWER = 0x01
    MSI = 0x05
    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11
    ENHANCED_ALLOCATION = 0x14


class ExtendedId(enum.IntEnum):
    """Extended capability ids (PCI Code and ID Assignment Specification 1.11, 3)."""

    NULL = 0x0000
    VENDOR = 0x000B
    ARI = 0x000E
    SRIOV = 0x0010
    MULTICAST = 0x0012
    PAGE_REQUEST = 0x0013
    RESIZABLE_BAR = 0x0015
    PASID = 0x001B
    DESIGNATED = 0x0023
    VF_RESIZABLE_BAR = 0x0024
    DOE = 0x002E
    IDE = 0x0030


class SriovControl(enum.IntFlag):
    """Control of SR-IOV (9.3.3.3)."""

    VF_ENABLE = 1 << 0
    MEMORY = 1 << 3
    ARI = 1 << 4


class ExpressControl(enum.IntFlag):
    """Device control of a PCI Express capability (7.5.3.4)."""

    EXTENDED_TAG = 1 << 8
    PHANTOM_FUNCTIONS = 1 << 9
    NO_SNOOP = 1 << 11
    FLR = 1 << 15


class MsixControl(enum.IntFlag):
    """Message control of MSI-X (7.7.2.2); the low eleven bits are the number of entries less one."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


HEADER: Final = Layout(
    "PCI configuration header", "PCIe 6.0, 7.5.1.2",
    Field("vendor", "le16", Role.ID),
    Field("device", "le16", Role.ID),
    Field("command", "le16", Role.FLAGS),
    Field("status", "le16", Role.FLAGS),
    Field("revision", "u8", Role.ID),
    Field("class.interface", "u8", Role.ID),
    Field("class.sub", "u8", Role.ID),
    Field("class.base", "u8", Role.ID),
    Field("cache_line", "u8", Role.SIZE),
    Field("latency", "u8"),
    Field("header_type", "u8", Role.ENUM, None, (0, 0x80)),
    Field("bist", "u8", Role.FLAGS),
    *(Field(f"bar{index}", "le32", Role.OFFSET) for index in range(BAR_COUNT)),
    Field("cardbus", "le32", Role.OFFSET),
    Field("subsystem_vendor", "le16", Role.ID),
    Field("subsystem", "le16", Role.ID),
    Field("rom", "le32", Role.OFFSET),
    Field("capabilities", "u8", Role.OFFSET, None, range(FIRST_CAPABILITY, CONVENTIONAL_SIZE, 4)),
    Field("reserved", "bytes:7", Role.BYTES),
    Field("interrupt_line", "u8"),
    Field("interrupt_pin", "u8", Role.ENUM, None, range(5)),
    Field("min_grant", "u8"),
    Field("max_latency", "u8"),
)
"""A function that is no bridge (type 0)."""

BRIDGE: Final = Layout(
    "PCI configuration header of a bridge", "PCIe 6.0, 7.5.1.3",
    Field("function", "bytes:14", Role.BYTES), Field("header_type", "u8", Role.ENUM), Field("bist", "u8", Role.FLAGS),
    Field("bar0", "le32", Role.OFFSET), Field("bar1", "le32", Role.OFFSET),
    Field("primary_bus", "u8", Role.ID), Field("secondary_bus", "u8", Role.ID), Field("subordinate_bus", "u8", Role.ID),
    Field("secondary_latency", "u8"), Field("io", "le16", Role.OFFSET), Field("secondary_status", "le16", Role.FLAGS),
    Field("memory_base", "le16", Role.OFFSET), Field("memory_limit", "le16", Role.OFFSET),
    Field("prefetchable_base", "le16", Role.OFFSET), Field("prefetchable_limit", "le16", Role.OFFSET),
    Field("prefetchable_base_high", "le32", Role.OFFSET), Field("prefetchable_limit_high", "le32", Role.OFFSET),
    Field("io_high", "le32", Role.OFFSET), Field("capabilities", "u8", Role.OFFSET),
    Field("reserved", "bytes:3", Role.BYTES), Field("rom", "le32", Role.OFFSET),
    Field("interrupt_line", "u8"), Field("interrupt_pin", "u8", Role.ENUM),
    Field("control", "le16", Role.FLAGS),
)
"""A function with a bus behind it (type 1); up to the type as in `HEADER`."""

DESIGNATED: Final = Layout(
    "designated vendor-specific extended capability", "PCIe 6.0, 7.9.6",
    Field("header", "le32", Role.ID), Field("vendor", "le16", Role.ID), Field("revision_length", "le16", Role.SIZE),
    Field("id", "le16", Role.ID),
)
"""Four bits of revision, then twelve of the length."""

EXPRESS: Final = Layout(
    "PCI Express capability", "PCIe 6.0, 7.5.3",
    Field("id", "u8", Role.ID), Field("next", "u8", Role.OFFSET),
    Field("capabilities", "le16", Role.FLAGS), Field("device_capabilities", "le32", Role.FLAGS),
    Field("device_control", "le16", Role.FLAGS), Field("device_status", "le16", Role.FLAGS),
    Field("link_capabilities", "le32", Role.FLAGS), Field("link_control", "le16", Role.FLAGS),
    Field("link_status", "le16", Role.FLAGS), Field("slot", "bytes:16", Role.BYTES),
    Field("device_capabilities_2", "le32", Role.FLAGS), Field("device_control_2", "le16", Role.FLAGS),
    Field("device_status_2", "le16", Role.FLAGS), Field("link_slot_2", "bytes:16", Role.BYTES),
)

MSIX: Final = Layout(
    "MSI-X capability", "PCIe 6.0, 7.7.2",
    Field("id", "u8", Role.ID), Field("next", "u8", Role.OFFSET),
    Field("control", "le16", Role.COUNT), Field("table", "le32", Role.OFFSET), Field("pending", "le32", Role.OFFSET),
)
"""The low three bits of ``table`` and ``pending`` are a BAR, the others an offset in it."""

MSIX_ENTRY: Final = Layout(
    "MSI-X table entry", "PCIe 6.0, 7.7.2.5",
    Field("address", "le64", Role.OFFSET), Field("data", "le32"), Field("control", "le32", Role.FLAGS),
)

EXTENDED_HEADER: Final = Layout(
    "PCI Express extended capability header", "PCIe 6.0, 7.6.3",
    Field("id", "le16", Role.ID), Field("version_next", "le16", Role.OFFSET),
)
"""Four bits of version, then twelve of the next one's offset."""


def bar_address(low: int, high: int = 0) -> int:
    """Return the address in a memory BAR, its flags left out; `high` is the next register where it is a wide one."""
    return low & ~0xF | (high << 32 if low & BAR_MEMORY_64 else 0)

SRIOV: Final = Layout(
    "SR-IOV extended capability", "PCIe 6.0, 9.3.3",
    Field("header", "le32", Role.ID), Field("capabilities", "le32", Role.FLAGS), Field("control", "le16", Role.FLAGS),
    Field("status", "le16", Role.FLAGS), Field("initial_vfs", "le16", Role.COUNT),
    Field("total_vfs", "le16", Role.COUNT), Field("num_vfs", "le16", Role.COUNT), Field("link", "u8", Role.ID),
    Field("reserved", "u8"), Field("first_vf_offset", "le16", Role.OFFSET), Field("vf_stride", "le16", Role.OFFSET),
    Field("reserved2", "le16"), Field("vf_device_id", "le16", Role.ID),
    Field("supported_page_sizes", "le32", Role.FLAGS), Field("system_page_size", "le32", Role.FLAGS),
    *(Field(f"vf_bar{number}", "le32", Role.OFFSET) for number in range(BAR_COUNT)),
    Field("migration_state", "le32", Role.OFFSET))
