"""A socket to ask the kernel of interfaces through."""

from __future__ import annotations

import functools
import socket

__all__ = ("control_socket",)


@functools.cache
def control_socket() -> socket.socket:
    """Return one that is made once: to make it takes longer than to ask."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
