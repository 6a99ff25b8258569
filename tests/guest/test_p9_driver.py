"""The 9p client: an honest server serves it, and no reply whatever makes it misuse memory or hang."""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.hooks import Hooks
from chamber.device.p9 import P9Device
from chamber.device.sample_content import BIG, MANY
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.p9 import Lock, P9Driver
from chamber.guest.drivers.p9_channel import P9Error
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.p9 import STIMULI
from chamber.wire.p9 import LockType, OpenFlag, Qid, QidType
from chamber.wire.p9_messages import FIELDS, HEADER, Dirent, MessageType, encode, pack_dirent
from tests.wire.test_p9 import VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

M = MessageType


class Liar(Hooks):
    """Answers requests of one type otherwise, once the driver is mounted."""

    def __init__(self) -> None:
        self.lie: Callable[[bytes], bytes] | None = None
        self.kind = M.RLERROR

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        return data if self.lie is None or data[4] != self.kind else self.lie(data)


@contextmanager
def mounted(liar: Liar | None = None, profile: str = "hardened") -> Iterator[P9Driver]:
    machine = GuestMachine(PROFILES[profile], 1)
    device = P9Device(hooks=liar)
    driver = P9Driver(machine, ModelTransport(machine, device))
    try:
        driver.probe()
        yield driver
        driver.remove()
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports
        assert not device.violations
    finally:
        device.close()
        machine.close()


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    with mounted(profile=profile) as driver:
        STIMULI[stimulus](driver, driver.machine, lambda _action: None)
        assert list(driver._fids) == [driver.root.number]
        assert not driver._tags_used


def test_tag_of_the_device() -> None:
    with mounted() as driver:
        assert driver.tag == b"chamber"


def test_reads_of_any_place_and_size() -> None:
    with mounted() as driver, driver.at(b"big") as fid:
        driver.open(fid)
        for offset, count in ((0, 1), (1, 8191), (0, 8192), (5, 8193), (0, 32768), (100, 100000), (len(BIG), 5)):
            assert driver.read(fid, offset, count) == BIG[offset:offset + count]


def test_paths_longer_than_one_walk() -> None:
    with mounted() as driver:
        names = tuple(b"d%d" % i for i in range(40))
        for depth in range(40):
            with driver.at(*names[:depth]) as fid:
                driver.mkdir(fid, names[depth], 0o755)
        with driver.at(*names) as fid:
            assert len(fid.above) == 40
        assert list(driver._fids) == [driver.root.number]


def test_errors_are_the_servers() -> None:
    with mounted() as driver:
        for call, code in ((lambda: driver.walk(driver.root, b"none"), errno.ENOENT),
                           (lambda: driver.walk(driver.root, b"dir", b"none"), errno.ENOENT),
                           (lambda: driver.unlink(driver.root, b"dir"), errno.EISDIR),
                           (lambda: driver.unlink(driver.root, b"dir", is_dir=True), errno.ENOTEMPTY),
                           (lambda: driver.mkdir(driver.root, b"dir", 0o755), errno.EEXIST)):
            with pytest.raises(P9Error) as refusal:
                call()
            assert refusal.value.errno == code


def listed(*entries: Dirent) -> Callable[[bytes], bytes]:
    return lambda data: encode(M.RREADDIR, HEADER.unpack_from(data)[2], data=b"".join(map(pack_dirent, entries)))


def replied(kind: MessageType, **values: object) -> Callable[[bytes], bytes]:
    return lambda data: encode(kind, HEADER.unpack_from(data)[2], **values)  # type: ignore[arg-type]


def list_many(driver: P9Driver) -> list[Dirent]:
    with driver.at(b"many") as fid:
        driver.open(fid, OpenFlag.DIRECTORY)
        return driver.readdir(fid)


FILE = Qid(0, 0, 77)


@pytest.mark.parametrize(("kind", "lie", "rule"), [
    (M.RWALK, lambda d: d[:4] + bytes((M.RREAD,)) + d[5:], "of the type of its request"),
    (M.RWALK, lambda d: d[:5] + b"\x09\x09" + d[7:], "has the tag of its request"),
    (M.RWALK, lambda d: d + b"x", "as long as it says"),
    (M.RWALK, lambda d: d[:6], "has a header"),
    (M.RWALK, replied(M.RLERROR, ecode=0), "from 1 to 4095"),
    (M.RWALK, replied(M.RLERROR, ecode=4096), "from 1 to 4095"),
    (M.RWALK, replied(M.RWALK, qids=(FILE, FILE)), "no more"),
    (M.RWALK, replied(M.RWALK, qids=(Qid(9, 0, 1),)), "a file, a link or a directory"),
    (M.RLOPEN, replied(M.RLOPEN, qid=FILE, iounit=0), "stays the file that it was"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"a/b")), "without a slash"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"")), "1 to 255 bytes"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"x" * 256)), "1 to 255 bytes"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"..")), "are directories"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 9, b"x")), "readdir(3) has"),
    (M.RREADDIR, listed(Dirent(Qid(QidType.DIR, 0, 5), 5, 8, b"x")), "agree"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"x"), Dirent(FILE, 6, 8, b"x")), "once"),
    (M.RREADDIR, listed(Dirent(FILE, 5, 8, b"x"), Dirent(FILE, 5, 8, b"y")), "goes on and not back"),
])
def test_lies_are_named(kind: MessageType, lie: Callable[[bytes], bytes], rule: str) -> None:
    liar = Liar()
    with mounted(liar) as driver:
        liar.kind, liar.lie = kind, lie
        with pytest.raises(DeviceViolation) as caught:
            list_many(driver)
        assert rule in caught.value.rule
        liar.lie = None
        assert len(list_many(driver)) == len(MANY)


def everything(driver: P9Driver) -> None:
    with driver.at(b"hello") as fid:
        driver.getattr(fid)
        driver.xattr(fid)
        driver.open(fid, OpenFlag.RDWR)
        driver.read(fid, 0, 40000)
        driver.write(fid, 0, b"hello")
        driver.lock(fid, Lock(LockType.RDLCK))
        driver.getlock(fid, Lock(LockType.WRLCK, 5, 5))
        driver.fsync(fid)
    with driver.at(b"many") as fid:
        driver.open(fid)
        driver.readdir(fid)
    with driver.at(b"link") as fid:
        driver.readlink(fid)
    driver.statfs()
    driver.mkdir(driver.root, b"new", 0o755)
    with driver.at() as fid:
        driver.create(fid, b"file", OpenFlag.RDWR, 0o644)


REPLIES = [kind for kind in M if not kind.is_request and kind not in {
    M.RLERROR, M.RVERSION, M.RATTACH, M.RAUTH, M.RFLUSH, M.RMKNOD, M.RSYMLINK, M.RRENAME, M.RRENAMEAT, M.RLINK,
    M.RREMOVE, M.RUNLINKAT, M.RSETATTR, M.RXATTRCREATE}]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(REPLIES), st.sampled_from(["body", "fields", "bytes", "error"]))
def test_no_reply_breaks_the_guest(data: st.DataObject, kind: MessageType, how: str) -> None:
    liar = Liar()
    values = {member.name: data.draw(VALUES[member.kind]) for member in FIELDS[kind]}
    body = data.draw(st.binary(max_size=300))
    lies: dict[str, Callable[[bytes], bytes]] = {
        "body": lambda reply: HEADER.pack(7 + len(body), kind, HEADER.unpack_from(reply)[2]) + body,
        "fields": replied(kind, **values),
        "bytes": lambda _reply: body,
        "error": lambda reply: HEADER.pack(7 + len(body), M.RLERROR, HEADER.unpack_from(reply)[2]) + body}
    with mounted(liar) as driver:
        liar.kind, liar.lie = kind, lies[how]
        with suppress(DeviceViolation, Refused, DeviceTimeout):
            everything(driver)
        liar.lie = None


def test_a_request_given_up_keeps_its_buffers_and_its_tag() -> None:
    class Silent(Liar):
        silent = False

        def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
            return not self.silent

    liar = Silent()
    with mounted(liar) as driver:
        liar.silent = True
        for count in (1, 2):
            with pytest.raises(DeviceTimeout):
                driver.statfs()
            assert len(driver._tags_used) == 2 * count  # the request's, and that of the Tflush after it
        liar.silent = False
        assert driver.statfs().blocks
