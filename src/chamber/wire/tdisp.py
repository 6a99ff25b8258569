"""TDISP messages (PCI Express Base Specification 6.1, 11.3): what a guest's TSM and a device's DSM say to each other.

They travel as vendor-defined SPDM messages inside of a secured session, and nowhere else: whoever gets one by another
way must not answer it (11.2.2). Every message is a 16-byte header and a body; numbers are little-endian.

A request that can't be read has an answer of its own in the specification, so that decoding tells them apart:
`UnknownVersion`, `UnknownMessage`, and plain `WireError` for a body that is none.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "HEADER",
    "NONCE_SIZE",
    "PROTOCOL_ID",
    "VERSION",
    "BindP2p",
    "Body",
    "Capabilities",
    "Empty",
    "ErrorCode",
    "FunctionId",
    "GetCapabilities",
    "GetReport",
    "InterfaceState",
    "LockFlag",
    "LockInterface",
    "LockNonce",
    "Message",
    "MessageType",
    "ReportPortion",
    "SetMmioAttribute",
    "StartInterface",
    "State",
    "TdispError",
    "UnbindP2p",
    "UnknownMessage",
    "UnknownVersion",
    "VendorMessage",
    "Versions",
    "decode",
    "encode",
    "is_request",
)

PROTOCOL_ID: Final = 1
"""Byte before a TDISP message in a vendor-defined SPDM message of the PCI-SIG (11.3.1)."""
VERSION: Final = 0x10
NONCE_SIZE: Final = 32
_RESPONSE_BIT: Final = 0x80
"""Set in the type of a request, clear in that of its response."""


class UnknownVersion(WireError):
    """The message is of another version; the answer is VERSION_MISMATCH."""


class UnknownMessage(WireError):
    """The message's type is none of those here; the answer is UNSUPPORTED_REQUEST.

    Attributes:
        code: the type.

    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("the message type is none of TDISP's", spec="PCIe 6.1, 11.3.3", detail=f"{code:#04x}")


class MessageType(enum.IntEnum):
    """Requests and their responses (11.3.3)."""

    GET_TDISP_VERSION = 0x81
    GET_TDISP_CAPABILITIES = 0x82
    LOCK_INTERFACE_REQUEST = 0x83
    GET_DEVICE_INTERFACE_REPORT = 0x84
    GET_DEVICE_INTERFACE_STATE = 0x85
    START_INTERFACE_REQUEST = 0x86
    STOP_INTERFACE_REQUEST = 0x87
    BIND_P2P_STREAM_REQUEST = 0x88
    UNBIND_P2P_STREAM_REQUEST = 0x89
    SET_MMIO_ATTRIBUTE_REQUEST = 0x8A
    VDM_REQUEST = 0x8B
    TDISP_VERSION = 0x01
    TDISP_CAPABILITIES = 0x02
    LOCK_INTERFACE_RESPONSE = 0x03
    DEVICE_INTERFACE_REPORT = 0x04
    DEVICE_INTERFACE_STATE = 0x05
    START_INTERFACE_RESPONSE = 0x06
    STOP_INTERFACE_RESPONSE = 0x07
    BIND_P2P_STREAM_RESPONSE = 0x08
    UNBIND_P2P_STREAM_RESPONSE = 0x09
    SET_MMIO_ATTRIBUTE_RESPONSE = 0x0A
    VDM_RESPONSE = 0x0B
    TDISP_ERROR = 0x7F


class State(enum.IntEnum):
    """States of a TEE device interface (11.1)."""

    CONFIG_UNLOCKED = 0
    CONFIG_LOCKED = 1
    RUN = 2
    ERROR = 3


class ErrorCode(enum.IntEnum):
    """Codes of TDISP_ERROR (11.3.24)."""

    INVALID_REQUEST = 0x001
    BUSY = 0x003
    INVALID_INTERFACE_STATE = 0x004
    UNSPECIFIED = 0x005
    UNSUPPORTED_REQUEST = 0x007
    VERSION_MISMATCH = 0x041
    VENDOR_SPECIFIC_ERROR = 0x0FF
    INVALID_INTERFACE = 0x101
    INVALID_NONCE = 0x102
    INSUFFICIENT_ENTROPY = 0x103
    INVALID_DEVICE_CONFIGURATION = 0x104


class LockFlag(enum.IntFlag):
    """Flags of LOCK_INTERFACE_REQUEST (11.3.8)."""

    NO_FW_UPDATE = 1 << 0
    CACHE_LINE_128 = 1 << 1
    LOCK_MSIX = 1 << 2
    BIND_P2P = 1 << 3
    ALL_REQUEST_REDIRECT = 1 << 4


_NO_FLAGS: Final = LockFlag(0)


@dataclass(frozen=True, slots=True)
class FunctionId:
    """Which interface is meant (11.3.2): a requester id, and a segment where there is more than one.

    Attributes:
        requester_id: bus, device and function.
        segment: the segment, None where it is not given.

    """

    requester_id: int
    segment: int | None = None

    def __int__(self) -> int:
        return self.requester_id | (0 if self.segment is None else self.segment << 16 | 1 << 24)

    @classmethod
    def of(cls, number: int) -> Self:
        """Return it from its four bytes; reserved bits are ignored (11.3.2)."""
        return cls(number & 0xFFFF, number >> 16 & 0xFF if number & 1 << 24 else None)


HEADER: Final = Layout(
    "TDISP message header", "PCIe 6.1, 11.3.2",
    Field("version", "u8", Role.ID, None, (VERSION,)),
    Field("type", "u8", Role.ENUM, None, tuple(MessageType)),
    Field("reserved", "bytes:2", Role.BYTES),
    Field("function_id", "le32", Role.ID),
    Field("reserved2", "bytes:8", Role.BYTES),
)
_CAPABILITIES: Final = Layout(
    "TDISP_CAPABILITIES", "PCIe 6.1, 11.3.7",
    Field("dsm_caps", "le32", Role.FLAGS), Field("req_msgs_supported", "bytes:16", Role.FLAGS),
    Field("lock_interface_flags_supported", "le16", Role.FLAGS), Field("reserved", "bytes:3", Role.BYTES),
    Field("dev_addr_width", "u8", Role.SIZE), Field("num_req_this", "u8", Role.COUNT),
    Field("num_req_all", "u8", Role.COUNT),
)
_LOCK: Final = Layout(
    "LOCK_INTERFACE_REQUEST", "PCIe 6.1, 11.3.8",
    Field("flags", "le16", Role.FLAGS), Field("default_stream_id", "u8", Role.ID), Field("reserved", "u8"),
    Field("mmio_reporting_offset", "le64", Role.OFFSET), Field("bind_p2p_address_mask", "le64"),
)
_PORTION: Final = Layout(
    "DEVICE_INTERFACE_REPORT", "PCIe 6.1, 11.3.11",
    Field("portion_length", "le16", Role.LENGTH), Field("remainder_length", "le16", Role.LENGTH),
)
_GET_REPORT: Final = Layout(
    "GET_DEVICE_INTERFACE_REPORT", "PCIe 6.1, 11.3.10",
    Field("offset", "le16", Role.OFFSET), Field("length", "le16", Role.LENGTH),
)
_ERROR: Final = Layout(
    "TDISP_ERROR", "PCIe 6.1, 11.3.24", Field("error_code", "le32", Role.ENUM), Field("error_data", "le32"),
)
_MMIO_ATTRIBUTE: Final = Layout(
    "SET_MMIO_ATTRIBUTE_REQUEST", "PCIe 6.1, 11.3.22",
    Field("first_page", "le64", Role.OFFSET), Field("pages", "le32", Role.COUNT),
    Field("attributes", "le16", Role.FLAGS), Field("range_id", "le16", Role.ID),
)


def _whole(data: bytes, layout: Layout) -> dict[str, int]:
    """Return the fields of a body that is `layout` and nothing besides."""
    if len(data) != layout.size:
        raise WireError(f"{layout.name} has {layout.size} bytes after its header", spec=layout.spec,
                        detail=f"{len(data)} given")
    return layout.unpack(data)


def _exactly(data: bytes, size: int, name: str) -> bytes:
    if len(data) != size:
        raise WireError(f"{name} has {size} bytes after its header", spec="PCIe 6.1, 11.3", detail=f"{len(data)} given")
    return data


class Body(Protocol):
    """What follows a header."""

    def encode(self) -> bytes:
        """Return its bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Empty:
    """A message that its type says all of."""

    def encode(self) -> bytes:
        """Return its bytes."""
        return b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        _exactly(data, 0, "a message without a body")
        return cls()


@dataclass(frozen=True, slots=True)
class Versions:
    """TDISP_VERSION: the versions that a device speaks, major in the upper four bits."""

    entries: tuple[int, ...]

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes((len(self.entries), *self.entries))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        if not data or len(data) != 1 + data[0]:
            raise WireError("the count of versions is not that of the entries", spec="PCIe 6.1, 11.3.5")
        return cls(tuple(data[1:]))


@dataclass(frozen=True, slots=True)
class GetCapabilities:
    """GET_TDISP_CAPABILITIES; no capability of a TSM is defined yet."""

    tsm_caps: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.tsm_caps.to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        return cls(int.from_bytes(_exactly(data, 4, "GET_TDISP_CAPABILITIES"), "little"))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """TDISP_CAPABILITIES.

    Attributes:
        requests: types of the requests that the device answers; bit n of the field is type 0x80 + n.
        lock_flags: flags of LOCK_INTERFACE_REQUEST that it knows.
        dev_addr_width: bits of the addresses that it uses.
        num_req_this: requests that may be under way for this interface.
        num_req_all: the same for all interfaces together.
        dsm_caps: none is defined yet.

    """

    requests: frozenset[int]
    lock_flags: int
    dev_addr_width: int
    num_req_this: int = 1
    num_req_all: int = 1
    dsm_caps: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        mask = sum(1 << code - _RESPONSE_BIT for code in self.requests)
        return bytes(_CAPABILITIES.pack(
            dsm_caps=self.dsm_caps, req_msgs_supported=mask.to_bytes(16, "little"),
            lock_interface_flags_supported=self.lock_flags, dev_addr_width=self.dev_addr_width,
            num_req_this=self.num_req_this, num_req_all=self.num_req_all))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _whole(data, _CAPABILITIES)
        mask = int.from_bytes(_CAPABILITIES.get_bytes(data, "req_msgs_supported"), "little")
        return cls(frozenset(_RESPONSE_BIT + number for number in range(128) if mask >> number & 1),
                   fields["lock_interface_flags_supported"], fields["dev_addr_width"], fields["num_req_this"],
                   fields["num_req_all"], fields["dsm_caps"])


@dataclass(frozen=True, slots=True)
class LockInterface:
    """LOCK_INTERFACE_REQUEST.

    Attributes:
        flags: as asked; bits that `LockFlag` does not have are reserved, and ignored.
        default_stream_id: the IDE stream that the interface is to use.
        mmio_reporting_offset: bytes, signed, that the report adds to every address.
        bind_p2p_address_mask: which addresses go over a bound stream.

    """

    flags: LockFlag = _NO_FLAGS
    default_stream_id: int = 0
    mmio_reporting_offset: int = 0
    bind_p2p_address_mask: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes(_LOCK.pack(
            flags=self.flags, default_stream_id=self.default_stream_id,
            mmio_reporting_offset=self.mmio_reporting_offset, bind_p2p_address_mask=self.bind_p2p_address_mask))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _whole(data, _LOCK)
        offset = fields["mmio_reporting_offset"]
        known = sum(LockFlag)
        return cls(LockFlag(fields["flags"] & known), fields["default_stream_id"],
                   offset - (offset >> 63 << 64), fields["bind_p2p_address_mask"])


@dataclass(frozen=True, slots=True)
class LockNonce:
    """LOCK_INTERFACE_RESPONSE: the nonce without which nobody starts the interface."""

    nonce: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.nonce

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        return cls(_exactly(data, NONCE_SIZE, "LOCK_INTERFACE_RESPONSE"))

    def __repr__(self) -> str:
        return "LockNonce()"


@dataclass(frozen=True, slots=True)
class StartInterface:
    """START_INTERFACE_REQUEST."""

    nonce: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.nonce

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        return cls(_exactly(data, NONCE_SIZE, "START_INTERFACE_REQUEST"))

    def __repr__(self) -> str:
        return "StartInterface()"


@dataclass(frozen=True, slots=True)
class GetReport:
    """GET_DEVICE_INTERFACE_REPORT: `length` bytes of the report from `offset` on."""

    offset: int = 0
    length: int = 0xFFFF

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes(_GET_REPORT.pack(offset=self.offset, length=self.length))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _whole(data, _GET_REPORT)
        return cls(fields["offset"], fields["length"])


@dataclass(frozen=True, slots=True)
class ReportPortion:
    """DEVICE_INTERFACE_REPORT: a piece of the report, and how many bytes follow it."""

    portion: bytes
    remainder: int

    def encode(self) -> bytes:
        """Return its bytes."""
        head = _PORTION.pack(portion_length=len(self.portion), remainder_length=self.remainder)
        return bytes(head) + self.portion

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _PORTION.unpack(data)
        portion = data[_PORTION.size:]
        if len(portion) != fields["portion_length"]:
            raise WireError("PORTION_LENGTH is not that of the portion", spec="PCIe 6.1, 11.3.11",
                            detail=f"{fields['portion_length']} said, {len(portion)} there")
        return cls(portion, fields["remainder_length"])


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """DEVICE_INTERFACE_STATE."""

    state: State

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes((self.state,))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        number = _exactly(data, 1, "DEVICE_INTERFACE_STATE")[0]
        if number not in tuple(State):
            raise WireError("the state is none of a TDI's", spec="PCIe 6.1, 11.3.13", detail=str(number))
        return cls(State(number))


@dataclass(frozen=True, slots=True)
class BindP2p:
    """BIND_P2P_STREAM_REQUEST."""

    stream_id: int

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes((self.stream_id,))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        return cls(_exactly(data, 1, "a request about a P2P stream")[0])


class UnbindP2p(BindP2p):
    """UNBIND_P2P_STREAM_REQUEST."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SetMmioAttribute:
    """SET_MMIO_ATTRIBUTE_REQUEST: whether a range is not to be memory of the TEE.

    Attributes:
        first_page: the range, as it was reported.
        pages: its pages.
        non_tee: IS_NON_TEE_MEM from now on.
        range_id: the range's id.

    """

    _NON_TEE: ClassVar[int] = 1 << 2
    first_page: int
    pages: int
    non_tee: bool
    range_id: int

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes(_MMIO_ATTRIBUTE.pack(first_page=self.first_page, pages=self.pages, range_id=self.range_id,
                                          attributes=self._NON_TEE * self.non_tee))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _whole(data, _MMIO_ATTRIBUTE)
        return cls(fields["first_page"], fields["pages"], bool(fields["attributes"] & cls._NON_TEE),
                   fields["range_id"])


@dataclass(frozen=True, slots=True)
class VendorMessage:
    """VDM_REQUEST and VDM_RESPONSE: something between a vendor's device and a vendor's software.

    Attributes:
        registry: whose the vendor id is: 0 PCI-SIG, 1 CXL.
        vendor: the id.
        data: the rest.

    """

    registry: int
    vendor: bytes
    data: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes((self.registry, len(self.vendor))) + self.vendor + self.data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        if len(data) < 2 or len(data) < 2 + data[1]:
            raise WireError("the vendor id ends beyond the message", spec="PCIe 6.1, 11.3.26")
        end = 2 + data[1]
        return cls(data[0], data[2:end], data[end:])


@dataclass(frozen=True, slots=True)
class TdispError:
    """TDISP_ERROR.

    Attributes:
        code: one of `ErrorCode`, or what a device made up.
        data: more about it: the request's type with UNSUPPORTED_REQUEST.
        extended: what a vendor says, with VENDOR_SPECIFIC_ERROR only.

    """

    code: int
    data: int = 0
    extended: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes."""
        return bytes(_ERROR.pack(error_code=self.code, error_data=self.data)) + self.extended

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; WireError if it is none."""
        fields = _ERROR.unpack(data)
        extended = data[_ERROR.size:]
        if extended and fields["error_code"] != ErrorCode.VENDOR_SPECIFIC_ERROR:
            raise WireError("only a vendor's error has more than a code and a number", spec=_ERROR.spec)
        return cls(fields["error_code"], fields["error_data"], extended)


class _Decodable(Protocol):
    @classmethod
    def decode(cls, data: bytes) -> Body: ...


_BODIES: Final[dict[MessageType, type[_Decodable]]] = {
    MessageType.GET_TDISP_VERSION: Empty,
    MessageType.GET_TDISP_CAPABILITIES: GetCapabilities,
    MessageType.LOCK_INTERFACE_REQUEST: LockInterface,
    MessageType.GET_DEVICE_INTERFACE_REPORT: GetReport,
    MessageType.GET_DEVICE_INTERFACE_STATE: Empty,
    MessageType.START_INTERFACE_REQUEST: StartInterface,
    MessageType.STOP_INTERFACE_REQUEST: Empty,
    MessageType.BIND_P2P_STREAM_REQUEST: BindP2p,
    MessageType.UNBIND_P2P_STREAM_REQUEST: UnbindP2p,
    MessageType.SET_MMIO_ATTRIBUTE_REQUEST: SetMmioAttribute,
    MessageType.VDM_REQUEST: VendorMessage,
    MessageType.TDISP_VERSION: Versions,
    MessageType.TDISP_CAPABILITIES: Capabilities,
    MessageType.LOCK_INTERFACE_RESPONSE: LockNonce,
    MessageType.DEVICE_INTERFACE_REPORT: ReportPortion,
    MessageType.DEVICE_INTERFACE_STATE: InterfaceState,
    MessageType.START_INTERFACE_RESPONSE: Empty,
    MessageType.STOP_INTERFACE_RESPONSE: Empty,
    MessageType.BIND_P2P_STREAM_RESPONSE: Empty,
    MessageType.UNBIND_P2P_STREAM_RESPONSE: Empty,
    MessageType.SET_MMIO_ATTRIBUTE_RESPONSE: Empty,
    MessageType.VDM_RESPONSE: VendorMessage,
    MessageType.TDISP_ERROR: TdispError,
}


@dataclass(frozen=True, slots=True)
class Message:
    """A message: what it is, which interface it is about, and its body."""

    type: MessageType
    function: FunctionId
    body: Body


def is_request(kind: int) -> bool:
    """Whether a message of this type is one that a TSM sends."""
    return bool(kind & _RESPONSE_BIT)


def encode(kind: MessageType, function: FunctionId, body: Body | None = None) -> bytes:
    """Return the bytes of a message; without a body it is empty."""
    head = HEADER.pack(version=VERSION, type=kind, function_id=int(function))
    return bytes(head) + (b"" if body is None else body.encode())


def decode(data: bytes) -> Message:
    """Read a message; its reserved bytes are ignored, as they have to be.

    Raises:
        UnknownVersion: it is of another version than 1.0.
        UnknownMessage: its type is not known.
        WireError: it is too short, or its body is not what its type says.

    """
    fields = HEADER.unpack(data)
    if fields["version"] != VERSION:
        raise UnknownVersion("the message is of TDISP 1.0", spec=HEADER.spec, detail=f"{fields['version']:#04x}")
    if fields["type"] not in _BODIES:
        raise UnknownMessage(fields["type"])
    kind = MessageType(fields["type"])
    return Message(kind, FunctionId.of(fields["function_id"]), _BODIES[kind].decode(data[HEADER.size:]))
