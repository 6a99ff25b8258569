"""Feature bits that are offered, withdrawn or contradictory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.virtio import DeviceType, Feature, bit

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

_SINGLE: Final[dict[DeviceType, tuple[tuple[str, int, int, str], ...]]] = {
    DeviceType.BLOCK: (
        ("flush-withdrawn", 0, bit(9), "withdraws FLUSH and keeps CONFIG_WCE"),
        ("mq", bit(12), 0, "offers MQ"),
        ("lifetime", bit(15), 0, "offers LIFETIME"),
        ("secure-erase", bit(16), 0, "offers SECURE_ERASE with limits of zero"),
        ("zoned", bit(17), 0, "offers ZONED with characteristics of zero"),
        ("read-only", bit(5), 0, "offers RO"),
        ("limits", bit(1, 2, 4, 6, 10), 0, "offers SIZE_MAX, SEG_MAX, GEOMETRY, BLK_SIZE and TOPOLOGY"),
    ),
    DeviceType.NET: (
        ("no-ctrl-vq", bit(18, 19, 20, 21, 22, 23, 57, 60), bit(17),
         "offers what needs the control queue, and withdraws the control queue"),
        ("no-checksum", bit(7, 8, 9, 10, 11, 12, 13, 14), bit(0, 1), "offers segmentation without checksums"),
        ("no-mergeable", bit(1, 7, 8, 10), bit(15), "offers receive offloads without mergeable buffers"),
        ("ecn-alone", bit(9, 13), bit(7, 8, 11, 12), "offers ECN without segmentation"),
        ("standby", bit(62), 0, "offers STANDBY, so that the driver makes a failover master"),
        ("hash-report", bit(57), 0, "offers HASH_REPORT, which changes the header's length, and does not send it"),
        ("rss", bit(60), 0, "offers RSS with the configuration as it is"),
        ("mq", bit(22), 0, "offers MQ"),
        ("coalescing", bit(52, 53), 0, "offers notification coalescing"),
        ("speed", bit(63), 0, "offers SPEED_DUPLEX with values of zero"),
        ("ufo", bit(10, 14), 0, "offers UDP fragmentation"),
        ("uso", bit(54, 55, 56), 0, "offers UDP segmentation"),
        ("rsc", bit(61), 0, "offers RSC_EXT"),
        ("hdrlen", bit(59), 0, "offers GUEST_HDRLEN"),
        ("guest-offloads", bit(2), 0, "offers CTRL_GUEST_OFFLOADS"),
        ("mac-withdrawn", 0, bit(5), "withdraws MAC"),
        ("status-withdrawn", bit(21), bit(16), "offers GUEST_ANNOUNCE without STATUS"),
    ),
    DeviceType.CONSOLE: (
        ("single-port", 0, bit(1), "withdraws MULTIPORT"),
        ("size", bit(0), bit(1), "offers SIZE without MULTIPORT"),
        ("emergency", bit(2), 0, "offers EMERG_WRITE"),
    ),
    DeviceType.RNG: (),
}


def feature_attacks() -> Iterator[AttackSpec]:
    """Attacks on feature negotiation, for every device."""
    for device in DeviceType:
        for what, spec, summary, change in _COMMON:
            yield AttackSpec(
                f"{device.short}-{what}", device, Surface.FEATURES, Aim.MEMORY, f"virtio 1.3, {spec}",
                f"The device {summary}.",
                lambda change=change: Offer(change),  # type: ignore[misc]
                stimuli=("use", "rebind"))
        for what, more, less, summary in _SINGLE[device]:
            yield AttackSpec(
                f"{device.short}-features-{what}", device, Surface.FEATURES, Aim.MEMORY, "virtio 1.3, 2.2.1",
                f"The device {summary}.",
                lambda more=more, less=less: Offer(lambda honest, _reads: (honest | more) & ~less),  # type: ignore[misc]
                stimuli=("use", "inspect"))
