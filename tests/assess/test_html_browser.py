"""The report as a browser draws it."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from chamber.assess.html import report_html

from .fakes import make_report

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")

_BYTES = {2: 3, 6: 4}
"""Bytes per pixel by colour type: RGB, RGBA."""


def _browse(page: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


def _pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Decode an 8-bit, non-interlaced PNG (ISO/IEC 15948): width, height, rows."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, header = 8, b"", b""
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at:at + 4]), png[at + 4:at + 8]
        body = png[at + 8:at + 8 + length]
        header = body if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    assert (depth, interlace) == (8, 0)
    pixel = _BYTES[colour]
    stride = width * pixel
    raw = zlib.decompress(data)
    rows, above = [], bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        above = _unfilter(raw[start], bytearray(raw[start + 1:start + 1 + stride]), above, pixel)
        rows.append(bytes(above))
    return width, height, rows


def _unfilter(kind: int, line: bytearray, above: bytearray, pixel: int) -> bytearray:
    for i in range(len(line) if kind else 0):
        left = line[i - pixel] if i >= pixel else 0
        corner = above[i - pixel] if i >= pixel else 0
        if kind == 4:
            guess = left + above[i] - corner
            predicted = min((left, above[i], corner), key=lambda value: abs(guess - value))
        else:
            predicted = (0, left, above[i], (left + above[i]) // 2)[kind]
        line[i] = line[i] + predicted & 0xFF
    return line


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (500, 800)])
def test_the_page_is_drawn_in_colours(tmp_path: Path, width: int, height: int) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(report_html(make_report()), encoding="utf-8")
    _browse(page, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={width},{height}")
    drawn_width, drawn_height, rows = _pixels(picture.read_bytes())
    assert (drawn_width, drawn_height) == (width, height)
    pixel = len(rows[0]) // width
    colours = {row[x:x + 3] for row in rows[::3] for x in range(0, len(row), 3 * pixel)}
    assert len(colours) > 20
    # Broken, leaked and held, as the stylesheet has them for daylight.
    assert {bytes.fromhex(c) for c in ("b3261e", "7a3e9d", "d5ecdb")} <= colours


def test_the_script_runs_and_nothing_hostile_does(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(make_report()), encoding="utf-8")
    dom = _browse(page, tmp_path / "profile", "--dump-dom")
    assert '<html lang="en" class="scripted">' in dom
    assert "5 findings, 6 attacks shown</output>" in dom
    assert "<script>alert(1)" not in dom


@pytest.mark.parametrize("width", [500, 1400])
def test_no_part_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    probe = "<script>document.title = `${document.documentElement.scrollWidth - innerWidth}`</script></body>"
    page.write_text(report_html(make_report()).replace("</body>", probe), encoding="utf-8")
    dom = _browse(page, tmp_path / "profile", "--dump-dom", f"--window-size={width},800")
    overhang = int(dom.split("<title>")[1].split("</title>")[0])
    assert overhang <= 0
