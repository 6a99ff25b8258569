"""What ``chamber serve`` serves: a device made from the command's options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chamber.device.catalogue import make_device
from chamber.device.disk import FileDisk, MemoryDisk
from chamber.device.pmem import FileMedium
from chamber.device.scsi_lun import LogicalUnit
from chamber.device.snd_stream import Sound, SoundError, Stream, WavSink, WavSource
from chamber.device.tap import TapBackend
from chamber.device.vsock_socket import UnixHost
from chamber.wire.errors import WireError
from chamber.wire.input import parse_recording, parse_script
from chamber.wire.scsi import Address
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.base import Device
    from chamber.device.disk import Disk
    from chamber.device.hooks import Hooks

__all__ = ("OPTIONS", "make_served")

_DISK_SIZE: Final = 4 << 20

Options = dict[str, Any]


def _disk(options: Options) -> Disk | None:
    read_only = bool(options.get("read_only"))
    if "file" in options:
        if "size" in options:
            raise click.UsageError("--size is for a disk in memory; a file has its own")
        return FileDisk(options["file"], read_only=read_only)
    if "size" in options or read_only:
        return MemoryDisk(bytearray(options.get("size", _DISK_SIZE)), read_only=read_only)
    return None


def _given(options: Options, **names: str) -> dict[str, Any]:
    """Arguments of a device class, for those of the options that are given."""
    return {argument: options[name] for argument, name in names.items() if name in options}


def _blk(options: Options) -> dict[str, Any]:
    disk = _disk(options)
    return _given(options, num_queues="queues") | ({} if disk is None else {"disk": disk})


def _scsi(options: Options) -> dict[str, Any]:
    disk = _disk(options)
    units = {} if disk is None else {"units": {Address(0, 0): LogicalUnit(disk)}}
    return _given(options, num_queues="queues") | units


def _net(options: Options) -> dict[str, Any]:
    arguments = _given(options, mac="mac", pairs="queues")
    if "tap" in options:
        name = options["tap"]
        try:
            arguments["backend"] = TapBackend(name)
        except OSError as error:
            raise click.UsageError(f"tap device {name}: {error.strerror}; it needs root (CAP_NET_ADMIN)") from None
    return arguments


def _fs(options: Options) -> dict[str, Any]:
    return _given(options, path="directory", tag="tag", read_only="read_only", num_request_queues="queues")


def _p9(options: Options) -> dict[str, Any]:
    if "tag" in options:
        options["tag"] = options["tag"].encode()
    return _given(options, root="directory", tag="tag", read_only="read_only")


def _vsock(options: Options) -> dict[str, Any]:
    arguments = _given(options, guest_cid="cid")
    if "unix" in options:
        arguments["hosts"] = (UnixHost(options["unix"]),)
    return arguments


def _pmem(options: Options) -> dict[str, Any]:
    return {"medium": FileMedium(options["file"])} if "file" in options else {}


def _input(options: Options) -> dict[str, Any]:
    """Events of evdev's own records, or of lines: the former hold a byte that no text does."""
    if "events" not in options:
        return {}
    data = options["events"].read_bytes()
    try:
        return {"recording": list(parse_recording(data) if b"\0" in data else parse_script(data.decode()))}
    except (WireError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{options['events']}: {error}") from None


def _snd(options: Options) -> dict[str, Any]:
    if not options.keys() & {"play", "record"}:
        return {}
    try:
        source = WavSource(options["record"]) if "record" in options else Sound()
    except SoundError as error:
        raise click.UsageError(str(error)) from None
    sink = WavSink(options["play"]) if "play" in options else Sound()
    return {"streams": [Stream.output(sink), Stream.input(source)]}


def _crypto(options: Options) -> dict[str, Any]:
    return _given(options, data_queues="queues")


_MAKERS: Final[dict[DeviceType, tuple[frozenset[str], Callable[[Options], dict[str, Any]]]]] = {
    DeviceType.BLOCK: (frozenset({"file", "read_only", "size", "queues"}), _blk),
    DeviceType.SCSI: (frozenset({"file", "read_only", "size", "queues"}), _scsi),
    DeviceType.NET: (frozenset({"tap", "mac", "queues"}), _net),
    DeviceType.FS: (frozenset({"directory", "tag", "read_only", "queues"}), _fs),
    DeviceType.TRANSPORT_9P: (frozenset({"directory", "tag", "read_only"}), _p9),
    DeviceType.VSOCK: (frozenset({"cid", "unix"}), _vsock),
    DeviceType.PMEM: (frozenset({"file"}), _pmem),
    DeviceType.CRYPTO: (frozenset({"queues"}), _crypto),
    DeviceType.INPUT: (frozenset({"events"}), _input),
    DeviceType.SND: (frozenset({"play", "record"}), _snd),
}

OPTIONS: Final = {kind: options for kind, (options, _) in _MAKERS.items()}
"""Names of the options that each device type takes, besides those that all take."""


def make_served(kind: DeviceType, hooks: Hooks | None, options: Options, ring: str = "split") -> Device:
    """Make a device as the options say.

    Raises:
        click.UsageError: an option is none of this device type, or what it names can't be used.

    """
    allowed, make = _MAKERS.get(kind, (frozenset(), dict))
    for key in options:
        if key not in allowed:
            raise click.UsageError(f"--{key.replace('_', '-')} is no option of {kind.short}")
    try:
        return make_device(kind, hooks=hooks, ring=ring, **make(dict(options)))
    except OSError as error:
        where: Path | str = error.filename or next((v for v in options.values() if isinstance(v, Path)), kind.short)
        raise click.UsageError(f"{where}: {error.strerror}") from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
