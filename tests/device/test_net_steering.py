from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chamber.device.net_steering import RSS_HASH_TYPES, Rss, Steering, toeplitz

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
"""Key and values of Microsoft's "Verifying the RSS Hash Calculation"."""


def test_the_toeplitz_hash_is_the_one_that_others_compute() -> None:
    addresses = bytes((66, 9, 149, 187, 161, 142, 100, 80))
    assert toeplitz(KEY, addresses) == 0x323E8FC2
    assert toeplitz(KEY, addresses + (2794).to_bytes(2, "big") + (1766).to_bytes(2, "big")) == 0x51CCC178


@given(st.binary(min_size=14, max_size=80), st.sampled_from((b"\x08\x00", b"\x86\xdd", b"")))
def test_any_frame_goes_to_a_pair(frame: bytes, kind: bytes) -> None:
    frame = frame[:12] + (kind or frame[12:14]) + frame[14:]
    assert Rss(RSS_HASH_TYPES, (0, 1, 2, 3), 1, KEY).pair(frame) in range(4)
    steering = Steering()
    steering.pairs = 2
    steering.sent(frame, 1)
    assert steering.pair(frame) == 1
