"""What a policy becomes for a stock kernel: files, a script that runs, and what it can't enforce."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.cli.main import run
from chamber.guest.policy import DeviceRule, FieldRule, Policy
from chamber.guest.policy_file import SHIPPED, load_policy
from chamber.lab.linux_filter.devices import LinuxDevice, as_json, compare, read_list, read_sysfs
from chamber.lab.linux_filter.emit import KernelFacts, clauses, policy_table, read_kernel_config, write_filter
from chamber.lab.observation import TargetError
from chamber.platform.transport import Identity
from chamber.wire.blk import BlkFeature
from chamber.wire.net import NetFeature
from chamber.wire.virtio import DeviceType, Feature, bit

_BLK, _NET, _RNG = DeviceType.BLOCK, DeviceType.NET, DeviceType.RNG
_SCRIPT = Path(__file__).parents[2] / "src/chamber/lab/linux_filter/chamber-filter"
_RULES = (DeviceRule("policy p, device 1 (blk)", _BLK, positions=("0000:00:0[45].0",), most=1,
                     must=bit(Feature.VERSION_1), must_not=bit(BlkFeature.DISCARD)),
          DeviceRule("policy p, device 2 (net)", _NET, frozenset({"pci"}), frozenset({0x1AF4}),
                     may=bit(NetFeature.MAC), must=bit(Feature.VERSION_1),
                     config={"mtu": FieldRule(68, 1500)}))
_POLICY = Policy("p", _RULES)


def test_the_table() -> None:
    assert policy_table(_POLICY) == "2 * * 1 * 32 13 0000:00:0[45].0\n1 pci 6900 * 5 32 - *\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_become_files(name: str, tmp_path: Path) -> None:
    policy = load_policy(name)
    written = write_filter(policy, KernelFacts(), tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == {
        "policy.table", "README", "kernel-arguments", "modprobe.d/chamber-filter.conf", "chamber-filter",
        "udev/70-chamber-filter.rules", "initramfs-tools/hooks/chamber-filter",
        "initramfs-tools/scripts/init-top/chamber-filter"}
    for path in written:
        if path.name == "chamber-filter":
            assert path.stat().st_mode & stat.S_IXUSR
            subprocess.run(["/bin/sh", "-n", path], check=True)
    modules = (tmp_path / "out/modprobe.d/chamber-filter.conf").read_text()
    assert ("blacklist virtio_balloon" in modules) == all(rule.type is not DeviceType.BALLOON for rule in policy.rules)
    assert "blacklist virtio_blk\n" not in modules


def _enforced(settings: dict[str, str] | None) -> dict[str, bool]:
    return {f"{c.where[-5:]} {c.what}": c.enforced for c in clauses(_POLICY, KernelFacts(settings))}


def test_what_a_kernel_cannot_enforce_is_said() -> None:
    modular = {"VIRTIO_BLK": "m", "VIRTIO_NET": "m", "VIRTIO_PCI": "m", "VIRTIO_DEBUG": "y", "DEBUG_FS": "y"}
    everything = _enforced(modular)
    assert everything == {
        "icy p only devices with a rule are probed": True,
        "icy p nothing is read of a PCI function but its identity": False,
        "(blk) position": True, "(blk) most": True, "(blk) features that may be, and must not be": True,
        "(blk) features that must be": True, "(net) transport": True, "(net) vendor": True,
        "(net) features that may be, and must not be": True, "(net) features that must be": True,
        "(net) config.mtu is 68 to 1500": False}
    without = {key: value for key, value in modular.items() if key != "VIRTIO_DEBUG"}
    assert not _enforced(without)["(net) features that may be, and must not be"]
    built_in = _enforced({**modular, "VIRTIO_BLK": "y"})
    assert not built_in["(blk) most"]
    assert not built_in["icy p only devices with a rule are probed"]
    # A driver that is built in and has no rule can be kept from starting at all.
    assert _enforced({**modular, "VIRTIO_BALLOON": "y"})["icy p only devices with a rule are probed"]


def test_drivers_that_are_built_in_are_named_to_the_kernel(tmp_path: Path) -> None:
    write_filter(_POLICY, KernelFacts({"VIRTIO_BALLOON": "y", "VIRTIO_NET": "y"}), tmp_path)
    words = (tmp_path / "kernel-arguments").read_text().split()
    assert words[0].startswith("module_blacklist=")
    assert "virtio_balloon" in words[0]
    assert words[1:] == ["initcall_blacklist=virtio_balloon_driver_init"]


def test_a_configuration_is_read(tmp_path: Path) -> None:
    text = b"CONFIG_VIRTIO=y\nCONFIG_VIRTIO_NET=m\n# CONFIG_VIRTIO_DEBUG is not set\nCONFIG_HZ=100\n"
    for name, data in (("plain", text), ("packed", gzip.compress(text))):
        (tmp_path / name).write_bytes(data)
        facts = read_kernel_config(tmp_path / name)
        assert facts.settings == {"VIRTIO": "y", "VIRTIO_NET": "m"}
    for name, data in (("empty", b""), ("other", b"hello"), ("cut", gzip.compress(text)[:9])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TargetError):
            read_kernel_config(tmp_path / name)
    with pytest.raises(TargetError, match="No such file"):
        read_kernel_config(tmp_path / "absent")


# A guest's sysfs, of files.

class Sysfs:
    """A sysfs with a PCI bus and a virtio bus, on which nothing happens by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root / "sys"
        for bus in ("pci", "virtio"):
            (self.root / f"bus/{bus}/devices").mkdir(parents=True)
            for name in ("drivers_autoprobe", "drivers_probe"):
                (self.root / f"bus/{bus}/{name}").write_text("1" if name == "drivers_autoprobe" else "")
        (self.root / "bus/virtio/drivers/virtio_drv").mkdir(parents=True)
        self.run = root / "run"
        self.folder = root / "filter"
        self.count = 0

    def add(self, kind: int, position: str, *, features: int = bit(Feature.VERSION_1), driver: bool = False,
            device: int | None = None, bus: str = "pci", debug: bool = True) -> str:
        name = f"virtio{self.count}"
        self.count += 1
        parent = self.root / "devices" / position
        place = parent / name
        place.mkdir(parents=True)
        (self.root / f"bus/{bus}").mkdir(parents=True, exist_ok=True)
        os.symlink(self.root / f"bus/{bus}", parent / "subsystem")
        if bus == "pci":
            os.symlink(parent, self.root / "bus/pci/devices" / position)
            os.symlink(self.root / "bus/pci", parent / "driver")
            for attribute, value in (("vendor", 0x1AF4), ("device", 0x1040 + kind if device is None else device),
                                     ("subsystem_device", kind), ("subsystem_vendor", 0x1234)):
                (parent / attribute).write_text(f"{value:#06x}\n")
        for attribute, text in (("device", f"{kind:#06x}"), ("vendor", "0x1234"), ("modalias", f"virtio:d{kind:08X}"),
                                ("features", "".join(str(features >> n & 1) for n in range(64)))):
            (place / attribute).write_text(text + "\n")
        os.symlink(place, self.root / "bus/virtio/devices" / name)
        if driver:
            self.bind(name)
        if debug:
            (self.root / f"kernel/debug/virtio/{name}").mkdir(parents=True)
            (self.root / f"kernel/debug/virtio/{name}/filter_feature_add").write_text("")
            (self.root / f"kernel/debug/virtio/{name}/device_features").write_text(
                "".join(f"{number}\n" for number in range(64) if features >> number & 1))
        return name

    def bind(self, name: str) -> None:
        os.symlink(self.root / "bus/virtio/drivers/virtio_drv", self.root / f"bus/virtio/devices/{name}/driver")

    def script(self, *words: str, policy: Policy = _POLICY) -> subprocess.CompletedProcess[str]:
        write_filter(policy, KernelFacts(), self.folder)
        script = self.folder / "chamber-filter"
        return subprocess.run(
            ["/bin/sh", script, *words], capture_output=True, text=True, check=False, timeout=60,
            env={"PATH": "/usr/bin:/bin", "CHAMBER_FILTER_SYS": str(self.root), "CHAMBER_FILTER_RUN": str(self.run)})

    def read(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def test_starting_switches_probing_off_and_probes_what_is_admitted(sysfs: Sysfs) -> None:
    allowed = sysfs.add(_BLK, "0000:00:04.0")
    other = sysfs.add(_RNG, "0000:00:06.0")
    done = sysfs.script("start")
    assert done.returncode == 0, done.stderr
    assert sysfs.read("bus/pci/drivers_autoprobe") == sysfs.read("bus/virtio/drivers_autoprobe") == "0"
    assert sysfs.read("bus/virtio/drivers_probe") == allowed
    assert "0000:00:06.0 (virtio id 4) is not admitted" in done.stderr
    assert sysfs.read(f"kernel/debug/virtio/{allowed}/filter_feature_add") == "13"
    assert sysfs.read(f"kernel/debug/virtio/{other}/filter_feature_add") == ""


@pytest.mark.parametrize(("kind", "position", "bus", "admitted"), [
    (_BLK, "0000:00:05.0", "pci", True), (_BLK, "0000:00:06.0", "pci", False), (_NET, "0000:01:00.0", "pci", True),
    (_NET, "virtio-mmio.0", "platform", False), (_RNG, "0000:00:04.0", "pci", False)])
def test_who_is_admitted(sysfs: Sysfs, kind: int, position: str, bus: str, admitted: bool) -> None:
    name = sysfs.add(kind, position, bus=bus)
    sysfs.script("admit", "virtio", name)
    assert sysfs.read("bus/virtio/drivers_probe") == (name if admitted else "")


def test_one_disk_is_admitted_and_another_is_not(sysfs: Sysfs) -> None:
    first, second = sysfs.add(_BLK, "0000:00:04.0"), sysfs.add(_BLK, "0000:00:05.0")
    assert "not admitted" not in sysfs.script("admit", "virtio", first).stderr
    assert "not admitted" not in sysfs.script("admit", "virtio", first).stderr
    assert f"{second} (virtio id 2 at 0000:00:05.0) is not admitted" in sysfs.script("admit", "virtio", second).stderr


def test_a_function_that_is_kept_out_has_no_driver_at_all(sysfs: Sysfs) -> None:
    for position, kind, device in (("0000:00:04.0", _BLK, None), ("0000:00:05.0", _BLK, 0x1001),
                                   ("0000:00:07.0", _RNG, None), ("0000:00:08.0", _RNG, 0x1005),
                                   ("0000:00:09.0", 0, 0x8086)):
        sysfs.add(kind, position, device=device)
        (sysfs.root / "devices" / position / "driver").unlink()
        sysfs.script("admit", "pci", position)
        # The second disk is one too many; what is no virtio device is none of the filter's business.
        probed = position in {"0000:00:04.0", "0000:00:09.0"}
        assert (sysfs.read("bus/pci/drivers_probe") == position) == probed
        (sysfs.root / "bus/pci/drivers_probe").write_text("")


def test_features_are_looked_at_once_more_after_the_driver_is_bound(sysfs: Sysfs) -> None:
    name = sysfs.add(_BLK, "0000:00:04.0", features=bit(BlkFeature.DISCARD), debug=False)
    script = sysfs.script("check")
    assert script.returncode == 0
    sysfs.bind(name)
    script = sysfs.script("check")
    assert script.returncode == 1
    assert f"{name}: feature 13 was negotiated, and must not be" in script.stderr
    assert f"{name}: feature 32 must be, and is not" in script.stderr


def test_a_device_that_does_not_offer_what_must_be_is_not_probed(sysfs: Sysfs) -> None:
    name = sysfs.add(_BLK, "0000:00:04.0", features=bit(BlkFeature.RO))
    done = sysfs.script("admit", "virtio", name)
    assert done.returncode == 1
    assert f"{name}: feature 32 must be, and is not offered; it is not probed" in done.stderr
    assert sysfs.read("bus/virtio/drivers_probe") == ""


@pytest.mark.parametrize("words", [(), ("stop",), ("admit",), ("admit", "usb", "1"), ("admit", "pci"), ("start", "x")])
def test_wrong_usage(sysfs: Sysfs, words: tuple[str, ...]) -> None:
    done = sysfs.script(*words)
    if words != ("start", "x"):
        assert done.returncode == 2
        assert "usage" in done.stderr


def test_names_with_blanks_and_stars_do_no_harm(sysfs: Sysfs) -> None:
    done = sysfs.script("admit", "virtio", "* $(touch /tmp/x) ;")
    assert done.returncode == 0
    assert done.stderr == ""


# The same by Chamber's own check.

def test_the_devices_of_a_guest_and_what_a_policy_says(sysfs: Sysfs, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    sysfs.add(_BLK, "0000:00:04.0", driver=True)
    sysfs.add(_RNG, "0000:00:06.0", driver=True)
    sysfs.add(_RNG, "0000:00:07.0")
    sysfs.add(_NET, "0000:01:00.0", driver=True, features=bit(NetFeature.CSUM))
    devices = read_sysfs(sysfs.root)
    assert devices[0] == LinuxDevice("virtio0", Identity("pci", 0x1AF4, 2, "0000:00:04.0"), "virtio_drv",
                                     bit(Feature.VERSION_1))
    assert compare(_POLICY, devices) == [
        "virtio1: virtio_drv has it, and no rule admits it (virtio id 4, vendor 0x1af4, pci 0000:00:06.0)",
        "virtio3: CSUM was negotiated, and must not be (policy p, device 2 (net))",
        "virtio3: VERSION_1 must be, and is not (policy p, device 2 (net))"]
    listed = tmp_path / "devices.json"
    listed.write_text(json.dumps(as_json(devices)))
    assert read_list(listed) == devices
    assert run(["filter", "check", "minimal", "--devices", str(listed), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["devices"] == 4
    assert len(said["violations"]) == 5
    assert run(["filter", "check", "minimal", "--sysfs", str(sysfs.root)]) == 1
    assert "4 devices, 5 violations of policy minimal" in capsys.readouterr().out
    assert run(["filter", "devices", "--sysfs", str(sysfs.root)]) == 0
    assert json.loads(capsys.readouterr().out) == as_json(devices)


def test_an_empty_guest_is_fine(sysfs: Sysfs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filter", "check", "minimal", "--sysfs", str(sysfs.root)]) == 0
    assert "0 devices, 0 violations" in capsys.readouterr().out


_ROW = {"name": "a", "transport": "pci", "vendor": 1, "type": 2, "position": "", "driver": None, "features": []}


def _list_of(row: dict[str, object]) -> str:
    return json.dumps({"schema": "chamber-devices/1", "devices": [row]})


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"schema": "x"}', '{"schema": "chamber-devices/1"}', "[" * 9000, _list_of({}),
    _list_of({**_ROW, "name": 1}), _list_of({**_ROW, "features": [64]}), _list_of({**_ROW, "vendor": "x"})])
def test_what_is_no_list_of_devices_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    assert run(["filter", "check", "minimal", "--devices", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.sampled_from(tuple(_ROW)), part), max_leaves=20))
def test_any_list_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, rows: object) -> None:
    path = tmp_path_factory.mktemp("list") / "devices"
    path.write_text(json.dumps({"schema": "chamber-devices/1", "devices": rows}))
    try:
        devices = read_list(path)
    except TargetError:
        return
    compare(_POLICY, devices)


# The commands.

def test_emit_says_what_it_wrote_and_what_is_not_enforced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config"
    config.write_text("CONFIG_VIRTIO_BLK=y\n")
    assert run(["filter", "emit", "minimal", "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "virtio_blk: built in, so that every device of the type is probed" in said
    assert f"wrote {tmp_path}/out/policy.table" in said
    assert run(["filter", "emit", "minimal", "--out", str(tmp_path / "out"), "--config", "x", "--kernel", "y"]) == 2
    assert run(["filter", "emit", "absent", "--out", str(tmp_path / "out")]) == 2
    (tmp_path / "file").write_text("")
    assert run(["filter", "emit", "minimal", "--out", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_surface_is_smaller_under_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filter", "surface", "minimal", "all-thirteen"]) == 0
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    attacks = {name: int(words[-2]) for name, words in rows.items() if words[-2].isdigit()}
    assert 0 < attacks["minimal"] < attacks["all-thirteen"] == attacks["no policy"]


def test_the_shipped_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filter", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SHIPPED)
    assert "blk, net, rng" in said
