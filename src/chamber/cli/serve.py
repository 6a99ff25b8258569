"""``chamber serve``: one device for a front end that speaks vhost-user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chamber.assess.printable import printable
from chamber.attacks.catalogue import catalogue, find
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.targets import open_capture, unknown
from chamber.device.capture import Recorder
from chamber.device.catalogue import TYPES, make_device
from chamber.device.disk import FileDisk, MemoryDisk
from chamber.device.tap import TapBackend
from chamber.link import vhost_user
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.attacks.attack import Attack
    from chamber.device.base import Device
    from chamber.device.hooks import Hooks

__all__ = ("serve",)

_SECTOR: Final = 512
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_MEMORY_DISK: Final = 4 << 30
_PATH_LIMIT: Final = 107
"""Bytes of a Unix socket's path (unix(7))."""


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", value.upper())
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < size <= _MAX_MEMORY_DISK or size % _SECTOR:
        raise click.UsageError(f"--size {value}: a number of bytes, or with K, M, G; whole sectors, at most 4G")
    return size


def _mac(_context: click.Context, _parameter: click.Parameter, value: str | None) -> bytes | None:
    if value is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise click.UsageError(f"--mac {value}: six bytes in hexadecimal, with colons")
    return bytes.fromhex(value.replace(":", ""))


@click.command()
@click.argument("device", type=click.Choice([d.short for d in TYPES]))
@click.option("--socket", "path", required=True, type=click.Path(path_type=Path), help="Where to listen.")
@click.option("--attack", "name", help="Be hostile: one attack of the catalogue.")
@click.option("--trace", is_flag=True, help="Print every message and event, not only what the attack does.")
@click.option("--capture", "capture_path", type=click.Path(path_type=Path),
              help="Write what crosses the boundary to a pcapng file, and its transcript beside it.")
@click.option("--file", type=click.Path(path_type=Path), help="blk: the disk image. Default: 4 MiB of memory.")
@click.option("--read-only", is_flag=True, help="blk: refuse writes.")
@click.option("--size", callback=_size, help="blk: size of a disk in memory, such as 64M.")
@click.option("--tap", help="net: the tap device at the other end. Default: a built-in peer.")
@click.option("--mac", callback=_mac, help="net: the guest's address.")
@click.option("--queues", type=click.IntRange(1, 64), help="blk: request queues. net: pairs of queues.")
def serve(device: str, path: Path, name: str | None, trace: bool, capture_path: Path | None,
          **options: Any) -> None:  # noqa: ANN401 - click's
    """Serve a device, honest or hostile, until interrupted."""
    kind = next(d for d in TYPES if d.short == device)
    attack = _attack(name, kind)
    capture = open_capture(capture_path)
    hooks = attack if capture is None else Recorder(capture, attack)
    served = _make(kind, hooks, {key: value for key, value in options.items() if value not in {None, False}})

    def show(line: str) -> None:
        if trace or line.startswith("ATTACK "):
            click.echo(printable(line))

    served.trace = show
    with InterruptOnce():
        try:
            serve_device(served, path, trace=trace)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        finally:
            if capture is not None:
                capture.close()


def serve_device(device: Device, path: Path, *, trace: bool) -> None:
    """Serve until KeyboardInterrupt; the device is closed at the end whatever happens."""
    try:
        if len(bytes(path)) > _PATH_LIMIT:
            raise click.UsageError(f"{path}: longer than the {_PATH_LIMIT} bytes of a socket's path")
        if path.exists() and not path.is_socket():
            raise click.UsageError(f"{path}: exists and is no socket")
        vhost_user.serve(device, path, trace=(lambda line: click.echo(printable(line))) if trace else None,
                         ready=lambda: click.echo(f"serving {device.type.short} on {path}", err=True))
    except FileExistsError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    finally:
        device.close()


def _attack(name: str | None, kind: DeviceType) -> Attack | None:
    if name is None:
        return None
    spec = find(name)
    if spec.device is not kind:
        raise unknown(f"attack in {kind.short} named", name, [s.name for s in catalogue() if s.device is kind])
    return spec.make()


def _make(kind: DeviceType, hooks: Hooks | None, options: dict[str, Any]) -> Device:
    allowed = {DeviceType.BLOCK: {"file", "read_only", "size", "queues"}, DeviceType.NET: {"tap", "mac", "queues"}}
    for key in options:
        if key not in allowed.get(kind, set()):
            raise click.UsageError(f"--{key.replace('_', '-')} is no option of {kind.short}")
    arguments: dict[str, Any] = {}
    if kind is DeviceType.BLOCK:
        arguments.update(_disk(options))
        if "queues" in options:
            arguments["num_queues"] = options["queues"]
    elif kind is DeviceType.NET:
        if "mac" in options:
            arguments["mac"] = options["mac"]
        if "queues" in options:
            arguments["pairs"] = options["queues"]
        if "tap" in options:
            arguments["backend"] = _tap(options["tap"])
    return make_device(kind, hooks=hooks, **arguments)


def _disk(options: dict[str, Any]) -> dict[str, Any]:
    read_only = bool(options.get("read_only"))
    if "file" in options:
        if "size" in options:
            raise click.UsageError("--size is for a disk in memory; a file has its own")
        path: Path = options["file"]
        try:
            return {"disk": FileDisk(path, read_only=read_only)}
        except OSError as error:
            raise click.UsageError(f"{path}: {error.strerror}") from None
    if "size" in options or read_only:
        return {"disk": MemoryDisk(bytearray(options.get("size", 4 << 20)), read_only=read_only)}
    return {}


def _tap(name: str) -> TapBackend:
    try:
        return TapBackend(name)
    except OSError as error:
        raise click.UsageError(f"tap device {name}: {error.strerror}; it needs root (CAP_NET_ADMIN)") from None
