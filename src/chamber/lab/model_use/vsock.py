"""What the model guest does with sockets."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from chamber.device.vsock_service import CALL_PORT, ECHO_PORT, GREETING
from chamber.guest.driver import Refused
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.vsock import ShutdownFlag, VsockType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.vsock import VsockDriver
    from chamber.guest.drivers.vsock_connection import Socket
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_NOBODY: Final = 9999
_MANY: Final = 6


def _echo_stream(driver: VsockDriver, socket: Socket, data: bytes) -> None:
    driver.send(socket, data)
    compare(driver.receive(socket, len(data)), data, "echo of a stream")


def _echo_message(driver: VsockDriver, socket: Socket, data: bytes) -> None:
    driver.send(socket, data)
    compare(driver.receive_message(socket), data, "echo of a message")


def use(driver: VsockDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    dice = random.Random(3)  # noqa: S311 - test data
    for kind, echo in ((VsockType.STREAM, _echo_stream), (VsockType.SEQPACKET, _echo_message)):
        socket = driver.connect(ECHO_PORT, kind)
        for size in (1, 64, 1000, 3000):
            echo(driver, socket, dice.randbytes(size))
            machine.settle(PAUSE)
        driver.close(socket)
    # More than fits into the buffers of both sides; half-closed before the last of it came back.
    socket = driver.connect(ECHO_PORT)
    data = dice.randbytes(12000)
    back = b""
    for start in range(0, len(data), 2000):
        driver.send(socket, data[start:start + 2000])
        back += driver.receive(socket, 1000)
    driver.finish(socket, ShutdownFlag.SEND)
    back += driver.receive(socket, len(data))
    compare(back, data, "echo of a stream")
    driver.close(socket)
    ask("reset")
    machine.settle(PAUSE)
    socket = driver.connect(ECHO_PORT)
    _echo_stream(driver, socket, b"after a reset")
    driver.close(socket)


def inspect(driver: VsockDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    old = driver.connect(ECHO_PORT)
    before = driver.cid
    ask("reset")
    machine.settle(0.1)
    if driver.cid == before:
        raise WrongData("the guest's context id after a reset")
    try:
        driver.send(old, b"gone")
    except Refused:
        driver.close(old)
    else:
        raise WrongData("a connection that a reset ended takes data")
    try:
        driver.connect(_NOBODY)
    except Refused:
        pass
    else:
        raise WrongData("a connection to a port that nobody listens on")
    socket = driver.connect(ECHO_PORT)
    _echo_stream(driver, socket, b"again")
    driver.close(socket)


def listen(driver: VsockDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for kind, action in ((VsockType.STREAM, "call"), (VsockType.SEQPACKET, "call-seqpacket")):
        listener = driver.listen(CALL_PORT, kind)
        try:
            sockets = []
            for _ in range(2):
                ask(action)
                sockets.append(driver.accept(listener))
            for socket in sockets:
                if kind is VsockType.STREAM:
                    compare(driver.receive(socket, len(GREETING)), GREETING, "what the host says first")
                    _echo_stream(driver, socket, GREETING[::-1])
                else:
                    compare(driver.receive_message(socket), GREETING, "what the host says first")
                    _echo_message(driver, socket, GREETING[::-1])
                machine.settle(PAUSE)
                driver.close(socket)
        finally:
            driver.close(listener)


def many(driver: VsockDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    sockets = [driver.connect(ECHO_PORT) for _ in range(_MANY)]
    for turn in range(3):
        sent = []
        for number, socket in enumerate(sockets):
            sent.append(bytes([16 * turn + number]) * (100 + 300 * number))
            driver.send(socket, sent[-1])
        for socket, data in reversed(list(zip(sockets, sent, strict=True))):
            compare(driver.receive(socket, len(data)), data, "echo on one connection of many")
        machine.settle(PAUSE)
    for socket in sockets:
        driver.close(socket)


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect, "listen": listen, "many": many}
