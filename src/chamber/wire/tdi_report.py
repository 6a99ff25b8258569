"""The report of a locked interface (PCI Express Base Specification 6.1, 11.3.11): what a guest may map, and as what."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = ("MAX_REPORT", "PAGE", "InterfaceInfo", "InterfaceReport", "MmioRange", "RangeAttribute")

PAGE: Final = 4096
MAX_REPORT: Final = 0xFFFF
"""Offset and length of a portion are 16 bits wide."""
_SPEC: Final = "PCIe 6.1, 11.3.11"


class InterfaceInfo(enum.IntFlag):
    """INTERFACE_INFO."""

    NO_FW_UPDATE = 1 << 0
    DMA_WITHOUT_PASID = 1 << 1
    DMA_WITH_PASID = 1 << 2
    ATS = 1 << 3
    PRS = 1 << 4


class RangeAttribute(enum.IntFlag):
    """Attributes of an MMIO range."""

    MSIX_TABLE = 1 << 0
    MSIX_PBA = 1 << 1
    IS_NON_TEE_MEM = 1 << 2
    IS_MEM_ATTR_UPDATABLE = 1 << 3


_HEAD: Final = Layout(
    "DEVICE_INTERFACE_REPORT structure", _SPEC,
    Field("interface_info", "le16", Role.FLAGS), Field("reserved", "le16"),
    Field("msi_x_message_control", "le16", Role.FLAGS), Field("lnr_control", "le16", Role.FLAGS),
    Field("tph_control", "le32", Role.FLAGS), Field("mmio_range_count", "le32", Role.COUNT),
)
_RANGE: Final = Layout(
    "MMIO_RANGE", _SPEC,
    Field("first_page", "le64", Role.OFFSET), Field("number_of_pages", "le32", Role.COUNT),
    Field("attributes", "le16", Role.FLAGS), Field("range_id", "le16", Role.ID),
)


@dataclass(frozen=True, slots=True)
class MmioRange:
    """Pages that an interface answers at.

    Attributes:
        first_page: number of its first page of `PAGE` bytes: address plus MMIO_REPORTING_OFFSET.
        pages: how many.
        attributes: what they are.
        range_id: the BAR that they are in.

    """

    first_page: int
    pages: int
    attributes: RangeAttribute
    range_id: int


@dataclass(frozen=True, slots=True)
class InterfaceReport:
    """A whole report.

    Attributes:
        info: about the interface.
        msix_control: message control of its MSI-X, 0 where table and pending bits are not locked.
        lnr_control: as the capability has it.
        tph_control: as the capability has it.
        ranges: in the order of their BARs.
        device_specific: what the device's kind adds; for virtio see `chamber.wire.virtio_tdi`.

    """

    info: InterfaceInfo
    ranges: tuple[MmioRange, ...]
    device_specific: bytes = b""
    msix_control: int = 0
    lnr_control: int = 0
    tph_control: int = 0

    def encode(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: it is longer than `MAX_REPORT`.

        """
        data = bytes(_HEAD.pack(interface_info=self.info, msi_x_message_control=self.msix_control,
                                lnr_control=self.lnr_control, tph_control=self.tph_control,
                                mmio_range_count=len(self.ranges)))
        data += b"".join(bytes(_RANGE.pack(first_page=r.first_page, number_of_pages=r.pages, attributes=r.attributes,
                                           range_id=r.range_id)) for r in self.ranges)
        data += len(self.device_specific).to_bytes(4, "little") + self.device_specific
        if len(data) > MAX_REPORT:
            raise ValueError(f"a report has at most {MAX_REPORT} bytes, this one {len(data)}")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a report; reserved bits are ignored.

        Raises:
            WireError: counts and lengths in it do not add up to its size.

        """
        head = _HEAD.unpack(data)
        count = head["mmio_range_count"]
        # Before anything is read by the count: 4 billion ranges are quickly said.
        if count > (len(data) - _HEAD.size) // _RANGE.size:
            raise WireError("the ranges end beyond the report", spec=_SPEC, detail=f"{count} ranges")
        end = _HEAD.size + count * _RANGE.size
        rows = (_RANGE.unpack(data, at) for at in range(_HEAD.size, end, _RANGE.size))
        ranges = tuple(MmioRange(row["first_page"], row["number_of_pages"],
                                 RangeAttribute(row["attributes"] & sum(RangeAttribute)), row["range_id"])
                       for row in rows)
        if len(data) < end + 4:
            raise WireError("the report ends before DEVICE_SPECIFIC_INFO_LEN", spec=_SPEC)
        length, specific = int.from_bytes(data[end:end + 4], "little"), data[end + 4:]
        if length != len(specific):
            raise WireError("DEVICE_SPECIFIC_INFO_LEN is not that of what follows", spec=_SPEC,
                            detail=f"{length} said, {len(specific)} there")
        return cls(InterfaceInfo(head["interface_info"] & sum(InterfaceInfo)), ranges, specific,
                   head["msi_x_message_control"], head["lnr_control"], head["tph_control"])
