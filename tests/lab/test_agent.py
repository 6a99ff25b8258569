"""What the agent says of a stimulus, told by its own process."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING
from unittest.mock import ANY

import pytest

from chamber.lab.agent import __main__ as agent
from chamber.lab.agent.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(("stimulate", "told"), [
    (lambda: None, []),
    (lambda: os.kill(os.getpid(), signal.SIGKILL),
     [{"step": "the process that uses the device", "outcome": "silent", "detail": "signal 9"}]),
    (lambda: bytes(1 << 62), [{"step": "use: run", "outcome": "begin"},
                              {"step": "use: run", "outcome": "refused", "detail": "not enough memory"}]),
    (lambda: int(""), [{"step": "use: run", "outcome": "begin"},
                       {"step": "use", "outcome": "bug", "detail": ANY}]),
])
def test_how_a_stimulus_ends_is_told(monkeypatch: pytest.MonkeyPatch, stimulate: Callable[[], object],
                                     told: list[dict[str, str]]) -> None:
    def run(report: Report, _request: object) -> None:
        if len(told) < 2:
            stimulate()
            return
        with report.step("run"):
            stimulate()

    monkeypatch.setattr(agent, "_stimulate", run)
    inside, outside = os.pipe()
    try:
        report = Report(outside)
        report.stimulus = "use"
        agent._run(report, {"seconds": 20.0, "marker": "00"})
        said = [json.loads(line) for line in os.read(inside, 65536).splitlines()]
    finally:
        os.close(inside)
        os.close(outside)
    assert said == [*told, {"done": "run"}]
