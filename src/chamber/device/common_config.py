"""The common configuration structure of a virtio PCI function (virtio 1.4, 4.1.4.3): features, status, queues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chamber.wire.errors import DmaFault
from chamber.wire.packed import PackedLayout
from chamber.wire.split import SplitLayout
from chamber.wire.virtio import Feature, Status
from chamber.wire.virtio_pci import COMMON, NO_VECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.admin_queue import AdminQueue
    from chamber.device.base import Device
    from chamber.platform.dma import Dma

__all__ = ("CommonConfig", "CommonState", "QueueConfig")

_WORD: Final = 0xFFFFFFFF


@dataclass(slots=True)
class QueueConfig:
    """What the driver wrote about a queue.

    Attributes:
        size: descriptors.
        vector: MSI-X vector.
        enabled: whether it was handed over.
        desc: address of the descriptor area.
        driver: address of the driver area.
        device: address of the device area.
        position: where it goes on, of a device that is halted.

    """

    size: int
    vector: int = NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class CommonState:
    """All that a driver has made of a device that is halted.

    Attributes:
        features: what it wrote as its choice.
        status: device status.
        config_vector: MSI-X vector of configuration.
        selects: selectors of device features, driver features, queue.
        queues: its queues.

    """

    features: int
    status: int
    config_vector: int
    selects: tuple[int, int, int]
    queues: tuple[QueueConfig, ...]


class CommonConfig:
    """The registers (implements `chamber.platform.pci.Registers`).

    Args:
        device: the device.
        memory: gives guest memory, when a queue is enabled.
        interrupt: raises the interrupt of a queue.
        admin: the administration queue, if it has one.

    Attributes:
        halted: it touches no memory and raises no interrupt; what the driver writes counts once it goes on.

    """

    size: Final = COMMON.size

    def __init__(self, device: Device, memory: Callable[[], Dma], interrupt: Callable[[int], None],
                 admin: AdminQueue | None = None) -> None:
        self.halted = False
        self._device = device
        self._admin = admin
        self._memory = memory
        self._interrupt = interrupt
        self._setters: dict[str, Callable[[int], None]] = {
            "device_feature_select": self._set_device_select, "driver_feature_select": self._set_driver_select,
            "driver_feature": self._set_feature, "config_msix_vector": self._set_config_vector,
            "device_status": self._set_status, "queue_select": self._set_queue_select,
            "queue_size": self._set_size, "queue_msix_vector": self._set_vector, "queue_enable": self._set_enable,
            "queue_desc": lambda value: self._set_address("desc", value),
            "queue_driver": lambda value: self._set_address("driver", value),
            "queue_device": lambda value: self._set_address("device", value),
            "queue_reset": self._set_reset}
        self._clear()

    def _clear(self) -> None:
        self._device_select = self._driver_select = self._queue_select = 0
        self._features = 0
        self._status = 0
        self.config_vector = NO_VECTOR
        self._queues = {index: QueueConfig(self._device.queue_size) for index in range(self._device.queue_count)}
        if self._admin is not None:
            self._queues[self._admin.index] = QueueConfig(self._device.queue_size)

    def reset(self) -> None:
        """Reset the device, and forget what the driver wrote."""
        self._clear()
        self._device.reset()
        if self._admin is not None:
            self._admin.reset()

    # A device that is halted, by its owner.

    def halt(self) -> None:
        """Stop: take nothing more from queues, and remember where they go on."""
        if not self.halted:
            self.halted = True
            for index, queue in self._queues.items():
                if queue.enabled:
                    queue.position = self._stop(index)

    def resume(self) -> None:
        """Go on."""
        if self.halted:
            self.halted = False
            for index, queue in self._queues.items():
                if queue.enabled and not self._start(index, queue):
                    queue.enabled = False
            if self._status & Status.DRIVER_OK:
                self._ready()

    def state(self) -> CommonState:
        """What the driver has made of it."""
        return CommonState(self._features, self._status, self.config_vector,
                           (self._device_select, self._driver_select, self._queue_select),
                           tuple(replace(self._queues[index]) for index in range(self._device.queue_count)))

    def restore(self, state: CommonState) -> bool:
        """Become, while halted, what a driver has made of another such device; False if it can't."""
        if state.features & ~self._device.offered_features() or len(state.queues) != self._device.queue_count:
            return False
        self.reset()
        self._features, self._status, self.config_vector = state.features, state.status, state.config_vector
        self._device_select, self._driver_select, self._queue_select = state.selects
        # Whoever came by the legacy interface chose without a handshake.
        if self._status & Status.FEATURES_OK or not self._features >> Feature.VERSION_1 & 1:
            self._device.accept_features(self._features)
        self._queues.update(enumerate(map(replace, state.queues)))
        return True

    # What the legacy interface does with the same registers.

    def get(self, name: str) -> int:
        """Return a field."""
        return COMMON.get(self._image(), name)

    def put(self, name: str, value: int) -> None:
        """Set a field that a driver may write."""
        self._setters[name](value)

    def accept_legacy(self, features: int) -> None:
        """Take features as a legacy driver chooses them: what is not offered is not looked at (3.1.2)."""
        self._features = features & self._device.offered_features() & _WORD
        self._device.accept_features(self._features)

    def take_back(self, index: int) -> None:
        """Give a queue back to its driver; its vector stays (4.1.4.3.1)."""
        queue = self._queues.get(index)
        if queue is not None:
            self._stop(index)
            self._queues[index] = QueueConfig(self._device.queue_size, queue.vector)

    def areas(self) -> Iterator[tuple[int, int]]:
        """Address and length of what the driver handed over as rings: descriptor table, driver area, device area."""
        packed = self._device.has(Feature.RING_PACKED)
        for queue in self._queues.values():
            if not queue.desc:
                continue
            if packed:
                about = PackedLayout(queue.size)
                sizes = about.desc_bytes, about.driver_bytes, about.device_bytes
            else:
                layout = SplitLayout(queue.size)
                sizes = layout.desc_bytes, layout.avail_bytes, layout.used_bytes
            yield from zip((queue.desc, queue.driver, queue.device), sizes, strict=True)

    def vector_of(self, index: int) -> int:
        """Return the vector of a queue."""
        return self._queues[index].vector

    # Reading.

    def read(self, offset: int, size: int) -> bytes:
        """Serve a read."""
        return bytes(self._image()[offset:offset + size])

    def _image(self) -> bytearray:
        device, queue = self._device, self._queue()
        return COMMON.pack(
            device_feature_select=self._device_select, device_feature=_half(device.offered_features(),
                                                                            self._device_select),
            driver_feature_select=self._driver_select, driver_feature=_half(self._features, self._driver_select),
            config_msix_vector=self.config_vector, num_queues=self._device.queue_count, device_status=self._status,
            config_generation=device.read_generation(), queue_select=self._queue_select,
            **({} if self._admin is None or not device.has(Feature.ADMIN_VQ) else {
                "admin_queue_index": self._admin.index, "admin_queue_num": 1}),
            **({} if queue is None else {
                "queue_size": queue.size, "queue_msix_vector": queue.vector, "queue_enable": int(queue.enabled),
                "queue_notify_off": self._queue_select, "queue_desc": queue.desc, "queue_driver": queue.driver,
                "queue_device": queue.device}))

    def _queue(self) -> QueueConfig | None:
        return self._queues.get(self._queue_select)

    # Writing.

    def write(self, offset: int, data: bytes) -> None:
        """Take a write; each field that it touches is set, in their order."""
        image = self._image()
        image[offset:offset + len(data)] = data
        for name, setter in self._setters.items():
            field = COMMON[name]
            if field.offset < offset + len(data) and offset < field.offset + field.size:
                setter(COMMON.get(image, name))

    def _set_device_select(self, value: int) -> None:
        self._device_select = value

    def _set_driver_select(self, value: int) -> None:
        self._driver_select = value

    def _set_feature(self, value: int) -> None:
        if self._driver_select > 1 or self._status & Status.FEATURES_OK:
            return
        shift = 32 * self._driver_select
        self._features = self._features & ~(_WORD << shift) | value << shift

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = value

    def _set_status(self, value: int) -> None:
        if not value:
            self.reset()
            return
        fresh = value & ~self._status
        if fresh & Status.FEATURES_OK and not self._device.accept_features(self._features):
            value &= ~Status.FEATURES_OK
        self._status = value
        if fresh & Status.DRIVER_OK and not self.halted:
            self._ready()

    def _ready(self) -> None:
        self._device.driver_ok()
        # A driver may have made buffers available before, and need not notify again for them (3.1.1).
        for index, queue in self._queues.items():
            if queue.enabled and self._is_admin(index):
                self._pump_admin()
            elif queue.enabled and self._device.pending(index):
                self._device.notify(index)

    def notified(self, index: int, data: int | None) -> bool:
        """The driver says that a queue has something; return True if there is more than one turn could do."""
        if self.halted:
            return False
        if self._is_admin(index):
            return self._pump_admin()
        return self._device.notify(index, data)

    def _is_admin(self, index: int) -> bool:
        return self._admin is not None and index == self._admin.index

    def _pump_admin(self) -> bool:
        assert self._admin is not None
        return bool(self._status & Status.DRIVER_OK) and self._admin.pump()

    def _set_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _set_size(self, value: int) -> None:
        if (queue := self._queue()) is not None and not queue.enabled and 0 < value <= self._device.queue_size:
            queue.size = value

    def _set_vector(self, value: int) -> None:
        if (queue := self._queue()) is not None:
            queue.vector = value

    def _set_address(self, area: str, value: int) -> None:
        if (queue := self._queue()) is not None and not queue.enabled:
            setattr(queue, area, value)

    def _set_enable(self, value: int) -> None:
        queue, index = self._queue(), self._queue_select
        # Once enabled, only a reset takes a queue back (4.1.4.3.2); a device may refuse one by not enabling it.
        if queue is None or queue.enabled or value != 1 or self._device.refuses_queue(index):
            return
        queue.position = 0
        queue.enabled = self.halted or self._start(index, queue)

    def _start(self, index: int, queue: QueueConfig) -> bool:
        """Take a queue over; whether its memory can be had."""
        start = self._device.start_queue if self._admin is None or not self._is_admin(index) else self._admin.start
        try:
            start(index, self._memory(), size=queue.size, desc=queue.desc, driver=queue.driver, device=queue.device,
                  interrupt=lambda: self._interrupt(index), base=queue.position)
        except DmaFault as error:
            self._device.log(f"queue {index}: {error}")
            return False
        return True

    def _stop(self, index: int) -> int:
        if self._admin is not None and self._is_admin(index):
            return self._admin.queue.stop()
        return self._device.stop_queue(index)

    def _set_reset(self, value: int) -> None:
        if value == 1 and self._device.has(Feature.RING_RESET):
            self.take_back(self._queue_select)


def _half(features: int, select: int) -> int:
    """Return 32 bits of features by their selector; from 2 on there are none."""
    return features >> 32 * select & _WORD if select < 2 else 0
