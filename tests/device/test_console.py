from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import ECHO_PORT, make_device
from chamber.device.console import ConsoleDevice
from chamber.device.hooks import Hooks
from chamber.device.port import BUFFER_LIMIT, CallbackBackend, FileBackend, Port
from chamber.wire.console import (
    CONFIG,
    CONTROL,
    CONTROL_RX_QUEUE,
    CONTROL_TX_QUEUE,
    RESIZE,
    ConsoleEvent,
    ConsoleFeature,
    port_of_queue,
    rx_queue,
    tx_queue,
)
from chamber.wire.virtio import DeviceType, bit
from tests.device.driver import Driver

if TYPE_CHECKING:
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue


def message(ident: int, event: int, value: int = 1) -> bytes:
    return bytes(CONTROL.pack(id=ident, event=event, value=value))


class Guest(Driver):
    """A multiport driver."""

    device: ConsoleDevice

    def tell(self, ident: int, event: int, value: int = 1) -> list[tuple[int, ConsoleEvent, int, bytes]]:
        assert self.request(CONTROL_TX_QUEUE, [message(ident, event, value)], []) == b""
        return self.told()

    def told(self) -> list[tuple[int, ConsoleEvent, int, bytes]]:
        """Control messages that arrived; each buffer is replaced."""
        out = []
        for _, data in self.used(CONTROL_RX_QUEUE):
            ident, event, value = CONTROL.unpack(data).values()
            out.append((ident, ConsoleEvent(event), value, data[CONTROL.size:]))
            self.add(CONTROL_RX_QUEUE, [], [64])
        return out

    def heard(self, ident: int) -> bytes:
        return b"".join(data for _, data in self.used(rx_queue(ident)))


@pytest.fixture
def guest() -> Guest:
    features = bit(ConsoleFeature.SIZE, ConsoleFeature.MULTIPORT, ConsoleFeature.EMERG_WRITE)
    device = make_device(DeviceType.CONSOLE, features=features)
    guest = Guest(device, size=32)
    for _ in range(16):
        guest.add(CONTROL_RX_QUEUE, [], [64])
    return guest


def begin(guest: Guest, ident: int = 1) -> None:
    guest.tell(0, ConsoleEvent.DEVICE_READY)
    guest.tell(ident, ConsoleEvent.PORT_READY)
    guest.tell(ident, ConsoleEvent.PORT_OPEN)


def test_queue_numbers() -> None:
    assert [(rx_queue(p), tx_queue(p)) for p in range(3)] == [(0, 1), (4, 5), (6, 7)]
    assert [port_of_queue(q) for q in range(8)] == [0, 0, None, None, 1, 1, 2, 2]


def test_driver_learns_of_all_ports_and_what_they_are(guest: Guest) -> None:
    assert guest.tell(0, ConsoleEvent.DEVICE_READY) == [
        (0, ConsoleEvent.DEVICE_ADD, 1, b""), (1, ConsoleEvent.DEVICE_ADD, 1, b"")]
    assert guest.tell(0, ConsoleEvent.PORT_READY) == [
        (0, ConsoleEvent.CONSOLE_PORT, 1, b""),
        (0, ConsoleEvent.RESIZE, 1, bytes(RESIZE.pack(cols=80, rows=25))),
        (0, ConsoleEvent.PORT_OPEN, 1, b"")]
    assert guest.tell(1, ConsoleEvent.PORT_READY) == [
        (1, ConsoleEvent.PORT_NAME, 1, ECHO_PORT.encode()), (1, ConsoleEvent.PORT_OPEN, 1, b"")]


def test_messages_wait_for_buffers() -> None:
    guest = Guest(make_device(DeviceType.CONSOLE), size=32)
    assert guest.tell(0, ConsoleEvent.DEVICE_READY) == []
    guest.add(CONTROL_RX_QUEUE, [], [64])
    guest.notify(CONTROL_RX_QUEUE)
    assert [m[0] for m in guest.told()] == [0]
    guest.notify(CONTROL_RX_QUEUE)
    assert [m[0] for m in guest.told()] == [1]


@pytest.mark.parametrize("ident", [0, 1])
def test_echo_comes_back_cut_to_buffers(guest: Guest, ident: int) -> None:
    begin(guest, ident)
    guest.add(rx_queue(ident), [], [3])
    assert guest.request(tx_queue(ident), [b"hel", b"lo"], []) == b""
    assert guest.heard(ident) == b"hel"
    assert guest.queues[rx_queue(ident)].interrupts == 1
    guest.add(rx_queue(ident), [], [100])
    guest.notify(rx_queue(ident))
    assert guest.heard(ident) == b"lo"


def test_input_waits_until_the_guest_opens_and_is_forgotten_when_it_closes(guest: Guest) -> None:
    port = guest.device.ports[1]
    guest.add(rx_queue(1), [], [100])
    guest.tell(0, ConsoleEvent.DEVICE_READY)
    guest.tell(1, ConsoleEvent.PORT_READY)
    port.send(b"early")
    assert guest.heard(1) == b""
    guest.tell(1, ConsoleEvent.PORT_OPEN)
    assert guest.heard(1) == b"early"
    port.send(b"late")
    guest.tell(1, ConsoleEvent.PORT_OPEN, 0)
    guest.add(rx_queue(1), [], [100])
    guest.notify(rx_queue(1))
    assert guest.heard(1) == b""


def test_slow_guest_loses_what_exceeds_the_limit(guest: Guest) -> None:
    begin(guest)
    port = guest.device.ports[1]
    assert port.send(bytes(BUFFER_LIMIT - 10)) == BUFFER_LIMIT - 10
    assert port.send(bytes(100)) == 10
    assert len(port.waiting) == BUFFER_LIMIT


def test_hot_plug_and_unplug(guest: Guest) -> None:
    device = guest.device
    begin(guest)
    heard: list[bytes] = []
    port = Port("new", backend=CallbackBackend(lambda port, data: heard.append(data)))
    assert device.add_port(port) == 2
    assert guest.told() == [(2, ConsoleEvent.DEVICE_ADD, 1, b"")]
    guest.tell(2, ConsoleEvent.PORT_READY)
    guest.request(tx_queue(2), [b"to the callback"], [])
    assert heard == [b"to the callback"]
    device.remove_port(2)
    assert guest.told() == [(2, ConsoleEvent.DEVICE_REMOVE, 1, b"")]
    assert guest.request(tx_queue(2), [b"to nobody"], []) == b""
    assert heard == [b"to the callback"]
    assert device.add_port(Port()) == 2
    device.add_port(Port())
    with pytest.raises(ValueError, match="at most 4 ports"):
        device.add_port(Port())


def test_host_end_opens_and_closes(guest: Guest) -> None:
    begin(guest)
    guest.device.open_port(1, is_open=False)
    assert guest.told() == [(1, ConsoleEvent.PORT_OPEN, 0, b"")]
    assert (1, ConsoleEvent.PORT_OPEN, 1, b"") not in guest.tell(1, ConsoleEvent.PORT_READY)
    guest.device.open_port(1)
    assert guest.told() == [(1, ConsoleEvent.PORT_OPEN, 1, b"")]


def test_resize_reaches_config_and_console(guest: Guest) -> None:
    begin(guest, 0)
    guest.device.resize(132, 43)
    assert guest.config_interrupts == 1
    assert guest.told() == [(0, ConsoleEvent.RESIZE, 1, bytes(RESIZE.pack(cols=132, rows=43)))]
    assert CONFIG.unpack(guest.device.read_config(0, CONFIG.size)) == {
        "cols": 132, "rows": 43, "max_nr_ports": 4, "emerg_wr": 0}


def test_emergency_write_needs_no_driver() -> None:
    device = ConsoleDevice()
    for char in b"oops":
        device.write_config(8, bytes((char, 0, 0, 0)))
    assert device.emergency == b"oops"
    device.write_config(0, b"\xff" * 8)
    assert CONFIG.get(device.config, "max_nr_ports") == 4
    silent = ConsoleDevice(features=0)
    silent.write_config(8, b"x")
    assert silent.emergency == b""


def test_single_port_needs_no_control() -> None:
    device = ConsoleDevice()
    guest = Driver(device, features=bit(ConsoleFeature.SIZE), queues=2)
    guest.add(0, [], [16])
    guest.request(1, [b"ping"], [])
    assert guest.used(0) == [(0, b"ping")]


def test_driver_that_comes_again_starts_over(guest: Guest) -> None:
    begin(guest)
    guest.device.ports[1].send(b"stale")
    guest.device.reset()
    again = Guest(guest.device, size=32)
    for _ in range(16):
        again.add(CONTROL_RX_QUEUE, [], [64])
    again.add(rx_queue(1), [], [16])
    begin(again)
    assert again.heard(1) == b""
    assert not again.device.violations


@pytest.mark.parametrize("bad", [
    b"x", b"short", message(77, ConsoleEvent.PORT_READY), message(1, ConsoleEvent.PORT_NAME), message(1, 0xFFFF)])
def test_bad_control_messages_are_noted(guest: Guest, bad: bytes) -> None:
    begin(guest)
    assert guest.request(CONTROL_TX_QUEUE, [bad], []) == b""
    assert len(guest.device.violations) == 1
    guest.add(rx_queue(1), [], [4])
    guest.request(tx_queue(1), [b"on!"], [])
    assert guest.heard(1) == b"on!"


def test_driver_that_asks_and_never_listens_fills_nothing() -> None:
    guest = Guest(make_device(DeviceType.CONSOLE), size=32)
    for _ in range(2000):
        guest.request(CONTROL_TX_QUEUE, [message(0, ConsoleEvent.PORT_READY)], [])
    assert len(guest.device._control) == 1024
    assert len(guest.device.violations) == 100


def test_unwritable_receive_buffer_kills_its_queue_alone(guest: Guest) -> None:
    begin(guest)
    guest.add(rx_queue(1), [b"read-only"], [])
    guest.device.ports[1].send(b"x")
    assert guest.device.queues[rx_queue(1)].broken
    assert guest.tell(0, ConsoleEvent.PORT_READY)


def test_hooks_change_control_messages_and_input() -> None:
    class Liar(Hooks):
        def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
            return data[::-1]

    guest = Guest(make_device(DeviceType.CONSOLE, hooks=Liar()), size=32)
    guest.add(CONTROL_RX_QUEUE, [], [64])
    guest.request(CONTROL_TX_QUEUE, [message(0, ConsoleEvent.DEVICE_READY)], [])
    assert guest.used(CONTROL_RX_QUEUE) == [(0, message(0, ConsoleEvent.DEVICE_ADD)[::-1])]
    guest.add(rx_queue(0), [], [64])
    guest.request(CONTROL_TX_QUEUE, [message(0, ConsoleEvent.PORT_OPEN)], [])
    guest.request(tx_queue(0), [b"abc"], [])
    assert guest.heard(0) == b"cba"


def _turn(device: ConsoleDevice) -> None:
    ready, _, _ = select.select(list(device.pollable()), [], [], 1)
    for fd in ready:
        device.pollable()[fd]()


def test_file_backend_connects_a_pipe_pair() -> None:
    to_guest, ours = os.pipe()
    out, from_guest = os.pipe()
    device = ConsoleDevice((Port("pipe", backend=FileBackend(to_guest, from_guest)),))
    try:
        guest = Guest(device, size=32)
        guest.add(rx_queue(0), [], [64])
        begin(guest, 0)
        os.write(ours, b"in")
        _turn(device)
        assert guest.heard(0) == b"in"
        guest.request(tx_queue(0), [b"out"], [])
        assert os.read(out, 10) == b"out"
        # A reader that stalls gets the rest when it goes on.
        block = bytes(range(256)) * 1024
        address = guest.place(len(block))
        guest.memory.write(address, block)
        guest.queues[1].put_desc(9, address, len(block), 0, 0)
        guest.queues[1].buffers[9] = []
        guest.queues[1].expose(9)
        guest.notify(1)
        got = b""
        while len(got) < len(block):
            got += os.read(out, 1 << 16)
            _turn(device)
        assert got == block
        os.close(ours)
        ours = -1
        _turn(device)
        assert select.select(list(device.pollable()), [], [], 0)[0] == []  # the end of input is told once
    finally:
        device.close()
        os.close(out)
        if ours >= 0:
            os.close(ours)


def test_file_backend_makes_a_terminal() -> None:
    backend = FileBackend.terminal()
    device = ConsoleDevice((Port(console=True, backend=backend),))
    user = os.open(backend.path, os.O_RDWR | os.O_NOCTTY)
    try:
        guest = Guest(device, size=32)
        guest.add(rx_queue(0), [], [64])
        begin(guest, 0)
        os.write(user, b"typed")
        _turn(device)
        assert guest.heard(0) == b"typed"
        guest.request(tx_queue(0), [b"shown"], [])
        assert os.read(user, 10) == b"shown"
    finally:
        os.close(user)
        device.close()
