"""A TSM asked in every order, by a host and a guest who know no better or mean no good; and ports that refuse."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.behind_ide_port import BehindIdePort, PortFunction
from chamber.device.catalogue import make_device
from chamber.device.trusted_function import TrustedFunction
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, VirtioPci
from chamber.guest.doe import find_extended
from chamber.guest.trust_policy import load_trust
from chamber.guest.tsm import Tsm
from chamber.lab import linux_tsm
from chamber.lab.linux_tsm import SysfsPort, function_name
from chamber.lab.observation import TargetError
from chamber.platform.ide import StreamState
from chamber.wire.doe import DoeType
from chamber.wire.errors import WireError
from chamber.wire.ide_capability import CAPABILITY as IDE
from chamber.wire.ide_capability import NO_STREAM_ID, SELECTIVE, StreamControl
from chamber.wire.pci import CONFIG_SIZE, ExtendedId
from chamber.wire.port_keys import KEYS, KeyCommand
from chamber.wire.tdi_report import InterfaceReport
from chamber.wire.tdisp import State
from chamber.wire.tsm import GuestRequest, Scope, TsmAnswer, TsmOperation, TsmRequest
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import VENDOR_ID
from tests.device.driver import Memory
from tests.lab.trusted_disk import IDENTITY, MEASURED, policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from chamber.platform.dma import Dma

FUNCTION, PORT, STREAM = 0x0100, 0x0000, 5
BASES = {REGISTER_BAR: 0x8000_0000, MSIX_BAR: 0x8001_0000}


class Site:
    """A disk behind a port, as a host's kernel has configured them, and a TSM; what the module does is done here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.memory = Memory()
        self.behind = BehindIdePort(VirtioPci(make_device(DeviceType.BLOCK)), self._make)
        self.behind.dma = self.memory
        self.above = PortFunction(self.behind.port)
        self.device = self.behind.trusted
        self.device.tdi.place(BASES)
        self.said: list[str] = []
        written = folder / "trust.toml"
        written.write_text(policy())
        monkeypatch.setattr(linux_tsm, "SysfsFunction", lambda name, _sysfs: Opened(name, self))
        self.tsm = Tsm(load_trust(written), transfer=self._transfer, port=lambda port, stream: SysfsPort(
            function_name(port), stream), mapped=lambda _function: BASES, now=lambda: datetime.now(UTC),
            random=os.urandom, log=self.said.append)
        self._number = 0

    def _make(self, virtio: VirtioPci, shared: Dma, private: Dma) -> TrustedFunction:
        return TrustedFunction(virtio, IDENTITY, shared=shared, private=private, routing_id=FUNCTION, configured=True,
                               stream_id=NO_STREAM_ID, measurements=lambda: MEASURED)

    def _transfer(self, number: int, kind: DoeType, payload: bytes) -> bytes:
        assert number == self._number
        answer = self.device.responder.handle(payload, secured=kind is DoeType.SECURED_SPDM)
        return b"" if answer is None else answer[0]

    def control(self, value: int, *, port: bool) -> None:
        """Write the control register of a stream."""
        function = self.above.function if port else self.behind.function
        at = find(function.config, ExtendedId.IDE) + IDE.size + SELECTIVE["control"].offset
        (self.above if port else self.behind).write_config(at, value.to_bytes(4, "little"))

    def status(self, *, port: bool) -> int:
        """Read its status."""
        function = self.above.function if port else self.behind.function
        at = find(function.config, ExtendedId.IDE) + IDE.size + SELECTIVE["status"].offset
        return int.from_bytes((self.above if port else self.behind).read_config(at, 4), "little")

    def ask(self, operation: TsmOperation, data: bytes = b"", scope: int = 0, *, function: int = FUNCTION,
            interface: int = FUNCTION, room: int = 1 << 17) -> TsmAnswer:
        """Ask, as the kernel's module does."""
        self._number += 1
        if operation is TsmOperation.CONNECT:
            for port in (False, True):
                self.control(STREAM << 24 | StreamControl.DEFAULT * (not port), port=port)
        answer = self.tsm.handle(TsmRequest(self._number, operation, function, PORT, STREAM, interface, scope, room,
                                            data))
        connected = operation is TsmOperation.CONNECT and not answer.status
        if connected:
            for port in (True, False):
                self.control(STREAM << 24 | StreamControl.ENABLE | StreamControl.DEFAULT * (not port), port=port)
        elif operation in {TsmOperation.CONNECT, TsmOperation.DISCONNECT}:
            for port in (True, False):
                self.control(0, port=port)
        assert answer.number == self._number
        return answer

    def guest(self, asked: GuestRequest, scope: Scope | None = None, room: int = 1 << 17) -> TsmAnswer:
        """Ask, as a guest does through its host."""
        right = Scope.INFO if asked is GuestRequest.REPORT else Scope.STATE_CHANGE
        return self.ask(TsmOperation.GUEST_REQUEST, bytes((asked,)), right if scope is None else scope, room=room)


class Opened:
    """Configuration space of one of the two, as sysfs has it."""

    def __init__(self, name: str, site: Site) -> None:
        if name not in {function_name(PORT), function_name(FUNCTION)}:
            raise TargetError(f"{name}: no such file")
        self._one = site.above if name == function_name(PORT) else site.behind

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pass

    def read(self, offset: int) -> int:
        return int.from_bytes(self._one.read_config(offset, 4), "little")

    def write(self, offset: int, value: int) -> None:
        self._one.write_config(offset, value.to_bytes(4, "little"))


def find(config: bytearray, wanted: ExtendedId) -> int:
    """Return where an extended capability is."""
    at = find_extended(lambda word: int.from_bytes(config[word:word + 4], "little"), wanted)
    assert at is not None
    return at


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    made = Site(monkeypatch, tmp_path)
    yield made
    made.tsm.close()
    made.device.close()


def test_a_whole_life(site: Site) -> None:
    tdi, port = site.device.tdi, site.behind.port
    assert site.ask(TsmOperation.CONNECT).status == 0, site.said
    assert site.status(port=False) == site.status(port=True) == 2
    assert site.ask(TsmOperation.BIND).status == 0
    assert site.guest(GuestRequest.LOCK).status == 0, site.said
    report = site.guest(GuestRequest.REPORT)
    assert InterfaceReport.decode(report.data).ranges[0].first_page == BASES[REGISTER_BAR] >> 12
    assert site.behind.read_bar(REGISTER_BAR, 0, 4) == b"\xff" * 4  # nobody's, before it runs
    assert site.guest(GuestRequest.START).status == 0
    packets = site.behind.packets
    assert site.behind.read_bar(REGISTER_BAR, 0, 4) == bytes(4)
    site.behind.write_bar(REGISTER_BAR, 0, b"\1\0\0\0")
    assert site.behind.read_bar(REGISTER_BAR, 0, 4) == b"\1\0\0\0"
    assert site.behind.packets == packets + 3
    assert site.ask(TsmOperation.UNBIND).status == 0
    assert tdi.state is State.CONFIG_UNLOCKED
    assert site.behind.read_bar(REGISTER_BAR, 0, 4) == bytes(4)  # without the T bit again, as everybody's
    assert site.behind.packets == packets + 3
    assert site.ask(TsmOperation.DISCONNECT).status == 0
    assert site.status(port=False) == site.status(port=True) == 0
    assert port.stream.is_new
    assert not port.lost


_STEPS = st.one_of(
    st.sampled_from([(TsmOperation.CONNECT, b"", 0), (TsmOperation.DISCONNECT, b"", 0), (TsmOperation.BIND, b"", 0),
                     (TsmOperation.UNBIND, b"", 0),
                     *((TsmOperation.GUEST_REQUEST, bytes((asked,)), scope) for asked in GuestRequest
                       for scope in Scope)]),
    st.tuples(st.sampled_from(TsmOperation), st.binary(max_size=3), st.integers(0, 4)))


@given(st.lists(_STEPS, max_size=14))
@settings(deadline=None, max_examples=40)
def test_in_any_order(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[TsmOperation, bytes, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        site = Site(patch, tmp_path_factory.getbasetemp())
        connected = bound = False
        state = State.CONFIG_UNLOCKED
        for operation, data, scope in steps:
            fine = site.ask(operation, data, scope).status == 0
            match operation:
                case TsmOperation.CONNECT:
                    assert fine
                    connected, bound, state = True, False, State.CONFIG_UNLOCKED
                case TsmOperation.DISCONNECT:
                    assert fine == connected
                    connected, bound, state = False, False, State.CONFIG_UNLOCKED
                case TsmOperation.BIND:
                    assert fine == connected
                    bound, state = fine, State.CONFIG_UNLOCKED
                case TsmOperation.UNBIND:
                    assert fine == connected
                    bound, state = False, State.CONFIG_UNLOCKED
                case _ if fine:
                    assert bound
                    assert len(data) == 1
                    asked = GuestRequest(data[0])
                    assert scope == (Scope.INFO if asked is GuestRequest.REPORT else Scope.STATE_CHANGE)
                    state = {GuestRequest.LOCK: State.CONFIG_LOCKED, GuestRequest.START: State.RUN,
                             GuestRequest.STOP: State.CONFIG_UNLOCKED}.get(asked, state)
                case _:
                    # A start that the device refuses ends the session, and with it all that was.
                    if site.device.tdi.state is not state:
                        assert data == bytes((GuestRequest.START,))
                        assert site.device.tdi.state is State.CONFIG_UNLOCKED
                        state = State.CONFIG_UNLOCKED
            assert site.device.tdi.state is state, site.said
            assert (site.behind.port.stream.state is StreamState.SECURE) >= (state is State.RUN)
        site.tsm.close()
        site.device.close()


def test_a_guest_gets_no_more_than_it_has_room_for(site: Site) -> None:
    for operation in (TsmOperation.CONNECT, TsmOperation.BIND):
        assert site.ask(operation).status == 0
    assert site.guest(GuestRequest.LOCK).status == 0
    assert site.guest(GuestRequest.REPORT, room=16).status == -errno.EMSGSIZE


def test_an_interface_that_the_device_was_not_connected_for(site: Site) -> None:
    assert site.ask(TsmOperation.CONNECT).status == 0
    assert site.ask(TsmOperation.BIND, interface=FUNCTION + 1).status == -errno.EINVAL
    assert site.ask(TsmOperation.BIND, function=FUNCTION + 1).status == -errno.ENXIO


def test_a_port_that_takes_no_keys(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.behind.port.stream, "program", lambda *_a, **_k: (_ for _ in ()).throw(ValueError))
    assert site.ask(TsmOperation.CONNECT).status == -errno.EIO
    assert any("refuses command" in line for line in site.said)
    assert site.device.stream is not None
    assert not site.device.stream.has_keys


def test_a_port_that_is_none(site: Site) -> None:
    head = find(site.above.function.config, ExtendedId.DESIGNATED)
    site.above.function.config[head:head + 2] = b"\0\0"
    assert site.ask(TsmOperation.CONNECT).status == -errno.EIO


def test_keys_can_not_be_read_back(site: Site) -> None:
    at = find(site.above.function.config, ExtendedId.DESIGNATED)
    for word in range(8):
        site.above.write_config(at + KEYS[f"key{word}"].offset, b"\x5a" * 4)
    assert site.above.read_config(at + KEYS["key0"].offset, 4) == bytes(4)
    site.above.write_config(at + KEYS["counter"].offset, b"\1\0\0\0")
    site.above.write_config(at + KEYS["command"].offset, KeyCommand.PROGRAM.to_bytes(4, "little"))
    assert site.above.read_config(at + KEYS["status"].offset, 4) == bytes(4)
    assert b"\x5a" not in site.above.function.config
    assert site.behind.port.stream.has_keys
    site.above.reset()
    assert not site.behind.port.stream.has_keys


def test_a_host_that_switches_the_stream_off_while_it_runs(site: Site) -> None:
    for operation in (TsmOperation.CONNECT, TsmOperation.BIND):
        assert site.ask(operation).status == 0
    for asked in (GuestRequest.LOCK, GuestRequest.START):
        assert site.guest(asked).status == 0
    site.control(STREAM << 24 | StreamControl.DEFAULT, port=False)
    assert site.device.tdi.state is State.ERROR
    assert site.behind.read_bar(REGISTER_BAR, 0, 4) == b"\xff" * 4


def test_a_host_that_gives_the_stream_another_number_before_the_lock(site: Site) -> None:
    assert site.ask(TsmOperation.CONNECT).status == 0
    assert site.ask(TsmOperation.BIND).status == 0
    site.control((STREAM + 1) << 24 | StreamControl.ENABLE | StreamControl.DEFAULT, port=False)
    assert site.guest(GuestRequest.LOCK).status == -errno.EACCES
    assert site.device.tdi.state is State.CONFIG_UNLOCKED


@given(st.lists(st.tuples(st.integers(0, CONFIG_SIZE), st.binary(max_size=4)), max_size=40))
@settings(deadline=None)
def test_any_writes_to_a_port(tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        site = Site(patch, tmp_path_factory.getbasetemp())
        at = find(site.above.function.config, ExtendedId.DESIGNATED)
        for offset, data in writes:
            # Half of them where something acts.
            site.above.write_config(offset if offset % 2 else at + offset % KEYS.size & ~3, data)
            assert len(site.above.read_config(offset, 4)) == 4
        assert site.above.read_config(0, 2) == VENDOR_ID.to_bytes(2, "little")
        assert site.above.read_config(at + KEYS["key0"].offset, 4) == bytes(4)
        site.device.close()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_break_a_rule(data: bytes) -> None:
    try:
        request = TsmRequest.decode(data)
    except WireError:
        return
    assert request.operation in TsmOperation
