"""Large messages of a responder: what comes in pieces is put together, what is too large waits to be fetched.

One message each way for each session, and for what is said outside of one (DMTF DSP0274 1.2).
"""

from __future__ import annotations

from typing import Final

from chamber.platform.spdm_chunks import PIECES_SINCE, Assembly, Cutter
from chamber.wire.spdm import ErrorCode, SpdmCode, head
from chamber.wire.spdm_chunks import Chunk, ChunkAck, ChunkGet, ack_head
from chamber.wire.spdm_negotiation import Capabilities, Capability

__all__ = ("Pieces", "Refusal")

_CODES: Final = frozenset({bytes((SpdmCode.CHUNK_SEND,)), bytes((SpdmCode.CHUNK_GET,))})


class Refusal(Exception):
    """A request is refused.

    Attributes:
        code: of the ERROR that says so.
        data: of it.

    """

    def __init__(self, code: ErrorCode, data: int = 0) -> None:
        super().__init__(code.name)
        self.code = code
        self.data = data


class Pieces:
    """A responder's large messages.

    Args:
        transfer_size: bytes of a message that it takes at once.
        largest: bytes of a message at all.

    Attributes:
        requester: what the other end can do.

    """

    def __init__(self, transfer_size: int, largest: int) -> None:
        self.transfer_size, self.largest = transfer_size, max(transfer_size, largest)
        self.forget()

    def forget(self) -> None:
        """Know of no transfer, and nothing of the other end."""
        self.requester = Capabilities(0, Capability(0))
        self._incoming: dict[int, Assembly] = {}
        self._outgoing: dict[int, Cutter] = {}
        self._transfers = 0

    def end(self, session: int) -> None:
        """A session is over."""
        self._incoming.pop(session, None)
        self._outgoing.pop(session, None)

    @property
    def allowed(self) -> bool:
        """Whether both ends have them."""
        requester = self.requester
        return (self.largest > self.transfer_size and requester.version >= PIECES_SINCE
                and bool(requester.flags & Capability.CHUNK))

    @property
    def room(self) -> int:
        """Bytes that an answer may have, at once or in pieces."""
        return self.requester.message_size if self.allowed else self.requester.transfer_size

    def fitted(self, answer: bytes, session: int, before: int = 0) -> bytes:
        """Return an answer; or that it has to be fetched, where it does not fit with so many bytes before it.

        Raises:
            Refusal: it does not fit at all.

        """
        if len(answer) + before <= self.requester.transfer_size:
            return answer
        if len(answer) > self.room or not self.allowed:
            raise Refusal(ErrorCode.RESPONSE_TOO_LARGE)
        self._transfers = self._transfers + 1 & 0xFF
        self._outgoing[session] = Cutter(self._transfers, answer, self.requester.transfer_size)
        return head(answer[0], SpdmCode.ERROR, ErrorCode.LARGE_RESPONSE) + bytes((self._transfers,))

    def take(self, message: bytes, session: int) -> tuple[Chunk, bytes | None]:
        """Take CHUNK_SEND; return it, and the whole if this was its last piece.

        Raises:
            WireError: it is no piece, or not the next one.
            Refusal: it is of no message that is on its way, or of one that is a piece itself.

        """
        chunk = Chunk.decode(message, SpdmCode.CHUNK_SEND)
        if not chunk.sequence:
            self._incoming[session] = Assembly(chunk.handle, self.largest)
        assembly = self._incoming.pop(session, None)
        if assembly is None:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        large = assembly.take(chunk)
        if large is None:
            self._incoming[session] = assembly
        elif large[1:2] in _CODES:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        return chunk, large

    def acknowledge(self, version: int, chunk: Chunk, session: int, answer: bytes = b"") -> bytes:
        """Return CHUNK_SEND_ACK, with the answer to the whole once there is one."""
        fitted = self.fitted(answer, session, ack_head(version)) if answer else b""
        return ChunkAck(chunk.handle, chunk.sequence, fitted).encode(version)

    def give(self, message: bytes, session: int) -> bytes:
        """Answer CHUNK_GET.

        Raises:
            WireError: there is no such piece.
            Refusal: there is no such message.

        """
        asked = ChunkGet.decode(message)
        cutter = self._outgoing.get(session)
        if cutter is None or cutter.handle != asked.handle:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        return cutter.piece(asked.sequence).encode(message[0], SpdmCode.CHUNK_RESPONSE)
