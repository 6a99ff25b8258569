"""Console device: feature bits, configuration space, control messages, queue numbers (virtio 1.3, 5.3)."""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CONFIG",
    "CONTROL",
    "CONTROL_RX_QUEUE",
    "CONTROL_TX_QUEUE",
    "RESIZE",
    "ConsoleEvent",
    "ConsoleFeature",
    "port_of_queue",
    "rx_queue",
    "tx_queue",
)

CONTROL_RX_QUEUE: Final = 2
"""Device to driver."""
CONTROL_TX_QUEUE: Final = 3
"""Driver to device."""


class ConsoleFeature(enum.IntEnum):
    """Feature bit numbers (5.3.3)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


class ConsoleEvent(enum.IntEnum):
    """``event`` of a control message (5.3.6.2)."""

    DEVICE_READY = 0
    """Driver: it is initialised (value 1) or failed (0)."""
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    """Driver: the port can be used (value 1) or its set-up failed (0)."""
    CONSOLE_PORT = 4
    """Device: this port is a console."""
    RESIZE = 5
    """Device: followed by `RESIZE`, the layout."""
    PORT_OPEN = 6
    """Either side: open (value 1) or closed (0)."""
    PORT_NAME = 7
    """Device: followed by the name, without a length."""


CONFIG: Final = Layout(
    "virtio_console_config", "virtio 1.3, 5.3.4",
    Field("cols", "le16", Role.COUNT, ConsoleFeature.SIZE),
    Field("rows", "le16", Role.COUNT, ConsoleFeature.SIZE),
    # A port takes two of at most 65,536 queues, and two are for control.
    Field("max_nr_ports", "le32", Role.COUNT, ConsoleFeature.MULTIPORT, range(1, 32768)),
    Field("emerg_wr", "le32", Role.VALUE, ConsoleFeature.EMERG_WRITE),
)

CONTROL: Final = Layout(
    "virtio_console_control", "virtio 1.3, 5.3.6.2",
    Field("id", "le32", Role.ID),
    Field("event", "le16", Role.ENUM, None, tuple(ConsoleEvent)),
    Field("value", "le16", Role.ENUM, None, (0, 1)),
)

RESIZE: Final = Layout(
    "virtio_console_resize", "virtio 1.3, 5.3.6.2",
    Field("cols", "le16", Role.COUNT),
    Field("rows", "le16", Role.COUNT),
)


def rx_queue(port: int) -> int:
    """Number of the queue on which a port sends to the driver (5.3.2)."""
    return 0 if port == 0 else 2 + 2 * port


def tx_queue(port: int) -> int:
    """Number of the queue on which a port hears from the driver (5.3.2)."""
    return rx_queue(port) + 1


def port_of_queue(queue: int) -> int | None:
    """The port that a queue belongs to; None for the two control queues."""
    if queue < 2:
        return 0
    return None if queue < 4 else queue // 2 - 1
