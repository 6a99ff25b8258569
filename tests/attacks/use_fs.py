"""How the scripted victim uses a shared directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire import fuse
from chamber.wire.fuse import InHeader, Opcode

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

HIPRIO, REQUESTS = 0, 1


class _Client:
    """Sends requests and knows the numbers that an honest server gives."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.unique = 0

    def ask(self, operation: Opcode, nodeid: int, body: bytes = b"", room: int = 0) -> None:
        self.unique += 2
        header = InHeader(fuse.IN_HEADER.size + len(body), operation, self.unique, nodeid).build()
        if operation in fuse.NO_REPLY:
            self.victim.request(HIPRIO, [header + body], [])
        else:
            self.victim.request(REQUESTS, [header + body], [fuse.OUT_HEADER.size + room])


def use(victim: Victim) -> None:
    """Look up, read, list, make and remove; each a few times."""
    client = _Client(victim)
    client.ask(Opcode.INIT, 0, fuse.INIT_IN.pack(fuse.MAJOR, fuse.MINOR, 0, 0), fuse.INIT_OUT.size)
    for _ in range(3):
        client.ask(Opcode.LOOKUP, 1, b"hello\0", fuse.ENTRY_SIZE)
        client.ask(Opcode.LOOKUP, 1, b"many\0", fuse.ENTRY_SIZE)
        client.ask(Opcode.LOOKUP, 1, b"link\0", fuse.ENTRY_SIZE)
        client.ask(Opcode.LOOKUP, 1, b"nothing\0", fuse.ENTRY_SIZE)
        client.ask(Opcode.GETATTR, 2, fuse.GETATTR.pack(0, 0, 0), fuse.ATTR_OUT.size + fuse.ATTR.size)
        client.ask(Opcode.READLINK, 4, b"", 4096)
        client.ask(Opcode.STATFS, 1, b"", fuse.STATFS.size)
        client.ask(Opcode.GETXATTR, 2, fuse.XATTR.pack(0, 0) + b"user.chamber\0", fuse.SIZE_OUT.size)
        client.ask(Opcode.GETXATTR, 2, fuse.XATTR.pack(64, 0) + b"user.chamber\0", 64)
    client.ask(Opcode.LOOKUP, 1, b"notes\0", fuse.ENTRY_SIZE)  # before READDIRPLUS, which gives numbers as well
    client.ask(Opcode.OPEN, 2, fuse.OPEN_IN.pack(0, 0), fuse.OPEN_OUT.size)
    client.ask(Opcode.OPENDIR, 3, fuse.OPEN_IN.pack(0, 0), fuse.OPEN_OUT.size)
    for _ in range(3):
        client.ask(Opcode.READ, 2, fuse.READ.pack(1, 0, 4096, 0, 0, 0, 0), 4096)
        client.ask(Opcode.READDIR, 3, fuse.READ.pack(2, 0, 4096, 0, 0, 0, 0), 4096)
        client.ask(Opcode.READDIRPLUS, 3, fuse.READ.pack(2, 0, 4096, 0, 0, 0, 0), 4096)
    client.ask(Opcode.OPEN, 5, fuse.OPEN_IN.pack(0, 0), fuse.OPEN_OUT.size)
    for _ in range(2):
        client.ask(Opcode.READ, 5, fuse.READ.pack(3, 0, 4096, 0, 0, 0, 0), 4096)
        victim.device.host_action("edit")
    client.ask(Opcode.MKDIR, 1, fuse.MKDIR.pack(0o755, 0) + b"made\0", fuse.ENTRY_SIZE)
    for name in (b"one\0", b"two\0"):
        client.ask(Opcode.CREATE, 1, fuse.CREATE.pack(0o102, 0o644, 0, 0) + name,
                   fuse.ENTRY_SIZE + fuse.OPEN_OUT.size)
    for fh in (4, 5):
        client.ask(Opcode.WRITE, 2, fuse.WRITE.pack(fh, 0, 4, 0, 0, 0, 0) + b"data", fuse.SIZE_OUT.size)
    client.ask(Opcode.FSYNC, 2, fuse.FSYNC.pack(4, 0, 0))
    client.ask(Opcode.UNLINK, 1, b"one\0")
    client.ask(Opcode.RMDIR, 1, b"made\0")
    client.ask(Opcode.FORGET, 2, fuse.FORGET.pack(1))
    client.ask(Opcode.DESTROY, 0)
