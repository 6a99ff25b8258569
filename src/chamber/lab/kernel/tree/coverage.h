/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The file that the kernel and Chamber share; chamber/lab/kernel/coverage.py has the same numbers.
 *
 * One page with the header, EDGES counters of a byte, PLACES addresses of eight bytes, EDGES bytes that tell which edges
 * were ever taken.
 */
#ifndef CHAMBER_COVERAGE_H
#define CHAMBER_COVERAGE_H

#define CHAMBER_MAGIC 0x564f43424d484301ULL /* "\1CHMBCOV" */
#define CHAMBER_EDGES (1 << 16)
#define CHAMBER_PLACES (1 << 16)
#define CHAMBER_HEADER 4096
#define CHAMBER_BYTES (CHAMBER_HEADER + CHAMBER_EDGES + CHAMBER_PLACES * 8 + CHAMBER_EDGES)

/* The header's words: who wrote the file, whether the host wants counting, how many places found no room. */
#define CHAMBER_WORD_MAGIC 0
#define CHAMBER_WORD_ON 1
#define CHAMBER_WORD_LOST 2

void *chamber_map_file(const char *path, unsigned long bytes);

#endif
