"""A guest's end of a mailbox for data objects (PCIe 6.1, 6.30).

The hypervisor answers for configuration space, and may answer anything, at any time, or for ever. All that is believed
here is that some bytes came: how many at most is the guest's to say, and how long it asks. Whether they are the
device's is for SPDM to find out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire.doe import (
    MAILBOX,
    PCI_SIG,
    WORD,
    DataObject,
    DiscoveryRequest,
    DoeControl,
    DoeStatus,
    DoeType,
)
from chamber.wire.pci import CONFIG_SIZE, CONVENTIONAL_SIZE, ExtendedId

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.untrusted import Checks, Untrusted

__all__ = ("DoeRequester", "Silence", "find_extended", "find_mailbox")

_SPEC: Final = "PCIe 6.1, 6.30"
_POLLS: Final = 1000
_MOST_PROTOCOLS: Final = 256
_HEADER_WORDS: Final = 2


class Silence(Exception):
    """The mailbox has no answer, or does not come to rest."""


def find_mailbox(read: Callable[[int], int]) -> int | None:
    """Return where the first mailbox is, None without one; `read` reads a double word of configuration space."""
    return find_extended(read, ExtendedId.DOE)


def find_extended(read: Callable[[int], int], capability: ExtendedId) -> int | None:
    """Return where the first capability of a kind is, in a list that a host may have end nowhere; None without one."""
    at, seen = CONVENTIONAL_SIZE, set[int]()
    while CONVENTIONAL_SIZE <= at <= CONFIG_SIZE - WORD and at not in seen:
        seen.add(at)
        head = read(at)
        if head & 0xFFFF == capability:
            return at
        at = head >> 20 & ~3
    return None


class DoeRequester:
    """Sends data objects through a mailbox, and takes what comes back.

    Args:
        read: reads a double word of the function's configuration space.
        write: writes one.
        at: where the capability is.
        checks: of what is read.
        wait: called between two looks at a mailbox that has nothing yet.
        polls: looks until it is given up.

    """

    def __init__(self, read: Callable[[int], int], write: Callable[[int, int], None], at: int, checks: Checks, *,
                 wait: Callable[[], None] = lambda: None, polls: int = _POLLS) -> None:
        self._read_word = read
        self._write_word = write
        self._at = at
        self._checks = checks
        self._wait = wait
        self._polls = polls

    def _read(self, name: str) -> Untrusted[int]:
        return self._checks.number(self._read_word(self._at + MAILBOX[name].offset))

    def _write(self, name: str, value: int) -> None:
        self._write_word(self._at + MAILBOX[name].offset, value)

    def abort(self) -> None:
        """Bring the mailbox to rest, whatever somebody else has left in it.

        Raises:
            Silence: it does not come to rest.

        """
        self._write("control", DoeControl.ABORT)
        if self._poll(DoeStatus.BUSY | DoeStatus.ERROR, 0) is None:
            raise Silence("a mailbox that does not stop")

    def exchange(self, request: DataObject, limit: int) -> bytes:
        """Send an object; return the payload of the answer.

        Args:
            request: what to send.
            limit: bytes that the answer's payload may have.

        Raises:
            Silence: no answer came.
            DeviceViolation: it was none to this, or too long; the mailbox is stopped.

        """
        if self._poll(DoeStatus.BUSY | DoeStatus.ERROR | DoeStatus.READY, 0) is None:
            self.abort()
        data = request.encode()
        for at in range(0, len(data), WORD):
            self._write("write", int.from_bytes(data[at:at + WORD], "little"))
        self._write("control", DoeControl.GO)
        status = self._poll(DoeStatus.READY | DoeStatus.ERROR)
        if status is None or status & DoeStatus.ERROR:
            self.abort()
            raise Silence("no answer" if status is None else "an error for an answer")
        try:
            return self._receive(request, limit)
        except BaseException:
            self.abort()
            raise

    def _poll(self, mask: int, wanted: int | None = None) -> int | None:
        """Look until the bits of the mask are as wanted, or any of them is set; None if that does not come."""
        for _ in range(self._polls):
            status = self._read("status").masked(mask)
            if status == wanted or (wanted is None and status):
                return status
            self._wait()
        return None

    def _pop(self) -> Untrusted[int]:
        word = self._read("read")
        self._write("read", 0)
        return word

    def _receive(self, request: DataObject, limit: int) -> bytes:
        most = _HEADER_WORDS + -(-limit // WORD)
        self._pop().equals(request.vendor | request.type << 16, "an answer is of the request's type", _SPEC)
        words = self._pop().between(_HEADER_WORDS, most, "an answer is no longer than was asked for", _SPEC)
        payload = bytearray()
        # However the length was come by, no more is read than there is room for.
        for _ in range(min(words, most) - _HEADER_WORDS):
            payload += self._pop().opaque("whoever has asked looks at it").to_bytes(WORD, "little")
        return bytes(payload)

    def protocols(self) -> list[tuple[int, int]]:
        """Ask which protocols there are, by vendor and type.

        Raises:
            Silence: no answer came.
            DeviceViolation: the list has no end, or an answer is none.

        """
        found: list[tuple[int, int]] = []
        index = 0
        while True:
            answer = self.exchange(DataObject(PCI_SIG, DoeType.DISCOVERY, DiscoveryRequest(index).encode()), WORD)
            self._checks.require(len(answer) == WORD, "an answer to discovery is one double word", _SPEC)
            answer = answer.ljust(WORD, b"\0")
            found.append((int.from_bytes(answer[:2], "little"), answer[2]))
            self._checks.require(not answer[3] or answer[3] > index, "the list of protocols ends", _SPEC)
            if answer[3] <= index or len(found) >= _MOST_PROTOCOLS:
                return found
            index = answer[3]
