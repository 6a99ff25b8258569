"""What the model guest does with a keyboard, a pointer and a touch screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.input_actions import ACTIONS
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.lab.model_use.right_data import PAUSE, WrongData
from chamber.wire.input import CODES, EventType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chamber.guest.drivers.input import InputDriver
    from chamber.guest.machine import GuestMachine
    from chamber.wire.input import InputEvent

__all__ = ("STIMULI",)


def _compare(driver: InputDriver, right: Sequence[tuple[InputEvent, ...]], what: str) -> None:
    """Compare what came with what was done; a host may lose events, and the guest refuse some."""
    came = driver.take()
    if came == list(right):
        return
    if driver.violations:
        raise Refused(f"events of {what}: {driver.violations[-1]}")
    rest = iter(right)
    if all(sequence in rest for sequence in came):
        raise DeviceTimeout(f"events of {what} don't come")
    raise WrongData(f"events of {what}")


def use(driver: InputDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Read what the host types, moves and touches; switch lamps."""
    for action in ("type", "move", "touch"):
        machine.settle(PAUSE)
        _compare(driver, (), "nobody")
        ask(action)
        machine.settle(PAUSE)
        _compare(driver, ACTIONS[action], action)
    for code in (0, 1):
        driver.lamp(code, lit=True)
        driver.lamp(code, lit=False)
    machine.settle(PAUSE)


def inspect(driver: InputDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Look at what the device says that it is, which is the host's to choose; nobody types."""
    if not driver.name.isprintable():
        raise WrongData("a name that commands whoever shows it")
    for kind, codes in driver.codes.items():
        if max(codes, default=0) >= CODES[EventType(kind)]:
            raise WrongData("codes that there are not")
    machine.settle(PAUSE)
    _compare(driver, (), "nobody")


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
