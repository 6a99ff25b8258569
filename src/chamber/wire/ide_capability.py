"""The IDE extended capability: a port's encrypted streams, as its host configures them (PCIe 6.1, 7.9.26).

Only selective streams are here, one block of registers each, with as many ranges of addresses as the capability says.
"""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = ("ASSOCIATION", "CAPABILITY", "NO_STREAM_ID", "SELECTIVE", "IdeSupport", "StreamControl", "StreamStatus",
           "stream_of")


NO_STREAM_ID: Final = 255
"""Of a stream that is not in use, by Linux's convention (include/linux/pci-ide.h)."""


class IdeSupport(enum.IntFlag):
    """Capability register (7.9.26.2). Bits 23:16 are the number of selective streams less one."""

    SELECTIVE = 1 << 1
    KEY_MANAGEMENT = 1 << 6


class StreamControl(enum.IntFlag):
    """Control of a selective stream (7.9.26.5.2). Bits 31:24 are its Stream ID."""

    ENABLE = 1 << 0
    DEFAULT = 1 << 22


class StreamStatus(enum.IntEnum):
    """State of a selective stream, bits 3:0 of its status (7.9.26.5.3)."""

    INSECURE = 0
    SECURE = 2


def stream_of(control: int) -> int:
    """Return the Stream ID in a control register."""
    return control >> 24 & 0xFF


CAPABILITY: Final = Layout(
    "IDE extended capability", "PCIe 6.1, 7.9.26",
    Field("id", "le16", Role.ID), Field("version_next", "le16", Role.OFFSET),
    Field("capabilities", "le32", Role.FLAGS), Field("control", "le32", Role.FLAGS),
)

SELECTIVE: Final = Layout(
    "selective IDE stream", "PCIe 6.1, 7.9.26.5",
    Field("capabilities", "le32", Role.COUNT), Field("control", "le32", Role.FLAGS),
    Field("status", "le32", Role.FLAGS),
    Field("rid_1", "le32", Role.ID), Field("rid_2", "le32", Role.ID),
)
"""Bits 3:0 of ``capabilities`` are how many ranges of addresses follow."""

ASSOCIATION: Final = Layout(
    "range of a selective IDE stream", "PCIe 6.1, 7.9.26.5.6",
    Field("low", "le32", Role.OFFSET), Field("limit_high", "le32", Role.OFFSET),
    Field("base_high", "le32", Role.OFFSET),
)
