"""How stimuli tell what happened, one step at a time, while it happens."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("Report", "Silence", "WrongData")


_P = ParamSpec("_P")


class WrongData(Exception):
    """The guest was given something that is not what it should be, and took it."""


class Silence(Exception):
    """The device did not answer in time."""


class Report:
    """Writes one line per step to the host.

    Outcomes: ``begin`` a step starts; ``ok``; ``refused`` the kernel turned it down with an error; ``wrong`` data was
    taken that is not right; ``silent`` no answer came in time; ``note`` a remark.

    Attributes:
        stimulus: what is running; leads every step's name.
        fine: whether the last step to end went well.

    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.stimulus = ""
        self.fine = True

    def send(self, **message: object) -> None:
        """Write one message; a step's line is small enough to go out at once."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data):]

    def note(self, text: str) -> None:
        """Remark something for the transcript."""
        self.send(step=self.stimulus, outcome="note", detail=text[:500])

    def ask(self, action: str) -> None:
        """Ask the host's device for an honest action of its own, such as plugging a port."""
        self.send(ask=action)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run one step: what it raises becomes its outcome."""
        self.fine = False
        label = f"{self.stimulus}: {name}"
        self.send(step=label, outcome="begin")
        try:
            yield
        except WrongData as error:
            self.send(step=label, outcome="wrong", detail=str(error)[:500])
        except (Silence, TimeoutError) as error:
            self.send(step=label, outcome="silent", detail=str(error)[:500])
        except OSError as error:
            self.send(step=label, outcome="refused", detail=f"{error.strerror or error}"[:500])
        except MemoryError:  # a file is read in as large pieces as a device says it should be
            self.send(step=label, outcome="refused", detail="not enough memory")
        else:
            self.fine = True
            self.send(step=label, outcome="ok")

    def attempt(self, name: str, call: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> bool:
        """Run a step that is one call; return whether it went well."""
        with self.step(name):
            call(*args, **kwargs)
        return self.fine
