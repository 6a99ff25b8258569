/* SPDX-License-Identifier: GPL-2.0 */
#ifndef CHAMBER_TSM_H
#define CHAMBER_TSM_H
#include <linux/pci.h>
#include <linux/pci-tsm.h>
#include <linux/tsm.h>
#include "uapi.h"

/**
 * struct chamber_question - an operation of the TSM core's, as it is asked of user space
 * @operation: enum chamber_tsm_operation
 * @pdev: the function
 * @stream: Stream ID, or CHAMBER_TSM_NO_STREAM
 * @interface: id of the interface
 * @scope: of a guest's request
 * @data: that goes with it, @size bytes
 * @answer: takes what comes back, at most @room bytes; @got says how many
 * @code: for the guest's TSM
 */
struct chamber_question {
	u32 operation;
	struct pci_dev *pdev;
	u32 stream;
	u32 interface;
	u32 scope;
	const void *data;
	size_t size;
	void *answer;
	size_t room;
	size_t got;
	u64 code;
};

/* channel.c: returns what was answered, -ENXIO if nobody is there, -EINTR if whoever waits is killed. */
int chamber_tsm_ask(struct chamber_question *question);
/* channel.c: the function that the user names, with a reference; NULL if there is none. */
struct pci_dev *chamber_tsm_function(const char *name);

/* link.c: the host's side. */
int chamber_link_register(struct device *parent);
void chamber_link_unregister(void);

/* guest.c: the side of the guest that a function is bound to. */
int chamber_guest_register(struct device *parent);
void chamber_guest_unregister(void);

#endif
