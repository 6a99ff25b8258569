"""Lies in configuration space, made from the declared layouts: a new field brings its attacks with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.wire import balloon, blk, console, crypto, fs, net, p9, pmem, scsi, snd, vsock
from chamber.wire import input as input_
from chamber.wire.layout import Role
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chamber.wire.layout import Field, Layout

__all__ = ("LAYOUTS", "ConfigLie", "config_attacks", "lies_about")

LAYOUTS: Final = {
    DeviceType.BLOCK: blk.CONFIG,
    DeviceType.NET: net.CONFIG,
    DeviceType.CONSOLE: console.CONFIG,
    DeviceType.SCSI: scsi.CONFIG,
    DeviceType.BALLOON: balloon.CONFIG,
    DeviceType.CRYPTO: crypto.CONFIG,
    DeviceType.PMEM: pmem.CONFIG,
    DeviceType.FS: fs.CONFIG,
    DeviceType.TRANSPORT_9P: p9.CONFIG,
    DeviceType.INPUT: input_.CONFIG,
    DeviceType.SND: snd.CONFIG,
    DeviceType.VSOCK: vsock.CONFIG,
}
"""Configuration spaces to lie in, by device type."""
_AMOUNTS: Final = (Role.SIZE, Role.COUNT, Role.LENGTH)
_CONFIGURABLE: Final = (net.NetFeature.MQ, net.NetFeature.MTU, net.NetFeature.RSS)
"""Features of the network device that a guest's administrator uses."""
_INSTEAD: Final = {DeviceType.PMEM: bit(pmem.PmemFeature.SHMEM_REGION)}
"""By device type: features that drivers take instead of what is in configuration space."""
_SOME: Final = 8
"""An amount that nobody turns down."""


def lies_about(field: Field) -> dict[str, int]:
    """Values for a field at its edges and beyond, by the name of the edge; none twice.

    >>> from chamber.wire.layout import Field
    >>> lies_about(Field("writeback", "u8", Role.ENUM, None, (0, 1)))
    {'beyond': 2, 'max': 255}
    """
    bits = 8 * field.size
    edges: list[tuple[str, int]] = []
    legal = field.legal
    if isinstance(legal, range):
        edges += [("below", legal.start - 1), ("beyond", legal.stop)]
    elif legal is not None:
        between = next(value for value in range(min(legal), max(legal) + 2) if value not in legal)
        edges += [("beyond", max(legal) + 1), ("between", between)]
    if bits == 64:
        edges.append(("one", 1))
    if field.role is Role.SIZE and legal is None and bits > 16:
        # Sizes in sectors that are 2**32 or 2**64 bytes: zero to who multiplies them in the field's own width.
        edges.append(("wrapping", 1 << bits - 9))
    edges.append(("max", field.maximum))
    if bits == 64 or (isinstance(legal, range) and legal.stop <= field.maximum):
        edges.append(("sign", 1 << bits - 1))
    edges.append(("zero", 0))
    lies: dict[str, int] = {}
    for edge, value in edges:
        fits = 0 <= value <= field.maximum
        harmless = isinstance(legal, tuple) and value in legal
        if fits and not harmless and value not in lies.values():
            lies[edge] = value
    return lies


class ConfigLie(Attack):
    """Serves other values than the true ones in configuration space, and offers the features that expose them.

    Args:
        layout: the device's configuration space.
        lies: field by name and what to say.
        alternate: tell the truth at every second read.
        features: more feature bits to offer.

    """

    def __init__(self, layout: Layout, lies: Mapping[str, int | bytes], *, alternate: bool = False,
                 features: int = 0) -> None:
        super().__init__()
        self._layout = layout
        self._lies = lies
        self._alternate = alternate
        self._reads = 0
        self._features = features | bit(*(f for name in lies if (f := layout[name].feature) is not None))

    def features(self, offered: int) -> int:
        """Offer what exposes the fields, and nothing that hides them."""
        return offered & ~_INSTEAD.get(self.device.type, 0) | self._features

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Lie to who reads one of the fields."""
        layout = self._layout
        config.extend(bytes(max(layout.size - len(config), 0)))
        self._make_plausible(config)
        # A front end may fetch all before the field, too, so only a read that starts or ends with it is one of it.
        asked = [name for name in self._lies
                 if offset + size == layout[name].offset + layout[name].size
                 or (offset == layout[name].offset and size >= layout[name].size) or size >= layout.size]
        if asked:
            self._reads += 1
        if self._alternate and (self._reads % 2 or not self._reads):  # one that is read in halves is read at its end
            return config
        for name, value in self._lies.items():
            layout.put(config, name, value)
        if asked:
            self.strike(f"{', '.join(asked)}: {', '.join(str(self._lies[name]) for name in asked)}")
        return config

    def _make_plausible(self, config: bytearray) -> None:
        """Give the fields beside the lies that a feature brings legal values where the honest device has none."""
        layout = self._layout
        for field in layout:
            if field.feature is None or not self._features >> field.feature & 1 or not field.is_integer:
                continue
            value = layout.get(config, field.name)
            if field.legal and value not in field.legal:
                layout.put(config, field.name, field.legal[0])
            elif not field.legal and not value and field.role in _AMOUNTS:
                layout.put(config, field.name, _SOME)


class ConfigSpin(Attack):
    """Serves other bytes at every read, and says so each time."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = 0

    def features(self, offered: int) -> int:
        """Offer nothing that hides configuration space."""
        return offered & ~_INSTEAD.get(self.device.type, 0)

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Change everything, then interrupt; bounded, as each interrupt brings the next read."""
        self._reads += 1
        if self._reads > 200:
            return config
        self.strike(f"read of {size} bytes at {offset}: all bytes differ from the last read")
        self.device.schedule(0.001, self.device.config_interrupt)
        return bytearray((b + self._reads * 0x3B) & 0xFF for b in config)

    def generation(self, generation: int) -> int:  # noqa: ARG002 - the hook's signature
        """Change, as it would."""
        return self._reads & 0xFF


@dataclass(frozen=True, slots=True)
class _Whole:
    """One lie about all fields at once."""

    name: str
    value: int
    summary: str


_WHOLE: Final = (
    _Whole("zero", 0, "says zero in every field of its configuration, and offers all features that expose one"),
    _Whole("max", (1 << 64) - 1, "says the largest number in every field, and offers all features that expose one"),
)

_WRITTEN_ONLY: Final = {(DeviceType.BALLOON, "actual"), (DeviceType.BALLOON, "poison_val")}
"""Fields that Linux writes and never reads back."""

_BESIDE: Final = {(DeviceType.BLOCK, "zoned"): {"zoned.model": 1}}
"""By the group that a field is in: what a device says beside a lie about it, as drivers pass it over otherwise."""

_KNOWN: Final = {
    "blk-config-writeback-beyond": "BUG_ON in cache_type_show of virtio_blk, open in Linux 6.12.117",
    "blk-config-blk-size-zero": "virtio_blk: use blk_validate_block_size()",
    "blk-config-num-queues-below": "virtio_blk: validate num_queues",
    "console-config-max-nr-ports-max": "virtio_console: validate max_nr_ports",
    "net-config-rss-max-key-size-max": "CVE-2024-53082",
    "net-config-rss-max-indirection-table-length-max": "virtio_net: dynamic RSS indirection table, Linux 6.1.178",
}


def _stimuli(device: DeviceType, field: Field | None) -> tuple[str, ...]:
    more: tuple[str, ...] = ()
    if device is DeviceType.BLOCK and (field is None or "discard" in field.name or "zeroes" in field.name):
        more = ("discard",)
    elif device is DeviceType.NET and (field is None or field.feature in _CONFIGURABLE):
        more = ("configure",)
    elif device in {DeviceType.SCSI, DeviceType.FS, DeviceType.TRANSPORT_9P, DeviceType.SND, DeviceType.PMEM}:
        more = ("rebind",)  # their drivers read each field once
    return ("use", "inspect", *more)


def _targets(device: DeviceType, field: Field) -> frozenset[str]:
    return MODEL if (device, field.name) in _WRITTEN_ONLY else EVERYWHERE


def config_attacks() -> Iterator[AttackSpec]:
    """Attacks on every field of every configuration space."""
    for device, layout in LAYOUTS.items():
        fields = [field for field in layout if field.is_integer and "unused" not in field.name]
        for field in fields:
            stem = f"{device.short}-config-{field.name.replace('.', '-').replace('_', '-')}"
            beside = _BESIDE.get((device, field.name.partition(".")[0]), {})
            for edge, value in lies_about(field).items():
                name = f"{stem}-{edge}"
                yield AttackSpec(
                    name, device, Surface.CONFIG, Aim.MEMORY, layout.spec,
                    f"The device says {field.name} = {value} in its configuration.",
                    lambda layout=layout, lies={**beside, field.name: value}: ConfigLie(layout, lies),  # type: ignore[misc]
                    stimuli=_stimuli(device, field), targets=_targets(device, field), known=_KNOWN.get(name, ""))
            if field.role in _AMOUNTS and "." not in field.name and (field.legal is not None or field.feature is None):
                yield AttackSpec(
                    f"{stem}-changing", device, Surface.CONFIG, Aim.MEMORY, layout.spec,
                    f"The device says {field.name} = {field.maximum} at every second read of it.",
                    lambda layout=layout, lies={field.name: field.maximum}:  # type: ignore[misc]
                    ConfigLie(layout, lies, alternate=True),
                    stimuli=_stimuli(device, field), targets=_targets(device, field))
        for whole in _WHOLE:
            yield AttackSpec(
                f"{device.short}-config-all-{whole.name}", device, Surface.CONFIG, Aim.MEMORY, layout.spec,
                f"The device {whole.summary}.",
                lambda layout=layout, lies={f.name: whole.value for f in fields}:  # type: ignore[misc]
                ConfigLie(layout, lies),
                stimuli=_stimuli(device, None))
        yield AttackSpec(
            f"{device.short}-config-every-read", device, Surface.CONFIG, Aim.MEMORY, "virtio 1.3, 2.5.1",
            "The device changes all of its configuration at every read, and interrupts for it.",
            ConfigSpin, stimuli=_stimuli(device, None))
