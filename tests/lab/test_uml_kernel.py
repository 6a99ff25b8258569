"""Which modules a guest with one device loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.lab.uml_kernel import UmlKernel
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path

_NEEDS = {
    "fuse": "", "virtiofs": "fuse", "af_alg": "", "algif_skcipher": "af_alg", "crypto-engine": "",
    "virtio_crypto": "crypto_engine", "9pnet": "", "9p": "9pnet", "9pnet_fd": "9pnet", "9pnet_virtio": "9pnet",
    "other": "", "virtio-rng": "",
}
"""Modules in the order in which they are loaded, and what each says that it needs."""


def _modules(kernel: UmlKernel, device: DeviceType) -> set[str]:
    return {module.stem for module in kernel.for_device(device).modules}


def test_what_other_devices_alone_need_is_left_out(tmp_path: Path) -> None:
    for name, needs in _NEEDS.items():
        (tmp_path / f"{name}.ko").write_bytes(b"code\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    kernel = UmlKernel(tmp_path / "linux", "6.12", tuple(tmp_path / f"{name}.ko" for name in _NEEDS))
    assert _modules(kernel, DeviceType.RNG) == {"virtio-rng", "other"}
    assert _modules(kernel, DeviceType.FS) == {"virtiofs", "fuse", "other"}
    assert _modules(kernel, DeviceType.CRYPTO) == {
        "virtio_crypto", "crypto-engine", "af_alg", "algif_skcipher", "other"}
    assert _modules(kernel, DeviceType.TRANSPORT_9P) == {"9p", "9pnet", "9pnet_fd", "9pnet_virtio", "other"}
    assert [module.stem for module in kernel.for_device(DeviceType.FS).modules] == ["fuse", "virtiofs", "other"]


def test_a_module_that_says_nothing_needs_nothing(tmp_path: Path) -> None:
    module = tmp_path / "virtio_blk.ko"
    module.write_bytes(b"")
    kernel = UmlKernel(tmp_path / "linux", "6.12", (module,))
    assert kernel.for_device(DeviceType.BLOCK).modules == (module,)
    assert kernel.for_device(DeviceType.NET).modules == ()
