"""Virtual time, interrupts, secrets: what happens when, and what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.platform.interrupts import InterruptController
from chamber.platform.scheduler import BudgetExhausted, Scheduler
from chamber.platform.secrets import Secrets


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=20))
def test_events_happen_in_the_order_of_their_time_then_of_their_asking(delays: list[float]) -> None:
    scheduler = Scheduler(1000)
    happened: list[tuple[float, int]] = []
    for number, delay in enumerate(delays):
        scheduler.call_later(delay, lambda number=number: happened.append(  # type: ignore[misc]
            (scheduler.now, number)))
    while scheduler.advance(20.0):
        pass
    assert happened == sorted((delay, number) for number, delay in enumerate(delays))
    assert scheduler.now == 20.0


def test_time_stops_at_the_limit_and_what_is_later_waits() -> None:
    scheduler = Scheduler(100)
    done: list[str] = []
    scheduler.call_later(2.0, lambda: done.append("later"))
    assert not scheduler.advance(1.0)
    assert scheduler.now == 1.0
    assert not done
    assert scheduler.advance(2.0)
    assert done == ["later"]


def test_going_round_in_circles_ends() -> None:
    scheduler = Scheduler(50)

    def again() -> None:
        scheduler.call_later(0.0, again)

    def run() -> None:
        while scheduler.advance(1.0):
            pass

    again()
    with pytest.raises(BudgetExhausted):
        run()


def test_an_interrupt_is_delivered_once_and_to_its_handler() -> None:
    controller = InterruptController()
    seen: list[int] = []
    for vector in (1, 2):
        controller.attach(vector, lambda vector=vector: seen.append(vector))  # type: ignore[misc]
    for vector in (2, 1, 2, 7):
        controller.assert_vector(vector)
    assert controller.deliver()
    assert seen == [2, 1]
    assert not controller.deliver()
    assert controller.raised == 4


def test_what_nobody_listens_to_is_dropped_for_good() -> None:
    controller = InterruptController()
    seen: list[int] = []
    controller.assert_vector(1)
    controller.attach(1, lambda: seen.append(1))
    controller.assert_vector(1)
    controller.detach(1)
    controller.attach(1, lambda: seen.append(1))
    assert not controller.deliver()
    assert not seen


def test_a_handler_is_not_interrupted_by_another() -> None:
    controller = InterruptController()
    depth = [0, 0]

    def handler() -> None:
        depth[0] += 1
        depth[1] = max(depth)
        if len(order) < 3:
            order.append(1)
            controller.assert_vector(1)
            assert not controller.deliver()
        depth[0] -= 1

    order: list[int] = []
    controller.attach(1, handler)
    controller.assert_vector(1)
    while controller.deliver():
        pass
    assert order == [1, 1, 1]
    assert depth[1] == 1


def test_a_handler_that_fails_does_not_block_those_to_come() -> None:
    controller = InterruptController()
    seen: list[int] = []

    def fails() -> None:
        raise ArithmeticError

    controller.attach(1, fails)
    controller.attach(2, lambda: seen.append(2))
    controller.assert_vector(1)
    with pytest.raises(ArithmeticError):
        controller.deliver()
    controller.assert_vector(2)
    assert controller.deliver()
    assert seen == [2]


@given(st.integers(0, 1 << 32), st.binary(max_size=100), st.integers(0, 200), st.integers(15, 64),
       st.binary(max_size=100))
def test_any_fifteen_bytes_of_a_secret_are_found_wherever_they_stand(seed: int, before: bytes, start: int, length: int,
                                                                     after: bytes) -> None:
    secrets = Secrets(seed)
    piece = (secrets.marker * 8)[start:start + length]
    assert secrets.found_in(before + piece + after) is not None


@given(st.integers(0, 1 << 32))
def test_secrets_come_from_the_seed_and_nothing_else_looks_like_them(seed: int) -> None:
    secrets = Secrets(seed)
    assert secrets.marker == Secrets(seed).marker
    assert secrets.found_in(Secrets(seed + 1).marker) is None
    assert secrets.found_in(bytes(4096) + b"\x6b" * 4096) is None
