"""A device's mailbox for data objects (PCIe 6.1, 6.30.2): registers in configuration space, and who answers there.

Whoever may write configuration space may use it: a hypervisor as well as a guest, and the one amid a message of the
other. The mailbox keeps nobody apart, and need not: what is secret goes through it sealed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.pci import Window
from chamber.wire.doe import (
    MAILBOX,
    MOST_WORDS,
    PCI_SIG,
    WORD,
    DataObject,
    DiscoveryRequest,
    DiscoveryResponse,
    DoeControl,
    DoeStatus,
    DoeType,
)
from chamber.wire.errors import WireError
from chamber.wire.pci import ExtendedId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.platform.pci import PciFunction

__all__ = ("DoeMailbox",)

_VERSION: Final = 2
_FIRST: Final = MAILBOX["capabilities"].offset


class DoeMailbox:
    """One mailbox of a function.

    Objects of a type that nobody answers, and those that whoever answers drops, are discarded without a word, so that
    whoever waits runs into its time-out (6.30.2: one second). One that is not as long as it says, one that comes while
    an answer waits, and a read of an answer that there is not are errors, which an abort clears.

    Args:
        protocols: who answers, by vendor and type: gets a payload, returns one, or None for no answer.
        vector: interrupt message number, if there is an interrupt.
        limit: double words that an object may have.
        log: gets a line for each object, without what is in it.

    """

    def __init__(self, protocols: Mapping[tuple[int, int], Callable[[bytes], bytes | None]], *,
                 vector: int | None = None, limit: int = MOST_WORDS,
                 log: Callable[[str], None] = lambda _line: None) -> None:
        self._protocols = {(PCI_SIG, int(DoeType.DISCOVERY)): self._discover, **protocols}
        self._vector = vector
        self._limit = limit
        self._log = log
        self._signal: Callable[[int], None] = lambda _vector: None
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []
        self._wants_interrupt = False
        self._status = DoeStatus(0)

    def add_to(self, function: PciFunction) -> int:
        """Become a function's; return where the capability is."""
        at = function.add_extended(ExtendedId.DOE, _VERSION, bytes(MAILBOX.size - _FIRST))
        function.add_window(Window(at + _FIRST, at + MAILBOX.size, self._read, self._written))
        self._signal = function.signal
        was_reset = function.was_reset

        def reset() -> None:
            self._clear()
            self._wants_interrupt = False
            was_reset()

        function.was_reset = reset
        return at

    # Registers.

    def _read(self, offset: int, size: int) -> bytes:
        word = self._outgoing[0] if self._outgoing else bytes(WORD)
        registers = MAILBOX.pack(
            capabilities=0 if self._vector is None else 1 | self._vector << 1,
            control=DoeControl.INTERRUPT_ENABLE * self._wants_interrupt, status=self._status,
            read=int.from_bytes(word, "little"))
        return bytes(registers[_FIRST + offset:_FIRST + offset + size]).ljust(size, b"\xff")

    def _written(self, offset: int, data: bytes) -> None:
        """Take a write. Registers are written whole: of a part of one nothing comes (7.9.24)."""
        for name, act in (("control", self._control), ("status", self._clear_interrupt), ("write", self._append),
                          ("read", self._pop)):
            at = MAILBOX[name].offset - _FIRST - offset
            if at >= 0 and at + WORD <= len(data):
                act(int.from_bytes(data[at:at + WORD], "little"))

    def _control(self, value: int) -> None:
        self._wants_interrupt = bool(value & DoeControl.INTERRUPT_ENABLE) and self._vector is not None
        if value & DoeControl.ABORT:
            self._clear()
        elif value & DoeControl.GO:
            self._go()

    def _clear_interrupt(self, value: int) -> None:
        self._status &= ~(value & DoeStatus.INTERRUPT)

    def _clear(self) -> None:
        self._incoming.clear()
        self._outgoing.clear()
        self._status = DoeStatus(0)

    def _append(self, value: int) -> None:
        if len(self._incoming) >= self._limit * WORD:
            self._fail("an object longer than the mailbox")
        elif not self._status & DoeStatus.ERROR:
            self._incoming += value.to_bytes(WORD, "little")

    def _pop(self, _value: int) -> None:
        if not self._outgoing:
            self._fail("more is read than there is")
            return
        del self._outgoing[0]
        if not self._outgoing:
            self._status &= ~DoeStatus.READY

    # Objects.

    def _go(self) -> None:
        data = bytes(self._incoming)
        self._incoming.clear()
        if self._status & DoeStatus.ERROR:
            return
        if self._outgoing:
            self._fail("an object comes while an answer waits")
            return
        try:
            request = DataObject.decode(data)
        except WireError as error:
            self._fail(error.rule)
            return
        answer = self.answer(request)
        if answer is None:
            return
        response = DataObject(request.vendor, request.type, answer).encode()
        self._outgoing = [response[at:at + WORD] for at in range(0, len(response), WORD)]
        self._tell(DoeStatus.READY)

    def answer(self, request: DataObject) -> bytes | None:
        """Answer an object that came by another way than registers; return the answer's payload, None for none."""
        respond = self._protocols.get((request.vendor, request.type))
        if respond is None:
            self._log(f"object of vendor {request.vendor:#x}, type {request.type}: discarded, nobody answers these")
            return None
        answer = respond(request.payload)
        self._log(f"object of vendor {request.vendor:#x}, type {request.type}, {len(request.payload)} bytes: "
                  f"{'no answer' if answer is None else f'{len(answer)} bytes'}")
        return answer

    def _discover(self, payload: bytes) -> bytes | None:
        try:
            request = DiscoveryRequest.decode(payload)
        except WireError as error:
            self._log(f"discarded: {error.rule}")
            return None
        known = list(self._protocols)
        if request.index >= len(known):
            # A vendor that is none (6.30.1.1).
            return DiscoveryResponse(0xFFFF, 0, 0).encode()
        return DiscoveryResponse(*known[request.index], (request.index + 1) % len(known)).encode()

    def _fail(self, why: str) -> None:
        self._log(f"error: {why}")
        self._incoming.clear()
        self._outgoing.clear()
        self._status &= ~DoeStatus.READY
        self._tell(DoeStatus.ERROR)

    def _tell(self, status: DoeStatus) -> None:
        self._status |= status
        if self._wants_interrupt and self._vector is not None:
            self._status |= DoeStatus.INTERRUPT
            self._signal(self._vector)
