"""The 9p device: what it serves, and that nobody gets out of the directory."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.p9 import P9Device
from chamber.device.p9_server import P9Server
from chamber.device.sample_content import MANY, SAMPLE
from chamber.wire.errors import WireError
from chamber.wire.p9 import CONFIG, NO_FID, NO_TAG, NO_UID, VERSION, LockStatus, LockType, OpenFlag, P9Feature, QidType
from chamber.wire.p9_messages import FIELDS, HEADER, Message, MessageType, decode, dirents, encode
from tests.device.driver import Driver
from tests.wire.test_p9 import VALUES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.wire.p9_messages import Value

M = MessageType
MSIZE = 8192


class Client:
    """Asks a server, and takes errors for what they are."""

    def __init__(self, root: Path, *, attach: bool = True, **options: object) -> None:
        self.server = P9Server(root, **options)  # type: ignore[arg-type]
        if attach:
            self.ask(M.TVERSION, msize=MSIZE, version=VERSION)
            self.ask(M.TATTACH, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0)

    def raw(self, kind: MessageType, room: int = MSIZE, /, **values: Value) -> Message:
        tag = NO_TAG if kind is M.TVERSION else 5
        reply = decode(self.server.handle(encode(kind, tag, **values), room))
        assert reply.tag == tag
        return reply

    def ask(self, kind: MessageType, /, **values: Value) -> Message:
        reply = self.raw(kind, **values)
        assert reply.type == kind + 1, reply
        return reply

    def error(self, kind: MessageType, /, **values: Value) -> int:
        reply = self.raw(kind, **values)
        assert reply.type is M.RLERROR, reply
        return reply.number("ecode")

    def walk(self, fid: int, *names: bytes) -> Message:
        return self.ask(M.TWALK, fid=0, newfid=fid, names=names)

    def open(self, fid: int, *names: bytes, flags: int = OpenFlag.RDWR) -> Message:
        self.walk(fid, *names)
        return self.ask(M.TLOPEN, fid=fid, flags=flags)

    def setattr(self, fid: int, valid: int, **values: int) -> Message:
        given = dict.fromkeys((m.name for m in FIELDS[M.TSETATTR]), 0) | values | {"fid": fid, "valid": valid}
        return self.raw(M.TSETATTR, **given)


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "out").symlink_to("../secret")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    return tmp_path


@pytest.fixture
def client(outer: Path) -> Iterator[Client]:
    client = Client(outer / "root")
    yield client
    client.server.close()


def test_device_serves_its_sample_tree_and_removes_it() -> None:
    device = P9Device()
    tree = device._tree()
    driver = Driver(device)
    assert device.offered_features() >> P9Feature.MOUNT_TAG & 1
    length = CONFIG.get(device.read_config(0, CONFIG.size), "tag_len")
    assert device.read_config(2, length) == b"chamber"
    reply = driver.request(0, [encode(M.TVERSION, NO_TAG, msize=MSIZE, version=VERSION)], [64])
    assert decode(reply).values == {"msize": MSIZE, "version": VERSION}
    assert driver.request(0, [encode(M.TATTACH, 1, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0)], [64])
    walk = encode(M.TWALK, 2, fid=0, newfid=1, names=(b"dir", b"inner"))
    for cut in (1, 7, 12, 20):
        reply = driver.request(0, [walk[:cut], walk[cut:]], [5, 30, 40])
        assert [q.type for q in decode(reply).qids()] == [QidType.DIR, QidType.FILE]
        driver.request(0, [encode(M.TCLUNK, 3, fid=1)], [16])
    assert (tree / "dir" / "inner").read_bytes() == SAMPLE["dir/inner"]
    assert device.server.held == 1
    device.reset()
    assert device.server.held == 0
    device.close()
    device.close()
    assert not tree.exists()


@pytest.mark.parametrize("request_bytes", [
    b"", b"\0", HEADER.pack(6, M.TCLUNK, 1), HEADER.pack(1 << 20, M.TREAD, 1), HEADER.pack(0xFFFFFFFF, M.TVERSION, 1),
    HEADER.pack(20, M.TCLUNK, 1),
])
def test_what_is_no_message_is_given_back_without_a_reply(tmp_path: Path, request_bytes: bytes) -> None:
    device = P9Device(tmp_path)
    driver = Driver(device)
    assert driver.request(0, [request_bytes] if request_bytes else [], [64]) == b""
    assert device.violations
    assert driver.request(0, [encode(M.TVERSION, NO_TAG, msize=MSIZE, version=VERSION)], [10]) == b""
    assert decode(driver.request(0, [encode(M.TVERSION, NO_TAG, msize=MSIZE, version=VERSION)], [64]))
    device.close()


def test_session_is_negotiated(outer: Path) -> None:
    client = Client(outer / "root", attach=False)
    assert client.error(M.TATTACH, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0) == errno.EPROTO
    assert client.ask(M.TVERSION, msize=MSIZE, version=b"9P2000").text("version") == b"unknown"
    assert client.ask(M.TVERSION, msize=100, version=VERSION).text("version") == b"unknown"
    assert client.server.msize == 0
    assert client.ask(M.TVERSION, msize=0xFFFFFFFF, version=VERSION).number("msize") == 512 << 10
    assert client.error(M.TAUTH, afid=1, uname=b"", aname=b"", n_uname=0) == errno.EOPNOTSUPP
    assert client.error(M.TATTACH, fid=0, afid=3, uname=b"", aname=b"", n_uname=0) == errno.EBADF
    client.ask(M.TATTACH, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0)
    assert client.error(M.TATTACH, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0) == errno.EBADF
    client.ask(M.TFLUSH, oldtag=77)
    client.ask(M.TVERSION, msize=MSIZE, version=VERSION)
    assert client.server.held == 0
    assert client.error(M.RVERSION, msize=1, version=b"") == errno.EPROTO
    client.server.close()


@pytest.mark.parametrize("names", [
    (b"..",), (b"dir", b".."), (b"../secret",), (b"/etc",), (b"",), (b".",), (b"a\0b",), (b"up", b"secret"),
    (b"out", b"x"), (b"n" * 256,), (b"dir", b"..", b"..", b"secret"),
])
def test_no_walk_leads_out(client: Client, names: tuple[bytes, ...]) -> None:
    reply = client.raw(M.TWALK, fid=0, newfid=1, names=names)
    assert reply.type is M.RLERROR or len(reply.qids()) < len(names)
    assert client.server.held == 1


def test_links_are_named_and_not_followed(client: Client, outer: Path) -> None:
    assert client.walk(1, b"out").qids()[0].type == QidType.SYMLINK
    assert client.ask(M.TREADLINK, fid=1).text("target") == b"../secret"
    assert client.error(M.TLOPEN, fid=1, flags=0) == errno.EACCES
    assert client.setattr(1, 8, size=0).number("ecode") == errno.EINVAL
    assert client.setattr(1, 1, mode=0o777).number("ecode") == errno.EOPNOTSUPP
    client.walk(2)
    assert client.error(M.TLCREATE, fid=2, name=b"out", flags=2, mode=0o644, gid=NO_UID) == errno.EACCES
    assert (outer / "secret").read_text() == "outside"
    client.ask(M.TLINK, dfid=0, fid=1, name=b"again")
    assert os.readlink(outer / "root" / "again") == "../secret"


def test_a_directory_swapped_for_a_link_stays_what_it_was(client: Client, outer: Path) -> None:
    client.walk(1, b"dir")
    (outer / "root" / "dir").rename(outer / "root" / "moved")
    (outer / "root" / "dir").symlink_to("..")
    client.ask(M.TLCREATE, fid=1, name=b"new", flags=2, mode=0o644, gid=NO_UID)
    assert (outer / "root" / "moved" / "new").exists()
    assert not (outer / "new").exists()
    client.walk(2, b"moved", b"new")
    (outer / "root" / "moved" / "new").unlink()
    (outer / "root" / "moved" / "new").write_text("another")
    assert client.error(M.TRENAME, fid=2, dfid=0, name=b"x") == errno.ESTALE
    assert client.error(M.TREMOVE, fid=2) == errno.ESTALE
    assert client.error(M.TCLUNK, fid=2) == errno.EBADF


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFLNK, stat.S_IFDIR])
def test_no_device_node_is_made(client: Client, mode: int) -> None:
    assert client.error(M.TMKNOD, dfid=0, name=b"null", mode=mode | 0o666, major=1, minor=3, gid=NO_UID) == errno.EPERM


def test_what_would_block_is_not_opened(client: Client) -> None:
    client.walk(1, b"pipe")
    assert client.error(M.TLOPEN, fid=1, flags=0) == errno.EACCES
    client.ask(M.TMKNOD, dfid=0, name=b"other", mode=stat.S_IFIFO | 0o600, major=0, minor=0, gid=NO_UID)
    client.walk(2)
    assert client.error(M.TLCREATE, fid=2, name=b"other", flags=1, mode=0, gid=NO_UID) == errno.EACCES


def test_no_set_id_bits(client: Client, outer: Path) -> None:
    client.walk(1)
    client.ask(M.TLCREATE, fid=1, name=b"new", flags=2, mode=0o6755, gid=NO_UID)
    assert client.setattr(1, 1, mode=0o7777).type is M.RSETATTR
    assert stat.S_IMODE((outer / "root" / "new").stat().st_mode) == 0o1777


def test_attributes_of_other_name_spaces_are_refused(client: Client) -> None:
    client.walk(1, b"file")
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access", b"user.a\0b", b"x"):
        assert client.error(M.TXATTRWALK, fid=1, newfid=2, name=name) == errno.EOPNOTSUPP
        client.walk(3, b"file")
        client.ask(M.TXATTRCREATE, fid=3, name=name, attr_size=1, flags=0)
        client.ask(M.TWRITE, fid=3, offset=0, data=b"v")
        assert client.error(M.TCLUNK, fid=3) == errno.EOPNOTSUPP
    assert client.error(M.TXATTRCREATE, fid=1, name=b"user.a", attr_size=1 << 40, flags=0) == errno.E2BIG


def test_an_attribute_is_set_as_announced_or_not_at_all(client: Client) -> None:
    client.walk(1, b"file")
    client.ask(M.TXATTRCREATE, fid=1, name=b"user.a", attr_size=4, flags=0)
    assert client.error(M.TWRITE, fid=1, offset=1, data=b"v") == errno.EINVAL
    assert client.error(M.TWRITE, fid=1, offset=0, data=b"value") == errno.EINVAL
    client.ask(M.TWRITE, fid=1, offset=0, data=b"va")
    assert client.error(M.TCLUNK, fid=1) == errno.EIO
    client.walk(1, b"file")
    assert client.ask(M.TXATTRWALK, fid=1, newfid=2, name=b"").number("size") == 0


def test_files_are_written_and_read(client: Client, outer: Path) -> None:
    opened = client.open(1, b"file")
    assert opened.number("iounit") == MSIZE - 24
    assert client.ask(M.TREAD, fid=1, offset=2, count=1000).text("data") == b"ntent"
    assert client.ask(M.TWRITE, fid=1, offset=1 << 20, data=b"far").number("count") == 3
    assert len(client.ask(M.TREAD, fid=1, offset=0, count=0xFFFFFFFF).text("data")) == MSIZE - 11
    assert (outer / "root" / "file").stat().st_size == (1 << 20) + 3
    for offset in (1 << 63, (1 << 64) - 1):
        assert client.error(M.TWRITE, fid=1, offset=offset, data=b"x") == errno.EFBIG
        assert client.error(M.TREAD, fid=1, offset=offset, count=1) == errno.EINVAL
    assert client.error(M.TLOPEN, fid=1, flags=0) == errno.EBUSY
    assert client.error(M.TREAD, fid=9, offset=0, count=1) == errno.EBADF
    assert client.error(M.TREADDIR, fid=1, offset=0, count=100) == errno.ENOTDIR
    assert client.setattr(1, 0x1FF | 1 << 9).number("ecode") == errno.EINVAL
    assert client.setattr(1, 0x180 | 0x30, atime_sec=1 << 63).number("ecode") == errno.EINVAL


def test_a_list_is_whole_however_small_the_replies(tmp_path: Path) -> None:
    for name in MANY:
        (tmp_path / name).touch()
    client = Client(tmp_path)
    client.open(1, flags=0)
    names: list[bytes] = []
    offset = 0
    while entries := list(dirents(client.ask(M.TREADDIR, fid=1, offset=offset, count=700).text("data"))):
        names += [entry.name for entry in entries]
        offset = entries[-1].offset
    assert names == [b".", b"..", *(name.encode() for name in MANY)]
    assert client.error(M.TREADDIR, fid=1, offset=0, count=5) == errno.EINVAL
    assert not client.ask(M.TREADDIR, fid=1, offset=(1 << 63) + 5, count=700).text("data")
    client.server.close()


def test_locks_of_two_holders(client: Client) -> None:
    lock: dict[str, Value] = {"type": int(LockType.WRLCK), "start": 0, "length": 10, "proc_id": 1, "client_id": b"me"}
    for fid in (1, 2):
        client.open(fid, b"file")
    assert client.ask(M.TLOCK, fid=1, flags=0, **lock).number("status") == LockStatus.SUCCESS
    assert client.ask(M.TLOCK, fid=2, flags=0, **lock).number("status") == LockStatus.BLOCKED
    answer = client.ask(M.TGETLOCK, fid=2, **lock)
    assert (answer.number("type"), answer.number("start"), answer.number("length")) == (LockType.WRLCK, 0, 10)
    client.ask(M.TCLUNK, fid=1)
    assert client.ask(M.TLOCK, fid=2, flags=0, **lock).number("status") == LockStatus.SUCCESS
    for wrong in ({"type": 9}, {"start": 1 << 63}, {"length": (1 << 64) - 1}):
        assert client.error(M.TGETLOCK, fid=2, **{**lock, **wrong}) == errno.EINVAL


def test_what_a_client_holds_is_bounded(outer: Path) -> None:
    client = Client(outer / "root", max_fids=20)
    before = len(os.listdir("/proc/self/fd"))
    refused = 0
    for fid in range(1, 200):
        refused += client.raw(M.TWALK, fid=0, newfid=fid, names=(b"dir",)).type is M.RLERROR
    assert refused == 199 - 19
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 20
    client.server.reset()
    assert len(os.listdir("/proc/self/fd")) <= before
    client.server.close()


def test_read_only(outer: Path) -> None:
    client = Client(outer / "root", read_only=True)
    client.walk(1, b"file")
    for flags in (OpenFlag.RDWR, OpenFlag.WRONLY, OpenFlag.TRUNC):
        assert client.error(M.TLOPEN, fid=1, flags=flags) == errno.EROFS
    assert client.error(M.TMKDIR, dfid=0, name=b"x", mode=0, gid=NO_UID) == errno.EROFS
    assert client.error(M.TUNLINKAT, dirfid=0, name=b"file", flags=0) == errno.EROFS
    assert client.setattr(1, 8).number("ecode") == errno.EROFS
    client.ask(M.TLOPEN, fid=1, flags=0)
    assert client.ask(M.TREAD, fid=1, offset=0, count=10).text("data") == b"content"
    client.server.close()


def test_reply_fits_its_room(client: Client) -> None:
    client.walk(1, b"file")
    assert client.raw(M.TGETATTR, 100, fid=1, request_mask=0x7FF).number("ecode") == errno.EMSGSIZE
    client.ask(M.TLOPEN, fid=1, flags=0)
    assert client.raw(M.TREAD, 14, fid=1, offset=0, count=100).text("data") == b"con"
    with pytest.raises(WireError):
        client.server.handle(encode(M.TCLUNK, 1, fid=1), 10)


NAMES = st.sampled_from([b"file", b"dir", b"out", b"up", b"pipe", b"..", b"a", b"b", b"../secret", b"", b"/"])
SMALL = st.integers(0, 6)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([k for k in M if k.is_request and k is not M.TVERSION]))
    values: dict[str, Value] = {}
    for member in FIELDS[kind]:
        if "name" in member.name and member.kind.name == "STRING":
            values[member.name] = draw(NAMES)
        elif member.name == "names":
            values[member.name] = tuple(draw(st.lists(NAMES, max_size=3)))
        elif member.name.endswith("fid"):
            values[member.name] = draw(SMALL)
        else:
            values[member.name] = draw(st.one_of(VALUES[member.kind], SMALL) if member.kind.name[0] == "U"
                                       else VALUES[member.kind])
    return encode(kind, 1, **values)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), max_size=60))
def test_no_sequence_of_requests_reaches_outside_or_breaks_the_server(messages: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder)
        (outer / "secret").write_text("outside")
        root = outer / "root"
        (root / "dir").mkdir(parents=True)
        (root / "file").write_bytes(b"content")
        (root / "out").symlink_to("../secret")
        (root / "up").symlink_to("..")
        status = (outer / "secret").stat()
        client = Client(root)
        for message in messages:
            reply = client.server.handle(message, MSIZE)
            assert len(reply) <= MSIZE
            assert decode(reply).type in {message[4] + 1, M.RLERROR}
        client.server.close()
        assert sorted(os.listdir(outer)) == ["root", "secret"]
        assert (outer / "secret").read_text() == "outside"
        now = (outer / "secret").stat()
        assert (now.st_mode, now.st_mtime_ns, now.st_nlink, now.st_uid) == (
            status.st_mode, status.st_mtime_ns, status.st_nlink, status.st_uid)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 200))
def test_any_bytes_are_answered_or_refused(data: bytes, room: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        client = Client(Path(folder))
        try:
            reply = client.server.handle(data, room)
        except WireError:
            reply = b""
        assert len(reply) <= room
        client.server.close()
