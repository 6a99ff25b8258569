"""Joins the model guest to a device with a hypervisor in between; proven and locked, where the profile has it so."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes

from chamber.device.link_dma import LinkDma
from chamber.device.spdm_identity import Maker
from chamber.device.tdi import Doors
from chamber.device.trusted_function import TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.profile import Trust
from chamber.guest.spdm_requester import SpdmRequester, SpdmViolation
from chamber.guest.trust_policy import MeasurementRule, TrustPolicy
from chamber.guest.trusted_pci import TrustedTransport, Trusting
from chamber.guest.virtio_pci import PciTransport
from chamber.guest.virtio_tdi import REQUIRED
from chamber.host.hooks import HostHooks
from chamber.host.hypervisor import Hypervisor
from chamber.platform.ide import IdeStream
from chamber.platform.memory import PrivateView, WithHostPages
from chamber.platform.root_port import RootPort
from chamber.platform.spdm_crypto import hash_of
from chamber.wire.spdm_messages import PCI_SIG, Measurement, MeasurementType
from chamber.wire.tdisp import FunctionId
from chamber.wire.virtio_tdi import Guarantee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.base import Device
    from chamber.device.hooks import Hooks
    from chamber.guest.machine import GuestMachine
    from chamber.platform.spdm_chain import CertificateSlot

__all__ = ("join_hosted",)

_FUNCTION: Final = FunctionId(0x0100)
_STREAM: Final = 3
_OWN: Final = "disk"
_SIBLING: Final = "another disk"
_VERSION: Final = 7
_FIRMWARE: Final = (Measurement(1, MeasurementType.ROM, b"boot"), Measurement(2, MeasurementType.FIRMWARE, b"firmware"),
                    Measurement(3, MeasurementType.SECURE_VERSION, _VERSION.to_bytes(8, "little")))


@cache
def _maker() -> Maker:
    """Return one for all runs of a process: making keys takes longer than a run."""
    return Maker()


@cache
def _identity(name: str) -> CertificateSlot:
    return _maker().make_slot(name)


def _policy(trust: Trust, virtio: VirtioPci) -> TrustPolicy:
    *code, version = _FIRMWARE
    rules = (*(MeasurementRule(block.index, MeasurementType(block.type), frozenset({hash_of("SHA-384", block.value)}))
               for block in code), MeasurementRule(version.index, MeasurementType.SECURE_VERSION, least=_VERSION))
    return TrustPolicy("model", frozenset({_identity(_OWN).certificates[0].fingerprint(hashes.SHA256())}),
                       measurements=rules, complete=True, type=virtio.device.type,
                       guarantees=REQUIRED if Trust.CLOSED in trust else Guarantee.RESET_BY_LOCK)


def _doors(trust: Trust) -> Doors:
    doors = Doors.NONE if Trust.CLOSED in trust else Doors.WINDOW | Doors.OWNER
    return doors | Doors.CONTROL if Trust.EMULATED in trust else doors


class _HostSession:
    """A session of the host's own."""

    def __init__(self, exchange: Callable[[bytes, bool], bytes]) -> None:
        self._requester = SpdmRequester(exchange, os.urandom)
        self._requester.connect()
        self._requester.certificates(0)
        self._session, _ = self._requester.start_session(0)

    def say(self, payload: bytes) -> bytes:
        """Send a message of PCI-SIG's in it; return the answer's payload, empty for none."""
        try:
            return self._requester.say(self._session, PCI_SIG, payload)
        except SpdmViolation:
            return b""


def _open_session(exchange: Callable[[bytes, bool], bytes]) -> _HostSession | None:
    try:
        return _HostSession(exchange)
    except SpdmViolation:
        return None


@contextmanager
def join_hosted(machine: GuestMachine, device: Device, hooks: Hooks | None) -> Iterator[PciTransport]:
    """Join a guest to a device, for as long as the block lasts; the hypervisor does what the hooks do.

    Args:
        machine: the guest; its profile says what it trusts.
        device: the device.
        hooks: those of an attack that is one of a hypervisor, or others, which it has nothing to do with.

    """
    site = _Site(machine, hooks if isinstance(hooks, HostHooks) else None, device)
    with site.joined() as transport:
        yield transport


class _Site:
    """Everything around one device.

    Args:
        machine: the guest.
        hooks: of the hypervisor.
        device: the device that the guest expects.

    """

    def __init__(self, machine: GuestMachine, hooks: HostHooks | None, device: Device) -> None:
        self._machine = machine
        self._trust = machine.profile.trust
        virtio = VirtioPci(device, relocated=Trust.RELOCATED in self._trust)
        self.host = Hypervisor(virtio, machine.interrupts, machine.memory.host, hooks, open_session=_open_session)
        self.host.firmware = _FIRMWARE
        self.host.build = self._build
        self._virtio = virtio
        self._made: list[TrustedFunction] = []

    def _build(self, device: Device, virtio: VirtioPci | None = None) -> tuple[VirtioPci, TrustedFunction | None]:
        """Make a function of a device, provable where the guest wants proof."""
        machine, host = self._machine, self.host
        virtio = virtio or VirtioPci(device, relocated=Trust.RELOCATED in self._trust)
        device.schedule = machine.scheduler.call_later
        virtio.dma = host.shared
        if not machine.profile.attested:
            return virtio, None
        dma = LinkDma(host.up, requester=int(_FUNCTION))
        trusted = TrustedFunction(
            virtio, _identity(_OWN if virtio is self._virtio else _SIBLING), shared=host.shared, private=dma,
            measurements=lambda: host.firmware, routing_id=int(_FUNCTION), stream_id=_STREAM,
            described=Trust.REPORTED in self._trust, open_doors=_doors(self._trust))
        assert trusted.link is not None
        dma.stream, trusted.link.working = trusted.stream, dma.working
        device.schedule = partial(_later, machine, dma)
        virtio.function.send = dma.message
        self._made.append(trusted)
        return virtio, trusted

    @contextmanager
    def joined(self) -> Iterator[PciTransport]:
        """Join the guest to it."""
        machine, host = self._machine, self.host
        virtio, trusted = self._build(self._virtio.device, self._virtio)
        if trusted is None:
            yield PciTransport(machine, host)
            return
        port = RootPort(host, IdeStream(_STREAM), private=WithHostPages(PrivateView(machine.memory), host.memory),
                        shared=host.shared, interrupts=machine.interrupts)
        host.take(trusted, port)
        transport = TrustedTransport(machine, port, Trusting(
            _policy(self._trust, virtio), _FUNCTION, datetime.now(UTC), os.urandom, host.mapped))
        try:
            yield transport
        finally:
            transport.close()
            for each in self._made:
                each.responder.close()


def _later(machine: GuestMachine, dma: LinkDma, seconds: float, call: Callable[[], None]) -> None:
    def work() -> None:
        with dma.working():
            call()
    machine.scheduler.call_later(seconds, work)
