"""A guest takes a device into its trusted base: the checks, in order, and which of them failed (PCIe 6.1, 11.2.7).

Nothing is believed before it is proven: certificates before a signature, measurements before a session, a report before
the lock is held by that session. A driver is bound to what `attest` returns, never to what configuration space shows.
"""

from __future__ import annotations

import hmac
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes

from chamber.guest.spdm_requester import SpdmViolation
from chamber.guest.tdisp import TdispRequester, TdispViolation, key_stream
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.guest.virtio_tdi import map_by_report, map_ranges
from chamber.platform.spdm_crypto import hash_of
from chamber.wire.spdm_messages import PCI_SIG, Protocol, Summary
from chamber.wire.tdisp import LockFlag, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from chamber.guest.pci import VirtioFunction
    from chamber.guest.spdm_requester import SpdmRequester
    from chamber.guest.tdisp import StreamEnd
    from chamber.guest.trust_policy import TrustPolicy
    from chamber.platform.spdm_chain import Chain
    from chamber.wire.spdm_messages import Measurement
    from chamber.wire.tdi_report import InterfaceReport, RangeAttribute
    from chamber.wire.tdisp import FunctionId
    from chamber.wire.virtio_tdi import VirtioTdiInfo

__all__ = ("CHECKS", "FLAGS", "Attested", "Check", "NotTrusted", "Verifier")

CHECKS: Final = ("connection", "certificates", "freshness", "measurements", "session", "link", "lock", "report",
                 "device", "start")
"""Names of the checks, in their order."""
_CIPHER: Final = "AES-256-GCM"
"""What a session of TDISP is sealed with (PCIe 6.1, 11.2.2)."""
FLAGS: Final = LockFlag.NO_FW_UPDATE | LockFlag.LOCK_MSIX
_SLOT: Final = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: one of `CHECKS`.
        holds: whether it does.
        detail: what was seen.

    """

    name: str
    holds: bool
    detail: str


class NotTrusted(Exception):
    """The device is not taken.

    Attributes:
        check: the one that failed.

    """

    def __init__(self, check: Check) -> None:
        self.check = check
        super().__init__(f"{check.name}: {check.detail}")


@dataclass(slots=True)
class Attested:
    """What is known of a device that was taken.

    Attributes:
        checks: all of them.
        chain: its certificates.
        measurements: what runs on it.
        report: of the locked interface, as it came, and as it reads.
        info: what it says of itself as a virtio device.
        ranges: memory of the TEE, as it is mapped: by the number of its BAR, address, bytes, and what is in it.
        function: what a driver is bound to; None where nothing was mapped, or the report does not say.
        session: the session that holds the lock.

    """

    checks: list[Check] = field(default_factory=list)
    chain: Chain | None = None
    measurements: tuple[Measurement, ...] = ()
    report: tuple[bytes, InterfaceReport] | None = None
    info: VirtioTdiInfo | None = None
    ranges: dict[int, tuple[int, int, RangeAttribute]] = field(default_factory=dict)
    function: VirtioFunction | None = None
    session: int = 0


class Verifier:
    """Takes one device, or says why not.

    Args:
        requester: asks the device.
        function_id: which interface.
        policy: which devices are trusted.
        now: for certificates' validity.
        random: makes keys.
        stream: the root port's end of the encrypted stream; None where the device needs none.
        mapped: where the host says that it has mapped each BAR; None to take the device's word for the addresses, as
            somebody does who only wants to see what it is.
        reporting_offset: added to addresses in the report, so that it does not tell where guests' memory is.
        slot: of the function on its bus.
        described: whether the report has to say what the device is as a virtio device. Without, its registers are found
            by configuration space, and of its type, features and guarantees nothing is known.
        flags: to lock it with. A driver that switches MSI-X on after the lock, as Linux's does, has its table unlocked.

    Attributes:
        seen: what is known so far.

    """

    def __init__(self, requester: SpdmRequester, function_id: FunctionId, policy: TrustPolicy, *, now: datetime,
                 random: Callable[[int], bytes], stream: StreamEnd | None = None,
                 mapped: Mapping[int, int] | None = None, reporting_offset: int = 0, slot: int = 0,
                 described: bool = True, flags: LockFlag = FLAGS) -> None:
        self._requester = requester
        self._policy = policy
        self._now = now
        self._random = random
        self._stream = stream
        self._mapped = mapped
        self._offset = reporting_offset
        self._slot = slot
        self._described = described
        self._flags = flags
        self._tdisp = TdispRequester(lambda data: self._say(Protocol.TDISP, data), function_id)
        self._function: VirtioFunction | None = None
        self.seen = Attested()

    def _say(self, protocol: Protocol, data: bytes) -> bytes:
        head = bytes((protocol,))
        try:
            answer = self._requester.say(self.seen.session, PCI_SIG, head + data)
        except SpdmViolation as error:
            raise TdispViolation(str(error)) from None
        if answer[:1] != head:
            raise TdispViolation("an answer is of the protocol that was asked")
        return answer[1:]

    @contextmanager
    def _checking(self, name: str) -> Iterator[list[str]]:
        """Add a check, which fails with any violation; what is appended is what was seen."""
        said: list[str] = []
        try:
            yield said
        except (SpdmViolation, TdispViolation, DeviceViolation) as error:
            self._fail(name, str(error))
        self.seen.checks.append(Check(name, holds=True, detail="; ".join(said)))

    def _fail(self, name: str, why: str) -> None:
        check = Check(name, holds=False, detail=why)
        self.seen.checks.append(check)
        raise NotTrusted(check)

    def attest(self) -> Attested:
        """Take the device up to RUN.

        Raises:
            NotTrusted: a check failed; the interface was stopped, if it could be.

        """
        self.connect()
        self.lock()
        self.start()
        return self.seen

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except NotTrusted:
            self.give_up()
            raise

    def connect(self) -> None:
        """Take the first part of the way: who the device is, what runs on it, a session, and keys of its stream.

        Raises:
            NotTrusted: a check failed.

        """
        with self._or_give_up():
            self._identify()
            self._measure()
            self._open()

    def lock(self) -> None:
        """Take the second: the interface is locked, and is what the policy wants.

        Raises:
            NotTrusted: a check failed; the interface was stopped, if it could be.

        """
        with self._or_give_up():
            self._lock()

    def start(self) -> None:
        """Take the last: the interface runs.

        Raises:
            NotTrusted: it does not.

        """
        with self._or_give_up(), self._checking("start") as said:
            self._tdisp.start()
            state = self._tdisp.state()
            if state is not State.RUN:
                self._fail("start", f"the interface is in {state.name}")
            said.append("RUN")
        self.seen.function = self._function

    def stop(self) -> None:
        """Stop the interface, and keep the session; what was said of it is forgotten.

        Raises:
            NotTrusted: the device does not stop it.

        """
        with self._checking("stop"):
            self._tdisp.stop()
        names = [check.name for check in self.seen.checks]
        del self.seen.checks[names.index("lock") if "lock" in names else names.index("stop"):]
        self.seen.report = self.seen.info = self.seen.function = self._function = None
        self.seen.ranges = {}

    def give_up(self) -> None:
        """Stop the interface and end the session, as far as the device still listens."""
        session, self.seen.session = self.seen.session, 0
        if not session or not self._requester.is_open(session):
            return
        self.seen.session = session
        for step in (self._tdisp.stop, lambda: self._requester.end_session(session)):
            try:
                step()
            except (SpdmViolation, TdispViolation):
                break
        self.seen.session = 0

    # The checks.

    def _identify(self) -> None:
        policy, requester = self._policy, self._requester
        with self._checking("connection") as said:
            suite = requester.connect()
            said.append(f"SPDM {suite.version >> 4}.{suite.version & 15}, {suite.hash}, {suite.asymmetric}, "
                        f"{suite.exchange}, {suite.aead}")
            if suite.version < policy.least_version:
                self._fail("connection", f"SPDM 1.{suite.version & 15} is below what the policy wants")
            if suite.aead != _CIPHER:
                self._fail("connection", f"{suite.aead or 'no cipher'}, where TDISP takes {_CIPHER}")
        with self._checking("certificates") as said:
            digest = requester.digests().get(_SLOT, b"")
            chain = requester.certificates(_SLOT)
            if not hmac.compare_digest(digest, hash_of(suite.hash, chain.data)):
                self._fail("certificates", "the chain is not the one of its digest")
            root = chain.certificates[0].fingerprint(hashes.SHA256())
            if not chain.has_root or root not in policy.roots:
                self._fail("certificates", f"the root {root.hex()} is none that is trusted")
            own = chain.certificates[-1].fingerprint(hashes.SHA256())
            if policy.certificates and own not in policy.certificates:
                # A maker makes more than one: another of its devices proves itself as well.
                self._fail("certificates", f"the device's own certificate {own.hex()} is none that is named")
            if not chain.valid_at(self._now):
                self._fail("certificates", "a certificate is not valid now")
            self.seen.chain = chain
            said.append(chain.certificates[-1].subject.rfc4514_string())
        with self._checking("freshness") as said:
            self._summary = requester.challenge(_SLOT, Summary.ALL)
            said.append("the device signs what it has never signed before")

    def _measure(self) -> None:
        policy = self._policy
        with self._checking("measurements") as said:
            blocks = self._requester.measurements()
            self.seen.measurements = blocks
            for rule in policy.measurements:
                if why := rule.broken_by(blocks):
                    self._fail("measurements", why)
            ruled = {rule.index for rule in policy.measurements}
            if policy.complete and (others := [block.index for block in blocks if block.index not in ruled]):
                self._fail("measurements", f"measurements {others} have no rule")
            said.append(f"{len(blocks)} signed, {len(policy.measurements)} with a rule")

    def _open(self) -> None:
        with self._checking("session") as said:
            session, summary = self._requester.start_session(_SLOT)
            self.seen.session = session
            if not hmac.compare_digest(summary, self._summary):
                # Firmware that changed between the challenge and the session is not what was looked at.
                self._fail("session", "what runs on the device has changed")
            said.append(f"{session:#010x}")
        with self._checking("link") as said:
            if self._stream is not None:
                key_stream(lambda data: self._say(Protocol.IDE_KM, data), self._stream.stream_id, self._stream,
                           self._random)
            said.append("no stream" if self._stream is None else f"stream {self._stream.stream_id}, keys set by this "
                                                                 "session")

    def _lock(self) -> None:
        with self._checking("lock") as said:
            capabilities = self._tdisp.negotiate(self._flags)
            if self._tdisp.state() is not State.CONFIG_UNLOCKED:
                self._tdisp.stop()  # a guest that died has left it so
            self._tdisp.lock(self._flags, 0 if self._stream is None else self._stream.stream_id,
                             reporting_offset=self._offset)
            state = self._tdisp.state()
            if state is not State.CONFIG_LOCKED:
                self._fail("lock", f"the interface is in {state.name}")
            # What was measured could be replaced up to here. From here on the lock keeps it out, if it does at all.
            if self._requester.measurements(session=self.seen.session) != self.seen.measurements:
                self._fail("lock", "what runs on the device has changed")
            said.append(f"addresses of {capabilities.dev_addr_width} bits, what runs is what was measured")
        with self._checking("report") as said:
            data, report = self._tdisp.report()
            self.seen.report = data, report
            mapped = self._mapped
            if mapped is None:
                mapped = {span.range_id: span.first_page * 4096 - self._offset for span in report.ranges}
            function, info = None, None
            if self._described:
                function, info = map_by_report(report, mapped, ENFORCING, slot=self._slot,
                                               reporting_offset=self._offset, required=self._policy.guarantees)
            self.seen.info = info
            ranges = map_ranges(report, mapped, ENFORCING, self._offset)
            self.seen.ranges = {bar: (place.address, place.length, span.attributes)
                                for bar, (span, place) in ranges.items()}
            said.append(f"{len(report.ranges)} ranges, {0 if info is None else len(info.structures)} structures")
        with self._checking("device") as said:
            policy = self._policy
            if info is None:
                said.append("the report does not say")
            elif policy.type not in {None, info.device_type}:
                self._fail("device", f"it is of virtio type {info.device_type}")
            elif policy.must & ~info.features or policy.must_not & info.features:
                self._fail("device", f"its features are {info.features:#x}")
            else:
                said.append(f"virtio type {info.device_type}")
        self._function = function
