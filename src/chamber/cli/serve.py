"""``chamber serve``: one device for a front end that speaks vhost-user, or a monitor that speaks vfio-user."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chamber.assess.printable import printable
from chamber.attacks.catalogue import catalogue, find
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.served import OPTIONS, make_served
from chamber.cli.targets import open_capture, unknown
from chamber.device.capture import Recorder
from chamber.device.catalogue import RINGS, TYPES
from chamber.device.virtio_pci import VirtioPci
from chamber.link import listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import Attack
    from chamber.device.base import Device
    from chamber.link.vfio_user import ServableFunction
    from chamber.wire.virtio import DeviceType

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


def _help(option: str, text: str) -> str:
    """Say which devices take an option."""
    return f"{', '.join(kind.short for kind, options in OPTIONS.items() if option in options)}: {text}"


@click.command()
@click.argument("device", type=click.Choice([d.short for d in TYPES]))
@click.option("--socket", "path", required=True, type=click.Path(path_type=Path), help="Where to listen.")
@click.option("--protocol", type=click.Choice(["vhost-user", "vfio-user"]), default="vhost-user", show_default=True,
              help="A device, or a PCI function with the device in it.")
@click.option("--attack", "name", help="Be hostile: one attack of the catalogue.")
@click.option("--trace", is_flag=True, help="Print every message and event, not only what the attack does.")
@click.option("--capture", "capture_path", type=click.Path(path_type=Path),
              help="Write what crosses the boundary to a pcapng file, and its transcript beside it.")
@click.option("--in-band", "inband", is_flag=True,
              help="Offer notifications as messages, as virtual time in User-Mode Linux needs; they are slower.")
@click.option("--ring", type=click.Choice(list(RINGS)), default="split", show_default=True,
              help="The kind of queue to offer.")
@click.option("--file", type=click.Path(path_type=Path),
              help=_help("file", "the disk image, or the memory. Default: a few MiB of memory."))
@click.option("--read-only", is_flag=True, help=_help("read_only", "refuse writes."))
@click.option("--size", callback=_size, help=_help("size", "size of a disk in memory, such as 64M."))
@click.option("--directory", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help=_help("directory", "what to share. Default: a small tree of its own."))
@click.option("--tag", help=_help("tag", "the name by which the guest mounts it. Default: chamber."))
@click.option("--tap", help=_help("tap", "the tap device at the other end. Default: a built-in peer."))
@click.option("--mac", callback=_mac, help=_help("mac", "the guest's address."))
@click.option("--cid", type=click.IntRange(3, (1 << 32) - 2), help=_help("cid", "the guest's context ID."))
@click.option("--unix", type=click.Path(path_type=Path),
              help=_help("unix", "Unix sockets of the host: port P of the host is PATH_P, PATH leads to the guest."))
@click.option("--events", type=click.Path(path_type=Path),
              help=_help("events", "what to type: recorded from an evdev node, or lines of SECONDS TYPE CODE VALUE."))
@click.option("--play", type=click.Path(path_type=Path), help=_help("play", "WAV file for what the guest plays."))
@click.option("--record", type=click.Path(path_type=Path), help=_help("record", "WAV file that the guest records."))
@click.option("--queues", type=click.IntRange(1, 64), help=_help("queues", "request queues, or pairs of them."))
def serve(device: str, path: Path, protocol: str, name: str | None, trace: bool, capture_path: Path | None,
          inband: bool, ring: str, **options: Any) -> None:  # noqa: ANN401 - click's
    """Serve a device, honest or hostile, until interrupted."""
    kind = next(d for d in TYPES if d.short == device)
    if inband and protocol != "vhost-user":
        raise click.UsageError("--in-band goes with --protocol vhost-user")
    attack = _attack(name, kind)
    if attack is not None and find(str(name)).pci and protocol != "vfio-user":
        raise click.UsageError(f"{name} acts on a PCI bus: --protocol vfio-user")
    capture = open_capture(capture_path)
    hooks = attack if capture is None else Recorder(capture, attack)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    served = make_served(kind, hooks, given, ring)

    def show(line: str) -> None:
        if trace or line.startswith("ATTACK "):
            click.echo(printable(line))

    if trace or attack is not None:
        served.trace = show  # a transcript costs time at every request
    with InterruptOnce():
        try:
            serve_device(served, path, trace=trace, inband=inband, pci=protocol == "vfio-user")
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        finally:
            if capture is not None:
                capture.close()


def serve_device(device: Device, path: Path, *, trace: bool, inband: bool = False, pci: bool = False) -> None:
    """Serve until KeyboardInterrupt, `pci` in a PCI function; the device is closed at the end whatever happens."""
    show, what = (lambda line: click.echo(printable(line))) if trace else None, f"{device.type.short} on {path}"
    if pci:
        serve_over_vfio(VirtioPci(device), path, what, show)
        return
    with contextlib.closing(device), _listening_on(path):
        listener.serve(device, path, trace=show, inband=inband, ready=lambda: _ready(what))


def serve_over_vfio(function: ServableFunction, path: Path, what: str,
                    trace: Callable[[str], None] | None = None) -> None:
    """Serve a PCI function until KeyboardInterrupt; it is closed at the end whatever happens."""
    with contextlib.closing(function), _listening_on(path):
        listener.serve_function(function, path, trace=trace, ready=lambda: _ready(what))


def _ready(what: str) -> None:
    click.echo(f"serving {what}", err=True)


@contextlib.contextmanager
def _listening_on(path: Path) -> Iterator[None]:
    """Have what is wrong with a socket's path be the user's."""
    try:
        if len(bytes(path)) > _PATH_LIMIT:
            raise click.UsageError(f"{path}: longer than the {_PATH_LIMIT} bytes of a socket's path")
        if path.exists() and not path.is_socket():
            raise click.UsageError(f"{path}: exists and is no socket")
        yield
    except FileExistsError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


def _attack(name: str | None, kind: DeviceType) -> Attack | None:
    if name is None:
        return None
    spec = find(name)
    if spec.device is not kind:
        raise unknown(f"attack in {kind.short} named", name, [s.name for s in catalogue() if s.device is kind])
    if spec.hosted:
        raise click.UsageError(f"{name} is what a hypervisor does, not a device: chamber assess --attack {name}")
    return spec.make()

