"""Stock Linux kernels in QEMU, their devices played over vfio-user."""
