"""Declared structures: what stands at which offset, and what it means.

A layout serves three readers. A device packs its config space with it, a driver knows where to read, and the
attack catalogue walks the fields and lies about each in turn, so that a new field brings its attacks with it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from chamber.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Field", "Layout", "Role")

_WIDTHS = {"u8": 1, "le16": 2, "le32": 4, "le64": 8}


class Role(enum.Enum):
    """What a field's number is used for by whoever believes it."""

    VALUE = "value"
    LENGTH = "length"
    COUNT = "count"
    INDEX = "index"
    ID = "id"
    OFFSET = "offset"
    SIZE = "size"
    FLAGS = "flags"
    ENUM = "enum"
    BYTES = "bytes"


class Field(NamedTuple):
    """One field of a structure.

    Attributes:
        name: the specification's own name.
        type: ``u8``, ``le16``, ``le32``, ``le64``, or ``bytes:N`` for N raw bytes.
        role: what the number means to a reader.
        feature: number of the feature bit that makes the field valid, or None where it always is.
        legal: the values that the specification allows, where it lists them or bounds them.
        offset: filled in by `Layout`.

    """

    name: str
    type: str
    role: Role = Role.VALUE
    feature: int | None = None
    legal: range | tuple[int, ...] | None = None
    offset: int = -1

    @property
    def size(self) -> int:
        """Width in bytes."""
        if self.type.startswith("bytes:"):
            return int(self.type[6:])
        return _WIDTHS[self.type]

    @property
    def is_integer(self) -> bool:
        """Whether the field holds one little-endian number."""
        return self.type in _WIDTHS

    @property
    def maximum(self) -> int:
        """The largest number that fits into the field."""
        return (1 << (8 * self.size)) - 1


class Layout:
    r"""A packed little-endian structure.

    >>> header = Layout("h", "no spec", Field("kind", "u8"), Field("length", "le16"))
    >>> header.size
    3
    >>> bytes(header.pack(kind=1, length=0x203))
    b'\x01\x03\x02'
    """

    def __init__(self, name: str, spec: str, *fields: Field) -> None:
        self.name = name
        self.spec = spec
        placed: dict[str, Field] = {}
        offset = 0
        for field in fields:
            placed[field.name] = Field(field.name, field.type, field.role, field.feature, field.legal, offset)
            offset += field.size
        self.fields = placed
        self.size = offset

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields.values())

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def __repr__(self) -> str:
        return f"Layout({self.name!r}, {self.size} bytes)"

    def get(self, data: bytes | bytearray | memoryview, name: str, base: int = 0) -> int:
        """Read an integer field of the structure that starts at `base`.

        Raises:
            WireError: the bytes end before the field does.

        """
        field = self.fields[name]
        start = base + field.offset
        end = start + field.size
        if end > len(data):
            raise WireError(f"{self.name}.{name} lies beyond the bytes given", spec=self.spec,
                            detail=f"{len(data)} bytes, field ends at {end}")
        return int.from_bytes(data[start:end], "little")

    def get_bytes(self, data: bytes | bytearray | memoryview, name: str, base: int = 0) -> bytes:
        """Read a field as raw bytes.

        Raises:
            WireError: the bytes end before the field does.

        """
        field = self.fields[name]
        start = base + field.offset
        if start + field.size > len(data):
            raise WireError(f"{self.name}.{name} lies beyond the bytes given", spec=self.spec)
        return bytes(data[start:start + field.size])

    def put(self, data: bytearray | memoryview, name: str, value: int | bytes, base: int = 0) -> None:
        """Write one field; an integer is cut to the field's width, as a store would."""
        field = self.fields[name]
        start = base + field.offset
        if isinstance(value, int):
            raw = (value & field.maximum).to_bytes(field.size, "little")
        else:
            raw = bytes(value[:field.size]).ljust(field.size, b"\0")
        data[start:start + field.size] = raw

    def pack(self, **values: int | bytes) -> bytearray:
        """Build the structure; fields not named are zero."""
        data = bytearray(self.size)
        for name, value in values.items():
            self.put(data, name, value)
        return data

    def unpack(self, data: bytes | bytearray | memoryview, base: int = 0) -> dict[str, int]:
        """All integer fields by name.

        Raises:
            WireError: the bytes end before the structure does.

        """
        if base + self.size > len(data):
            raise WireError(f"{self.name} is {self.size} bytes", spec=self.spec,
                            detail=f"{max(len(data) - base, 0)} bytes given")
        return {f.name: int.from_bytes(data[base + f.offset:base + f.offset + f.size], "little")
                for f in self if f.is_integer}
