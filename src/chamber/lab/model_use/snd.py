"""What the model guest does with a sound device."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from chamber.device.sample_content import RECORDED
from chamber.device.snd import ITEMS
from chamber.guest.driver import DeviceTimeout
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.snd import Access, PcmFormat, SndCode, SndFeature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.snd import SndDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_PERIOD: Final = 1920
_BYTES: Final = 5 * _PERIOD
_DECIBELS: Final = struct.pack("<2i", -6000, 60)


def use(driver: SndDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Play, record what is known, turn knobs, pull a plug."""
    params = driver.choose(0, channels=2, format=PcmFormat.S16, rate=48000, period=_PERIOD)
    driver.play(0, params, random.Random(6).randbytes(_BYTES))  # noqa: S311 - test data
    machine.settle(PAUSE)
    params = driver.choose(1, channels=2, format=PcmFormat.S16, rate=48000, period=_PERIOD)
    compare(driver.record(1, params, _BYTES), RECORDED[:_BYTES], "what is recorded")
    if driver.has(SndFeature.CTLS):
        driver.write_control(0, (70, 71))
        if driver.read_control(0) != (70, 71):
            raise WrongData("a volume that was set")
        driver.write_control(2, (1,))
        if driver.read_control(2) != (1,):
            raise WrongData("a source that was chosen")
        driver.write_metadata(0, 1, _DECIBELS)
        if driver.read_metadata(0) != (1, _DECIBELS):
            raise WrongData("metadata that was written")
    driver.remap(0, 2, 1)
    for action, code in (("unplug", SndCode.EVT_JACK_DISCONNECTED), ("plug", SndCode.EVT_JACK_CONNECTED)):
        machine.settle(PAUSE)
        driver.notified.clear()
        ask(action)
        machine.settle(PAUSE)
        if (code, 0) not in driver.notified and not driver.violations:
            raise DeviceTimeout("nobody says that a plug was moved")


def inspect(driver: SndDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Look at what there is, which is the host's to choose."""
    machine.settle(PAUSE)
    if any(not 0 < info.channels_min <= info.channels_max for info in driver.streams):
        raise WrongData("a stream without channels")
    for number, control in enumerate(driver.controls):
        if not all(text.decode("latin-1").isprintable() for text in (control.name, *driver.items.get(number, ()))):
            raise WrongData("a name that commands whoever shows it")
        driver.read_control(number)
        if control.access >> Access.TLV_READ & 1:
            driver.read_metadata(number)
    for items in driver.items.values():
        if items != ITEMS:
            raise WrongData("items of a control element")


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
