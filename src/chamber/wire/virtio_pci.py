"""Virtio over PCI: ids, capabilities, and the registers that they lead to (virtio 1.4, 4.1)."""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CAPABILITY",
    "COMMON",
    "DEVICE_ID_BASE",
    "ISR_CONFIG",
    "ISR_QUEUE",
    "LEGACY",
    "LEGACY_PAGE",
    "NOTIFY_CAPABILITY",
    "NO_VECTOR",
    "PCI_CFG_CAPABILITY",
    "RELOCATED",
    "RELOCATED_AT",
    "RELOCATED_BAR",
    "RELOCATED_ID_BASE",
    "RELOCATED_MAGIC",
    "RELOCATED_SIZE",
    "SHARED_MEMORY_CAPABILITY",
    "TRANSITIONAL_IDS",
    "VENDOR_ID",
    "CapabilityType",
)

VENDOR_ID: Final = 0x1AF4
DEVICE_ID_BASE: Final = 0x1040
"""PCI device id of a virtio device: this plus its virtio id (4.1.2)."""
TRANSITIONAL_IDS: Final = range(0x1000, 0x1040)
RELOCATED_ID_BASE: Final = 0x1080
"""What is added to a device type to have the device id of a function without virtio capabilities in configuration
space. No such ids are assigned: they are Chamber's choice, as is the place of the table (docs/trusted-virtio.md)."""
RELOCATED_BAR: Final = 0
RELOCATED_AT: Final = 0x4000
"""Where such a function has its table: the capabilities, verbatim, one behind the other."""
RELOCATED_SIZE: Final = 4096
"""Bytes of the table, its head included."""
RELOCATED_MAGIC: Final = 0x50414356
"""``VCAP``."""
NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR (4.1.4.3)."""
ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2


LEGACY_PAGE: Final = 4096
"""A legacy queue begins at a multiple of it, and its device area at another (2.7.2, 4.1.5.1.3.1)."""


class CapabilityType(enum.IntEnum):
    """``cfg_type`` of a capability (4.1.4)."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5
    SHARED_MEMORY_CFG = 8
    VENDOR_CFG = 9


_CAPABILITY: Final = (
    Field("cap_vndr", "u8", Role.ID, None, (0x09,)),
    Field("cap_next", "u8", Role.OFFSET),
    Field("cap_len", "u8", Role.LENGTH),
    Field("cfg_type", "u8", Role.ENUM, None, tuple(CapabilityType)),
    Field("bar", "u8", Role.INDEX, None, range(6)),
    Field("id", "u8", Role.ID),
    Field("padding", "bytes:2", Role.BYTES),
    Field("offset", "le32", Role.OFFSET),
    Field("length", "le32", Role.LENGTH),
)

CAPABILITY: Final = Layout("virtio_pci_cap", "virtio 1.4, 4.1.4", *_CAPABILITY)
NOTIFY_CAPABILITY: Final = Layout("virtio_pci_notify_cap", "virtio 1.4, 4.1.4.4", *_CAPABILITY,
                                  Field("notify_off_multiplier", "le32", Role.SIZE))
PCI_CFG_CAPABILITY: Final = Layout("virtio_pci_cfg_cap", "virtio 1.4, 4.1.4.9", *_CAPABILITY,
                                   Field("pci_cfg_data", "bytes:4", Role.BYTES))
SHARED_MEMORY_CAPABILITY: Final = Layout("virtio_pci_cap64", "virtio 1.4, 4.1.4.7", *_CAPABILITY,
                                         Field("offset_hi", "le32", Role.OFFSET),
                                         Field("length_hi", "le32", Role.LENGTH))

COMMON: Final = Layout(
    "virtio_pci_common_cfg", "virtio 1.4, 4.1.4.3",
    Field("device_feature_select", "le32", Role.INDEX),
    Field("device_feature", "le32", Role.FLAGS),
    Field("driver_feature_select", "le32", Role.INDEX),
    Field("driver_feature", "le32", Role.FLAGS),
    Field("config_msix_vector", "le16", Role.INDEX),
    Field("num_queues", "le16", Role.COUNT),
    Field("device_status", "u8", Role.FLAGS),
    Field("config_generation", "u8"),
    Field("queue_select", "le16", Role.INDEX),
    Field("queue_size", "le16", Role.SIZE),
    Field("queue_msix_vector", "le16", Role.INDEX),
    Field("queue_enable", "le16", Role.ENUM, None, (0, 1)),
    Field("queue_notify_off", "le16", Role.OFFSET),
    Field("queue_desc", "le64", Role.OFFSET),
    Field("queue_driver", "le64", Role.OFFSET),
    Field("queue_device", "le64", Role.OFFSET),
    Field("queue_notif_config_data", "le16", Role.ID),
    Field("queue_reset", "le16", Role.ENUM, None, (0, 1)),
    Field("admin_queue_index", "le16", Role.INDEX),
    Field("admin_queue_num", "le16", Role.COUNT),
)

RELOCATED: Final = Layout(
    "head of relocated capabilities", "docs/trusted-virtio.md", Field("magic", "le32", Role.ID),
    Field("length", "le32", Role.LENGTH),
)
"""``length``: bytes of the capabilities that follow."""
LEGACY: Final = Layout(
    "legacy common configuration", "virtio 1.4, 4.1.4.10",
    Field("device_features", "le32", Role.FLAGS),
    Field("driver_features", "le32", Role.FLAGS),
    Field("queue_address", "le32", Role.OFFSET),
    Field("queue_size", "le16", Role.SIZE),
    Field("queue_select", "le16", Role.INDEX),
    Field("queue_notify", "le16", Role.INDEX),
    Field("device_status", "u8", Role.FLAGS),
    Field("isr_status", "u8", Role.FLAGS),
    Field("config_msix_vector", "le16", Role.INDEX),
    Field("queue_msix_vector", "le16", Role.INDEX),
)
"""The last two are there while MSI-X is enabled; what is the device type's own follows."""
