"""An encrypted link: one end of an IDE stream (PCI Express Base Specification 6.1, 6.33).

Each direction of a stream has three sub-streams (posted, non-posted, completions), each with a key of its own and a
counter that no packet carries. Both ends count, so that a packet which a hypervisor dropped, repeated, moved, sent to
another stream or changed is one whose tag does not fit, and there is no second chance: the stream is Insecure from
then on, until it is keyed anew. What it dropped at the very end of a sub-stream shows by the count of posted packets
that the other two sub-streams carry (6.33.5).

Bytes of a protected packet here: the IDE prefix (4), the header (12 or 16), the payload, encrypted, and the tag (12).
Header and prefix are authenticated and can be read. Aggregation, and the partial encryption of headers, are not done.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from chamber.wire.errors import WireError
from chamber.wire.ide_km import INITIAL_IFV, KEY_SIZE, SubStream
from chamber.wire.layout import Field, Layout, Role
from chamber.wire.tlp import Completion, MemoryRead, Packet, decode_packet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("PREFIX", "TAG_SIZE", "IdeFailure", "IdeStream", "Received", "StreamState")

TAG_SIZE: Final = 12
_SPEC: Final = "PCIe 6.1, 6.33.5"
_PREFIX_TYPE: Final = 0x92
"""Form and type of the IDE prefix, an end-to-end one (2.2.10.4)."""
_COUNTER_END: Final = 1 << 64
_PR_WINDOW: Final = 128
"""As many posted packets may have overtaken another one that the eight bits of the count tell before from after."""

PREFIX: Final = Layout(
    "IDE prefix", "PCIe 6.1, 2.2.10.4",
    Field("type", "u8", Role.ENUM, None, (_PREFIX_TYPE,)), Field("flags", "u8", Role.FLAGS),
    Field("pr_sent", "u8", Role.COUNT), Field("stream_id", "u8", Role.ID),
)
"""``flags``: bit 0 the key set, bit 1 T, bits 4 to 6 the sub-stream."""


class StreamState(enum.Enum):
    """States of a stream (6.33.2)."""

    INSECURE = "insecure"
    SECURE = "secure"


class IdeFailure(Exception):
    """The stream is Insecure: the packet was not what the other end had sent, or not when.

    Attributes:
        reason: what did not fit.

    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason} [{_SPEC}]")


@dataclass(frozen=True, slots=True)
class Received:
    """A packet that came over the link as it was sent.

    Attributes:
        packet: the packet.
        trusted: its T bit: sent by or for the TEE (11.2.1).

    """

    packet: Packet
    trusted: bool


class _Lane:
    """One sub-stream of one direction."""

    def __init__(self) -> None:
        self.keys: list[bytearray | None] = [None, None]
        self.ifv = [INITIAL_IFV, INITIAL_IFV]
        self.key_set: int | None = None
        self.next: int | None = None
        self.counter = INITIAL_IFV

    def switch(self, key_set: int) -> None:
        old, self.key_set, self.next = self.key_set, key_set, None
        self.counter = self.ifv[key_set]
        if old is not None:
            self.forget(old)

    def forget(self, key_set: int) -> None:
        key = self.keys[key_set]
        if key is not None:
            key[:] = bytes(len(key))
            self.keys[key_set] = None

    @property
    def ready(self) -> bool:
        return self.key_set is not None and self.keys[self.key_set] is not None

    def wipe(self) -> None:
        for key_set in range(2):
            self.forget(key_set)
        self.key_set = self.next = None


class IdeStream:
    """One end of a stream.

    Args:
        stream_id: its number, which both ends know.

    Attributes:
        failed: called once with the reason when the stream becomes Insecure, so that interfaces bound to it hear of it.

    """

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.failed: Callable[[str], None] = lambda _reason: None
        self._send = {number: _Lane() for number in SubStream}
        self._receive = {number: _Lane() for number in SubStream}
        self._pr_sent = 0
        self._pr_received = 0
        self._broken = False

    def __repr__(self) -> str:
        return f"IdeStream({self.stream_id}, {self.state.value})"

    @property
    def state(self) -> StreamState:
        """Secure once all six lanes have keys in use, and nothing has gone wrong since."""
        keyed = all(lane.ready for lane in self._lanes())
        return StreamState.SECURE if keyed and not self._broken else StreamState.INSECURE

    # Keys.

    def program(self, sub_stream: SubStream, *, transmit: bool, key_set: int, key: bytes, ifv: int) -> None:
        """Take a key; it is not used before `go`.

        Raises:
            ValueError: the key is in use, not of `KEY_SIZE`, or the counter would begin at nothing.

        """
        lane = self._lane(sub_stream, transmit=transmit)
        if len(key) != KEY_SIZE or not 0 < ifv < _COUNTER_END or key_set in {lane.key_set, lane.next}:
            # A key in use that were set again would encrypt two packets with one counter.
            raise ValueError("no such key, or one that is in use")
        lane.keys[key_set], lane.ifv[key_set] = bytearray(key), ifv

    def go(self, sub_stream: SubStream, *, transmit: bool, key_set: int) -> None:
        """Use a key from the next packet on; to receive, from the first packet on that was sent with it.

        Raises:
            ValueError: there is none, or its counter would begin again.

        """
        lane = self._lane(sub_stream, transmit=transmit)
        if lane.keys[key_set] is None or key_set in {lane.key_set, lane.next}:
            raise ValueError("the key was not set, or is in use")
        if transmit or lane.key_set is None:
            lane.switch(key_set)
        else:
            lane.next = key_set

    def stop(self, sub_stream: SubStream, *, transmit: bool, key_set: int) -> None:
        """Use a key no longer; the stream is Insecure if it was in use. After all of them it is as new."""
        was_secure = self.state is StreamState.SECURE
        lane = self._lane(sub_stream, transmit=transmit)
        lane.forget(key_set)
        if lane.key_set == key_set:
            lane.key_set = None
        if lane.next == key_set:
            lane.next = None
        if was_secure and self.state is not StreamState.SECURE:
            self.failed("a key in use was stopped")
        if self.is_new:
            self.close()

    @property
    def is_new(self) -> bool:
        """Whether no key is in use."""
        return all(lane.key_set is None for lane in self._lanes())

    @property
    def has_keys(self) -> bool:
        """Whether there is a key, in use or to be."""
        return any(key is not None for lane in self._lanes() for key in lane.keys)

    def close(self) -> None:
        """Forget all keys; as new."""
        for lane in self._lanes():
            lane.wipe()
        self._pr_sent = self._pr_received = 0
        self._broken = False

    def _lanes(self) -> tuple[_Lane, ...]:
        return *self._send.values(), *self._receive.values()

    def _lane(self, sub_stream: SubStream, *, transmit: bool) -> _Lane:
        return (self._send if transmit else self._receive)[sub_stream]

    # Packets.

    def send(self, packet: Packet, *, trusted: bool) -> bytes:
        """Return the bytes of a packet.

        Raises:
            IdeFailure: the stream is Insecure.

        """
        self._require_secure()
        number = _sub_stream_of(packet)
        lane = self._send[number]
        key_set = lane.key_set
        assert key_set is not None
        header, payload = packet.encode()
        if number is SubStream.POSTED:
            self._pr_sent = self._pr_sent + 1 & 0xFF
        prefix = bytes(PREFIX.pack(type=_PREFIX_TYPE, flags=key_set | trusted << 1 | number << 4,
                                   pr_sent=0 if number is SubStream.POSTED else self._pr_sent,
                                   stream_id=self.stream_id))
        encryptor = Cipher(AES(_key(lane)), GCM(_nonce(number, lane.counter))).encryptor()
        encryptor.authenticate_additional_data(prefix + header)
        secret = encryptor.update(payload) + encryptor.finalize()
        self._advance(lane)
        return prefix + header + secret + encryptor.tag[:TAG_SIZE]

    def receive(self, data: bytes) -> Received:
        """Take what came over the link.

        Raises:
            IdeFailure: it is not the next packet that the other end had sent; the stream is Insecure now.

        """
        self._require_secure()
        try:
            return self._open(data)
        except WireError as error:
            raise self._break(f"the packet can't be read: {error.rule}") from error
        except InvalidTag as error:
            raise self._break("the tag fits no packet that was due: altered, replayed, reordered or lost") from error

    def _open(self, data: bytes) -> Received:
        fields = PREFIX.unpack(data)
        flags = fields["flags"]
        if fields["type"] != _PREFIX_TYPE or fields["stream_id"] != self.stream_id:
            raise self._break("the packet is of another stream, or of none")
        if flags >> 4 not in tuple(SubStream) or flags & 0xC:
            raise self._break("the packet is of no sub-stream")
        number = SubStream(flags >> 4)
        lane = self._receive[number]
        if flags & 1 == lane.next:
            lane.switch(lane.next)
        if flags & 1 != lane.key_set:
            raise self._break("the packet is of a key that is not in use")
        size = 16 if data[PREFIX.size:PREFIX.size + 1] in {b"\x20", b"\x60"} else 12
        secret_at = PREFIX.size + size
        if len(data) < secret_at + TAG_SIZE:
            raise WireError("the packet ends before its tag", spec=_SPEC)
        secret, tag = data[secret_at:-TAG_SIZE], data[-TAG_SIZE:]
        mode = GCM(_nonce(number, lane.counter), tag, min_tag_length=TAG_SIZE)
        decryptor = Cipher(AES(_key(lane)), mode).decryptor()
        decryptor.authenticate_additional_data(data[:secret_at])
        payload = decryptor.update(secret) + decryptor.finalize()
        self._advance(lane)
        packet = decode_packet(data[PREFIX.size:secret_at], payload)
        if _sub_stream_of(packet) is not number:
            raise self._break("the packet came in the sub-stream of others")
        if number is SubStream.POSTED:
            self._pr_received = self._pr_received + 1 & 0xFF
        elif (self._pr_received - fields["pr_sent"]) % 256 >= _PR_WINDOW:
            # A posted packet may overtake others, never the other way (2.4.1): what this one was sent after is here.
            raise self._break("posted packets that were sent before this one did not come")
        return Received(packet, bool(flags & 2))

    def _advance(self, lane: _Lane) -> None:
        lane.counter += 1
        if lane.counter == _COUNTER_END:
            raise self._break("the counter of a sub-stream is used up")

    def _require_secure(self) -> None:
        if self.state is not StreamState.SECURE:
            raise IdeFailure("the stream is Insecure")

    def fail(self, reason: str) -> None:
        """Make the stream Insecure: its session is over, or the link was down."""
        self._break(reason)

    def _break(self, reason: str) -> IdeFailure:
        if not self._broken:
            self._broken = True
            self.failed(reason)
        return IdeFailure(reason)


def _sub_stream_of(packet: Packet) -> SubStream:
    if isinstance(packet, MemoryRead):
        return SubStream.NON_POSTED
    return SubStream.COMPLETION if isinstance(packet, Completion) else SubStream.POSTED


def _key(lane: _Lane) -> bytes:
    assert lane.key_set is not None
    key = lane.keys[lane.key_set]
    assert key is not None
    return bytes(key)


def _nonce(number: SubStream, counter: int) -> bytes:
    """Return the 96 bits: which sub-stream in the upper four, the counter in the lower 64 (6.33.5)."""
    return ((0x8 | number) << 92 | counter).to_bytes(12, "big")
