"""A PCI function as a guest meets it: what it may change, where structures are, which interrupts come when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.platform.msix import MsixTable, PendingBits
from chamber.platform.pci import Bar, PciFunction, Region, Window
from chamber.wire.pci import (
    BAR_MEMORY_64,
    BAR_PREFETCHABLE,
    CONFIG_SIZE,
    EXPRESS,
    HEADER,
    MSIX,
    CapabilityId,
    Command,
    ExpressControl,
    ExtendedId,
    MsixControl,
    Status,
)


class Cells:
    """Registers that keep what is written."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset:offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset:offset + len(data)] = data


def make_function() -> PciFunction:
    return PciFunction(vendor=0x1AF4, device=0x1042, class_code=0x018000, subsystem_vendor=0x1AF4, subsystem=2)


def number(function: PciFunction, offset: int, size: int) -> int:
    return int.from_bytes(function.read_config(offset, size), "little")


def put(function: PciFunction, offset: int, size: int, value: int) -> None:
    function.write_config(offset, value.to_bytes(size, "little"))


def enable(function: PciFunction, command: Command = Command.MEMORY | Command.BUS_MASTER) -> None:
    put(function, HEADER["command"].offset, 2, command)


def capabilities(function: PciFunction) -> dict[int, int]:
    found, at = {}, number(function, HEADER["capabilities"].offset, 1)
    while at:
        found[number(function, at, 1)] = at
        at = number(function, at + 1, 1)
    return found


def test_ids_are_read_only_and_the_command_is_not() -> None:
    function = make_function()
    before = function.read_config(0, 4)
    function.write_config(0, b"\0\0\0\0")
    assert function.read_config(0, 4) == before == bytes.fromhex("f41a4210")
    enable(function)
    assert function.command == Command.MEMORY | Command.BUS_MASTER
    put(function, HEADER["command"].offset, 2, 0xFFFF)
    assert not function.command & Command.IO


def test_the_size_of_a_bar_shows_when_all_ones_are_written() -> None:
    function = make_function()
    function.add_bar(0, Bar(16384, ()))
    function.add_bar(2, Bar(1 << 20, (), wide=True, prefetchable=True))
    for register in range(4):
        put(function, HEADER[f"bar{register}"].offset, 4, 0xFFFFFFFF)
    assert number(function, HEADER["bar0"].offset, 4) == 0xFFFFC000
    assert number(function, HEADER["bar1"].offset, 4) == 0
    assert number(function, HEADER["bar2"].offset, 8) == (-(1 << 20) & (1 << 64) - 1) | BAR_MEMORY_64 | BAR_PREFETCHABLE
    put(function, HEADER["bar2"].offset, 4, 0x8000_0000)
    put(function, HEADER["bar3"].offset, 4, 0x12)
    assert function.bar_base(2) == 0x12_8000_0000


@pytest.mark.parametrize(("index", "size", "wide"), [(0, 24, False), (0, 8, False), (5, 4096, True), (1, 16, False)])
def test_a_bar_that_there_cannot_be_is_refused(index: int, size: int, wide: bool) -> None:
    function = make_function()
    function.add_bar(1, Bar(16, ()))
    with pytest.raises(ValueError, match="no BAR"):
        function.add_bar(index, Bar(size, (), wide=wide))


def test_a_bar_answers_where_there_is_something_once_memory_is_enabled() -> None:
    function, cells = make_function(), Cells(8)
    function.add_bar(0, Bar(4096, (Region(16, 8, cells),)))
    function.write_bar(0, 16, b"\1\2")
    assert function.read_bar(0, 16, 2) == b"\xff\xff"
    assert not any(cells.data)
    enable(function)
    function.write_bar(0, 16, b"\1\2")
    assert function.read_bar(0, 16, 4) == b"\1\2\0\0"
    assert function.read_bar(0, 22, 4) == b"\xff" * 4  # half of it lies behind the region
    assert function.read_bar(3, 0, 4) == b"\xff" * 4


def test_capabilities_are_a_list_and_extended_ones_another() -> None:
    function = make_function()
    first = function.add_capability(CapabilityId.VENDOR, b"\1\2\3")
    second = function.add_capability(CapabilityId.VENDOR, b"\4\5", mask=b"\xff")
    assert number(function, HEADER["status"].offset, 2) & Status.CAPABILITIES
    assert capabilities(function) == {CapabilityId.EXPRESS: 0x40, CapabilityId.VENDOR: second}
    assert number(function, 0x41, 1) == first
    assert (first % 4, second % 4) == (0, 0)
    function.write_config(second + 2, b"\xaa\xaa")
    assert function.read_config(second + 2, 2) == b"\xaa\5"
    one = function.add_extended(ExtendedId.DOE, 2, b"\xab" * 8)
    two = function.add_extended(ExtendedId.VENDOR, 1, b"")
    assert one == 0x100
    assert number(function, one, 4) == ExtendedId.DOE | 2 << 16 | two << 20
    assert number(function, two, 4) == ExtendedId.VENDOR | 1 << 16


def test_there_is_an_end_of_room_for_capabilities() -> None:
    function = make_function()
    with pytest.raises(ValueError, match="no room"):
        function.add_capability(CapabilityId.VENDOR, bytes(200))
    with pytest.raises(ValueError, match="no room"):
        function.add_extended(ExtendedId.DOE, 2, bytes(CONFIG_SIZE))


def test_beyond_configuration_space_all_bits_are_one() -> None:
    function = make_function()
    assert function.read_config(CONFIG_SIZE - 2, 4) == b"\0\0\xff\xff"
    function.write_config(CONFIG_SIZE - 1, b"\0\0")
    function.write_config(CONFIG_SIZE + 8, b"\0\0")
    assert len(function.config) == CONFIG_SIZE


def make_msix(vectors: int = 3) -> tuple[PciFunction, MsixTable, list[tuple[int, int]]]:
    function = make_function()
    table = function.add_msix(vectors, 1, table=0, pending=2048)
    pending = PendingBits(table)
    function.add_bar(1, Bar(4096, (Region(0, table.size, table), Region(2048, pending.size, pending))))
    sent: list[tuple[int, int]] = []
    function.send = lambda address, data: sent.append((address, data))
    enable(function)
    return function, table, sent


def control(function: PciFunction, value: int) -> None:
    put(function, capabilities(function)[CapabilityId.MSIX] + MSIX["control"].offset, 2, value)


def program(function: PciFunction, vector: int, address: int, data: int, *, masked: bool = False) -> None:
    function.write_bar(1, 16 * vector, address.to_bytes(8, "little") + data.to_bytes(4, "little")
                       + int(masked).to_bytes(4, "little"))


def test_msix_sends_what_the_guest_wrote_for_the_vector() -> None:
    function, _, sent = make_msix()
    assert number(function, capabilities(function)[CapabilityId.MSIX] + 2, 2) == 2
    program(function, 1, 0xFEE00000, 0x41)
    function.signal(1)
    assert not sent
    control(function, MsixControl.ENABLE)
    assert function.has_msix
    function.signal(1)
    function.signal(7)
    assert sent == [(0xFEE00000, 0x41)]
    enable(function, Command.MEMORY)
    function.signal(1)
    assert len(sent) == 1


def test_an_interrupt_that_is_masked_waits_and_shows_as_pending() -> None:
    function, _, sent = make_msix()
    control(function, MsixControl.ENABLE | MsixControl.FUNCTION_MASK)
    program(function, 0, 0x1000, 1)
    program(function, 2, 0x2000, 2, masked=True)
    for vector in (0, 2, 2):
        function.signal(vector)
    assert not sent
    assert function.read_bar(1, 2048, 8) == (0b101).to_bytes(8, "little")
    control(function, MsixControl.ENABLE)
    assert sent == [(0x1000, 1)]
    program(function, 2, 0x2000, 3)
    assert sent == [(0x1000, 1), (0x2000, 3)]
    assert function.read_bar(1, 2048, 8) == bytes(8)


def test_the_pin_is_told_where_msix_is_off_and_it_is_not_disabled() -> None:
    function, _, _ = make_msix()
    told: list[bool] = []
    function.wire = told.append
    function.intx(asserted=True)
    function.intx(asserted=True)
    function.intx(asserted=False)
    assert told == [True, False]
    enable(function, Command.MEMORY | Command.INTX_DISABLE)
    function.intx(asserted=True)
    assert told == [True, False]
    assert number(function, HEADER["status"].offset, 2) & Status.INTERRUPT


def test_a_function_level_reset_forgets_what_the_guest_wrote() -> None:
    function, table, sent = make_msix()
    put(function, HEADER["bar1"].offset, 4, 0xFEB00000)
    program(function, 0, 0x1000, 1)
    control(function, MsixControl.ENABLE)
    resets: list[int] = []
    function.was_reset = lambda: resets.append(1)
    at = capabilities(function)[CapabilityId.EXPRESS] + EXPRESS["device_control"].offset
    put(function, at, 2, ExpressControl.FLR)
    assert resets == [1]
    assert (function.bar_base(1), function.command, table.enabled, table.message(0)) == (0, 0, False, (0, 0))
    assert not number(function, at, 2) & ExpressControl.FLR
    function.signal(0)
    assert not sent


def test_a_window_sees_just_its_own_bytes() -> None:
    function = make_function()
    at = function.add_capability(CapabilityId.VENDOR, bytes(6))
    seen: list[tuple[int, bytes]] = []
    function.add_window(Window(at + 4, at + 8, lambda offset, size: bytes([offset]) * size,
                               lambda offset, data: seen.append((offset, data))))
    function.write_config(at + 2, b"\1\2\3\4")
    function.write_config(at + 7, b"\5\6")
    function.write_config(at, b"\7\7")
    assert seen == [(0, b"\3\4"), (3, b"\5")]
    assert function.read_config(at + 5, 2) == b"\1\1"


@given(st.lists(st.tuples(st.booleans(), st.integers(-8, CONFIG_SIZE + 8), st.binary(max_size=9)), max_size=40))
def test_whatever_a_guest_writes_ids_and_capabilities_stay(writes: list[tuple[bool, int, bytes]]) -> None:
    function, table, _ = make_msix()
    before, found = function.read_config(0, 4), capabilities(function)
    for bar, offset, data in writes:
        if bar:
            function.write_bar(1, abs(offset), data)
        else:
            function.write_config(abs(offset), data)
    assert function.read_config(0, 4) == before
    assert capabilities(function) == found
    assert len(function.config) == CONFIG_SIZE
    assert len(table.read(0, table.size)) == table.size
