"""Pieces of the stimuli, small enough for hundreds a second: a module for each type of device that has some.

A guest loads those of its own device alone, as a quarter of its start is to load code.
"""

from __future__ import annotations

from collections.abc import Callable

from chamber.lab.agent.report import Report

__all__ = ("Session",)

Session = Callable[[str, Report], None]
"""Does something with a device, given by its name on the virtio bus."""
