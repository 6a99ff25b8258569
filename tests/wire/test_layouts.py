from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire import blk, console, net
from chamber.wire.errors import WireError
from chamber.wire.layout import Layout

LAYOUTS = [value for module in (blk, console, net) for value in vars(module).values() if isinstance(value, Layout)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@given(data=st.data())
def test_any_bytes_are_values_or_an_error(layout: Layout, data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=layout.size + 8))
    if len(raw) < layout.size:
        with pytest.raises(WireError):
            layout.unpack(raw)
        return
    values = layout.unpack(raw)
    assert all(0 <= value <= layout[name].maximum for name, value in values.items())
    rest = {f.name: layout.get_bytes(raw, f.name) for f in layout if not f.is_integer}
    assert bytes(layout.pack(**values, **rest)) == raw[:layout.size]


@pytest.mark.parametrize(("layout", "size"), [
    (net.CONFIG, 28), (net.HDR, 12), (net.HDR_HASH, 20), (net.RSS, 8), (console.CONFIG, 12), (console.CONTROL, 8),
    (console.RESIZE, 4),
], ids=lambda value: getattr(value, "name", str(value)))
def test_sizes_are_those_of_the_specification(layout: Layout, size: int) -> None:
    assert layout.size == size
