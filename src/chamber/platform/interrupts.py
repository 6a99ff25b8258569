"""Interrupts: raised by anybody, delivered when the processor takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("InterruptController",)


class InterruptController:
    """Vectors, their handlers, and what is pending.

    An interrupt for a vector that nobody asked for is dropped. A handler does not interrupt another.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[], None]] = {}
        self._pending: dict[int, None] = {}
        self._running = False
        self.raised = 0

    def attach(self, vector: int, handler: Callable[[], None]) -> None:
        """Have `handler` called for a vector."""
        self._handlers[vector] = handler

    def detach(self, vector: int) -> None:
        """Take no more interrupts of a vector."""
        self._handlers.pop(vector, None)
        self._pending.pop(vector, None)

    def assert_vector(self, vector: int) -> None:
        """Raise an interrupt; several before delivery are one."""
        self.raised += 1
        if vector in self._handlers:
            self._pending[vector] = None

    def deliver(self) -> bool:
        """Run the handlers of what is pending now; return whether there was anything."""
        if self._running or not self._pending:
            return False
        vectors, self._pending = list(self._pending), {}
        self._running = True
        try:
            for vector in vectors:
                handler = self._handlers.get(vector)
                if handler is not None:
                    handler()
        finally:
            self._running = False
        return True
