"""Policies: what they say, what they keep out, and what is read of a device that they keep out."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.assess.engine import run_plan
from chamber.assess.plan import make_plan
from chamber.assess.verdict import Verdict, judge
from chamber.attacks.catalogue import catalogue, find
from chamber.device.catalogue import TYPES, make_device
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.driver import Refused
from chamber.guest.filter import FilteredTransport, NotAdmitted, admit
from chamber.guest.machine import GuestMachine
from chamber.guest.policy import Admissions, DeviceRule, FieldRule, Policy
from chamber.guest.policy_file import SHIPPED, PolicyError, load_policy, parse_policy
from chamber.guest.profile import PROFILES
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtio_pci import PciTransport
from chamber.lab.model import ModelTarget
from chamber.lab.model_stimuli import DRIVERS
from chamber.lab.observation import Scenario
from chamber.platform.pci_bus import PciBus
from chamber.platform.transport import Identity
from chamber.wire.blk import CONFIG, BlkFeature
from chamber.wire.virtio import DeviceType, Feature, bit

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = 'schema = "chamber-policy/1"\nname = "mine"\n'
_BLK = DeviceType.BLOCK


def _identity(kind: int = _BLK, *, transport: str = "pci", vendor: int | None = 0x1AF4,
              position: str = "0000:00:04.0") -> Identity:
    return Identity(transport, vendor, kind, position)


# The file.

def test_a_policy_is_read() -> None:
    policy = parse_policy(_HEAD + """
        [[device]]
        type = "blk"
        transport = ["pci"]
        vendor = [0x1af4]
        position = ["0000:00:0[45].0"]
        most = 2
        [device.features]
        may = ["SEG_MAX"]
        must = ["VERSION_1"]
        must-not = ["DISCARD"]
        [device.config]
        blk_size = { one-of = [512, 4096] }
        capacity = { least = 1 }
    """, "file")
    assert policy == Policy("mine", (DeviceRule(
        "policy mine, device 1 (blk)", _BLK, frozenset({"pci"}), frozenset({0x1AF4}), ("0000:00:0[45].0",), 2,
        bit(BlkFeature.SEG_MAX), bit(Feature.VERSION_1), bit(BlkFeature.DISCARD),
        {"blk_size": FieldRule(one_of=frozenset({512, 4096})), "capacity": FieldRule(1)}),))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_are_read_and_explain_themselves(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert policy.description
    assert policy.rules


@pytest.mark.parametrize(("text", "why"), [
    ("", "schema is"), ('schema = "chamber-policy/2"', "schema is"), ("schema =", "file: "), ("[" * 5000, "file: "),
    (_HEAD + "colour = 1", "'colour' is none of"), (_HEAD + "device = 1", "list of tables"),
    (_HEAD + "device = [1]", "list of tables"), (_HEAD + "[[device]]", "device 1: type is one of"),
    (_HEAD + '[[device]]\ntype = "disk"', "type is one of"), (_HEAD + "[[device]]\ntype = [1]", "type is one of"),
    (_HEAD + '[[device]]\ntype = "blk"\ntransport = ["usb"]', "transport is one of pci, mmio, not 'usb'"),
    (_HEAD + '[[device]]\ntype = "blk"\nvendor = [-1]', "vendor is a list of ids"),
    (_HEAD + '[[device]]\ntype = "blk"\nmost = true', "most is a number"),
    (_HEAD + '[[device]]\ntype = "blk"\nposition = "x"', "position is a list of words"),
    (_HEAD + '[[device]]\ntype = "blk"\nposition = ["\\n"]', "position is a list of words"),
    (_HEAD + '[[device]]\ntype = "blk"\nfeatures = 1', "features is a table"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.features]\nmust = ["MRG_RXBUF"]', "blk has no feature 'MRG_RXBUF'"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.features]\nmust = ["RO"]\nmust-not = ["RO"]', "must be and must not"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.features]\nmay = ["RO"]\nmust-not = ["RO"]', "may be and must not"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nmtu = { least = 1 }', "blk has no such number"),
    (_HEAD + '[[device]]\ntype = "rng"\n[device.config]\nmtu = { least = 1 }', "rng has no such number"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = {}', "least and most are numbers"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = { most = 0x100000000 }', "from 0 to 4294967295"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = { least = 2, most = 1 }', "more than most"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = { one-of = [] }', "one-of stands alone"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = { one-of = [1], most = 2 }', "one-of stands alone"),
    (_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = 512', "is a table")])
def test_what_is_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=r".+") as caught:
        parse_policy(text, "file")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"No such file.*minimal"):
        load_policy(str(tmp_path / "absent"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="UTF-8"):
        load_policy(str(tmp_path / "bytes"))
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(PolicyError, match="at most"):
        load_policy(str(tmp_path / "large"))


@given(st.text(max_size=200) | st.text(alphabet="abc[]{}=\"'\n#1x.", max_size=200).map(lambda text: _HEAD + text))
def test_any_text_is_a_policy_or_an_error(text: str) -> None:
    with suppress(PolicyError):
        assert parse_policy(text, "file").name


# Who is admitted.

@pytest.mark.parametrize(("identity", "admitted"), [
    (_identity(), True), (_identity(DeviceType.NET), False), (_identity(transport="mmio"), False),
    (_identity(vendor=0x1B36), False), (_identity(vendor=None), False), (_identity(position="0000:00:05.0"), False),
    (_identity(-0x40 + _BLK), False)])
def test_identities(identity: Identity, admitted: bool) -> None:
    rule = DeviceRule("r", _BLK, frozenset({"pci"}), frozenset({0x1AF4}), ("0000:00:04.?",))
    assert (Admissions(Policy("p", (rule,))).admit(identity) is not None) == admitted


def test_a_policy_without_rules_admits_nobody() -> None:
    assert all(Admissions(Policy("p", ())).admit(_identity(kind)) is None for kind in DeviceType)


def test_no_more_devices_than_a_rule_has_room_for() -> None:
    first, rest = DeviceRule("first", _BLK, most=1), DeviceRule("rest", _BLK, most=2, must_not=bit(BlkFeature.RO))
    admissions = Admissions(Policy("p", (first, rest)))
    places = [_identity(position=str(number)) for number in range(4)]
    assert [admissions.admit(place) for place in places] == [first, rest, rest, None]
    # The same place again is the same device, not another one.
    assert [admissions.admit(place) for place in places] == [first, rest, rest, None]
    assert admissions.admit(_identity(DeviceType.NET, position="0")) is None


# The transport.

class Device:
    """A device whose every answer a test decides; what is called is kept."""

    def __init__(self) -> None:
        self.kind, self.features = int(_BLK), bit(Feature.VERSION_1, BlkFeature.RO, BlkFeature.SEG_MAX)
        self.config = CONFIG.pack(capacity=100, blk_size=512)
        self.called: list[str] = []
        self.accepted = 0

    def identity(self) -> Identity:
        self.called.append("identity")
        return _identity(self.kind)

    def device_type(self) -> int:
        self.called.append("device_type")
        return self.kind

    def read_features(self) -> int:
        return self.features

    def write_features(self, features: int) -> None:
        self.accepted = features

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config[offset:offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset:offset + len(data)] = data

    def read_status(self) -> int:
        return 1

    def write_status(self, status: int) -> None:
        self.called.append(f"status {status}")

    def read_generation(self) -> int:
        return 7

    def admin_queue(self) -> int | None:
        return None

    def queue_size_max(self, index: int) -> int:
        return 8 + index

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self.called.append(f"setup {index} {size} {desc} {driver} {device}")

    def shared_memory(self, number: int) -> tuple[int, int] | None:
        return number, 4096

    def reset_queue(self, index: int) -> None:
        self.called.append(f"reset {index}")

    def notify(self, index: int, data: int | None = None) -> None:
        self.called.append(f"notify {index} {data}")


def _admitted(device: Device, **rule: object) -> FilteredTransport:
    policy = Policy("p", (DeviceRule("p, device 1", _BLK, **rule),))  # type: ignore[arg-type]
    return admit(Admissions(policy), device, CONFIG)


def test_a_device_that_is_not_admitted_is_asked_who_it_is_and_nothing_else() -> None:
    device = Device()
    device.kind = int(DeviceType.NET)
    with pytest.raises(NotAdmitted, match="policy p admits no such device: virtio id 1"):
        _admitted(device)
    assert device.called == ["identity"]


def test_a_device_that_becomes_another_one_is_refused() -> None:
    device = Device()
    transport = _admitted(device)
    assert transport.device_type() == _BLK
    device.kind = int(DeviceType.NET)
    with pytest.raises(DeviceViolation, match="stays what it was admitted as"):
        transport.device_type()
    assert transport.identity() == _identity()


@pytest.mark.parametrize(("rule", "seen"), [
    ({}, bit(Feature.VERSION_1, BlkFeature.RO, BlkFeature.SEG_MAX)),
    ({"may": bit(BlkFeature.RO)}, bit(BlkFeature.RO)),
    ({"may": 0, "must": bit(Feature.VERSION_1)}, bit(Feature.VERSION_1)),
    ({"must_not": bit(BlkFeature.RO)}, bit(Feature.VERSION_1, BlkFeature.SEG_MAX)),
    ({"may": bit(BlkFeature.DISCARD)}, 0)])
def test_a_driver_sees_the_features_that_it_may(rule: dict[str, int], seen: int) -> None:
    device = Device()
    transport = _admitted(device, **rule)
    assert transport.read_features() == seen
    transport.write_features((1 << 64) - 1)
    assert device.accepted & device.features == seen


def test_features_that_must_be() -> None:
    device = Device()
    transport = _admitted(device, must=bit(Feature.ACCESS_PLATFORM))
    with pytest.raises(DeviceViolation, match="features that must be are offered"):
        transport.read_features()
    with pytest.raises(Refused, match="does not take features that must be"):
        transport.write_features(bit(Feature.VERSION_1))
    assert not device.accepted


@pytest.mark.parametrize(("name", "value", "fine"), [
    ("blk_size", 512, True), ("blk_size", 4096, True), ("blk_size", 1024, False), ("capacity", 0, False),
    ("capacity", 1, True), ("capacity", 1000, True), ("capacity", 1001, False), ("seg_max", 0xFFFFFFFF, True)])
def test_fields_are_within_their_rules(name: str, value: int, fine: bool) -> None:
    device = Device()
    CONFIG.put(device.config, name, value)
    transport = _admitted(device, config={"blk_size": FieldRule(one_of=frozenset({512, 4096})),
                                          "capacity": FieldRule(1, 1000)})
    field = CONFIG[name]
    if fine:
        assert int.from_bytes(transport.read_config(field.offset, field.size), "little") == value
        transport.read_config(0, CONFIG.size)
        return
    for offset, size in ((field.offset, field.size), (0, CONFIG.size)):
        with pytest.raises(DeviceViolation, match=f"config.{name} is"):
            transport.read_config(offset, size)


def test_a_field_with_a_rule_is_not_read_in_pieces() -> None:
    transport = _admitted(Device(), config={"capacity": FieldRule(0, 1000)})
    for offset, size in ((0, 4), (4, 4), (4, 8)):
        with pytest.raises(DeviceViolation, match="read whole"):
            transport.read_config(offset, size)


def test_the_rest_passes() -> None:
    device = Device()
    transport = _admitted(device)
    device.called.clear()
    transport.write_status(3)
    transport.setup_queue(1, 2, 3, 4, 5)
    transport.reset_queue(6)
    transport.notify(7, 8)
    transport.write_config(0, b"\1")
    assert device.called == ["status 3", "setup 1 2 3 4 5", "reset 6", "notify 7 8"]
    assert device.config[0] == 1
    assert (transport.read_status(), transport.read_generation(), transport.queue_size_max(1)) == (1, 7, 9)
    assert transport.shared_memory(2) == (2, 4096)


# The model guest.

class Recorder(VirtioPci):
    """A function that writes down every access to it."""

    accesses: list[tuple[str, int, int]]

    def read_config(self, offset: int, size: int) -> bytes:
        self.accesses.append(("config", offset, size))
        return super().read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        self.accesses.append(("config written", offset, len(data)))
        super().write_config(offset, data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        self.accesses.append((f"bar {bar}", offset, size))
        return super().read_bar(bar, offset, size)


@pytest.mark.parametrize("kind", TYPES)
def test_of_a_function_that_is_kept_out_four_bytes_are_read(kind: DeviceType) -> None:
    machine = GuestMachine(PROFILES["hardened"], 1)
    try:
        function = Recorder(make_device(kind))
        function.accesses = []
        bus = PciBus(machine.interrupts)
        bus.plug(0, function)
        with pytest.raises(NotAdmitted):
            admit(Admissions(Policy("p", ())), PciTransport(machine, bus), None)
        assert function.accesses == [("config", 0, 2), ("config", 2, 2)]
    finally:
        machine.close()


@pytest.mark.parametrize("pci", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", TYPES)
def test_an_honest_device_is_served_or_kept_out(kind: DeviceType, name: str, pci: bool) -> None:
    policy = load_policy(name)
    seen = ModelTarget(policy=policy).run(Scenario(kind, ("use", "rescan"), profile="hardened", pci=pci))
    admitted = any(rule.type is kind for rule in policy.rules)
    assert seen.evidence == []
    assert (seen.served, seen.unprobed) == (admitted, not admitted), seen.refusals


def test_profiles_that_do_not_filter_have_no_policy() -> None:
    target = ModelTarget(policy=Policy("p", ()))
    assert target.describe()["policy"] == "p"
    assert target.run(Scenario(_BLK, profile="bare")).served


def test_what_is_kept_out_holds() -> None:
    target = ModelTarget(policy=Policy("p", ()))
    spec = find("blk-used-id-size")
    attacked = target.run(Scenario(_BLK, spec.stimuli, spec, "hardened"))
    assert attacked.unprobed
    assert not attacked.strikes
    honest = target.run(Scenario(_BLK, spec.stimuli, profile="hardened"))
    judgement = judge(attacked, honest)
    assert judgement.verdict is Verdict.HELD
    assert "admits no such device" in judgement.note


def test_an_attack_that_a_policy_stops() -> None:
    """A block size that the specification does not list is refused by a rule, before the driver makes use of it."""
    policy = parse_policy(_HEAD + '[[device]]\ntype = "blk"\n[device.config]\nblk_size = { one-of = [512, 4096] }', "f")
    # Of the hardened model's one read of a field, a value that changes between two reads makes nothing.
    specs = [spec for spec in catalogue() if spec.name.startswith("blk-config-blk-size") and not spec.pci
             and not spec.name.endswith("changing")]
    assert len(specs) > 2
    make = partial(ModelTarget, policy=policy)
    plan = make_plan(make(), specs, profiles=("hardened",))
    outcome = run_plan(plan, jobs=1, make_target=make, on_done=lambda *_: None)
    assert {result.verdict for result in outcome.results} == {Verdict.HELD}
    assert all("policy mine, device 1 (blk): config.blk_size is one of 512, 4096" in result.note
               for result in outcome.results)


def test_every_driver_has_fields_that_rules_can_name() -> None:
    from chamber.wire.device_types import CONFIGS  # noqa: PLC0415 - the point of the test

    for kind, driver in DRIVERS.items():
        assert kind not in CONFIGS or driver.config_layout is CONFIGS[kind]
