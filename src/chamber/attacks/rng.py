"""Lies in the entropy device's protocol: too little, none, or always the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("rng_attacks",)


class Entropy(Attack):
    """Changes what buffers are filled with.

    Args:
        change: makes the bytes from the honest ones.
        times: buffers to change; honest from then on, as a driver may ask until it has what it wants.

    """

    def __init__(self, change: Callable[[bytes], bytes], *, times: int = 100) -> None:
        super().__init__()
        self._change = change
        self._left = times

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Fill with something else."""
        if not self._left:
            return data
        self._left -= 1
        changed = self._change(data)
        self.strike(f"{len(changed)} bytes for a buffer of {len(data)}, {len(set(changed))} different ones")
        return changed


class Stale(Attack):
    """Claims a full buffer of which it wrote one byte."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 100

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Write one byte."""
        return data[:1]

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Claim them all."""
        if self._left:
            self._left -= 1
            self.strike(f"{length} bytes written, {chain.writable_size} claimed")
            return ((chain.head, chain.writable_size),)
        return ((chain.head, length),)


_ROWS: Final[tuple[tuple[str, Surface, Aim, str, Callable[[], Attack]], ...]] = (
    ("empty", Surface.LENGTH, Aim.DENIAL, "returns 100 buffers empty",
     lambda: Entropy(lambda _data: b"")),
    ("one-byte", Surface.LENGTH, Aim.DENIAL, "returns one byte at a time",
     lambda: Entropy(lambda data: data[:1])),
    ("stale", Surface.LENGTH, Aim.LEAK, "writes one byte of a buffer and claims it full",
     Stale),
    ("zeroes", Surface.CONTENT, Aim.DECEPTION, "fills buffers with zeroes",
     lambda: Entropy(lambda data: bytes(len(data)))),
    ("repeated", Surface.CONTENT, Aim.DECEPTION, "fills all buffers with the same bytes",
     lambda: Entropy(lambda data: (bytes(range(256)) * (len(data) // 256 + 1))[:len(data)])),
)


def rng_attacks() -> Iterator[AttackSpec]:
    """Attacks on the entropy device's protocol."""
    for what, surface, aim, summary, make in _ROWS:
        yield AttackSpec(f"rng-{what}", DeviceType.RNG, surface, aim, "virtio 1.3, 5.4.6",
                         f"The device {summary}.", make)
