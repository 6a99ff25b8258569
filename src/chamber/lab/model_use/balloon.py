"""What the model guest does with its balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import DeviceTimeout
from chamber.lab.model_use.right_data import PAUSE, compare
from chamber.platform.memory import PAGE
from chamber.wire.balloon import BalloonFeature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.balloon import BalloonDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_NEEDED: Final = 4
"""Pages without which this guest can't go on."""


def _work(driver: BalloonDriver, machine: GuestMachine) -> None:
    """Use fresh pages, which a guest takes for cleared and for its own."""
    if len(machine.spare_pages) < _NEEDED:
        raise MemoryError("the guest is out of memory")
    pages = machine.spare_pages[-_NEEDED:]
    for number, page in enumerate(pages):
        page.write(bytes([number + 1]) * PAGE)
    machine.settle(PAUSE)
    for number, page in enumerate(pages):
        compare(page.read(0, PAGE), bytes([number + 1]) * PAGE, "a page of the guest's own")
        page.write(bytes(PAGE))
    driver.answer_statistics()


def use(driver: BalloonDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Fill the balloon and empty it, as the host asks; the pages that come back are cleared ones."""
    for action in ("inflate", "deflate"):
        ask(action)
        machine.settle(PAUSE)
        driver.adjust()
        _work(driver, machine)
    _answer(driver, machine, ask)
    # Those taken back last are used first.
    for page in machine.spare_pages[-_NEEDED:]:
        compare(page.read(0, PAGE), bytes(PAGE), "a page from the balloon, taken for cleared")


def _answer(driver: BalloonDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Answer statistics, hints and reports."""
    for _ in range(3):
        told = driver.told
        ask("statistics")
        machine.settle(PAUSE)
        driver.answer_statistics()
        if driver.told == told and driver.has(BalloonFeature.STATS_VQ):
            raise DeviceTimeout("nobody asks for statistics")
    ask("hint")
    machine.settle(PAUSE)
    driver.hint()
    machine.settle(2 * PAUSE)
    driver.hint()
    driver.report()
    for page in machine.spare_pages[-2:]:
        compare(page.read(0, PAGE), bytes(PAGE), "a page that was reported, taken for cleared")
    _work(driver, machine)


def inspect(driver: BalloonDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Look at the host's wishes when it has none, and answer it."""
    driver.config_changed()
    driver.adjust()
    _answer(driver, machine, ask)


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
