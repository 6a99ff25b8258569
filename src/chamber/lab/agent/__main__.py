"""PID 1: set the guest up, then take requests."""

from __future__ import annotations

import json
import os
import select
import sys
import time
import tty
from pathlib import Path

from chamber.lab.agent import common, kernel, worker
from chamber.lab.agent.by_device import MOUNTED, stimuli_of, uses_of
from chamber.lab.agent.patience import set_patience
from chamber.lab.agent.report import Report

_TERMINAL = "/dev/tty1"
_SCAN_SECONDS = 0.3
_HELLO_SECONDS = 0.02
_GENERIC_FRAMES = 24
_PRINTK = "7 4 1 7"
"""From here on the console shows all but debugging: registers of a fault are printed as information."""


def _setup(modules: list[str], functions: list[str]) -> None:
    if functions:  # the root is an archive: nobody mounted this yet
        kernel.mount("devtmpfs", "/dev", "devtmpfs")
    kernel.mount("proc", "/proc", "proc")
    kernel.mount("sysfs", "/sys", "sysfs")
    if kernel.DEBUGFS.is_dir():  # stock kernels leave it out
        kernel.mount("debugfs", str(kernel.DEBUGFS), "debugfs")
    Path("/proc/sys/kernel/printk").write_text(_PRINTK, encoding="ascii")
    kernel.FUNCTIONS[:] = functions
    for function in functions:
        kernel.unbind_platform(function)
    for module in modules:
        kernel.load_module(Path(module))
    for device in kernel.platform_devices():
        kernel.unbind_platform(device)


def _stimulate(report: Report, request: dict[str, object]) -> None:
    """Connect the device, run the stimuli, disconnect it; in a process of its own, for it may never return."""
    platform, kind = str(request["platform"]), str(request["device"])
    stimuli = request["stimuli"]
    report.stimulus = "probe"
    kernel.plant()
    with report.step("connect"):
        kernel.bind_platform(platform)
        virtio = kernel.virtio_name(platform)
        kernel.driver_of(virtio)
    if not report.fine:
        stimuli = []  # the guest refused the device: there is nothing to use
    for name in stimuli if isinstance(stimuli, list) else []:
        report.stimulus = name
        call = stimuli_of(kind).get(name) or common.STIMULI[name]
        # Whatever a stimulus needs may be missing because the device was refused; that is a refusal too.
        with report.step("run"):
            call(kernel.virtio_name(platform), report)
    if not request["stay"]:
        report.stimulus = "remove"
        with report.step("disconnect"):
            kernel.unbind_platform(platform)


def _run(report: Report, request: dict[str, object]) -> None:
    """Run stimuli in a child and wait for it, but not for ever."""
    seconds = request["seconds"]
    kernel.SECRET.marker = bytes.fromhex(str(request["marker"]))
    child = os.fork()
    if not child:
        status = 1
        try:
            _stimulate(report, request)
            status = 0
        except Exception as error:  # a bug of a stimulus must reach the host, whatever it is
            report.send(step=report.stimulus, outcome="bug", detail=f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    watch = os.pidfd_open(child)
    try:
        deadline = time.monotonic() + (seconds if isinstance(seconds, (int, float)) else 5.0)
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        if poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status < 0:
                report.send(step="the process that uses the device", outcome="silent", detail=f"signal {-status}")
            report.send(done="run")
        else:
            report.send(done="run", hang=_where(child))
    finally:
        os.close(watch)


def _where(pid: int) -> list[str]:
    """Return the kernel stack of a process that does not end."""
    try:
        text = Path(f"/proc/{pid}/stack").read_text(encoding="ascii")
    except OSError as error:
        return [f"no stack: {error.strerror}"]
    return [line.split("] ", 1)[-1].split("+")[0] for line in text.splitlines()[:_GENERIC_FRAMES]]


def _cycle(report: Report, request: dict[str, object]) -> None:
    """Remove and probe a driver many times."""
    platform, count = str(request["platform"]), int(str(request["count"]))
    kernel.bind_platform(platform)
    try:
        virtio = kernel.virtio_name(platform)
        begin = time.monotonic()
        kernel.rebind_driver(virtio, count)
        report.send(done="cycle", seconds=time.monotonic() - begin)
        # The last probe may still be looking for disks. It would keep the connection beyond the removal, and a second
        # one beside it makes User-Mode Linux give up the device for good.
        time.sleep(_SCAN_SECONDS)
    finally:
        kernel.unbind_platform(platform)


def _connect(request: dict[str, object]) -> dict[str, object]:
    """Connect a device for programs to use."""
    kernel.bind_platform(str(request["platform"]))
    virtio = kernel.virtio_name(str(request["platform"]))
    kernel.driver_of(virtio)
    return {"virtio": virtio}


def _disconnect(request: dict[str, object]) -> dict[str, object]:
    kernel.unbind_platform(str(request["platform"]))
    return {}


def _execute(request: dict[str, object]) -> dict[str, object]:
    """Run a program."""
    from chamber.lab.agent import program  # noqa: PLC0415 - much to load, and guests of a search run no programs

    arguments = request["arguments"]
    return program.run(arguments if isinstance(arguments, list) else [], float(str(request["seconds"])))


def _work(request: dict[str, object]) -> dict[str, object]:
    """Start a process that uses a device as often as it is told."""
    kind = str(request["device"])
    child = os.fork()
    if not child:
        try:
            kernel.SECRET.marker = bytes.fromhex(str(request["marker"]))
            kernel.plant()
            worker.serve(str(request["platform"]), uses_of(kind), ends_waits=kind not in MOUNTED)
        finally:
            os._exit(1)
    return {"pid": child}


def _stack(request: dict[str, object]) -> dict[str, object]:
    """Say where in the kernel a process is."""
    return {"stack": _where(int(str(request["pid"])))}


def _sections(_request: dict[str, object]) -> dict[str, object]:
    """Say where the modules' code is."""
    return {"sections": kernel.module_sections()}


def _log(request: dict[str, object]) -> dict[str, object]:
    """Say which lines of the kernel's log have a word."""
    word = str(request["word"])
    return {"lines": [line for line in kernel.log() if word in line]}


_TASKS = {"connect": _connect, "disconnect": _disconnect, "exec": _execute, "log": _log, "sections": _sections,
          "stack": _stack, "work": _work}
"""What is asked for and answered at once, or refused with an error."""


def main() -> None:
    """Serve the host until it says to end, or for as long as there is one."""
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    set_patience(float(words.get("--patience", 1)))
    name = words.get("--terminal", _TERMINAL)
    terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(terminal)
    report = Report(terminal)
    try:
        _setup(Path(words["--modules"]).read_text(encoding="utf-8").splitlines(),
               [word for word in words.get("--functions", "").split(",") if word])
        kernel.let_wake(Path(name).name)
        report.send(hello=os.uname().release, devices=kernel.platform_devices())
    except OSError as error:
        report.send(failed=str(error))
    with os.fdopen(terminal, "rb", buffering=0, closefd=False) as stream:
        pending = b""
        announces = False
        while True:
            # One that is saved meanwhile, and goes on in another machine, is heard there.
            while announces and not select.select([terminal], [], [], _HELLO_SECONDS)[0]:
                report.send(hello=os.uname().release)
            pending += stream.read(4096) or b""
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                if not line:  # just to wake this machine
                    continue
                request = json.loads(line)
                announces = request["do"] == "announce"
                match request["do"]:
                    case "run":
                        _run(report, request)
                    case "cycle":
                        try:
                            _cycle(report, request)
                        except OSError as error:
                            report.send(done="cycle", failed=str(error))
                    case "check":
                        report.send(done="check", caches=kernel.check_slabs(), pool=kernel.bounce_slots())
                    case "announce":
                        pass
                    case "off":
                        kernel.power_off()
                    case task:
                        try:
                            report.send(done=task, **_TASKS[task](request))
                        except OSError as error:
                            report.send(done=task, failed=str(error))


if __name__ == "__main__":
    main()
