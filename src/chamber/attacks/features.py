"""Feature bits that are offered, withdrawn or contradictory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.device.catalogue import TYPES
from chamber.wire.balloon import BalloonFeature as Balloon
from chamber.wire.blk import BlkFeature as Blk
from chamber.wire.console import ConsoleFeature as Console
from chamber.wire.net import NetFeature as Net
from chamber.wire.scsi import ScsiFeature as Scsi
from chamber.wire.virtio import DeviceType, Feature, bit
from chamber.wire.vsock import VsockFeature as Vsock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("Offer", "feature_attacks")

_DEVICE_BITS: Final = (1 << 24) - 1 | ((1 << 14) - 1) << 50
_RESERVED_BITS: Final = bit(24, 25, 26, 27, 31) | ((1 << 8) - 1) << 42
# What changes the format of rings or addresses: a device that offers it and does not do it reads descriptors from where
# there are none, which would be an accident of the harness.
_FORMAT: Final = bit(Feature.RING_PACKED, Feature.ACCESS_PLATFORM)
_TRANSPORT: Final = bit(Feature.IN_ORDER, Feature.ORDER_PLATFORM, Feature.SR_IOV, Feature.NOTIFICATION_DATA,
                        Feature.NOTIF_CONFIG_DATA, Feature.RING_RESET, Feature.ADMIN_VQ)
_ALL: Final = (1 << 64) - 1


class Offer(Attack):
    """Offers other features than the device has.

    Args:
        change: makes the offer from the honest one and the number of reads before this one.

    """

    def __init__(self, change: Callable[[int, int], int]) -> None:
        super().__init__()
        self._change = change
        self._reads = 0

    def features(self, offered: int) -> int:
        """Lie."""
        lie = self._change(offered, self._reads)
        self._reads += 1
        if lie != offered:
            self.strike(f"features {lie:#x} offered where the device has {offered:#x}")
        return lie


_COMMON: Final[tuple[tuple[str, str, str, Callable[[int, int], int]], ...]] = (
    ("features-none", "6.2", "offers no feature at all", lambda _honest, _reads: 0),
    ("features-all", "6", "offers all bits but those that change the format of rings and addresses",
     lambda _honest, _reads: _ALL & ~_FORMAT),
    ("features-legacy", "6.2", "withdraws VERSION_1", lambda honest, _reads: honest & ~bit(Feature.VERSION_1)),
    ("features-bare", "6", "offers VERSION_1 alone", lambda _honest, _reads: bit(Feature.VERSION_1)),
    ("features-transport", "6", "offers reserved bits, and ring and transport features that it does not have",
     lambda honest, _reads: honest | _RESERVED_BITS | _TRANSPORT),
    ("features-flip", "2.2.1", "offers all device bits at every second read",
     lambda honest, reads: honest | _DEVICE_BITS if reads % 2 else honest),
    ("features-withdrawn", "2.2.1", "withdraws all but VERSION_1 after the first read",
     lambda honest, reads: bit(Feature.VERSION_1) if reads else honest),
)

_CONTROLLED: Final = bit(Net.CTRL_RX, Net.CTRL_VLAN, Net.CTRL_RX_EXTRA, Net.GUEST_ANNOUNCE, Net.MQ, Net.CTRL_MAC_ADDR,
                         Net.VQ_NOTF_COAL, Net.NOTF_COAL, Net.HASH_REPORT, Net.RSS)
"""What needs the control queue (virtio 1.3, 5.1.3.1)."""
_GUEST_TSO: Final = bit(Net.GUEST_TSO4, Net.GUEST_TSO6)
_HOST_TSO: Final = bit(Net.HOST_TSO4, Net.HOST_TSO6)
_ECN: Final = bit(Net.GUEST_ECN, Net.HOST_ECN)
_UFO: Final = bit(Net.GUEST_UFO, Net.HOST_UFO)

_SINGLE: Final[dict[DeviceType, tuple[tuple[str, int, int, str], ...]]] = {
    DeviceType.BLOCK: (
        ("flush-withdrawn", 0, bit(Blk.FLUSH), "withdraws FLUSH and keeps CONFIG_WCE"),
        ("lifetime", bit(Blk.LIFETIME), 0, "offers LIFETIME"),
        ("secure-erase", bit(Blk.SECURE_ERASE), 0, "offers SECURE_ERASE with limits of zero"),
        ("zoned", bit(Blk.ZONED), 0, "offers ZONED with characteristics of zero"),
        ("read-only", bit(Blk.RO), 0, "offers RO"),
        ("limits", bit(Blk.SIZE_MAX, Blk.SEG_MAX, Blk.GEOMETRY, Blk.BLK_SIZE, Blk.TOPOLOGY), 0,
         "offers SIZE_MAX, SEG_MAX, GEOMETRY, BLK_SIZE and TOPOLOGY"),
    ),
    DeviceType.BALLOON: (
        ("reporting-alone", bit(Balloon.PAGE_REPORTING), bit(Balloon.STATS_VQ, Balloon.FREE_PAGE_HINT),
         "offers PAGE_REPORTING alone, so that its queue has another number"),
        ("tell", bit(Balloon.MUST_TELL_HOST), 0, "offers MUST_TELL_HOST"),
    ),
    DeviceType.SCSI: (
        ("protection", bit(Scsi.T10_PI), 0, "offers T10_PI, and knows nothing of protection information"),
        ("inout", bit(Scsi.INOUT), 0, "offers INOUT"),
        ("no-events", 0, bit(Scsi.HOTPLUG, Scsi.CHANGE), "withdraws HOTPLUG and CHANGE"),
    ),
    DeviceType.VSOCK: (
        ("no-seqpacket", 0, bit(Vsock.SEQPACKET), "withdraws SEQPACKET"),
        ("no-types", bit(Vsock.NO_IMPLIED_STREAM), bit(Vsock.STREAM, Vsock.SEQPACKET),
         "offers NO_IMPLIED_STREAM and no type of socket"),
        ("seqpacket-alone", bit(Vsock.SEQPACKET, Vsock.NO_IMPLIED_STREAM), bit(Vsock.STREAM),
         "offers SEQPACKET without streams"),
    ),
    DeviceType.NET: (
        ("no-ctrl-vq", _CONTROLLED, bit(Net.CTRL_VQ),
         "offers what needs the control queue, and withdraws the control queue"),
        ("no-checksum", _GUEST_TSO | _HOST_TSO | _ECN | _UFO, bit(Net.CSUM, Net.GUEST_CSUM),
         "offers segmentation without checksums"),
        ("no-mergeable", _GUEST_TSO | bit(Net.GUEST_CSUM, Net.GUEST_UFO), bit(Net.MRG_RXBUF),
         "offers receive offloads without mergeable buffers"),
        ("ecn-alone", _ECN, _GUEST_TSO | _HOST_TSO, "offers ECN without segmentation"),
        ("standby", bit(Net.STANDBY), 0, "offers STANDBY, so that the driver makes a failover master"),
        ("hash-report", bit(Net.HASH_REPORT), 0,
         "offers HASH_REPORT, which changes the header's length, and does not send it"),
        ("rss", bit(Net.RSS), 0, "offers RSS with the configuration as it is"),
        ("coalescing", bit(Net.VQ_NOTF_COAL, Net.NOTF_COAL), 0, "offers notification coalescing"),
        ("speed", bit(Net.SPEED_DUPLEX), 0, "offers SPEED_DUPLEX with values of zero"),
        ("ufo", _UFO, 0, "offers UDP fragmentation"),
        ("uso", bit(Net.GUEST_USO4, Net.GUEST_USO6, Net.HOST_USO), 0, "offers UDP segmentation"),
        ("rsc", bit(Net.RSC_EXT), 0, "offers RSC_EXT"),
        ("hdrlen", bit(Net.GUEST_HDRLEN), 0, "offers GUEST_HDRLEN"),
        ("guest-offloads-alone", bit(Net.CTRL_GUEST_OFFLOADS), bit(Net.CTRL_VQ) | _CONTROLLED,
         "offers CTRL_GUEST_OFFLOADS without a control queue"),
        ("mac-withdrawn", 0, bit(Net.MAC), "withdraws MAC"),
        ("status-withdrawn", bit(Net.GUEST_ANNOUNCE), bit(Net.STATUS), "offers GUEST_ANNOUNCE without STATUS"),
    ),
    DeviceType.CONSOLE: (
        ("single-port", 0, bit(Console.MULTIPORT), "withdraws MULTIPORT"),
        ("size", bit(Console.SIZE), 0, "offers SIZE, and sends a size that it does not keep"),
        ("emergency-alone", 0, bit(Console.SIZE, Console.MULTIPORT), "offers EMERG_WRITE alone"),
    ),
}


def feature_attacks() -> Iterator[AttackSpec]:
    """Attacks on feature negotiation, for every device."""
    for device in TYPES:
        for what, spec, summary, change in _COMMON:
            yield AttackSpec(
                f"{device.short}-{what}", device, Surface.FEATURES, Aim.MEMORY, f"virtio 1.3, {spec}",
                f"The device {summary}.",
                lambda change=change: Offer(change),  # type: ignore[misc]
                stimuli=("use", "rebind"))
        for what, more, less, summary in _SINGLE.get(device, ()):
            yield AttackSpec(
                f"{device.short}-features-{what}", device, Surface.FEATURES, Aim.MEMORY, "virtio 1.3, 2.2.1",
                f"The device {summary}.",
                lambda more=more, less=less: Offer(lambda honest, _reads: (honest | more) & ~less),  # type: ignore[misc]
                # The last turns are quick: what a feature set going may still go on when the driver is removed.
                stimuli=("use", "inspect", "rebind"))
