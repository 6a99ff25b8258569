"""The state of a virtio PCI function as one piece of data: what a monitor carries from one host to another.

Chamber's own format. vfio-user moves a device's state as bytes that only the device understands; these hold what a
guest has written to configuration space, the MSI-X table, and device parts (virtio 1.4, 2.14). Nothing in it is secret
or proven: whoever carries it may change it, and a device takes it for what a guest may have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.admin import MOST_PARTS_BYTES, Part, parse_parts
from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role
from chamber.wire.pci import CONFIG_SIZE

__all__ = ("MOST_BYTES", "FunctionState")

_SPEC: Final = "state of a function, version 1"
_MAGIC: Final = 0x54535046
_VERSION: Final = 1
_MOST_TABLE: Final = 2048 * 16
MOST_BYTES: Final = MOST_PARTS_BYTES + CONFIG_SIZE + _MOST_TABLE + 64

_HEAD: Final = Layout(
    "function_state", _SPEC, Field("magic", "le32", Role.ID), Field("version", "le16", Role.ID),
    Field("device_type", "le16", Role.ID), Field("config", "le32", Role.LENGTH), Field("table", "le32", Role.LENGTH),
    Field("parts", "le32", Role.LENGTH))


@dataclass(frozen=True, slots=True)
class FunctionState:
    """What is carried.

    Attributes:
        device_type: virtio id.
        config: configuration space; what a guest can't write of it is not looked at.
        table: the MSI-X table, empty without.
        parts: device parts.

    """

    device_type: int
    config: bytes
    table: bytes
    parts: tuple[Part, ...]

    def build(self) -> bytes:
        """Return its bytes."""
        parts = b"".join(part.build() for part in self.parts)
        head = _HEAD.pack(magic=_MAGIC, version=_VERSION, device_type=self.device_type, config=len(self.config),
                          table=len(self.table), parts=len(parts))
        return bytes(head) + self.config + self.table + parts

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it.

        Raises:
            WireError: it is something else, or not whole.

        """
        head = _HEAD.unpack(data)
        if (head["magic"], head["version"]) != (_MAGIC, _VERSION):
            raise WireError("the state of a function begins with its mark and version", spec=_SPEC)
        if head["config"] != CONFIG_SIZE or head["table"] > _MOST_TABLE or len(data) != _HEAD.size + sum(
                head[name] for name in ("config", "table", "parts")):
            raise WireError("the state of a function is as long as it says", spec=_SPEC, detail=f"{len(data)} bytes")
        table = _HEAD.size + head["config"]
        parts = table + head["table"]
        return cls(head["device_type"], bytes(data[_HEAD.size:table]), bytes(data[table:parts]),
                   parse_parts(data[parts:]))
