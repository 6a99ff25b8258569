"""What is changed in the kernel's own files, so that its transport does for a driver what PCI does, and is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("TSM_CORE", "change", "changed_files", "unchanged_parts")

_CHANGES: Final[dict[str, tuple[tuple[bytes, bytes], ...]]] = {
    "arch/um/drivers/virtio_uml.c": (
        # User-mode-linux tells nobody of a reset (7.3 and before): a device would go on with buffers that are none.
        (b"\tvu_dev->status = 0;\n", b"""\
\tif (vu_dev->status & VIRTIO_CONFIG_S_DRIVER) {
\t\tstruct virtqueue *vq;
\t\tu64 features;

\t\t/* As over PCI, the device is told: after a reset the driver has all buffers back, and frees them. */
\t\tlist_for_each_entry_reverse(vq, &vdev->vqs, list)
\t\t\tvhost_user_set_vring_enable(vu_dev, vq->index, false);
\t\tvhost_user_get_features(vu_dev, &features);
\t}
\tvu_dev->status = 0;
"""),
        # So it need not be told again when the driver lets go of the queues.
        (b"\t\tWARN_ON(vhost_user_set_vring_enable(vu_dev, vq->index, false));\n", b"""\
\t\tif (vu_dev->status)
\t\t\tWARN_ON(vhost_user_set_vring_enable(vu_dev, vq->index, false));
"""),
        # An answer costs two switches of processes, and a probe has dozens of messages. These can't be refused, and
        # something follows that is answered: a queue's address, or after its end the features. A queue that begins is
        # waited for: a device may act there, before the driver goes on.
        (b"\trequest_ack = !need_response;\n", b"""\
\trequest_ack = !need_response;
\tswitch (msg->header.request) {
\tcase VHOST_USER_SET_VRING_NUM:
\tcase VHOST_USER_SET_VRING_BASE:
\t\trequest_ack = false;
\t\tbreak;
\tcase VHOST_USER_SET_VRING_ENABLE:
\t\tif (!msg->payload.vring_state.num)
\t\t\trequest_ack = false;
\t\tbreak;
\t}
"""),
        # The length of queues is the device's choice; over vhost-user it has none.
        (b"#define MAX_SUPPORTED_QUEUE_SIZE\t256\n", b"""\
extern unsigned int chamber_queue_size;
#define MAX_SUPPORTED_QUEUE_SIZE\tchamber_queue_size
"""),
        # No machine takes its drivers away when it is off. Here those on the PCI bus would wait for good: from 6.12.114
        # on shutting down breaks the queues that carry the bus.
        (b"__uml_exitcall(virtio_uml_exit);\n", b"/* Drivers stay when the machine is off. */\n"),
    ),
    # A bus with nothing behind it has no root port, and without one Linux has no encrypted stream.
    "arch/um/drivers/virt-pci.c": (
        (b"static void __iomem *um_pci_map_bus(", b"""\
extern int chamber_root_port;

/* The slot of what is behind the root port is the next one. */
static unsigned int chamber_slot(struct pci_bus *bus, unsigned int devfn)
{
\tif (pci_is_root_bus(bus))
\t\treturn devfn / 8;
\treturn devfn || !bus->self ? MAX_DEVICES : bus->self->devfn / 8 + 1;
}

static void __iomem *um_pci_map_bus("""),
        (b"\tif (busn > 0)\n\t\treturn NULL;\n", b"""\
\tif (busn == 0 && chamber_root_port >= 0 && devfn / 8 == chamber_root_port + 1)
\t\treturn NULL;
\tif (busn > 0)
\t\tdevfn = chamber_slot(bus, devfn) * 8;
"""),
        (b"\t.end\t= 0,\n\t.flags\t= IORESOURCE_BUS,\n", b"\t.end\t= 1,\n\t.flags\t= IORESOURCE_BUS,\n"),
        (b"&um_pci_devices[pdev->devfn / 8];\n\tstruct um_pci_device *dev;\n\tint i;\n\n\tif (!reg->dev)", b"""\
&um_pci_devices[chamber_slot(pdev->bus, pdev->devfn)];
\tstruct um_pci_device *dev;
\tint i;

\tif (!reg->dev)"""),
    ),
    # KASAN has each allocation and each release write down who asks. The frames are all that dump_trace finds reliable;
    # to look at every word between them, whether it leads to code, was a third of what a guest's kernel did.
    "arch/um/kernel/stacktrace.c": (
        (b"static const struct stacktrace_ops dump_ops = {\n\t.address = save_addr\n};\n\n",
         b"extern bool chamber_stacks;\n\n"),
        # A search does without even these: what it finds is shown again with them.
        (b"\t__save_stack_trace(current, trace);\n", b"""\
\tif (chamber_stacks)
\t\t__save_stack_trace(current, trace);
"""),
        (b"\tdump_trace(tsk, &dump_ops, trace);\n", b"""\
\tstruct pt_regs *regs = tsk->thread.segv_regs;
\tunsigned long at = (unsigned long) get_stack_pointer(tsk, regs);
\tunsigned long bp = get_frame_pointer(tsk, regs);
\tunsigned long end = (at | (THREAD_SIZE - 1)) + 1;

\twhile (bp >= at && bp + sizeof(struct stack_frame) <= end && !(bp & (sizeof(long) - 1))) {
\t\tstruct stack_frame *frame = (struct stack_frame *) bp;
\t\tunsigned long address = READ_ONCE_NOCHECK(frame->return_address);

\t\tif (!__kernel_text_address(address))
\t\t\tbreak;
\t\tsave_addr(trace, address, 1);
\t\tat = bp + sizeof(*frame);
\t\tbp = (unsigned long) READ_ONCE_NOCHECK(frame->next_frame);
\t}
"""),
    ),
    # Removing a driver waits for the next tick, and for the one after: hundredths of a second each.
    "arch/um/Kconfig": ((b"config HZ\n\tint\n\tdefault 100\n", b"config HZ\n\tint\n\tdefault 1000\n"),),
}

TSM_CORE: Final = "drivers/pci/tsm.c"
"""Where a kernel has its TSM core, if it has one."""
_ONLY_WITH: Final = {"arch/um/drivers/virt-pci.c": TSM_CORE}
"""What there is no use for in a kernel without another file."""


def changed_files(tree: Path) -> tuple[str, ...]:
    """Return which files of a tree these are."""
    return tuple(name for name in _CHANGES if name not in _ONLY_WITH or (tree / _ONLY_WITH[name]).exists())


def change(path: str, text: bytes) -> bytes:
    """Return one of the files as it is built.

    Raises:
        ValueError: it is another file than those of Linux 6.1 to 7.3.

    """
    for old, new in _CHANGES[path]:
        if text.count(old) != 1:
            raise ValueError(f"{path} has {text.count(old)} of {old.decode().strip()}")
        text = text.replace(old, new)
    return text


def unchanged_parts(path: str) -> bytes:
    """Return just what is replaced, as it was: for telling whether two kernels are built with the same changes."""
    return b"".join(old for old, _ in _CHANGES.get(path, ()))
