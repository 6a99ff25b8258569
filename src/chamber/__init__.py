"""Chamber: put a malicious host in front of a guest's virtio drivers and see what happens."""

from __future__ import annotations

__version__ = "0.1.0"
