"""Inputs on a real kernel: honest ones do no harm, and none outlives what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import TYPES
from chamber.fuzz.lies import Change, Lie, Moment, Point, Program, Start
from chamber.fuzz.progress import read_counts
from chamber.fuzz.uml_executor import UmlExecutor
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.observation import Harm
from chamber.lab.uml_channel import UmlChannel
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_worker import UmlWorker
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.kernel.store import BuiltKernel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]


_LONG_NAME = (Lie(Point.SIZE, 2, times=0xFF, value=4096),
              Lie(Point.RESPONSE, 2, times=0xFF, offset=8, change=Change.FILL, value=0x41414141))
"""6.12 believes that a name ends where the used length says."""

_TOO_MANY_PAIRS = bytes.fromhex("0104000001ff010109000502e1ffffffffffffff")
"""More queue pairs than the device takes: Linux waits for the answer of the control queue, for ever."""


@pytest.fixture(scope="module")
def kernel() -> BuiltKernel:
    return build_kernel(find_source("6.12"), KernelOptions())


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_honest_inputs_do_no_harm_and_cover_the_driver(kernel: BuiltKernel, device: DeviceType) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), device, trace=True)) as executor:
        for turn in range(2):
            for start in Start:
                for use, name in enumerate(executor.uses):
                    execution = executor.run(Program(start, use))
                    assert not execution.evidence, (turn, start, name, execution.evidence)
                    assert execution.use == name
                    # What goes wrong in what a guest does is refused by its kernel, for all that a search knows.
                    # The host may end a wait that is over already, on a busy machine.
                    said = [line for line in execution.transcript if line.split(maxsplit=1)[1].startswith("guest: ")]
                    assert said
                    assert said[0].endswith(("done", "the host has nothing more to say")), (turn, start, said)
                    if start is Start.PROBE:
                        assert sum(map(bool, executor.edges)) > 100, (start, name)
        assert executor.boots == 1


def test_a_bug_is_reported_and_the_next_input_has_a_fresh_guest(kernel: BuiltKernel) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.CONSOLE)) as executor:
        echo = executor.uses.index("echo")
        execution, boots = executor.run(Program(Start.CONNECT, echo, 0, _LONG_NAME)), executor.boots
        assert any(e.harm is Harm.MEMORY and e.signature.startswith("KASAN") for e in execution.evidence)
        assert any("PORT_NAME" in strike for strike in execution.strikes)
        assert not executor.run(Program(Start.CONNECT, echo)).evidence
        assert executor.boots == boots + 1


def test_a_guest_goes_on_after_what_is_known(kernel: BuiltKernel) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.CONSOLE, known=lambda _e: True)) as executor:
        assert executor.run(Program(Start.PROBE, 0, 0, _LONG_NAME)).evidence
        boots = executor.boots  # a first guest that took too long to find its device, on a busy machine, is one more
        for _ in range(2):
            assert executor.run(Program(Start.PROBE, 0, 0, _LONG_NAME)).evidence
        assert executor.boots == boots


def test_a_guest_that_hangs_where_one_is_known_to_is_asked_once(
        kernel: BuiltKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    where = UmlWorker.where

    def counted(worker: UmlWorker, seconds: float) -> list[str]:
        asked.append(seconds)
        return where(worker, seconds)

    monkeypatch.setattr(UmlWorker, "where", counted)
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.NET, known=lambda _e: True)) as executor:
        execution = executor.run(Program.parse(_TOO_MANY_PAIRS))
    assert [e.signature.split(" ")[0] for e in execution.evidence] in (["hang"], ["guest"])
    assert len(asked) == 1


def test_a_guest_takes_turns_with_its_processes_on_one_processor(kernel: BuiltKernel) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.RNG)) as executor:
        assert len(os.sched_getaffinity(executor.pid)) == 1


def test_a_search_sees_the_same_without_noting_who_allocates(kernel: BuiltKernel) -> None:
    shown: dict[bool, tuple[str, str]] = {}
    for hurried in (True, False):
        with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.CONSOLE, trace=not hurried)) as executor:
            execution = executor.run(Program(Start.PROBE, 0, 0, _LONG_NAME))
        shown[hurried] = execution.evidence[0].signature, execution.console.partition("Allocated by task")[2]
    assert shown[True][0] == shown[False][0]
    assert "alloc_buf" in shown[False][1]
    assert "alloc_buf" not in shown[True][1]


def test_what_a_device_keeps_back_is_no_hang(kernel: BuiltKernel) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.BLOCK)) as executor:
        execution = executor.run(Program(Start.PROBE, 0, 0, (Lie(Point.WITHHELD, 0, change=Change.ADD),)))
        assert execution.told == {0: 1}
        assert not execution.evidence


def test_a_wait_for_what_was_lost_is_ended_and_the_driver_serves_on(
        kernel: BuiltKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    interrupt = UmlChannel.interrupt

    def watched(channel: UmlChannel) -> None:
        ended.append(channel)
        interrupt(channel)

    monkeypatch.setattr(UmlChannel, "interrupt", watched)
    # The answer to a request for a connection is cut short, so that Linux drops it.
    lie = Lie(Point.SIZE, 0, value=32)
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.VSOCK)) as executor:
        stream = executor.uses.index("stream-socket")
        assert not executor.run(Program(Start.SESSION, stream)).evidence
        for _ in range(12):
            execution = executor.run(Program(Start.SESSION, stream, 0, (lie,)))
            assert execution.told == {0: 1}
            assert not execution.evidence
        assert ended
        assert not executor.run(Program(Start.SESSION, stream)).evidence
        assert executor.boots == 1


def test_what_is_told_while_the_driver_goes_away_comes_before_it_frees(kernel: BuiltKernel) -> None:
    lie = Lie(Point.MESSAGE, 0xFF, times=0xFF, offset=Moment.STOPPING)
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.CONSOLE)) as executor:
        for _ in range(10):
            execution = executor.run(Program(Start.PROBE, 0, 0, (lie,)))
            assert execution.told
            assert not any("qlist" in e.signature for e in execution.evidence)


@pytest.mark.parametrize("device", [DeviceType.BLOCK, DeviceType.NET, DeviceType.CONSOLE, DeviceType.VSOCK],
                         ids=lambda device: device.short)
def test_an_honest_function_on_a_bus_does_no_harm(kernel: BuiltKernel, device: DeviceType) -> None:
    with closing(UmlExecutor(find_kernel(kernel.binary), device, trace=True, pci=True)) as executor:
        for start in Start:
            for use, name in enumerate(executor.uses):
                execution = executor.run(Program(start, use))
                assert not execution.evidence, (start, name, execution.evidence)
        assert executor.boots == 1


def test_what_a_function_lies_about_is_told_and_gotten_over(kernel: BuiltKernel) -> None:
    lies = {
        Start.CONNECT: Lie(Point.CONFIG_SPACE, 0, offset=0x08, width=1, value=7),  # its revision
        Start.PROBE: Lie(Point.REGISTER, 0, offset=0x12, width=2, value=900),  # num_queues
        Start.SESSION: Lie(Point.VECTOR, value=0x7FF),
    }
    with closing(UmlExecutor(find_kernel(kernel.binary), DeviceType.BLOCK, pci=True)) as executor:
        for start, lie in lies.items():
            execution = executor.run(Program(start, 0, 0, (lie,)))
            assert execution.told == {0: 1}, start
            assert not execution.evidence, (start, execution.evidence)
            honest = executor.run(Program(Start.CONNECT, 0))
            assert not honest.evidence


def _guests(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if f"uml_dir={folder}".encode() in line:
            found.append(int(path.parent.name))
    return found


def _wait_for(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_kernel_outlives_its_campaign(kernel: BuiltKernel, tmp_path: Path, end: signal.Signals) -> None:
    top = tmp_path / "campaign"
    command = [sys.executable, "-m", "chamber", "fuzz", "blk", "--kernel", str(kernel.binary), "--jobs", "2",
               "--corpus", str(top)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        _wait_for("both jobs execute", lambda: all(
            read_counts(top / "progress" / f"job{n}.counts").executions > 100 for n in (1, 2)))
        assert len(_guests(top)) >= 2
        process.send_signal(end)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if end is signal.SIGINT else -end), out
    _wait_for("no kernel is left", lambda: not _guests(top))
    executions = sum(read_counts(path).executions for path in (top / "progress").glob("*.counts"))
    assert subprocess.run([*command, "--time", "10"], capture_output=True, timeout=120, check=False).returncode == 0
    assert sum(read_counts(path).executions for path in (top / "progress").glob("*.counts")) > executions
    assert not (top / "tmp").exists()
    assert not _guests(top)
