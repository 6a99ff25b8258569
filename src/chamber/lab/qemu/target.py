"""The target ``qemu``: a stock kernel in QEMU, all DMA bounced, its devices played over vfio-user."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from chamber.lab.qemu.guest import QemuGuest
from chamber.lab.qemu.install import find_accelerator, find_qemu, find_qemu_kernel
from chamber.lab.uml import UmlTarget
from chamber.lab.uml_runner import UmlRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chamber.device.capture import CaptureFile
    from chamber.lab.agent_guest import AgentGuest
    from chamber.lab.qemu.install import QemuKernel, QemuProgram
    from chamber.lab.qemu.saved import SavedGuest

__all__ = ("QemuRunner", "QemuTarget")


class QemuRunner(UmlRunner):
    """One worker's guests in QEMU: one is booted, and saved before it is used; the others go on from there.

    Args:
        program: QEMU.
        kernel: what to boot.
        accelerator: ``kvm`` or ``tcg``.
        options: words for the kernel's command line.
        capture: where to write down what crosses the boundary.

    """

    slowness: ClassVar[int] = 3

    def __init__(self, program: QemuProgram, kernel: QemuKernel, accelerator: str, *, options: tuple[str, ...],
                 capture: CaptureFile | None = None) -> None:
        super().__init__(kernel, options=options, capture=capture, pci=True)
        self._program = program
        self._kernel = kernel
        self._accelerator = accelerator
        self._saved: SavedGuest | None = None

    def _boot(self) -> AgentGuest:
        guest = QemuGuest(self._program, self._kernel, self._loop, self._kernel.devices, self._make,
                          options=self._options, accelerator=self._accelerator, wrap=self._watched, left=self._left,
                          observer=self._observe, saved=self._saved)
        if self._saved is None:
            try:
                self._saved = guest.save()
            except BaseException:
                guest.close()
                raise
        return guest

    def close(self) -> None:
        """End the guest, and forget what it began from."""
        super().close()
        saved, self._saved = self._saved, None
        if saved is not None:
            saved.close()


class QemuTarget(UmlTarget):
    """A stock kernel in QEMU; one guest a job.

    Args:
        kernel: the beginning of the release of a kernel that was installed; None for the latest.
        options: words for the kernel's command line; the default bounces all DMA and checks slab objects.
        capture: as for `UmlTarget`.

    Raises:
        TargetError: there is no such kernel, or no QEMU that speaks vfio-user.

    """

    kind = "qemu"
    pci = True
    guests_per_job = 1

    def __init__(self, kernel: Path | None = None, *, options: tuple[str, ...] | None = None,
                 capture: CaptureFile | None = None) -> None:
        self.program = find_qemu()
        found = find_qemu_kernel(None if kernel is None else str(kernel))
        self._use(found, found.options if options is None else options, capture)
        self.stock = found
        self._accelerator: str | None = None

    @property
    def accelerator(self) -> str:
        """``kvm`` where it works; it takes a moment to find out."""
        if self._accelerator is None:
            self._accelerator = find_accelerator(self.program, self.stock)
        return self._accelerator

    def describe(self) -> dict[str, object]:
        """What the report says about this target."""
        known = {} if self._accelerator is None else {"accelerator": self._accelerator}
        return {**super().describe(), "qemu": self.program.version, **known}

    def _make_runner(self, capture: CaptureFile | None = None) -> Callable[[], UmlRunner]:
        return partial(QemuRunner, self.program, self.stock, self.accelerator, options=self.options, capture=capture)
