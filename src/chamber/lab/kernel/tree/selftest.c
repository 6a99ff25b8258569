// SPDX-License-Identifier: GPL-2.0
/*
 * Breaks a rule of each sanitizer on purpose, if the command line says chamber.selftest: a sanitizer that was left out, or
 * never came up, says nothing, and nothing else would tell its silence from that of a sound driver.
 */
#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/slab.h>

static bool wanted __initdata;

static int __init chamber_selftest_wanted(char *value)
{
	wanted = true;
	return 0;
}
early_param("chamber.selftest", chamber_selftest_wanted);

static volatile int eight[8];

/* Not of __init: with lockdep 7.3 has no names for what is. */
static noinline void chamber_selftest_breaks(void)
{
	unsigned long far = 8;
	volatile u8 *bytes;

	OPTIMIZER_HIDE_VAR(far);
	bytes = kmalloc(8, GFP_KERNEL);
	if (bytes)
		pr_info("chamber: beyond the object: %u\n", bytes[far]);
	kfree((void *)bytes);
	pr_info("chamber: beyond the array: %d\n", eight[far]);
	pr_info("chamber: selftest done\n");
}

static int __init chamber_selftest(void)
{
	if (wanted)
		chamber_selftest_breaks();
	return 0;
}
late_initcall(chamber_selftest);
