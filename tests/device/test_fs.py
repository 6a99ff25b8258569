"""The file system device: what it serves, and that nobody gets out of the directory."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.fs import FsDevice
from chamber.device.fuse_server import MAX_WRITE, FuseServer, ReadInPlace
from chamber.device.sample_content import MANY, SAMPLE
from chamber.wire import fuse
from chamber.wire.fs import CONFIG, HIPRIO_QUEUE, REQUEST_QUEUE
from chamber.wire.fuse import Attributes, Entry, InHeader, Opcode, OpenOut, SetattrValid
from tests.device.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Iterator

O = Opcode  # noqa: E741 - short for what every line names
INIT = fuse.INIT_IN.pack(fuse.MAJOR, fuse.MINOR, 0, 0)


class Client:
    """Asks a server, and takes errors for what they are."""

    def __init__(self, root: Path, *, init: bool = True, read_only: bool = False) -> None:
        self.server = FuseServer(root, read_only=read_only)
        if init:
            self.ask(O.INIT, 0, INIT)

    def raw(self, operation: int, nodeid: int, body: bytes = b"") -> bytes | int | None:
        header = InHeader(fuse.IN_HEADER.size + len(body), operation, 2, nodeid, os.geteuid(), os.getegid())
        reply = self.server.handle(header, body)
        if isinstance(reply, ReadInPlace):
            return os.pread(reply.fd, reply.size, reply.offset)
        return reply

    def ask(self, operation: Opcode, nodeid: int, body: bytes = b"") -> bytes:
        reply = self.raw(operation, nodeid, body)
        assert isinstance(reply, bytes), errno.errorcode.get(reply or 0)
        return reply

    def error(self, operation: int, nodeid: int, body: bytes = b"") -> int:
        reply = self.raw(operation, nodeid, body)
        assert isinstance(reply, int)
        return reply

    def lookup(self, *names: bytes) -> Entry:
        number = fuse.ROOT_ID
        for name in names:
            entry = Entry.parse(self.ask(O.LOOKUP, number, name + b"\0"))
            number = entry.nodeid
        return entry

    def open(self, *names: bytes, flags: int = os.O_RDWR) -> int:
        return OpenOut.parse(self.ask(O.OPEN, self.lookup(*names).nodeid, fuse.OPEN_IN.pack(flags, 0))).fh

    def create(self, parent: int, name: bytes, mode: int = 0o644) -> tuple[Entry, int]:
        reply = self.ask(O.CREATE, parent, fuse.CREATE.pack(os.O_RDWR | os.O_CREAT, mode, 0, 0) + name + b"\0")
        return Entry.parse(reply), OpenOut.parse(reply, fuse.ENTRY_SIZE).fh

    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.ask(O.READ, 0, fuse.READ.pack(fh, offset, size, 0, 0, 0, 0))

    def setattr(self, nodeid: int, valid: int, *, size: int = 0, mode: int = 0) -> bytes | int | None:
        return self.raw(O.SETATTR, nodeid,
                        fuse.SETATTR.pack(valid, 0, 0, size, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0))


def write(fh: int, offset: int, data: bytes, size: int | None = None) -> bytes:
    return fuse.WRITE.pack(fh, offset, len(data) if size is None else size, 0, 0, 0, 0) + data


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


# The device.

def _request(operation: Opcode, nodeid: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    size = fuse.IN_HEADER.size + len(body)
    return InHeader(size if length is None else length, operation, 2, nodeid).build() + body


def test_device_serves_its_sample_tree_and_removes_it() -> None:
    device = FsDevice()
    driver = Driver(device)
    tag = device.read_config(0, CONFIG.size)[:36].rstrip(b"\0")
    assert tag == b"chamber"
    reply = driver.request(REQUEST_QUEUE, [_request(O.INIT, 0, INIT)], [fuse.OUT_HEADER.size, fuse.INIT_OUT.size])
    assert fuse.OUT_HEADER.unpack_from(reply) == (80, 0, 2)
    for cut in (1, 30, 41):
        request = _request(O.LOOKUP, 1, b"hello\0")
        reply = driver.request(REQUEST_QUEUE, [request[:cut], request[cut:]], [5, 30, 200])
        assert Entry.parse(reply, fuse.OUT_HEADER.size).attributes.size == len(SAMPLE["hello"])
    assert driver.request(HIPRIO_QUEUE, [_request(O.FORGET, 2, fuse.FORGET.pack(3))], []) == b""
    reply = driver.request(REQUEST_QUEUE, [_request(O.GETATTR, 2, fuse.GETATTR.pack(0, 0, 0))], [200])
    assert fuse.OUT_HEADER.unpack(reply) == (16, -errno.ESTALE, 2)
    device.close()
    assert not device.path.exists()


@pytest.mark.parametrize("request_bytes", [
    b"", b"\0", bytes(39), _request(O.LOOKUP, 1, b"hello\0", length=0), _request(O.LOOKUP, 1, b"x\0", length=1 << 31),
    _request(O.GETATTR, 1, length=39),
])
def test_what_is_no_request_is_refused(tmp_path: Path, request_bytes: bytes) -> None:
    device = FsDevice(tmp_path)
    driver = Driver(device)
    reply = driver.request(REQUEST_QUEUE, [request_bytes] if request_bytes else [], [64])
    assert not reply or fuse.OUT_HEADER.unpack(reply)[1] == -errno.EINVAL
    assert device.violations
    assert driver.request(REQUEST_QUEUE, [_request(O.INIT, 0, INIT)], [80])
    device.close()


def test_replies_fit_their_room(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    device = FsDevice(tmp_path)
    driver = Driver(device)
    driver.request(REQUEST_QUEUE, [_request(O.INIT, 0, INIT)], [80])
    assert driver.request(REQUEST_QUEUE, [_request(O.LOOKUP, 1, b"f\0")], [15]) == b""
    short = driver.request(REQUEST_QUEUE, [_request(O.LOOKUP, 1, b"f\0")], [16])
    assert fuse.OUT_HEADER.unpack(short) == (16, -errno.ERANGE, 2)
    driver.request(REQUEST_QUEUE, [_request(O.OPEN, 2, fuse.OPEN_IN.pack(0, 0))], [32])
    for room in (16, 17, 20, 26, 500):
        reply = driver.request(REQUEST_QUEUE, [_request(O.READ, 2, fuse.READ.pack(1, 0, 9, 0, 0, 0, 0))], [room])
        assert reply[16:] == b"012345678"[:room - 16]
        assert fuse.OUT_HEADER.unpack_from(reply)[0] == len(reply)
    assert driver.request(REQUEST_QUEUE, [_request(O.READ, 2, fuse.READ.pack(1, 0, 9, 0, 0, 0, 0))], []) == b""
    device.close()


def test_read_in_place_reaches_every_buffer(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "f").write_bytes(content)
    device = FsDevice(tmp_path)
    driver = Driver(device, memory=4 << 20)
    driver.request(REQUEST_QUEUE, [_request(O.INIT, 0, INIT)], [80])
    driver.request(REQUEST_QUEUE, [_request(O.LOOKUP, 1, b"f\0")], [200])
    driver.request(REQUEST_QUEUE, [_request(O.OPEN, 2, fuse.OPEN_IN.pack(0, 0))], [32])
    for head in ([16], [10, 6], [3, 5, 8, 1]):
        reply = driver.request(REQUEST_QUEUE, [_request(O.READ, 2, fuse.READ.pack(1, 0, 400_000, 0, 0, 0, 0))],
                               [*head, 4096, 100_000, 1, 300_000])
        assert reply[16:] == content
    device.close()


@pytest.mark.parametrize("tag", ["", "x" * 37, "ä" * 19])
def test_bad_tags(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ValueError, match="36 bytes"):
        FsDevice(tmp_path, tag=tag)


# The session.

def test_nothing_before_init(outer: Path) -> None:
    client = Client(outer / "root", init=False)
    assert client.error(O.LOOKUP, 1, b"file\0") == errno.EIO
    assert client.error(O.INIT, 0, fuse.INIT_IN.pack(7, 12, 0, 0)) == errno.EPROTO
    assert client.error(O.INIT, 0, b"") == errno.EINVAL
    client.ask(O.INIT, 0, INIT)
    client.lookup(b"file")
    client.ask(O.DESTROY, 0)
    assert client.error(O.LOOKUP, 1, b"file\0") == errno.EIO
    assert client.error(9999, 1) == errno.ENOSYS


def test_numbers_are_never_used_again(client: Client) -> None:
    first = client.lookup(b"file")
    assert client.lookup(b"file").nodeid == first.nodeid
    client.raw(O.FORGET, first.nodeid, fuse.FORGET.pack(1))
    client.ask(O.GETATTR, first.nodeid, fuse.GETATTR.pack(0, 0, 0))
    client.raw(O.BATCH_FORGET, 0, fuse.BATCH_FORGET.pack(500, 0) + fuse.FORGET_ONE.pack(first.nodeid, 1 << 63))
    assert client.error(O.GETATTR, first.nodeid) == errno.ESTALE
    assert client.lookup(b"file").nodeid != first.nodeid
    client.raw(O.FORGET, fuse.ROOT_ID, fuse.FORGET.pack((1 << 64) - 1))
    client.lookup(b"dir")


# Nobody gets out.

@pytest.mark.parametrize("name", [b"..", b".", b"../secret", b"/etc", b"dir/..", b"n" * 256])
@pytest.mark.parametrize(("operation", "head"), [
    (O.LOOKUP, b""), (O.MKDIR, fuse.MKDIR.pack(0o755, 0)), (O.CREATE, fuse.CREATE.pack(os.O_RDWR, 0o644, 0, 0)),
    (O.UNLINK, b""), (O.RMDIR, b""), (O.MKNOD, fuse.MKNOD.pack(stat.S_IFREG | 0o644, 0, 0, 0)),
])
def test_no_name_leads_out(client: Client, outer: Path, operation: Opcode, head: bytes, name: bytes) -> None:
    assert client.error(operation, 1, head + name + b"\0") in {errno.EINVAL, errno.EACCES, errno.ENAMETOOLONG}
    assert sorted(os.listdir(outer)) == ["root", "secret"]


@pytest.mark.parametrize("flags", [0, 1, 2])
@pytest.mark.parametrize("names", [(b"file", b"../moved"), (b"../secret", b"here"), (b"..", b"here"),
                                   (b"file", b".."), (b"file", b"/tmp/x")])
def test_no_rename_leads_out(client: Client, outer: Path, flags: int, names: tuple[bytes, bytes]) -> None:
    body = fuse.RENAME2.pack(1, flags, 0) + b"".join(name + b"\0" for name in names)
    assert client.error(O.RENAME2, 1, body) in {errno.EINVAL, errno.EACCES}
    assert sorted(os.listdir(outer)) == ["root", "secret"]
    assert (outer / "root" / "file").read_bytes() == b"content"


def test_links_are_named_and_not_followed(client: Client, outer: Path) -> None:
    link = client.lookup(b"out")
    assert stat.S_ISLNK(link.attributes.mode)
    assert client.ask(O.READLINK, link.nodeid) == b"../secret"
    assert client.error(O.OPEN, link.nodeid, fuse.OPEN_IN.pack(0, 0)) == errno.EACCES
    assert client.setattr(link.nodeid, SetattrValid.SIZE, size=0) == errno.EINVAL
    assert client.setattr(link.nodeid, SetattrValid.MODE, mode=0o777) == errno.EOPNOTSUPP
    assert client.error(O.LOOKUP, client.lookup(b"up").nodeid, b"secret\0") == errno.ENOTDIR
    create = fuse.CREATE.pack(os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644, 0, 0)
    assert client.error(O.CREATE, 1, create + b"out\0") == errno.EACCES
    client.ask(O.LINK, 1, fuse.LINK.pack(link.nodeid) + b"again\0")
    assert os.readlink(outer / "root" / "again") == "../secret"
    assert (outer / "secret").read_text() == "outside"


def test_a_directory_swapped_for_a_link_stays_what_it_was(client: Client, outer: Path) -> None:
    folder = client.lookup(b"dir").nodeid
    (outer / "root" / "dir").rename(outer / "root" / "moved")
    (outer / "root" / "dir").symlink_to("..")
    client.create(folder, b"new")
    assert (outer / "root" / "moved" / "new").exists()
    assert not (outer / "new").exists()


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFLNK, stat.S_IFDIR])
def test_no_device_node_is_made(client: Client, kind: int) -> None:
    assert client.error(O.MKNOD, 1, fuse.MKNOD.pack(kind | 0o666, os.makedev(1, 3), 0, 0) + b"null\0") == errno.EPERM


def test_what_would_block_is_not_opened(client: Client) -> None:
    assert client.error(O.OPEN, client.lookup(b"pipe").nodeid, fuse.OPEN_IN.pack(0, 0)) == errno.EACCES


def test_no_set_id_bits(client: Client, outer: Path) -> None:
    entry, _ = client.create(1, b"new", mode=0o6755)
    assert isinstance(client.setattr(entry.nodeid, SetattrValid.MODE, mode=0o7777), bytes)
    assert stat.S_IMODE((outer / "root" / "new").stat().st_mode) == 0o1777


def test_attributes_of_other_name_spaces_are_refused(client: Client) -> None:
    number = client.lookup(b"file").nodeid
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access", b"x"):
        assert client.error(O.SETXATTR, number, fuse.XATTR.pack(1, 0) + name + b"\0v") == errno.EOPNOTSUPP
        assert client.error(O.GETXATTR, number, fuse.XATTR.pack(9, 0) + name + b"\0") == errno.EOPNOTSUPP
        assert client.error(O.REMOVEXATTR, number, name + b"\0") == errno.EOPNOTSUPP


# Files.

def test_files_are_written_and_read(client: Client, outer: Path) -> None:
    fh = client.open(b"file")
    assert client.read(fh, 2, 1000) == b"ntent"
    assert client.ask(O.WRITE, 0, write(fh, 1 << 20, b"far")) == fuse.SIZE_OUT.pack(3, 0)
    assert (outer / "root" / "file").stat().st_size == (1 << 20) + 3
    assert len(client.read(fh, 0, (1 << 32) - 1)) == MAX_WRITE
    assert client.error(O.WRITE, 0, write(fh, 0, b"x", size=2)) == errno.EINVAL
    assert client.error(O.WRITE, 0, write(fh, (1 << 64) - 1, b"x")) in {errno.EINVAL, errno.EFBIG}
    assert client.error(O.WRITE, 0, write(99, 0, b"x")) == errno.EBADF
    client.ask(O.FSYNC, 0, fuse.FSYNC.pack(fh, 0, 0))
    hole = client.ask(O.LSEEK, 0, fuse.LSEEK.pack(fh, 1 << 19, os.SEEK_DATA, 0))
    assert fuse.OFFSET_OUT.unpack(hole)[0] <= 1 << 20
    client.ask(O.RELEASE, 0, fuse.RELEASE.pack(fh, 0, 0, 0))
    assert client.error(O.RELEASE, 0, fuse.RELEASE.pack(fh, 0, 0, 0)) == errno.EBADF


def test_a_range_is_copied(client: Client, outer: Path) -> None:
    source = client.open(b"file")
    entry, target = client.create(1, b"copy")
    body = fuse.COPY.pack(source, 1, entry.nodeid, target, 0, (1 << 64) - 1, 0)
    assert fuse.SIZE_OUT.unpack(client.ask(O.COPY_FILE_RANGE, 0, body))[0] == 6
    assert (outer / "root" / "copy").read_bytes() == b"ontent"


def test_names_and_attributes(client: Client, outer: Path) -> None:
    folder = Entry.parse(client.ask(O.MKDIR, 1, fuse.MKDIR.pack(0o777, 0o022) + b"made\0"))
    assert stat.S_IMODE(folder.attributes.mode) == 0o755
    client.ask(O.SYMLINK, folder.nodeid, b"soft\0where ever\0")
    file, _ = client.create(folder.nodeid, b"file")
    client.ask(O.LINK, folder.nodeid, fuse.LINK.pack(file.nodeid) + b"hard\0")
    assert client.lookup(b"made", b"hard").nodeid == file.nodeid
    client.ask(O.RENAME, folder.nodeid, fuse.RENAME.pack(1) + b"file\0file2\0")
    assert client.error(O.RENAME2, 1, fuse.RENAME2.pack(1, 1, 0) + b"file2\0file\0") == errno.EEXIST
    client.ask(O.RENAME2, 1, fuse.RENAME2.pack(1, 2, 0) + b"file2\0file\0")
    assert (outer / "root" / "file2").read_bytes() == b"content"
    reply = client.setattr(file.nodeid, SetattrValid.SIZE | SetattrValid.MODE, size=77, mode=0o600)
    assert isinstance(reply, bytes)
    found = Attributes.parse(reply, fuse.ATTR_OUT.size)
    assert (found.size, stat.S_IMODE(found.mode), found.nlink) == (77, 0o600, 2)
    assert client.error(O.RMDIR, 1, b"made\0") == errno.ENOTEMPTY
    for name in (b"soft", b"hard"):
        client.ask(O.UNLINK, folder.nodeid, name + b"\0")
    client.ask(O.RMDIR, 1, b"made\0")
    assert client.error(O.LOOKUP, 1, b"made\0") == errno.ENOENT


@pytest.mark.parametrize("plus", [False, True])
def test_a_list_is_whole_however_small_the_replies(tmp_path: Path, plus: bool) -> None:
    for name in MANY:
        (tmp_path / name).touch()
    client = Client(tmp_path)
    fh = OpenOut.parse(client.ask(O.OPENDIR, 1, fuse.OPEN_IN.pack(0, 0))).fh
    names: list[bytes] = []
    offset = 0
    while True:
        reply = client.ask(O.READDIRPLUS if plus else O.READDIR, 1, fuse.READ.pack(fh, offset, 1000, 0, 0, 0, 0))
        if not reply:
            break
        for entry in fuse.parse_directory(reply, plus=plus):
            names.append(entry.name)
            offset = entry.offset
    assert sorted(names) == sorted([b".", b"..", *(name.encode() for name in MANY)])
    assert not client.ask(O.READDIR, 1, fuse.READ.pack(fh, (1 << 64) - 1, 1000, 0, 0, 0, 0))
    client.server.close()


def test_read_only(outer: Path) -> None:
    client = Client(outer / "root", read_only=True)
    number = client.lookup(b"file").nodeid
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_TRUNC):
        assert client.error(O.OPEN, number, fuse.OPEN_IN.pack(flags, 0)) == errno.EROFS
    assert client.error(O.MKDIR, 1, fuse.MKDIR.pack(0o755, 0) + b"x\0") == errno.EROFS
    assert client.error(O.UNLINK, 1, b"file\0") == errno.EROFS
    assert client.setattr(number, SetattrValid.SIZE) == errno.EROFS
    assert client.error(O.SETXATTR, number, fuse.XATTR.pack(1, 0) + b"user.a\0v") == errno.EROFS
    assert client.read(client.open(b"file", flags=0), 0, 10) == b"content"
    client.server.close()


# Any bytes.

NAMES = st.sampled_from([b"file", b"dir", b"out", b"up", b"pipe", b"..", b"a", b"b", b"../secret", b"", b"/"])
NUMBERS = st.one_of(st.integers(0, 8), st.integers(0, (1 << 64) - 1))
HEADS = {O.LOOKUP: None, O.MKDIR: fuse.MKDIR, O.CREATE: fuse.CREATE, O.MKNOD: fuse.MKNOD, O.RENAME: fuse.RENAME,
         O.RENAME2: fuse.RENAME2, O.LINK: fuse.LINK, O.OPEN: fuse.OPEN_IN, O.OPENDIR: fuse.OPEN_IN, O.READ: fuse.READ,
         O.WRITE: fuse.WRITE, O.RELEASE: fuse.RELEASE, O.READDIR: fuse.READ, O.READDIRPLUS: fuse.READ,
         O.SETATTR: fuse.SETATTR, O.SETXATTR: fuse.XATTR, O.GETXATTR: fuse.XATTR, O.FALLOCATE: fuse.FALLOCATE,
         O.LSEEK: fuse.LSEEK, O.COPY_FILE_RANGE: fuse.COPY, O.FORGET: fuse.FORGET, O.BATCH_FORGET: fuse.BATCH_FORGET,
         O.UNLINK: None, O.RMDIR: None, O.SYMLINK: None, O.READLINK: None, O.STATFS: None, O.LISTXATTR: fuse.XATTR}


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, bytes]:
    operation = draw(st.sampled_from(list(HEADS)))
    head = HEADS[operation]
    body = b""
    if head is not None:
        widths = [struct.calcsize(f"<{kind}") for kind in _kinds(head)]
        body = b"".join((draw(NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, "little") for width in widths)
    body += b"".join(name + b"\0" for name in draw(st.lists(NAMES, max_size=2))) + draw(st.binary(max_size=8))
    return operation, draw(NUMBERS), body[:draw(st.integers(0, len(body)))] if draw(st.booleans()) else body


def _kinds(layout: struct.Struct) -> str:
    out, count = "", ""
    for char in layout.format.lstrip("<"):
        if char.isdigit():
            count += char
        else:
            out += "B" * int(count or 1) if char == "x" else char * int(count or 1)
            count = ""
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), max_size=25))
def test_no_sequence_of_requests_leads_out_or_breaks_the_server(asked: list[tuple[int, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        root = outer / "root"
        (root / "dir").mkdir(parents=True)
        (root / "file").write_bytes(b"content")
        (root / "up").symlink_to("..")
        (outer / "secret").write_text("outside")
        client = Client(root)
        for operation, nodeid, body in asked:
            reply = client.raw(operation, nodeid, body)
            assert reply is None or isinstance(reply, bytes) or reply in errno.errorcode
        client.server.close()
        assert sorted(os.listdir(outer)) == ["root", "secret"]
        assert (outer / "secret").read_text() == "outside"
