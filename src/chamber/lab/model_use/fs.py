"""What the model guest does with a shared directory."""

from __future__ import annotations

import random
import stat
from typing import TYPE_CHECKING, Final

from chamber.device.sample_content import LINK, MANY, SAMPLE, XATTR
from chamber.guest.drivers.fs import FsError
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.fs import FsDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_EDITED: Final = b"second version of the notes\n"


def use(driver: FsDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Read what is known, list; make, write, rename and remove."""
    driver.mount()
    for name in ("hello", "empty", "big", "dir/inner", "dir/sub/deep"):
        compare(driver.read_file(name), SAMPLE[name], "a file")
    machine.settle(PAUSE)
    if sorted(driver.listdir("many")) != sorted(MANY):
        raise WrongData("names in a directory")
    if driver.readlink(LINK[0]) != LINK[1]:
        raise WrongData("target of a link")
    data = random.Random(5).randbytes(20_000)  # noqa: S311 - test data
    driver.mkdir("made")
    driver.write_file("made/file", data)
    compare(driver.read_file("made/file"), data, "what was written")
    driver.symlink("made/soft", "elsewhere")
    driver.link("made/file", "made/hard")
    driver.rename("made/file", "made/renamed")
    machine.settle(PAUSE)
    compare(driver.read_file("made/hard"), data, "a file by its other name")
    status = driver.setattr("made/hard", mode=0o640, size=50)
    if (status.size, stat.S_IMODE(status.mode)) != (50, 0o640):
        raise WrongData("attributes that were set")
    for name in ("soft", "hard", "renamed"):
        driver.unlink(f"made/{name}")
    driver.rmdir("made")
    try:
        driver.lookup("made")
    except FsError:
        pass
    else:
        raise WrongData("what was removed is there")
    driver.unmount()
    machine.settle(PAUSE)


def inspect(driver: FsDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Attributes of everything, extended ones, and a change that the host makes."""
    driver.mount()
    driver.statfs()
    for name, content in SAMPLE.items():
        if driver.getattr(name).size != len(content):
            raise WrongData("size of a file")
    if XATTR[0] in driver.listxattr("hello"):
        compare(driver.getxattr("hello", XATTR[0]), XATTR[1], "an extended attribute")
        driver.setxattr("hello", "user.guest", b"g" * 100)
        compare(driver.getxattr("hello", "user.guest"), b"g" * 100, "an extended attribute that was set")
    compare(driver.read_file("notes"), SAMPLE["notes"], "notes")
    ask("edit")
    machine.settle(PAUSE)
    compare(driver.read_file("notes"), _EDITED, "notes that the host has changed")
    driver.unmount()


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect, "tree": use, "direct": use}
