// SPDX-License-Identifier: GPL-2.0
/* Which slot of the PCI bus over virtio has a root port; what is in the next slot is behind it then. None: -1. */
#include <linux/init.h>
#include <linux/kernel.h>

int chamber_root_port = -1;

static int __init chamber_root_port_setup(char *value)
{
	unsigned int slot;

	if (value && !kstrtouint(value, 0, &slot) && slot < 7)
		chamber_root_port = slot;
	return 0;
}
early_param("chamber.root_port", chamber_root_port_setup);
