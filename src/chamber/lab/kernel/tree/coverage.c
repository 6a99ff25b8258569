// SPDX-License-Identifier: GPL-2.0
/*
 * Counts the edges that the drivers under test take, and notes every place that they reach.
 *
 * The compiler calls __sanitizer_cov_trace_pc at each basic block of files that are built with
 * -fsanitize-coverage=trace-pc. CONFIG_KCOV is of no use here: its hook needs a current task, and one that asked.
 * Interrupts and work queues are what a malicious device reaches, so all contexts are counted.
 */
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/string.h>
#include "coverage.h"

static char path[256];
static u64 *header;
static u8 *edges;
static u64 *places;
static u8 *ever;
/* One for what runs as a task, one for interrupts: what an interrupt does must not look like an edge of the task. */
static unsigned long previous[2];

static int __init chamber_coverage_path(char *value)
{
	strscpy(path, value, sizeof(path));
	return 0;
}
early_param("chamber.coverage", chamber_coverage_path);

static int __init chamber_coverage_init(void)
{
	u64 *area;

	if (!path[0])
		return 0;
	area = chamber_map_file(path, CHAMBER_BYTES);
	if (!area) {
		pr_err("chamber: %s can't be mapped\n", path);
		return 0;
	}
	edges = (u8 *)area + CHAMBER_HEADER;
	places = (u64 *)(edges + CHAMBER_EDGES);
	ever = (u8 *)(places + CHAMBER_PLACES);
	area[CHAMBER_WORD_MAGIC] = CHAMBER_MAGIC;
	barrier();
	header = area;
	return 0;
}
core_initcall(chamber_coverage_init);

static void note(unsigned long place)
{
	/* Fibonacci hashing, then the next free entry; who else is at it writes the same or another entry. */
	u32 at = (u32)((place * 0x9e3779b97f4a7c15ULL) >> 48);
	int tries;

	for (tries = 0; tries < 64; tries++) {
		u64 there = READ_ONCE(places[at]);

		if (there == place)
			return;
		if (!there && cmpxchg64_relaxed(&places[at], 0, place) == 0)
			return;
		if (READ_ONCE(places[at]) == place)
			return;
		at = (at + 1) & (CHAMBER_PLACES - 1);
	}
	header[CHAMBER_WORD_LOST]++;
}

void notrace __sanitizer_cov_trace_pc(void);
void notrace __sanitizer_cov_trace_pc(void)
{
	unsigned long place, mixed, *before;
	unsigned int at;

	if (!header || !READ_ONCE(header[CHAMBER_WORD_ON]))
		return;
	place = (unsigned long)__builtin_return_address(0);
	mixed = (place * 0x9e3779b97f4a7c15ULL) >> 48;
	before = &previous[!in_task()];
	at = (mixed ^ *before) & (CHAMBER_EDGES - 1);
	/* A counter that comes back to zero would say that the edge was not taken. */
	if (edges[at] != 0xff)
		edges[at]++;
	ever[at] = 1;
	*before = mixed >> 1;
	note(place);
}
EXPORT_SYMBOL(__sanitizer_cov_trace_pc);
