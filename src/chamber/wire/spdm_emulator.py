"""How DMTF's emulators carry SPDM over a socket: a frame around each message of a transport (spdm-emu, ``command.h``).

Numbers in a frame's head are big-endian, unlike all that is in it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.doe import PCI_SIG, DataObject, DoeType
from chamber.wire.errors import WireError

__all__ = ("CLIENT_HELLO", "HEAD_SIZE", "MOST_BYTES", "SERVER_HELLO", "Frame", "FrameCommand", "Transport")

HEAD_SIZE: Final = 12
MOST_BYTES: Final = 1 << 17
CLIENT_HELLO: Final = b"Client Hello!\0"
SERVER_HELLO: Final = b"Server Hello!\0"
_SPEC: Final = "spdm-emu"
_CLEAR, _SECURED = 5, 6
"""Types of MCTP's messages, and of DSP0287's."""
_TCP_HEAD: Final = 4
_TCP_VERSION: Final = 1


class FrameCommand(enum.IntEnum):
    """What a frame is for."""

    NORMAL = 0x0001
    CONTINUE = 0xFFFD
    SHUTDOWN = 0xFFFE
    UNKNOWN = 0xFFFF
    TEST = 0xDEAD


class Transport(enum.Enum):
    """What carries SPDM: number in a frame, bytes of a secured message's number."""

    MCTP = 1, 2
    DOE = 2, 0
    TCP = 3, 0

    @property
    def number(self) -> int:
        """How frames call it."""
        return self.value[0]

    @property
    def sequence_size(self) -> int:
        """Bytes of a secured message's number that go with it."""
        return self.value[1]

    def wrap(self, payload: bytes, *, secured: bool) -> bytes:
        """Put SPDM into a message of the transport."""
        if self is Transport.DOE:
            return DataObject(PCI_SIG, DoeType.SECURED_SPDM if secured else DoeType.SPDM, payload).encode()
        kind = bytes((_SECURED if secured else _CLEAR,))
        if self is Transport.MCTP:
            return kind + payload
        return (len(payload) + 2).to_bytes(2, "little") + bytes((_TCP_VERSION,)) + kind + payload

    def unwrap(self, message: bytes) -> tuple[bytes, bool]:
        """Take SPDM out of a message of the transport: what it is, and whether it is secured.

        Raises:
            WireError: it carries something else.

        """
        if self is Transport.DOE:
            made = DataObject.decode(message)
            if made.vendor != PCI_SIG or made.type not in {DoeType.SPDM, DoeType.SECURED_SPDM}:
                raise WireError("an object carries SPDM", spec=_SPEC, detail=f"type {made.type}")
            return made.payload, made.type == DoeType.SECURED_SPDM
        start = 1 if self is Transport.MCTP else _TCP_HEAD
        if len(message) < start or message[start - 1] not in {_CLEAR, _SECURED}:
            raise WireError("a message carries SPDM", spec=_SPEC, detail=message[:_TCP_HEAD].hex())
        if self is Transport.TCP and int.from_bytes(message[:2], "little") != len(message) - 2:
            raise WireError("a message is as long as it says", spec="DSP0287")
        return message[start:], message[start - 1] == _SECURED


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        command: what it is for: a `FrameCommand`, or a number that is none.
        transport: what carries SPDM in it, as a number.
        payload: a message of that.

    """

    command: int
    transport: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes."""
        return b"".join(number.to_bytes(4, "big") for number in (self.command, self.transport, len(self.payload))
                        ) + self.payload

    @classmethod
    def head(cls, data: bytes) -> tuple[int, int, int]:
        """Read a head: command, transport, bytes of the payload.

        Raises:
            WireError: it is none, or the payload too long.

        """
        if len(data) != HEAD_SIZE:
            raise WireError("a frame has a head", spec=_SPEC, detail=f"{len(data)} bytes")
        command, transport, size = (int.from_bytes(data[at:at + 4], "big") for at in (0, 4, 8))
        if size > MOST_BYTES:
            raise WireError("a frame is not too long", spec=_SPEC, detail=f"{size} bytes")
        return command, transport, size

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one, whole.

        Raises:
            WireError: it does not hold what it says.

        """
        command, transport, size = cls.head(data[:HEAD_SIZE])
        if len(data) != HEAD_SIZE + size:
            raise WireError("a frame is as long as it says", spec=_SPEC, detail=f"{len(data)} bytes")
        return cls(command, transport, data[HEAD_SIZE:])
