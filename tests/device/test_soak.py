"""A hostile driver neither breaks a device nor makes it spin, grow or reach out, however long it tries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import TYPES
from tests.device.soak import Outcome

if TYPE_CHECKING:
    from chamber.wire.virtio import DeviceType

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.short)


def _soak(kind: DeviceType, requests: int, ring: str, tmp_path: Path) -> Outcome:
    """In a process of its own, which is to end by itself."""
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "tmp").mkdir()
    done = subprocess.run([sys.executable, "-m", "tests.device.soak", kind.name, str(requests), ring], cwd=ROOT,
                          env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert outside.read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["outside", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
    return Outcome(*map(int, done.stdout.split()))


def _check(outcome: Outcome, requests: int) -> None:
    assert outcome.requests >= requests
    assert outcome.used > requests // 20, outcome  # it went on serving
    assert outcome.violations > 0, outcome
    assert outcome.most_touched < 64 << 20, outcome
    assert outcome.grown_kb < 64 << 10, outcome
    assert outcome.descriptors <= 2, outcome


@KINDS
def test_hostile_requests(kind: DeviceType, tmp_path: Path) -> None:
    _check(_soak(kind, 4_000, "split", tmp_path), 4_000)


@pytest.mark.slow
@pytest.mark.parametrize("ring", ["split", "packed"])
@KINDS
def test_half_a_million_hostile_requests_on_each_kind_of_ring(kind: DeviceType, ring: str, tmp_path: Path) -> None:
    _check(_soak(kind, 500_000, ring, tmp_path), 500_000)
