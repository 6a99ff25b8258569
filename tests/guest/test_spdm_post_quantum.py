"""Post-quantum algorithms of SPDM 1.4: signatures by lattices, and secrets that are encapsulated."""

from __future__ import annotations

import pytest

from chamber.device.spdm_identity import KEY_KINDS
from chamber.guest.spdm_requester import SpdmViolation
from chamber.platform.spdm_crypto import Exchange, answer_exchange, fits
from chamber.wire.spdm import SpdmCode
from chamber.wire.spdm_messages import PCI_SIG, Summary
from chamber.wire.spdm_negotiation import ASYMMETRIC, EXCHANGES, POST_QUANTUM, Algorithms
from tests.guest.test_spdm import Pair, slot

LATTICE = [kind for kind in KEY_KINDS if kind.startswith("ML-DSA")]
CAPSULES = [name for name in EXCHANGES.values() if name.startswith("ML-KEM")]


@pytest.mark.parametrize("kind", LATTICE)
def test_a_device_with_such_a_key_is_proven_and_agrees_on_keys_so(kind: str) -> None:
    pair = Pair(kind, version=0x14)
    session = pair.session()
    suite = pair.requester.suite
    assert suite is not None
    assert (suite.asymmetric, suite.exchange) == (kind, "ML-KEM-1024")
    assert pair.requester.challenge(0, Summary.ALL)
    assert pair.requester.measurements(session=session)
    assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"


def test_a_guest_proves_itself_so() -> None:
    pair = Pair("P-256", version=0x14, identity=slot("ML-DSA-65"))
    pair.responder._admits = lambda _chain: True
    session = pair.session()
    assert pair.requester.suite is not None
    assert pair.requester.suite.requester_asymmetric == "ML-DSA-65"
    assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"


def test_a_device_with_another_key_agrees_as_before() -> None:
    pair = Pair("P-384", version=0x14)
    pair.session()
    assert pair.requester.suite is not None
    assert pair.requester.suite.exchange == "P-384"


def test_before_1_4_there_are_none() -> None:
    with pytest.raises(SpdmViolation, match="INVALID_REQUEST"):
        Pair("ML-DSA-44", version=0x13).requester.connect()
    for code in (SpdmCode.NEGOTIATE_ALGORITHMS, SpdmCode.ALGORITHMS):
        wanted = Algorithms(0x13, sum(ASYMMETRIC), 1, sum(EXCHANGES), 2, sum(ASYMMETRIC))
        read = Algorithms.decode(wanted.encode(code), code)
        assert read.asymmetric >> POST_QUANTUM == read.exchange >> POST_QUANTUM == 0
        assert read.requester_asymmetric >> POST_QUANTUM == 0


def test_both_kinds_have_fields_of_their_own() -> None:
    wanted = Algorithms(0x14, 0x80 | 2 << POST_QUANTUM, 2, 0x10 | 4 << POST_QUANTUM, 2, 0x80 | 1 << POST_QUANTUM)
    request = wanted.encode(SpdmCode.NEGOTIATE_ALGORITHMS)
    assert request[2] == 6
    assert request[16:20] == b"\2\0\0\0"
    assert request[-8:] == b"\6\x20\1\0\7\x20\4\0"
    assert Algorithms.decode(request, SpdmCode.NEGOTIATE_ALGORITHMS) == wanted
    answer = wanted.encode(SpdmCode.ALGORITHMS)
    assert answer[20:24] == b"\2\0\0\0"
    assert Algorithms.decode(answer, SpdmCode.ALGORITHMS).asymmetric == wanted.asymmetric


def test_a_device_that_chooses_one_of_each_is_refused() -> None:
    pair = Pair("P-384", version=0x14)

    def both(data: bytes, _secured: bool, up: bool) -> bytes:
        return data if up or data[1] != SpdmCode.ALGORITHMS else data[:20] + b"\1" + data[21:]

    pair.passes = both
    with pytest.raises(SpdmViolation, match="one of each kind"):
        pair.requester.connect()


@pytest.mark.parametrize("kind", LATTICE)
def test_a_turned_bit_of_a_signature_is_noticed(kind: str) -> None:
    pair = Pair(kind, version=0x14)
    pair.requester.connect()
    pair.requester.digests()
    pair.requester.certificates(0)
    # The largest ones come in pieces.
    pair.passes = lambda data, _secured, up: (
        data if up or data[1] not in {SpdmCode.CHALLENGE_AUTH, SpdmCode.CHUNK_RESPONSE}
        else data[:-9] + bytes((data[-9] ^ 1,)) + data[-8:])
    with pytest.raises(SpdmViolation, match="signs what was said"):
        pair.requester.challenge(0)


@pytest.mark.parametrize("name", CAPSULES)
def test_a_secret_is_encapsulated_once(name: str) -> None:
    asks = Exchange(name)
    answered = answer_exchange(name, asks.public)
    assert answered is not None
    capsule, secret = answered
    assert asks.agree(capsule) == secret
    assert asks.agree(capsule) is None
    # What is no key, and what is no capsule, is told; another capsule gives another secret, and proves nothing.
    assert answer_exchange(name, b"\xff" * len(asks.public)) is None
    assert answer_exchange(name, b"") is None
    assert Exchange(name).agree(b"") is None
    assert Exchange(name).agree(capsule) != secret


def test_a_key_fits_its_own_algorithm_alone() -> None:
    for kind in LATTICE:
        key = slot(kind).key.public_key()
        assert [name for name in ASYMMETRIC.values() if fits(key, name)] == [kind]
