"""The guest's drivers before real back ends: QEMU's of a disk and of a directory, and Chamber's own of everything."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.assess.verdict import Verdict, judge
from chamber.attacks.catalogue import find
from chamber.device.catalogue import TYPES, make_device
from chamber.guest.bounce import PoolFull
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.blk import BlkDriver
from chamber.guest.drivers.fs import FsDriver, FsError
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead, QueueFull
from chamber.lab.backend import BackendTransport, RealTimeMachine
from chamber.lab.drive import own_config
from chamber.lab.model import ModelTarget
from chamber.lab.observation import Scenario
from chamber.link.frontend import BackendError, Frontend
from chamber.wire.blk import BlkFeature
from chamber.wire.virtio import DeviceType, Feature
from tests.lab.over_socket import SocketTarget
from tests.link.frontend import Served
from tests.link.scripted_backend import R, ScriptedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.link.memory import SharedMemory

STORAGE_DAEMON = shutil.which("qemu-storage-daemon")
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
SIZE = 8 << 20
REFUSALS = (DeviceViolation, Refused, DeviceTimeout, QueueDead, QueueFull, PoolFull, BackendError)

needs_storage_daemon = pytest.mark.skipif(
    STORAGE_DAEMON is None, reason="qemu-storage-daemon (qemu-system-common) is not installed")
needs_virtiofsd = pytest.mark.skipif(
    not VIRTIOFSD.exists() or os.geteuid() != 0, reason="virtiofsd (qemu-system-common) is not installed, or no root")


def listens(path: Path) -> bool:
    """Whether somebody listens on a socket; to connect, in order to see, would be a front end's first word."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(words[3] == "00010000" and words[-1] == str(path) for words in sockets)


@contextlib.contextmanager
def running(path: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A back end in a process of its own, until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not listens(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def storage_daemon(folder: Path, *options: str) -> Iterator[tuple[Path, Path, subprocess.Popen[bytes]]]:
    """A disk of random content behind qemu-storage-daemon: its socket, its image, the process."""
    assert STORAGE_DAEMON is not None
    image, path = folder / "disk", folder / "socket"
    image.write_bytes(random.Random(4).randbytes(SIZE))
    with running(path, STORAGE_DAEMON, "--blockdev", f"driver=file,node-name=disk,filename={image},discard=unmap",
                 "--export", ",".join(("type=vhost-user-blk,id=e,node-name=disk,addr.type=unix",
                                       f"addr.path={path}", *options))) as process:
        yield path, image, process


@contextlib.contextmanager
def guest(path: Path, kind: DeviceType,
          profile: str = "hardened") -> Iterator[tuple[RealTimeMachine, BackendTransport]]:
    machine = RealTimeMachine(PROFILES[profile], 1)
    try:
        with Frontend.connect(path) as frontend:
            yield machine, BackendTransport(machine, frontend, kind, config=own_config(kind, frontend.queue_count))
    finally:
        machine.close()


# Disks.

@needs_storage_daemon
@pytest.mark.parametrize("profile", UNTRUSTED)
def test_a_disk_of_qemu_s(tmp_path: Path, profile: str) -> None:
    with storage_daemon(tmp_path, "writable=on") as (path, image, _):
        right = bytearray(image.read_bytes())
        with guest(path, DeviceType.BLOCK, profile) as (machine, transport):
            driver = BlkDriver(machine, transport)
            driver.probe()
            assert driver.has(Feature.RING_EVENT_IDX)
            assert driver.has(Feature.RING_INDIRECT_DESC)
            assert driver.capacity * 512 == SIZE
            assert driver.serial() == b"vhost_user_blk"
            assert driver.cache_type() in {"through", "back"}
            dice = random.Random(profile)
            for _ in range(200):
                sector, count = dice.randrange(SIZE // 512 - 32), dice.randrange(1, 33)
                here = slice(sector * 512, (sector + count) * 512)
                if dice.randrange(2):
                    assert driver.read(sector, count) == right[here]
                else:
                    data = dice.randbytes(count * 512)
                    driver.write(sector, data)
                    right[here] = data
            driver.zero(1000, 77, discard=False)
            right[1000 * 512:1077 * 512] = bytes(77 * 512)
            driver.zero(2048, 2048, discard=True)
            right[2048 * 512:4096 * 512] = bytes(1 << 20)  # unmapped, a file reads as zero
            assert driver.read(1000, 32) == bytes(32 * 512)
            with pytest.raises(Refused, match="beyond the end"):
                driver.read(SIZE // 512, 1)
            driver.flush()
            driver.remove()
            machine.heap.check_all()
            assert machine.heap.reports == []
            assert driver.violations == []
    assert image.read_bytes() == right


@needs_storage_daemon
def test_a_disk_that_is_read_only_and_has_several_queues(tmp_path: Path) -> None:
    with storage_daemon(tmp_path, "num-queues=4") as (path, image, _):
        before = image.read_bytes()
        with guest(path, DeviceType.BLOCK) as (machine, transport):
            driver = BlkDriver(machine, transport)
            driver.probe()
            assert driver.has(BlkFeature.RO)
            assert transport.queue_size_max(3)
            assert not transport.queue_size_max(4)
            with pytest.raises(Refused, match="answers with status 1"):
                driver.write(0, bytes(512))
            assert driver.read(3, 1) == before[3 * 512:4 * 512]
            driver.remove()
    assert image.read_bytes() == before


@needs_storage_daemon
def test_a_disk_is_taken_and_given_back_again_and_again(tmp_path: Path) -> None:
    with storage_daemon(tmp_path) as (path, image, _):
        first = image.read_bytes()[:512]
        for _ in range(3):
            with guest(path, DeviceType.BLOCK) as (machine, transport):
                driver = BlkDriver(machine, transport)
                open_now = set()
                for _ in range(5):
                    driver.probe()
                    assert driver.read(0, 1) == first
                    driver.remove()
                    open_now.add(len(os.listdir("/proc/self/fd")))
                assert len(open_now) == 1


@needs_storage_daemon
def test_a_back_end_that_is_killed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with storage_daemon(tmp_path) as (path, _, process), guest(path, DeviceType.BLOCK) as (machine, transport):
        driver = BlkDriver(machine, transport)
        driver.probe()
        driver.read(0, 1)
        process.kill()
        process.wait()
        with pytest.raises(BackendError, match="a back end stays"):
            driver.read(1, 1)
        driver.remove()
        machine.heap.check_all()
        assert machine.heap.reports == []
    assert len(os.listdir("/proc/self/fd")) == before


# Directories.

@needs_virtiofsd
def test_a_directory_of_virtiofsd_s(tmp_path: Path) -> None:
    root, path = tmp_path / "shared", tmp_path / "socket"
    root.mkdir()
    dice = random.Random(6)
    (root / "from-host").write_bytes(big := dice.randbytes(300_000))
    (root / "locked").write_bytes(b"")
    (root / os.fsdecode(b"\xff raw \x01")).write_bytes(b"no text")
    data = dice.randbytes(100_001)
    with (running(path, str(VIRTIOFSD), f"--socket-path={path}", "-o", f"source={root}", "-o", "cache=none"),
          guest(path, DeviceType.FS) as (machine, transport)):
        driver = FsDriver(machine, transport)
        driver.probe()
        assert driver.tag == "chamber"
        driver.mount()
        assert driver.read_file("from-host") == big
        (raw,) = set(driver.listdir("")) - {"from-host", "locked"}
        assert driver.read_file(raw) == b"no text"
        driver.unlink(raw)
        driver.mkdir("made", 0o750)
        driver.write_file("made/file", data, 0o640)
        assert driver.read_file("made/file") == data
        driver.symlink("made/soft", "../nowhere")
        driver.link("made/file", "made/hard")
        driver.rename("made/file", "made/renamed")
        driver.unlink("locked")
        for i in range(300):
            driver.write_file(f"made/{i:03} {'é' * 40}", b"%d" % i)
        names = [f"{i:03} {'é' * 40}" for i in range(300)]
        assert sorted(driver.listdir("made")) == sorted([*names, "soft", "hard", "renamed"])
        assert driver.readlink("made/soft") == "../nowhere"
        (root / "made" / "later").write_bytes(b"by the host")
        assert driver.read_file("made/later") == b"by the host"
        with pytest.raises(FsError, match="ENOENT"):
            driver.lookup("made/file")
        with pytest.raises(FsError, match="ENOTEMPTY"):
            driver.rmdir("made")
        driver.setattr("made/hard", mode=0o604, size=1000)
        assert driver.statfs().namelen == 255
        driver.unmount()
        driver.remove()
        machine.heap.check_all()
        assert machine.heap.reports == []
        assert driver.violations == []
    made = root / "made"
    assert sorted(os.listdir(root)) == ["from-host", "made"]
    assert sorted(os.listdir(made)) == sorted([*names, "soft", "hard", "renamed", "later"])
    assert (made / "renamed").read_bytes() == data[:1000]
    assert (made / "renamed").samefile(made / "hard")
    assert stat.S_IMODE((made / "hard").stat().st_mode) == 0o604
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert os.readlink(made / "soft") == "../nowhere"
    assert [(made / name).read_bytes() for name in names] == [b"%d" % i for i in range(300)]


@needs_virtiofsd
def test_a_server_that_is_killed_while_a_file_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, path = tmp_path / "shared", tmp_path / "socket"
    root.mkdir()
    (root / "file").write_bytes(bytes(1 << 20))
    with (running(path, str(VIRTIOFSD), f"--socket-path={path}", "-o", f"source={root}") as process,
          guest(path, DeviceType.FS) as (machine, transport)):
        driver = FsDriver(machine, transport)
        driver.probe()
        driver.mount()
        notify, left = transport.notify, iter(range(20))

        def kill_at_last(index: int, data: int | None = None) -> None:
            if next(left, None) == 10:
                process.kill()
                process.wait()
            notify(index, data)

        monkeypatch.setattr(transport, "notify", kill_at_last)
        with pytest.raises(BackendError, match="a back end stays"):
            driver.read_file("file")
        driver.remove()
        assert machine.heap.reports == []


# Chamber's own back end. The balloon's pages become shared while it is used: a back end has what was shared before.

@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind is not DeviceType.BALLOON],
                         ids=lambda kind: kind.short)
def test_every_device_of_our_own(tmp_path: Path, kind: DeviceType) -> None:
    target = SocketTarget(tmp_path / "socket")
    seen = target.run(Scenario(kind, ("use",), profile="hardened", ring="packed"))
    assert seen.served, (seen.evidence, seen.refusals)


@pytest.mark.parametrize(("kind", "profile"), [
    (DeviceType.BLOCK, "hardened"), (DeviceType.NET, "hardened"), (DeviceType.CONSOLE, "hardened"),
    (DeviceType.FS, "hardened"), (DeviceType.BLOCK, "bare"), (DeviceType.BLOCK, "bounced")],
    ids=lambda value: getattr(value, "short", value))
@pytest.mark.parametrize("ring", ["split", "split-in-order", "packed-in-order"])
def test_every_kind_of_ring(tmp_path: Path, kind: DeviceType, ring: str, profile: str) -> None:
    # Drivers without order free first and reset then: an interrupt of the console's may come between, as in earnest.
    target = SocketTarget(tmp_path / "socket")
    seen = target.run(Scenario(kind, ("use", "rebind", "reset"), profile=profile, ring=ring))
    assert seen.served, (seen.evidence, seen.refusals)


def test_changes_of_configuration_arrive(tmp_path: Path) -> None:
    seen = SocketTarget(tmp_path / "socket").run(Scenario(DeviceType.BLOCK, ("inspect",), profile="hardened"))
    assert seen.served, (seen.evidence, seen.refusals)
    device = make_device(DeviceType.BLOCK)
    with Served(device, tmp_path / "s"), guest(tmp_path / "s", DeviceType.BLOCK) as (machine, transport):
        driver = BlkDriver(machine, transport)
        driver.probe()
        before, generation = driver.capacity, transport.read_generation()
        device.host_action("shrink")
        machine.wait(lambda: driver.capacity < before, 5)
        assert driver.capacity == before // 2
        assert transport.read_generation() != generation
        driver.remove()


@pytest.mark.parametrize("inband", [False, True], ids=["eventfd", "in-band"])
def test_notifications_either_way(tmp_path: Path, *, inband: bool) -> None:
    path = tmp_path / "socket"
    machine = RealTimeMachine(PROFILES["hardened"], 1)
    with Served(make_device(DeviceType.BLOCK), path), Frontend.connect(path, inband=inband) as frontend:
        driver = BlkDriver(machine, BackendTransport(machine, frontend, DeviceType.BLOCK))
        driver.probe()
        for sector in range(50):
            driver.write(sector, bytes([sector]) * 512)
        assert [driver.read(sector, 1) for sector in range(50)] == [bytes([sector]) * 512 for sector in range(50)]
        driver.remove()
    machine.close()


# Hostile ones.

@pytest.mark.parametrize(("name", "bare"), [
    ("blk-used-id-size", Verdict.BROKEN), ("blk-packed-used-id-repeated", Verdict.BROKEN),
    ("blk-desc-addr-rewritten", Verdict.BROKEN),
    ("blk-read-flipped", Verdict.DECEIVED), ("blk-used-flags-garbage", Verdict.HELD),
    ("net-rx-used-len-beyond", Verdict.BROKEN),
    ("console-events-unknown-port", Verdict.BROKEN), ("fs-used-id-repeated", Verdict.BROKEN)])
def test_an_attack_comes_to_the_same_over_a_socket(tmp_path: Path, name: str, bare: Verdict) -> None:
    attack = find(name)
    for profile in ("bare", "hardened"):
        verdicts = []
        for target in (ModelTarget(), SocketTarget(tmp_path / "socket")):
            honest = target.run(Scenario(attack.device, attack.stimuli, profile=profile, ring=attack.ring))
            seen = target.run(Scenario(attack.device, attack.stimuli, attack, profile, ring=attack.ring))
            verdicts.append(judge(seen, honest).verdict)
        assert verdicts[0] is verdicts[1]
        if profile == "bare":
            assert verdicts[0] is bare
        else:
            assert verdicts[0] not in {Verdict.BROKEN, Verdict.LEAKED, Verdict.INCONCLUSIVE}


def test_interrupts_without_end_keep_nobody_waiting() -> None:
    machine = RealTimeMachine(PROFILES["hardened"], 1)
    with ScriptedBackend() as back, back.frontend() as frontend:
        BackendTransport(machine, frontend, DeviceType.BLOCK)
        frontend.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                os.eventfd_write(back.fds[R.SET_VRING_CALL][0], 1)

        thread = threading.Thread(target=storm)
        thread.start()
        taken = 0

        def handler() -> None:
            nonlocal taken
            taken += 1

        machine.interrupts.attach(1, handler)
        assert not machine.wait(lambda: False, 0.2)
        over.set()
        thread.join()
        assert taken
    machine.close()


@pytest.mark.parametrize(("profile", "confidential"), [("bare", False), ("bounced", True), ("hardened", True)])
def test_what_a_back_end_is_given_of_the_guest(profile: str, *, confidential: bool) -> None:
    """It has the files, whatever it was told of them: the private pages are in none."""
    machine = RealTimeMachine(PROFILES[profile], 1)
    with ScriptedBackend() as back, back.frontend() as frontend:
        transport = BackendTransport(machine, frontend, DeviceType.BLOCK)
        files = back.fds[R.ADD_MEM_REG]
        assert sum(os.fstat(fd).st_size for fd in files) == sum(size for _, size in machine.memory.shared_ranges())
        everything = b"".join(os.pread(fd, os.fstat(fd).st_size, 0) for fd in files)
        assert (machine.secrets.found_in(everything) is None) is confidential
        assert (len(everything) < machine.memory.size) is confidential
        for fd in files:
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)
        assert transport.queue_size_max(0)
    machine.close()


def test_a_session_s_memory_ends_with_it() -> None:
    machine = RealTimeMachine(PROFILES["hardened"], 1)
    with ScriptedBackend() as back, ScriptedBackend() as later:
        with back.frontend() as frontend:
            BackendTransport(machine, frontend, DeviceType.BLOCK)
        with later.frontend() as frontend:
            BackendTransport(machine, frontend, DeviceType.BLOCK)
        ((start, _),) = machine.memory.shared_ranges()
        machine.memory.write(start, b"for the second")
        old, new = back.fds[R.ADD_MEM_REG][0], later.fds[R.ADD_MEM_REG][0]
        assert os.pread(new, 14, 0) == b"for the second"
        assert os.pread(old, 14, 0) != b"for the second"
    machine.close()


class Scribbler:
    """A back end's memory, of which a thread rewrites pieces all the time."""

    def __init__(self, ranges: list[tuple[int, int]], memory: SharedMemory) -> None:
        self._ranges = ranges
        self._reach = memory
        self._over = threading.Event()
        self.writes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        dice = random.Random(8)
        while not self._over.is_set():
            start, size = dice.choice(self._ranges)
            at = dice.randrange(size)
            self._reach.write(start + at, dice.randbytes(min(dice.randrange(1, 9), size - at)))
            self.writes += 1

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_a_back_end_that_rewrites_all_it_has_while_the_guest_works(tmp_path: Path) -> None:
    """Rings and bounce buffers, at any moment: the driver refuses or goes on, and its own memory stays whole."""
    path, refused = tmp_path / "socket", 0
    for _ in range(4):
        with (Served(make_device(DeviceType.BLOCK), path) as served,
              guest(path, DeviceType.BLOCK) as (machine, transport)):
            driver = BlkDriver(machine, transport)
            driver.probe()
            assert machine.pool is not None
            assert served.backend.session is not None
            queue = driver.queues[0]
            ring = [(address, 64) for address in queue.areas]
            scribbler = Scribbler([*ring, (machine.pool.start, 16 << 10)], served.backend.session._memory)
            try:
                for sector in range(20):
                    try:
                        assert len(driver.read(sector, 4)) == 2048
                    except REFUSALS:
                        refused += 1
                        break
            finally:
                scribbler.end()
            assert scribbler.writes
            driver.remove()
            machine.heap.check_all()
            assert machine.heap.reports == []
    assert refused
