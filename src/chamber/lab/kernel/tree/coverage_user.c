// SPDX-License-Identifier: GPL-2.0
/* The part that speaks to the host, compiled against the host's C library as all of User-Mode Linux's such parts. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "coverage.h"

void *chamber_map_file(const char *path, unsigned long bytes)
{
	void *area;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return 0;
	area = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return area == MAP_FAILED ? 0 : area;
}
