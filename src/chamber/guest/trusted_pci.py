"""A function that its guest takes into its trusted base before its driver sees it, and the ways to find its registers.

The order is the specifications': the host's enumeration, proof and lock, then the driver (PCIe 6.1, 11.2; virtio 1.4,
4.1). What differs between profiles is where registers are looked up once the function is locked: in configuration
space, which the host answers for; in the report, which the device has signed; or in the device's own memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chamber.guest.doe import DoeRequester, Silence, find_mailbox
from chamber.guest.driver import Refused
from chamber.guest.pci import FunctionFinder, TableFinder
from chamber.guest.profile import Trust
from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.verifier import NotTrusted, Verifier
from chamber.guest.virtio_pci import PciTransport
from chamber.wire.doe import PCI_SIG, WORD, DataObject, DoeType
from chamber.wire.tdi_report import PAGE, RangeAttribute
from chamber.wire.virtio_pci import DEVICE_ID_BASE, RELOCATED_ID_BASE, CapabilityType

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from chamber.guest.machine import GuestMachine
    from chamber.guest.pci import Msix, VirtioFunction
    from chamber.guest.trust_policy import TrustPolicy
    from chamber.platform.root_port import RootPort
    from chamber.platform.transport import Identity
    from chamber.wire.tdisp import FunctionId

__all__ = ("TrustedTransport", "Trusting")

_MOST_ANSWER: Final = 0x2000

Ranges = dict[int, tuple[int, int, RangeAttribute]]
"""Memory of the TEE by the number of its BAR: address, bytes, and what is in it."""


@dataclass(frozen=True, slots=True)
class Trusting:
    """What a guest needs to trust a device.

    Attributes:
        policy: which devices.
        function_id: of the interface.
        now: for certificates' validity.
        random: returns so many random bytes.
        mapped: asks the platform where a BAR is mapped, which the guest has placed at an address: the host chooses it,
            and the platform tells.

    """

    policy: TrustPolicy
    function_id: FunctionId
    now: datetime
    random: Callable[[int], bytes]
    mapped: Callable[[int, int], int]


class TrustedTransport(PciTransport):
    """The registers of a function that has proven itself.

    Args:
        machine: the guest; its profile decides where registers are looked up.
        port: the root port above the function.
        trusting: what it takes to trust it.

    """

    def __init__(self, machine: GuestMachine, port: RootPort, trusting: Trusting) -> None:
        super().__init__(machine, port)
        self._port = port
        self._trusting = trusting
        self._trust = machine.profile.trust
        self._verifier: Verifier | None = None
        self._refused: Refused | DeviceViolation | None = None

    def identity(self) -> Identity:
        """Who the function is."""
        found = super().identity()
        if Trust.RELOCATED not in self._trust:
            return found
        return replace(found, device_type=found.device_type + DEVICE_ID_BASE - RELOCATED_ID_BASE)

    def _take(self) -> VirtioFunction:
        if self._refused is not None:
            raise self._refused  # nobody asks a second time, to be told something else
        try:
            return self._prove()
        except (Refused, DeviceViolation) as reason:
            self._refused = reason
            self.close()
            raise

    def _prove(self) -> VirtioFunction:
        kind = TableFinder if Trust.RELOCATED in self._trust else FunctionFinder
        finder = kind(self.bus, self.slot, self._checks)
        finder.place()
        msix = finder.find_msix()
        if msix is not None:
            self._enable_msix(msix)  # now: the lock holds it as it is
        finder.enable()
        mapped = {bar: self._trusting.mapped(bar, place.address) for bar, place in finder.bars.items()}
        emulated = None
        if Trust.EMULATED in self._trust:
            # Nothing but the doorbell is the device's: the page that it is on.
            emulated = finder.find()
            place = emulated.structures[CapabilityType.NOTIFY_CFG].address
            bar = next(bar for bar, span in finder.bars.items() if 0 <= place - span.address < span.length)
            mapped[bar] += (place - finder.bars[bar].address) // PAGE * PAGE
        ranges, function = self._attest(mapped)
        for address, length, _ in ranges.values():
            self._port.accept(address, length)
        function = function or emulated or finder.find()
        if msix is not None:
            self._require_reported(msix, ranges)
            self._point_vectors(msix)
        return replace(function, msix=msix, bars=dict(finder.bars))

    def _read_word(self, at: int) -> int:
        return int.from_bytes(self.bus.read_config(self.slot, at, WORD), "little")

    def _write_word(self, at: int, word: int) -> None:
        self.bus.write_config(self.slot, at, word.to_bytes(WORD, "little"))

    def _attest(self, mapped: dict[int, int]) -> tuple[Ranges, VirtioFunction | None]:
        trusting = self._trusting
        at = find_mailbox(self._read_word)
        if at is None:
            raise Refused("the device is not trusted: it has no mailbox")
        mailbox = DoeRequester(self._read_word, self._write_word, at, self._checks)

        def exchange(payload: bytes, secured: bool) -> bytes:
            kind = DoeType.SECURED_SPDM if secured else DoeType.SPDM
            try:
                return mailbox.exchange(DataObject(PCI_SIG, kind, payload), _MOST_ANSWER)
            except Silence:
                return b""

        described = Trust.REPORTED in self._trust
        self._verifier = Verifier(
            SpdmRequester(exchange, trusting.random), trusting.function_id, trusting.policy, now=trusting.now,
            random=trusting.random, stream=self._port.stream, mapped=mapped, slot=self.slot, described=described)
        try:
            seen = self._verifier.attest()
        except NotTrusted as reason:
            raise Refused(f"the device is not trusted: {reason}") from None
        return seen.ranges, seen.function

    def _require_reported(self, msix: Msix, ranges: Ranges) -> None:
        """Interrupts' entries go where the report has their table, whatever configuration space says."""
        table = msix.table
        self._checks.require(
            any(attributes & RangeAttribute.MSIX_TABLE and address <= table.address and
                table.address + table.length <= address + length for address, length, attributes in ranges.values()),
            "the interrupts' table is where the report has it", "PCIe 6.1, 11.5.2")

    def _settle(self) -> None:
        # The port tells of a request that came to nothing; what a driver reads then looks like any other number.
        self._checks.require(not self._port.lost, "the link to the device is whole", "PCIe 6.1, 6.33.5",
                             "".join(self._port.lost[:1]))
        super()._settle()

    def close(self) -> None:
        """Give the interface back, as far as it still listens."""
        if self._verifier is not None:
            self._verifier.give_up()
        self._port.release()
