// SPDX-License-Identifier: GPL-2.0
/* Whether KASAN's reports tell who had allocated and released memory, which a search does without. */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>

bool chamber_stacks = true;

static int __init chamber_stacks_setup(char *value)
{
	return value ? kstrtobool(value, &chamber_stacks) : -EINVAL;
}
early_param("chamber.stacks", chamber_stacks_setup);
