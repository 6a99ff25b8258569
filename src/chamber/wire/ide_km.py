"""IDE key management (PCI Express Base Specification 6.1, 6.33.3): how the keys of an encrypted link are set.

The messages travel as TDISP's do, in a secured SPDM session, after protocol id 0.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "INITIAL_IFV",
    "KEY_SIZE",
    "PROTOCOL_ID",
    "Acknowledge",
    "KeyProgram",
    "KeySet",
    "KeySwitch",
    "Object",
    "ProgramStatus",
    "Query",
    "QueryResponse",
    "SubStream",
    "decode",
    "key_from_wire",
    "key_to_wire",
)

PROTOCOL_ID: Final = 0
KEY_SIZE: Final = 32
INITIAL_IFV: Final = 1
"""Where the invocation field of a sub-stream's counter begins."""
_SPEC: Final = "PCIe 6.1, 6.33.3"


class Object(enum.IntEnum):
    """Object ids, the first byte of each message."""

    QUERY = 0
    QUERY_RESP = 1
    KEY_PROG = 2
    KP_ACK = 3
    K_SET_GO = 4
    K_SET_STOP = 5
    K_GOSTOP_ACK = 6


class SubStream(enum.IntEnum):
    """Which transactions a key is for: posted, non-posted, completions."""

    POSTED = 0
    NON_POSTED = 1
    COMPLETION = 2


class ProgramStatus(enum.IntEnum):
    """Status of KP_ACK."""

    SUCCESS = 0
    INCORRECT_LENGTH = 1
    UNSUPPORTED_PORT_INDEX = 2
    UNSUPPORTED_VALUE = 3
    UNSPECIFIED_FAILURE = 4


@dataclass(frozen=True, slots=True)
class KeySet:
    """Which of a stream's keys is meant.

    Attributes:
        stream_id: the stream.
        sub_stream: as `SubStream`; any number up to 15 can be said.
        key_set: 0 or 1.
        transmit: whether the port that is told sends with it; it receives otherwise.
        port_index: the port of the device.

    """

    stream_id: int
    sub_stream: int
    key_set: int
    transmit: bool
    port_index: int = 0

    @property
    def code(self) -> int:
        """Its byte KEY_SUB_STREAM."""
        return self.key_set | self.transmit << 1 | self.sub_stream << 4

    @classmethod
    def of(cls, stream_id: int, code: int, port_index: int) -> Self:
        """Return it from its byte; reserved bits are ignored."""
        return cls(stream_id, code >> 4, code & 1, bool(code & 2), port_index)


_QUERY: Final = Layout("QUERY", _SPEC, Field("object", "u8", Role.ENUM), Field("reserved", "u8"),
                       Field("port_index", "u8", Role.INDEX))
_RESPONSE: Final = Layout(
    "QUERY_RESP", _SPEC, Field("object", "u8", Role.ENUM), Field("reserved", "u8"),
    Field("port_index", "u8", Role.INDEX), Field("dev_func", "u8", Role.ID), Field("bus", "u8", Role.ID),
    Field("segment", "u8", Role.ID), Field("max_port_index", "u8", Role.INDEX),
)
_SWITCH: Final = Layout(
    "K_SET_GO", _SPEC, Field("object", "u8", Role.ENUM), Field("reserved", "le16"),
    Field("stream_id", "u8", Role.ID), Field("status", "u8", Role.ENUM), Field("key_sub_stream", "u8", Role.INDEX),
    Field("port_index", "u8", Role.INDEX),
)
"""KEY_PROG up to the key, KP_ACK, and all that goes and stops: only KP_ACK has a status where others have nothing."""


@dataclass(frozen=True, slots=True)
class Query:
    """QUERY: asks which port that is, and what its IDE can do."""

    port_index: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes(_QUERY.pack(object=Object.QUERY, port_index=self.port_index))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        return cls(_fields(data, _QUERY, _QUERY.size)["port_index"])


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """QUERY_RESP: who the port is, and the registers of its IDE extended capability.

    Attributes:
        port_index: as asked.
        bus: its number, as configuration requests that it saw say.
        dev_func: device and function.
        segment: its segment.
        max_port_index: the last one that there is.
        registers: the capability from its second register on.

    """

    port_index: int
    bus: int
    dev_func: int
    segment: int
    max_port_index: int
    registers: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return its bytes."""
        head = _RESPONSE.pack(object=Object.QUERY_RESP, port_index=self.port_index, dev_func=self.dev_func,
                              bus=self.bus, segment=self.segment, max_port_index=self.max_port_index)
        return bytes(head) + b"".join(word.to_bytes(4, "little") for word in self.registers)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _RESPONSE.unpack(data)
        words = data[_RESPONSE.size:]
        if len(words) % 4:
            raise WireError("QUERY_RESP ends within a register", spec=_SPEC)
        return cls(fields["port_index"], fields["bus"], fields["dev_func"], fields["segment"],
                   fields["max_port_index"],
                   tuple(int.from_bytes(words[at:at + 4], "little") for at in range(0, len(words), 4)))


@dataclass(frozen=True, slots=True)
class KeyProgram:
    """KEY_PROG: here is a key.

    Attributes:
        which: what it is for.
        key: 32 bytes, as AES takes them.
        ifv: initial value of the invocation field.

    """

    which: KeySet
    key: bytes = field(repr=False)
    ifv: int = INITIAL_IFV

    def encode(self) -> bytes:
        """Return its bytes."""
        return _switch(Object.KEY_PROG, self.which) + key_to_wire(self.key) + _words(self.ifv.to_bytes(8, "big"))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _fields(data, _SWITCH, _SWITCH.size + KEY_SIZE + 8)
        key = data[_SWITCH.size:_SWITCH.size + KEY_SIZE]
        return cls(_which(fields), key_from_wire(key), int.from_bytes(_words(data[-8:]), "big"))


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """KP_ACK."""

    which: KeySet
    status: int = ProgramStatus.SUCCESS

    def encode(self) -> bytes:
        """Return its bytes."""
        return _switch(Object.KP_ACK, self.which, self.status)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _fields(data, _SWITCH, _SWITCH.size)
        return cls(_which(fields), fields["status"])


@dataclass(frozen=True, slots=True)
class KeySwitch:
    """K_SET_GO, K_SET_STOP, or K_GOSTOP_ACK: use this key from now on, or no longer."""

    OBJECTS: ClassVar[tuple[Object, ...]] = (Object.K_SET_GO, Object.K_SET_STOP, Object.K_GOSTOP_ACK)
    object: Object
    which: KeySet

    def encode(self) -> bytes:
        """Return its bytes."""
        return _switch(self.object, self.which)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _fields(data, _SWITCH, _SWITCH.size)
        return cls(Object(fields["object"]), _which(fields))


class _Decodable(Protocol):
    @classmethod
    def decode(cls, data: bytes) -> Query | QueryResponse | KeyProgram | Acknowledge | KeySwitch: ...


_OBJECTS: Final[dict[int, type[_Decodable]]] = {
    Object.QUERY: Query, Object.QUERY_RESP: QueryResponse, Object.KEY_PROG: KeyProgram, Object.KP_ACK: Acknowledge,
    Object.K_SET_GO: KeySwitch, Object.K_SET_STOP: KeySwitch, Object.K_GOSTOP_ACK: KeySwitch}


def decode(data: bytes) -> Query | QueryResponse | KeyProgram | Acknowledge | KeySwitch:
    """Read an object.

    Raises:
        WireError: it is none, or not as long as it has to be.

    """
    if not data or data[0] not in _OBJECTS:
        raise WireError("the object id is none of IDE_KM's", spec=_SPEC, detail=data[:1].hex())
    return _OBJECTS[data[0]].decode(data)


def key_to_wire(key: bytes) -> bytes:
    """Return an AES key as KEY_PROG has it: the register that holds its first byte comes first, each little-endian.

    The key's first byte is the most significant one of the last register (tee-io-validator, ``key_byte_order.md``).
    """
    return _words(key)


def key_from_wire(data: bytes) -> bytes:
    """Return the AES key of a KEY_PROG."""
    return _words(data)


def _words(data: bytes) -> bytes:
    """Return the bytes with each four of them reversed."""
    return b"".join(data[at:at + 4][::-1] for at in range(0, len(data), 4))


def _switch(kind: Object, which: KeySet, status: int = 0) -> bytes:
    return bytes(_SWITCH.pack(object=kind, stream_id=which.stream_id, status=status, key_sub_stream=which.code,
                              port_index=which.port_index))


def _which(fields: dict[str, int]) -> KeySet:
    return KeySet.of(fields["stream_id"], fields["key_sub_stream"], fields["port_index"])


def _fields(data: bytes, layout: Layout, size: int) -> dict[str, int]:
    if len(data) != size:
        raise WireError("an object is as long as its id says", spec=_SPEC, detail=f"{len(data)} bytes, not {size}")
    return layout.unpack(data)
