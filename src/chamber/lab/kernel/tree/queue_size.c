// SPDX-License-Identifier: GPL-2.0
/* How long the queues are: short ones make a probe cheaper, as drivers fill those that they receive through. */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/log2.h>

unsigned int chamber_queue_size = 256;

static int __init chamber_queue_size_setup(char *value)
{
	unsigned int size;

	if (value && !kstrtouint(value, 0, &size) && size && size <= 32768 && is_power_of_2(size))
		chamber_queue_size = size;
	return 0;
}
early_param("chamber.queue_size", chamber_queue_size_setup);
