"""The state of a virtio PCI device as device parts (virtio 1.4, 2.14): read from one, set on another.

What no part of the specification holds goes into a part of Chamber's own: where each queue goes on. Configuration of
the device's type has no part either; MSI-X and configuration space of PCI are the hypervisor's to carry (2.14.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from chamber.wire.admin import VQ_CFG, VQ_NOTIFY_CFG, Part, PartType
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.device.common_config import CommonConfig, CommonState, QueueConfig
    from chamber.device.virtio_pci import VirtioPci

__all__ = ("BadPart", "read_parts", "write_parts")

_FEATURES: Final = 8
_POSITION: Final = 4
_SELECTS: Final = ("device_feature_select", "driver_feature_select", "queue_select")
_FIELDS: Final = (*_SELECTS[:2], "config_msix_vector", "num_queues", "queue_select")
"""Fields of the common configuration that have parts; others have parts of their own, or are told by features."""
_ORDER: Final = tuple(PartType)
_MOST_SIZE: Final = 1 << 15


class BadPart(Exception):
    """A part can't be set: it is of another device, or out of order, or missing."""


def read_parts(function: VirtioPci) -> tuple[Part, ...]:
    """Return all parts of a device, in their order; what it does meanwhile is in none of them unless it is halted."""
    common = function.common
    state = common.state()
    values = {**dict(zip(_SELECTS, state.selects, strict=True)), "config_msix_vector": state.config_vector,
              "num_queues": len(state.queues)}
    queues = tuple(enumerate(state.queues))
    return (
        Part(PartType.DEV_FEATURES, function.device.offered_features().to_bytes(_FEATURES, "little"), optional=True),
        Part(PartType.DRV_FEATURES, state.features.to_bytes(_FEATURES, "little")),
        *(Part(PartType.PCI_COMMON_CFG, values[name].to_bytes(COMMON[name].size, "little"), COMMON[name].offset)
          for name in _FIELDS),
        Part(PartType.DEVICE_STATUS, bytes((state.status,))),
        *(Part(PartType.VQ_CFG, _queue(queue), index) for index, queue in queues),
        *(Part(PartType.VQ_NOTIFY_CFG, bytes(VQ_NOTIFY_CFG.pack(queue_notify_off=index)), index)
          for index, _ in queues),
        *(Part(PartType.VQ_POSITION, queue.position.to_bytes(_POSITION, "little"), index) for index, queue in queues))


def _queue(queue: QueueConfig) -> bytes:
    return bytes(VQ_CFG.pack(queue_size=queue.size, vector=queue.vector, enabled=queue.enabled, queue_desc=queue.desc,
                             queue_driver=queue.driver, queue_device=queue.device))


def write_parts(function: VirtioPci, parts: Sequence[Part]) -> None:
    """Set parts of a device that is halted; what has none stays as it is.

    Raises:
        BadPart: a part is wrong, or the device is not halted; nothing was changed then.

    """
    common = function.common
    if not common.halted:
        raise BadPart("a device is stopped before its parts are set")
    if not common.restore(_Reader(common, function.device.offered_features()).read(parts)):
        raise BadPart("the features that the driver chose are the device's")


@dataclass(slots=True)
class _Reader:
    """Makes a state of parts."""

    common: CommonConfig
    offered: int
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def read(self, parts: Sequence[Part]) -> CommonState:
        """Return what the device is to become."""
        state = self.common.state()
        last = 0
        for part in parts:
            if part.type not in set(PartType):
                if part.optional:
                    continue
                raise BadPart(f"no part {part.type:#x}")
            if _ORDER.index(PartType(part.type)) < last or (part.type, part.selector) in self._seen:
                raise BadPart("parts stand in their order, and once")
            last = _ORDER.index(PartType(part.type))
            self._seen.add((part.type, part.selector))
            state = self._take(state, part)
        return state

    def _take(self, state: CommonState, part: Part) -> CommonState:
        match PartType(part.type):
            case PartType.DEV_FEATURES:
                if _number(part, _FEATURES) != self.offered:
                    raise BadPart("the device has the features of the one that the parts are of")
            case PartType.DRV_FEATURES:
                return replace(state, features=_number(part, _FEATURES))
            case PartType.PCI_COMMON_CFG:
                return self._take_field(state, part)
            case PartType.DEVICE_STATUS:
                return replace(state, status=_number(part, 1))
            case kind:
                self._take_queue(state, kind, part)
        return state

    def _take_field(self, state: CommonState, part: Part) -> CommonState:
        name = next((name for name in _FIELDS if COMMON[name].offset == part.selector), None)
        if name is None:
            raise BadPart(f"no part for byte {part.selector} of the common configuration")
        value = _number(part, COMMON[name].size)
        if name == "num_queues" and value != len(state.queues):
            raise BadPart("the device has as many queues")
        if name == "config_msix_vector":
            return replace(state, config_vector=value)
        if name in _SELECTS:
            selects = list(state.selects)
            selects[_SELECTS.index(name)] = value
            return replace(state, selects=(selects[0], selects[1], selects[2]))
        return state

    def _take_queue(self, state: CommonState, kind: PartType, part: Part) -> None:
        if part.selector >= len(state.queues):
            raise BadPart(f"no queue {part.selector}")
        queue = state.queues[part.selector]
        if kind is PartType.VQ_POSITION:
            queue.position = _number(part, _POSITION)
        elif kind is PartType.VQ_NOTIFY_CFG:
            if part.value != VQ_NOTIFY_CFG.pack(queue_notify_off=part.selector):
                raise BadPart("a queue is notified where it was")
        elif len(part.value) != VQ_CFG.size:
            raise BadPart("a part is as long as the device's")
        else:
            values = VQ_CFG.unpack(part.value)
            if not 0 < values["queue_size"] <= _MOST_SIZE or values["enabled"] > 1:
                raise BadPart("a queue has a size, and is enabled or not")
            queue.size, queue.vector, queue.enabled = values["queue_size"], values["vector"], bool(values["enabled"])
            queue.desc, queue.driver, queue.device = (values[name] for name in (
                "queue_desc", "queue_driver", "queue_device"))


def _number(part: Part, size: int) -> int:
    if len(part.value) != size:
        raise BadPart("a part is as long as the device's")
    return int.from_bytes(part.value, "little")
