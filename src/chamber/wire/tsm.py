"""What Chamber's TSM module (lab/kernel/tsm) and the process that does its work say to each other: uapi.h's twin."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError

__all__ = ("LONGEST", "NO_STREAM", "TRANSFER", "TRANSFER_IOCTL", "GuestRequest", "Scope", "TsmAnswer", "TsmOperation",
           "TsmRequest")

NO_STREAM: Final = 0xFFFF_FFFF
LONGEST: Final = 0x2_0000
"""Bytes of data that a request or an answer has at most."""
_REQUEST: Final = struct.Struct("=9I")
_ANSWER: Final = struct.Struct("=IiQII")
TRANSFER: Final = struct.Struct("=4I2Q")
"""Number of the request, type of the data object, sizes of request and response, and where they are."""
TRANSFER_IOCTL: Final = 1 << 30 | TRANSFER.size << 16 | 0xC4 << 8 | 1
_SPEC: Final = "lab/kernel/tsm/uapi.h"


class TsmOperation(enum.IntEnum):
    """An operation of the TSM core's (include/linux/pci-tsm.h, struct pci_tsm_link_ops)."""

    CONNECT = 1
    DISCONNECT = 2
    BIND = 3
    UNBIND = 4
    GUEST_REQUEST = 5


class Scope(enum.IntEnum):
    """What a guest's request may do (enum pci_tsm_req_scope)."""

    INFO = 0
    STATE_CHANGE = 1


class GuestRequest(enum.IntEnum):
    """What a guest asks for, one byte of data."""

    LOCK = 1
    REPORT = 2
    START = 3
    STOP = 4


@dataclass(frozen=True, slots=True)
class TsmRequest:
    """An operation.

    Attributes:
        number: for the answer to it.
        operation: which.
        function: domain, bus, device and function.
        port: the root port above it, in the same way.
        stream: Stream ID, or `NO_STREAM`.
        interface: id of the interface that is bound.
        scope: of a guest's request.
        room: bytes that the answer may have.
        data: what comes with it.

    """

    number: int
    operation: TsmOperation
    function: int
    port: int = 0
    stream: int = NO_STREAM
    interface: int = 0
    scope: int = 0
    room: int = 0
    data: bytes = b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one.

        Raises:
            WireError: it is none.

        """
        if len(data) < _REQUEST.size:
            raise WireError("the request ends in its header", spec=_SPEC)
        number, operation, function, port, stream, interface, scope, room, size = _REQUEST.unpack_from(data)
        if size != len(data) - _REQUEST.size:
            raise WireError("the request is of another size than it says", spec=_SPEC)
        try:
            known = TsmOperation(operation)
        except ValueError:
            raise WireError("the operation is none", spec=_SPEC) from None
        return cls(number, known, function, port, stream, interface, scope, room, data[_REQUEST.size:])


@dataclass(frozen=True, slots=True)
class TsmAnswer:
    """The answer to one.

    Attributes:
        number: of the request.
        status: 0, or a negative errno.
        data: what goes with it.
        code: for the guest's TSM.

    """

    number: int
    status: int = 0
    data: bytes = b""
    code: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return _ANSWER.pack(self.number, self.status, self.code, len(self.data), 0) + self.data
