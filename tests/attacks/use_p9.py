"""Uses a 9p device as a client would that looks at no reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.p9 import NO_FID, NO_TAG, NO_UID, VERSION, GetattrMask, LockType, OpenFlag
from chamber.wire.p9_messages import MessageType, encode

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

_M = MessageType
_ROOM = 8192


def use(victim: Victim) -> None:
    def ask(kind: MessageType, **values: object) -> None:
        tag = NO_TAG if kind is _M.TVERSION else 1
        victim.request(0, [encode(kind, tag, **values)], [_ROOM])  # type: ignore[arg-type]

    def open_(fid: int, *names: bytes, flags: int = OpenFlag.RDWR) -> None:
        ask(_M.TWALK, fid=0, newfid=fid, names=names)
        ask(_M.TLOPEN, fid=fid, flags=flags)

    ask(_M.TVERSION, msize=8216, version=VERSION)
    ask(_M.TATTACH, fid=0, afid=NO_FID, uname=b"", aname=b"", n_uname=0)
    for fid, name in enumerate((b"hello", b"notes"), 1):
        open_(fid, name)
        for _ in range(2):
            ask(_M.TREAD, fid=fid, offset=0, count=100)
            ask(_M.TWRITE, fid=fid, offset=0, data=b"written")
            ask(_M.TREAD, fid=fid, offset=0, count=100)
            ask(_M.TGETATTR, fid=fid, request_mask=int(GetattrMask.BASIC))
            ask(_M.TFSYNC, fid=fid, datasync=0)
    lock = {"type": int(LockType.WRLCK), "start": 0, "length": 10, "proc_id": 1, "client_id": b"me"}
    open_(3, b"hello")
    for fid in (1, 3):
        ask(_M.TLOCK, fid=fid, flags=0, **lock)
        ask(_M.TGETLOCK, fid=fid, **lock)
    for fid, path in enumerate(((), (b"dir",), (b"many",)), 4):
        open_(fid, *path, flags=OpenFlag.RDONLY)
        for _ in range(2):
            ask(_M.TREADDIR, fid=fid, offset=0, count=4000)
    ask(_M.TWALK, fid=0, newfid=8, names=(b"dir", b"sub", b"deep"))
    ask(_M.TWALK, fid=0, newfid=9, names=(b"link",))
    ask(_M.TREADLINK, fid=9)
    ask(_M.TXATTRWALK, fid=8, newfid=10, name=b"")
    ask(_M.TREAD, fid=10, offset=0, count=600)
    ask(_M.TSTATFS, fid=0)
    ask(_M.TMKDIR, dfid=0, name=b"made", mode=0o755, gid=NO_UID)
    ask(_M.TWALK, fid=0, newfid=11, names=())
    ask(_M.TLCREATE, fid=11, name=b"new", flags=int(OpenFlag.RDWR), mode=0o644, gid=NO_UID)
    ask(_M.TSETATTR, fid=11, valid=8, mode=0, uid=0, gid=0, size=5, atime_sec=0, atime_nsec=0, mtime_sec=0,
        mtime_nsec=0)
    ask(_M.TUNLINKAT, dirfid=0, name=b"new", flags=0)
    ask(_M.TFLUSH, oldtag=7)
    for fid in range(1, 12):
        ask(_M.TCLUNK, fid=fid)
