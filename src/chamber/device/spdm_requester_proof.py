"""How a device finds out who opens a session: it asks for certificates, by requests that the requester fetches.

Source: DSP0274, 10.16 (mutual authentication) and 10.17 (encapsulated requests). Whoever answers is not known until the
signature of FINISH: what comes is kept as little as possible, and one wrong answer ends the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.spdm_chain import Chain, ChainError
from chamber.platform.spdm_crypto import fits, hash_of, verify
from chamber.wire.spdm import ENCAPSULATED_MORE, ENCAPSULATED_SLOT, SpdmCode, certificate_portion, head
from chamber.wire.spdm_messages import Digests, certificate_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.spdm_crypto import Suite

__all__ = ("Denied", "RequesterProof")

_SLOT: Final = 0
_MOST_CHAIN: Final = 0xFFFF
_PORTION: Final = 0x400


class Denied(Exception):
    """The requester is not one to talk to, or answers something else."""


class RequesterProof:
    """One requester, from the key exchange to FINISH.

    Args:
        suite: what the connection runs with.
        admits: whether a certificate chain is one to talk to.

    Attributes:
        chain: its certificates, once they are whole and admitted; who has their key is still to be proven.

    """

    def __init__(self, suite: Suite, admits: Callable[[Chain], bool]) -> None:
        self._suite = suite
        self._admits = admits
        self._expected: SpdmCode | None = None
        self._number = 0
        self._digest = b""
        self._data = bytearray()
        self.chain: Chain | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing was asked yet."""
        return self._expected is None and self.chain is None

    def begin(self) -> bytes:
        """Return ENCAPSULATED_REQUEST with the first question."""
        version = self._suite.version
        self._expected, self._number = SpdmCode.DIGESTS, 1
        return head(version, SpdmCode.ENCAPSULATED_REQUEST, 1) + head(version, SpdmCode.GET_DIGESTS)

    def take(self, message: bytes) -> bytes:
        """Take DELIVER_ENCAPSULATED_RESPONSE; return its acknowledgement, with the next question or the end.

        Raises:
            Denied: the answer is another one, or the certificates are none to talk to.
            WireError: it can't be read.

        """
        inner, version = message[4:], self._suite.version
        if (inner[1], inner[0], message[2]) != (self._expected, version, self._number):
            raise Denied
        if self._expected is SpdmCode.DIGESTS:
            self._digest = Digests.decode(inner, self._suite.agreed).digests.get(_SLOT, b"")
            self._expected = SpdmCode.CERTIFICATE
        else:
            portion = certificate_portion(inner)
            self._data += portion.data
            if not portion.data or len(self._data) + portion.remainder > _MOST_CHAIN:
                raise Denied
            if not portion.remainder:
                self._look()
        acknowledged = message[2:3] + bytes(3) if version >= 0x12 else b""
        if self.chain is not None:
            return (head(version, SpdmCode.ENCAPSULATED_RESPONSE_ACK, 0, ENCAPSULATED_SLOT) + acknowledged
                    + bytes((_SLOT,)))
        self._number = self._number % 0xFF + 1
        return (head(version, SpdmCode.ENCAPSULATED_RESPONSE_ACK, self._number, ENCAPSULATED_MORE) + acknowledged
                + certificate_request(version, _SLOT, len(self._data), _PORTION))

    def _look(self) -> None:
        suite = self._suite
        try:
            chain = Chain.parse(bytes(self._data), suite.hash)
        except ChainError:
            raise Denied from None
        known = self._digest == hash_of(suite.hash, chain.data)
        if not known or not fits(chain.key, suite.requester_asymmetric) or not self._admits(chain):
            raise Denied
        self.chain, self._expected = chain, None

    def proves(self, transcript: bytes, message: bytes, signature: bytes) -> bool:
        """Whether FINISH, up to its signature, is signed with the key of the certificates."""
        return self.chain is not None and verify(
            self.chain.key, self._suite.requester_asymmetric, self._suite, "finish signing",
            transcript + self.chain_hash + message, signature, role="requester")

    @property
    def chain_hash(self) -> bytes:
        """Hash of the certificates, which is part of what is signed."""
        return b"" if self.chain is None else hash_of(self._suite.hash, self.chain.data)
