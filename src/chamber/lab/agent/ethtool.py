"""The ethtool interface, by its ioctl (include/uapi/linux/ethtool.h)."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import struct
from typing import TYPE_CHECKING, Final

from chamber.lab.agent.control_socket import control_socket

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report

__all__ = ("read_all", "restore_rss", "segment_in_software", "set_channels", "toggle_offloads")

_SIOCETHTOOL: Final = 0x8946
_ROOM: Final = 1 << 16

_GET: Final = {
    "GSET": 0x01, "GDRVINFO": 0x03, "GREGS": 0x04, "GWOL": 0x05, "GMSGLVL": 0x07, "NWAY_RST": 0x09, "GLINK": 0x0A,
    "GEEPROM": 0x0B, "GCOALESCE": 0x0E, "GRINGPARAM": 0x10, "GPAUSEPARAM": 0x12, "GPERMADDR": 0x20, "GFLAGS": 0x25,
    "GPFLAGS": 0x27, "GRXFH": 0x29, "GRXRINGS": 0x2D, "GRXCLSRLCNT": 0x2E, "GSSET_INFO": 0x37, "GFEATURES": 0x3A,
    "GCHANNELS": 0x3C, "GTS_INFO": 0x41, "GEEE": 0x44, "GLINKSETTINGS": 0x4C, "GFECPARAM": 0x50,
}
_GSTRINGS, _GSTATS, _GSSET_INFO = 0x1B, 0x1D, 0x37
_GRSSH, _SRSSH, _GRXFHINDIR = 0x46, 0x47, 0x38
_GCHANNELS, _SCHANNELS = 0x3C, 0x3D
_OFFLOADS: Final = {"rx checksum": (0x14, 0x15), "tx checksum": (0x16, 0x17), "scatter-gather": (0x18, 0x19),
                    "TSO": (0x1E, 0x1F), "GSO": (0x23, 0x24), "GRO": (0x2B, 0x2C)}
_RSSH: Final = struct.Struct("=IIIIB3xI")
_CHANNELS: Final = struct.Struct("=9I")


@functools.cache
def _room() -> ctypes.Array[ctypes.c_char]:
    """Memory for commands and answers: touching new memory takes longer in a guest than most commands."""
    return ctypes.create_string_buffer(_ROOM)


def call(name: str, request: bytes) -> memoryview:
    """Issue one command; return the buffer as the kernel left it, good until the next."""
    buffer = _room()
    ctypes.memset(buffer, 0, _ROOM)
    ctypes.memmove(buffer, request, len(request))
    ifreq = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(control_socket(), _SIOCETHTOOL, ifreq)
    return memoryview(buffer)


def _check_room(entries: int, rest: int) -> None:
    """See that there is room for an indirection table: the kernel writes all that the device has, whatever there is."""
    if 4 * entries + rest > _ROOM:
        raise OSError(75, f"an indirection table of {entries} entries")


def read_all(name: str, report: Report) -> None:
    """Ask everything that can be asked without changing anything."""
    for label, command in _GET.items():
        report.attempt(f"ethtool {label}", call, name, struct.pack("=I", command))
    for strings in range(4):
        report.attempt(f"ethtool strings {strings}", call, name, struct.pack("=II", _GSTRINGS, strings))
    report.attempt("ethtool statistics", call, name, struct.pack("=I", _GSTATS))
    with report.step("ethtool indirection table"):
        size = struct.unpack_from("=I", call(name, struct.pack("=II", _GRXFHINDIR, 0)), 4)[0]
        _check_room(size, 8)
        call(name, struct.pack("=II", _GRXFHINDIR, size))
    with report.step("ethtool RSS"):
        _rss(name)


def _rss(name: str) -> bytes:
    """Return the RSS table and key as the kernel has them, as a command that sets them."""
    _, _, indir, key, hfunc, _ = _RSSH.unpack_from(call(name, _RSSH.pack(_GRSSH, 0, 0, 0, 0, 0)))
    _check_room(indir, key + _RSSH.size)
    whole = call(name, _RSSH.pack(_GRSSH, 0, indir, key, 0, 0))
    data = bytes(whole[_RSSH.size:_RSSH.size + 4 * indir + key])
    return _RSSH.pack(_SRSSH, 0, indir, key, hfunc, 0) + data


def restore_rss(name: str) -> None:
    """Set RSS to what it is: the driver sends table and key to the device."""
    call(name, _rss(name))


def set_channels(name: str, combined: int) -> None:
    """Use so many queue pairs."""
    current = list(_CHANNELS.unpack_from(call(name, struct.pack("=I", _GCHANNELS))))
    current[0], current[8] = _SCHANNELS, combined
    call(name, _CHANNELS.pack(*current))


def set_value(name: str, command: int, value: int) -> None:
    """Set one on-off value."""
    call(name, struct.pack("=II", command, value))


def toggle_offloads(name: str, report: Report) -> None:
    """Turn each offload off and back to what it was."""
    for label, (get, put) in _OFFLOADS.items():
        with report.step(f"toggle {label}"):
            before = struct.unpack_from("=I", call(name, struct.pack("=I", get)), 4)[0]
            set_value(name, put, 0)
            set_value(name, put, before)


def segment_in_software(name: str) -> None:
    """Leave no segmentation to the device, so that the kernel cuts what was merged."""
    for label in ("TSO", "GSO"):
        set_value(name, _OFFLOADS[label][1], 0)
