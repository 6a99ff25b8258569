"""What goes over a guest's terminal, at the host's end."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import pytest

from chamber.lab.uml_channel import UmlChannel
from chamber.link.eventloop import EventLoop


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_go_both_ways_and_what_is_no_object_is_dropped(terminal: bool) -> None:
    heard: list[dict[str, Any]] = []
    with EventLoop() as loop, closing(UmlChannel(loop, heard.append, terminal=terminal)) as channel:
        assert os.isatty(channel.inner) == terminal
        channel.listen()
        channel.send({"do": "off"})
        channel.type(b"ab\n")
        channel.interrupt()
        assert os.read(channel.inner, 100) == b'{"do": "off"}\nab\n\x03'
        os.write(channel.inner, b'{"a": 1}\n[2]\nnothing\n\xff\xfe\n{"b"')
        loop.turn(1.0)
        os.write(channel.inner, b": 2}\n")
        loop.turn(1.0)
        assert heard == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_guest_that_has_ended_is_neither_heard_nor_told(terminal: bool) -> None:
    with EventLoop() as loop, closing(UmlChannel(loop, lambda _message: None, terminal=terminal)) as channel:
        channel.handed_over()
        assert loop.turn(1.0)
        assert not loop.turn(0.01)
        channel.send({"do": "off"})


def test_a_guest_that_does_not_read_loses_what_is_typed() -> None:
    with EventLoop() as loop, closing(UmlChannel(loop, lambda _message: None)) as channel:
        for _ in range(1000):
            channel.type(bytes(10_000))
