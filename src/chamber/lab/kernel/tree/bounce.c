// SPDX-License-Identifier: GPL-2.0
/* The bounce pool that a confidential guest has; User-Mode Linux makes none, as its devices see all memory anyway. */
#include <linux/init.h>
#include <linux/sizes.h>
#include <linux/swiotlb.h>

static int __init chamber_bounce_init(void)
{
	return swiotlb_init_late(SZ_4M, GFP_KERNEL, NULL);
}
core_initcall(chamber_bounce_init);
