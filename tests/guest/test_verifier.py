"""A guest takes a device through its mailbox, with its host in between; and every reason why it does not."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.spdm_identity import Maker, make_slot
from chamber.device.tdi import PLACES
from chamber.device.trusted_function import TrustedFunction
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, VirtioPci
from chamber.guest.doe import DoeRequester, Silence
from chamber.guest.policy_file import PolicyError
from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.trust_policy import TrustPolicy, parse_trust
from chamber.guest.untrusted import ENFORCING
from chamber.guest.verifier import CHECKS, NotTrusted, Verifier
from chamber.platform.ide import IdeStream, StreamState
from chamber.wire.doe import PCI_SIG, DataObject, DoeType
from chamber.wire.pci import HEADER
from chamber.wire.spdm import SpdmCode
from chamber.wire.spdm_messages import Measurement, MeasurementType
from chamber.wire.tdisp import FunctionId, State
from chamber.wire.tlp import MemoryRead
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import CapabilityType
from chamber.wire.virtio_tdi import Guarantee
from tests.device.driver import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.spdm_chain import CertificateSlot

FUNCTION, STREAM = FunctionId(0x0100), 3
NOW = datetime.now(UTC)
_made = cache(make_slot)


def fingerprint(slot: CertificateSlot) -> str:
    return slot.certificates[0].fingerprint(hashes.SHA256()).hex()


def firmware(text: bytes = b"firmware", version: int = 7) -> tuple[Measurement, ...]:
    return (Measurement(1, MeasurementType.ROM, b"boot"), Measurement(2, MeasurementType.FIRMWARE, text),
            Measurement(3, MeasurementType.SECURE_VERSION, version.to_bytes(8, "little")))


def hash_of(data: bytes) -> str:
    context = hashes.Hash(hashes.SHA384())
    context.update(data)
    return context.finalize().hex()


def policy(more: str = "", *, roots: str = "") -> TrustPolicy:
    return parse_trust(f"""
schema = "chamber-trust/1"
name = "test"
roots = ["{roots or fingerprint(_made())}"]
complete = true
[[measurement]]
index = 1
type = "rom"
[[measurement]]
index = 2
type = "firmware"
value = "{hash_of(b"firmware")}"
[[measurement]]
index = 3
type = "secure-version"
least = 5
[device]
{more or 'type = "rng"'}
""", "test")


class World:
    """A device with a mailbox, a guest that reads configuration space through its host, and an encrypted stream."""

    def __init__(self, kind: DeviceType = DeviceType.RNG, *, measured: tuple[Measurement, ...] = (),
                 slot: CertificateSlot | None = None, **options: Any) -> None:
        self.measured = measured or firmware()
        self.lines: list[str] = []
        self.device = TrustedFunction(
            VirtioPci(make_device(kind)), slot or _made(), shared=Memory(), private=Memory(),
            measurements=lambda: self.measured, routing_id=int(FUNCTION), stream_id=STREAM, log=self.lines.append,
            **options)
        self.device.tdi.place()
        self.mailbox = DoeRequester(self.read, self.write, self.device.mailbox_at, ENFORCING)
        self.between: Callable[[bytes, bool], bytes] = lambda data, _secured: data
        self.said: list[int] = []
        self.near = IdeStream(STREAM)
        self.requester = SpdmRequester(self._exchange, os.urandom)

    def read(self, offset: int) -> int:
        return int.from_bytes(self.device.tdi.read_config(offset, 4), "little")

    def write(self, offset: int, value: int) -> None:
        self.device.tdi.write_config(offset, value.to_bytes(4, "little"))

    def _exchange(self, payload: bytes, secured: bool) -> bytes:
        self.said.append(0 if secured else payload[1])
        kind = DoeType.SECURED_SPDM if secured else DoeType.SPDM
        try:
            answer = self.mailbox.exchange(DataObject(PCI_SIG, kind, payload), 0x2000)
        except Silence:
            return b""
        return self.between(answer, secured)

    def verifier(self, trust: TrustPolicy | None = None, **options: Any) -> Verifier:
        chosen: dict[str, Any] = {"stream": self.near, "mapped": PLACES, "now": NOW, "random": os.urandom, **options}
        return Verifier(self.requester, FUNCTION, trust or policy(), **chosen)

    def state(self) -> str:
        return self.device.state.name

    def refuses(self, name: str, trust: TrustPolicy | None = None, **options: Any) -> str:
        """Have the guest refuse the device by a check; return what it says."""
        verifier = self.verifier(trust, **options)
        with pytest.raises(NotTrusted) as refused:
            verifier.attest()
        assert refused.value.check.name == name, refused.value
        assert [check.holds for check in verifier.seen.checks] == [True] * CHECKS.index(name) + [False]
        assert self.device.state is not State.RUN
        assert verifier.seen.function is None
        return refused.value.check.detail


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.short)
def test_every_device_is_taken_and_given_back(kind: DeviceType) -> None:
    world = World(kind)
    verifier = world.verifier(policy(f'type = "{kind.short}"'))
    seen = verifier.attest()
    assert tuple(check.name for check in seen.checks) == CHECKS
    assert all(check.holds for check in seen.checks)
    assert world.state() == "RUN"
    assert world.near.state is StreamState.SECURE
    assert seen.function is not None
    common = seen.function.structures[CapabilityType.COMMON_CFG]
    assert world.device.link is not None
    answer = world.device.link.deliver(world.near.send(MemoryRead(0, 1, common.address, 4), trusted=True))
    assert answer is not None
    world.near.receive(answer)
    verifier.give_up()
    assert world.state() == "CONFIG_UNLOCKED"
    assert not world.requester.is_open(seen.session)
    world.device.close()


def test_a_kernels_look_at_the_mailbox_finds_what_it_takes() -> None:
    assert World().mailbox.protocols() == [(1, 0), (1, 1), (1, 2)]


def test_an_offset_hides_where_memory_is() -> None:
    world = World()
    seen = world.verifier(reporting_offset=0x7000_0000).attest()
    assert seen.report is not None
    assert seen.report[1].ranges[0].first_page == (PLACES[REGISTER_BAR] + 0x7000_0000) // 4096
    assert seen.function is not None
    assert seen.function.structures[CapabilityType.COMMON_CFG].address == PLACES[REGISTER_BAR]


def test_a_guest_that_only_looks_takes_the_reports_addresses() -> None:
    assert World().verifier(mapped=None).attest().function is not None


# Why not.


def test_a_root_that_nobody_knows() -> None:
    assert "none that is trusted" in World().refuses("certificates", policy(roots="0" * 64))


def test_a_device_that_is_none_of_those_that_are_named() -> None:
    maker = Maker()
    named, other = maker.make_slot("named"), maker.make_slot("other")
    text = policy(roots=fingerprint(named))
    own = named.certificates[-1].fingerprint(hashes.SHA256())
    assert World(slot=other).verifier(text).attest().function is not None
    assert World(slot=named).verifier(replace(text, certificates=frozenset({own}))).attest().function is not None
    assert "none that is named" in World(slot=other).refuses(
        "certificates", replace(text, certificates=frozenset({own})))


def test_certificates_of_another_time() -> None:
    assert "not valid now" in World().refuses("certificates", now=NOW + timedelta(days=365 * 30))


@pytest.mark.parametrize(("measured", "why"), [
    (firmware(b"changed"), "measurement 2 is"), (firmware(version=4), "below 5"), (firmware()[:2], "3 is missing"),
    ((*firmware(), Measurement(9, MeasurementType.MANIFEST, b"more")), r"\[9\] have no rule"),
    ((Measurement(1, MeasurementType.FIRMWARE, b"boot"), *firmware()[1:]), "of another type")])
def test_measurements_that_are_none_of_the_policys(measured: tuple[Measurement, ...], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(World(measured=measured).refuses("measurements"))


def test_firmware_that_changes_after_it_was_looked_at() -> None:
    world = World()

    def change(data: bytes, _secured: bool) -> bytes:
        if data[1] == SpdmCode.MEASUREMENTS:
            world.measured = firmware(b"changed")
        return data

    world.between = change
    assert "has changed" in world.refuses("session")


def test_a_device_that_was_put_in_the_place_of_another() -> None:
    world, other = World(), World(slot=make_slot())
    # The host lets the true device answer until it has shown its certificates.
    exchange = world.mailbox.exchange

    def swap(request: DataObject, limit: int) -> bytes:
        chosen = exchange if request.payload[1] in {0x84, 0xE1, 0xE3, 0x81, 0x82} else other.mailbox.exchange
        if chosen is not exchange and not other.said:
            for message in (bytes((0x10, 0x84, 0, 0)),):
                other.mailbox.exchange(DataObject(PCI_SIG, DoeType.SPDM, message), 0x2000)
            other.said.append(1)
        return chosen(request, limit)

    world.mailbox.exchange = swap  # type: ignore[method-assign]
    world.refuses("freshness")


def test_a_session_that_is_not_sealed_as_tdisp_has_it() -> None:
    world = World()
    world.requester = SpdmRequester(world._exchange, os.urandom, aeads=("CHACHA20_POLY1305",))
    assert "AES-256-GCM" in world.refuses("connection")


def test_a_version_below_the_policys() -> None:
    assert "below" in World(spoken=(0x12,)).refuses("connection", replace(policy(), least_version=0x13))


def test_a_mailbox_that_is_silent() -> None:
    world = World()
    world.mailbox = DoeRequester(lambda _offset: 0, world.write, world.device.mailbox_at, ENFORCING)
    world.refuses("connection")


def test_keys_that_never_came_to_the_device() -> None:
    world = World()
    world.refuses("lock", stream=None)


def test_a_stream_that_is_not_the_functions() -> None:
    world = World()
    world.refuses("link", stream=IdeStream(STREAM + 1))


def test_a_function_that_is_not_enabled_can_not_be_locked() -> None:
    world = World()
    world.write(HEADER["command"].offset, 0)
    assert "LOCK_INTERFACE" in world.refuses("lock")


@pytest.mark.parametrize("mapped", [{**PLACES, REGISTER_BAR: 0x9000_0000}, {}, {MSIX_BAR: PLACES[MSIX_BAR]}])
def test_memory_that_the_host_has_mapped_elsewhere(mapped: dict[int, int]) -> None:
    World().refuses("report", mapped=mapped)


def test_a_guarantee_that_the_device_does_not_give() -> None:
    trust = policy('type = "rng"\nguarantees = ["CONFIG_HELD"]')
    assert trust.guarantees is Guarantee.CONFIG_HELD
    assert "CONFIG_HELD" in World().refuses("report", trust)


@pytest.mark.parametrize("device", ['type = "net"', 'type = "rng"\nfeatures = { must = ["SR_IOV"] }',
                                    'type = "rng"\nfeatures = { must-not = ["VERSION_1"] }'])
def test_a_device_that_is_another_than_the_policys(device: str) -> None:
    World().refuses("device", policy(device))


def test_configuration_that_the_host_changes_between_lock_and_start() -> None:
    world = World()

    def meddle(data: bytes, secured: bool) -> bytes:
        if secured and world.device.state is State.CONFIG_LOCKED and len(world.said) > 12:
            world.write(HEADER["bar0"].offset, 0x9000_0000)
        return data

    world.between = meddle
    with pytest.raises(NotTrusted) as refused:
        world.verifier().attest()
    assert refused.value.check.name in {"lock", "report", "start"}
    assert world.device.state is not State.RUN


@given(st.integers(0, 60), st.integers(0, 1 << 20))
@settings(deadline=None, max_examples=60)
def test_a_bit_that_a_host_turns_anywhere_keeps_the_device_out_or_changes_nothing(at: int, where: int) -> None:
    world = World()
    count = [0]

    def turn(data: bytes, _secured: bool) -> bytes:
        count[0] += 1
        if count[0] != at:
            return data
        place = where % (8 * len(data))
        return data[:place // 8] + bytes((data[place // 8] ^ 1 << place % 8,)) + data[place // 8 + 1:]

    world.between = turn
    verifier = world.verifier()
    try:
        seen = verifier.attest()
    except NotTrusted:
        # Where the answer to the very last request was changed the device runs, and nobody uses it.
        assert verifier.seen.function is None
    else:
        assert seen.function is not None
        assert world.device.state is State.RUN
        assert not any(line.startswith("session") and "ends" in line for line in world.lines)


# Policies.


_HEAD = f'schema = "chamber-trust/1"\nroots = ["{"0" * 64}"]\n'


@pytest.mark.parametrize(("text", "why"), [
    ("", "schema"), ('schema = "chamber-trust/1"', "at least one"), ("x = [", "Invalid value"),
    ('schema = "chamber-trust/1"\nroots = ["zz"]', "no hash"),
    (_HEAD + 'least-version = "1.0"', "1.1 to 1.4"),
    (_HEAD + 'word = 1', "word"),
    (_HEAD + '[device]\ncertificates = []', "at least one"), (_HEAD + '[device]\ncertificates = ["zz"]', "no hash"),
    (_HEAD + 'complete = 1', "true or false"),
    (_HEAD + '[[measurement]]\nindex = 0', "1 to 254"),
    (_HEAD + '[[measurement]]\nindex = 1\ntype = "x"', "type is one of"),
    (_HEAD + '[[measurement]]\nindex = 1\nvalue = "00"', "no hash"),
    (_HEAD + '[[measurement]]\nindex = 1\none-of = []', "lists hashes"),
    (_HEAD + '[[measurement]]\nindex = 1\nleast = -1', "version number"),
    (_HEAD + "[[measurement]]\nindex = 1\n" * 2, "one rule"),
    (_HEAD + '[device]\nguarantees = ["ALL"]', "none of"),
    (_HEAD + '[device]\nfeatures = { must = ["X"] }', "needs device.type"),
    (_HEAD + '[device]\ntype = "blk"\nfeatures = { must = ["X"] }', "X")])
def test_a_policy_that_is_not_understood_is_an_error_in_one_line(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why) as refused:
        parse_trust(text, "test")
    assert "\n" not in str(refused.value)
