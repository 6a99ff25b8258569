"""One session of SPDM, the same at both ends: its phases, its keys, and how they are updated (DSP0274, 11 and 12)."""

from __future__ import annotations

import enum
import hmac
from typing import TYPE_CHECKING

from chamber.platform.spdm_keys import KeySchedule, RecordError, wipe

if TYPE_CHECKING:
    from chamber.platform.spdm_crypto import Suite
    from chamber.platform.spdm_keys import Direction

__all__ = ("Phase", "SpdmSession")


class Phase(enum.Enum):
    """How far a session is."""

    HANDSHAKE = "handshake"
    ESTABLISHED = "established"
    CLOSED = "closed"


class SpdmSession:
    """A session from the answer to the key exchange on.

    Args:
        suite: what it runs with.
        session_id: both halves.
        shared: the shared secret, which is overwritten here.
        transcript: all that was said, up to where the handshake's keys depend on it.
        psk: whether the secret was shared before.
        requester: whether this is the requester's end.

    Attributes:
        id: both halves.
        phase: how far it is.
        transcript: all that was said; whoever says more adds to it.

    """

    def __init__(self, suite: Suite, session_id: int, shared: bytearray, transcript: bytes, *, psk: bool = False,
                 requester: bool) -> None:
        self.id = session_id
        self.phase = Phase.HANDSHAKE
        self.transcript = bytearray(transcript)
        self._suite = suite
        self._requester = requester
        self._schedule = KeySchedule(suite.version, suite.hash, bytes(shared), psk=psk)
        wipe(shared)
        self._secrets = list(self._schedule.handshake(self._schedule.digest(transcript)))
        self._directions = [self._direction(secret) for secret in self._secrets]

    def _direction(self, secret: bytearray) -> Direction:
        return self._schedule.direction(secret, self._suite.aead, self.id, self._suite.sequence_size)

    @property
    def _mine(self) -> int:
        return 0 if self._requester else 1

    def hash(self) -> bytes:
        """Hash the transcript."""
        return self._schedule.digest(bytes(self.transcript))

    def proof(self, *, of_requester: bool) -> bytes:
        """Return what proves that the handshake's secret of a direction is known, and the transcript the same."""
        return self._schedule.verify_data(self._secrets[0 if of_requester else 1], self.hash())

    def proves(self, proof: bytes, *, of_requester: bool) -> bool:
        """Whether a proof is the one."""
        return hmac.compare_digest(proof, self.proof(of_requester=of_requester))

    def establish(self) -> None:
        """Go on with the keys of the session's data: the handshake is over."""
        request, response, exported = self._schedule.data(self.hash())
        wipe(exported, *self._secrets)
        for direction in self._directions:
            direction.close()
        self._schedule.close()
        self._secrets = [request, response]
        self._directions = [self._direction(secret) for secret in self._secrets]
        self.phase = Phase.ESTABLISHED

    def seal(self, message: bytes) -> bytes:
        """Seal a message of this end's.

        Raises:
            RecordError: the session is closed.

        """
        return self._directions[self._mine].seal(message)

    def open(self, data: bytes) -> bytes:
        """Open one of the other end's.

        Raises:
            RecordError: it is not the next of it; the session is closed.

        """
        try:
            return self._directions[1 - self._mine].open(data)
        except RecordError:
            self.close()
            raise

    def update(self, *, of_requester: bool) -> None:
        """Go on with the next key of a direction, whose messages are counted anew (KEY_UPDATE)."""
        place = 0 if of_requester else 1
        secret = self._schedule.updated(self._secrets[place])
        wipe(self._secrets[place])
        self._directions[place].close()
        self._secrets[place] = secret
        self._directions[place] = self._direction(secret)

    def close(self) -> None:
        """End it: nothing is sealed or opened any more, and secrets are forgotten."""
        self.phase = Phase.CLOSED
        for direction in self._directions:
            direction.close()
        wipe(*self._secrets)
        self._schedule.close()
