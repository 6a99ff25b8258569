"""A function by sysfs, in a folder that stands for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.cli.main import run
from chamber.lab.linux_tdisp import SysfsFunction
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "0000:01:02.0"


def make(root: Path, extended: list[tuple[int, int, int]]) -> Path:
    """Make a sysfs with one function, whose extended capabilities are (place, id, next)."""
    folder = root / "bus/pci/devices" / ADDRESS
    folder.mkdir(parents=True)
    config = bytearray(4096)
    for at, kind, follow in extended:
        config[at:at + 4] = (kind | 1 << 16 | follow << 20).to_bytes(4, "little")
    (folder / "config").write_bytes(config)
    (folder / "resource").write_text("0x80000000 0x80003fff 0x00040200\n0x0 0x0 0x0\n0x1000 0x103f 0x40101\n")
    (folder / "driver_override").write_text("(null)\n")
    return root


def test_a_function_is_read_written_and_named(tmp_path: Path) -> None:
    with SysfsFunction(ADDRESS, make(tmp_path, [(0x100, 1, 0x140), (0x140, 0x2E, 0)])) as function:
        assert function.requester_id == 0x0110
        assert function.find_mailbox() == 0x140
        assert function.bars() == {0: 0x8000_0000}
        function.write(0x148, 0x12345678)
        assert function.read(0x148) == 0x12345678
        assert function.read(4096) == 0xFFFFFFFF
        function.enable()
        assert function.read(4) & 6 == 6
        assert function.driver == ""
        function.keep_from_drivers()
        assert (tmp_path / "bus/pci/devices" / ADDRESS / "driver_override").read_text() == "chamber-nobody"
        with pytest.raises(TargetError, match="no driver took it"):
            function.give_to_driver()


@pytest.mark.parametrize("extended", [[], [(0x100, 1, 0x100)], [(0x100, 1, 0x140), (0x140, 2, 0x100)],
                                      [(0x100, 1, 0xFFC), (0xFFC, 1, 0x40)]])
def test_a_list_that_a_host_has_end_nowhere_has_no_mailbox(tmp_path: Path,
                                                           extended: list[tuple[int, int, int]]) -> None:
    with SysfsFunction(ADDRESS, make(tmp_path, extended)) as function, pytest.raises(TargetError, match="no mailbox"):
        function.find_mailbox()


@pytest.mark.parametrize(("address", "why"), [("../../etc", "no PCI function"), ("0000:00:00.0", "0000:00:00.0")])
def test_a_function_that_is_not_there_is_said_in_one_line(tmp_path: Path, address: str, why: str,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "trust.toml"
    policy.write_text(f'schema = "chamber-trust/1"\nroots = ["{"0" * 64}"]\n')
    assert run(["tdisp", "bind", address, "--policy", str(policy), "--sysfs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
