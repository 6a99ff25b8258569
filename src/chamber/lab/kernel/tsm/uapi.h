/* SPDX-License-Identifier: GPL-2.0 */
/*
 * /dev/chamber-tsm: what is read from it is a request of the TSM core's, what is written to it the answer to one. There
 * is a TSM as long as somebody has it open. All fields are the machine's own endian. chamber/wire/tsm.py is its twin.
 */
#ifndef CHAMBER_TSM_UAPI_H
#define CHAMBER_TSM_UAPI_H
#include <linux/ioctl.h>
#include <linux/types.h>

enum chamber_tsm_operation {
	CHAMBER_TSM_CONNECT = 1,	/* SPDM session, and keys of the stream if there is one */
	CHAMBER_TSM_DISCONNECT = 2,
	CHAMBER_TSM_BIND = 3,		/* an interface is given to a guest */
	CHAMBER_TSM_UNBIND = 4,
	CHAMBER_TSM_GUEST_REQUEST = 5,	/* one byte: enum chamber_tsm_guest */
};

enum chamber_tsm_guest {
	CHAMBER_TSM_LOCK = 1,
	CHAMBER_TSM_REPORT = 2,		/* answered by the interface report */
	CHAMBER_TSM_START = 3,
	CHAMBER_TSM_STOP = 4,
};

#define CHAMBER_TSM_NO_STREAM 0xffffffffu
#define CHAMBER_TSM_MOST 0x20000u	/* bytes of a request's or an answer's data */

struct chamber_tsm_request {
	__u32 number;		/* of the request, for the answer to it */
	__u32 operation;
	__u32 function;		/* domain << 16 | bus << 8 | device << 3 | function */
	__u32 port;		/* the root port above it, in the same way */
	__u32 stream;		/* Stream ID, or CHAMBER_TSM_NO_STREAM */
	__u32 interface;	/* id of the interface that is bound */
	__u32 scope;		/* enum pci_tsm_req_scope, of a guest's request */
	__u32 room;		/* bytes that the answer may have */
	__u32 size;		/* bytes of data that follow */
};

struct chamber_tsm_answer {
	__u32 number;
	__s32 status;		/* 0, or a negative errno */
	__u64 code;		/* for the guest's TSM */
	__u32 size;		/* bytes of data that follow */
	__u32 reserved;
};

/* Send a data object to the function that the request not yet answered is about; returns the answer's length. */
struct chamber_tsm_transfer {
	__u32 number;		/* of the request */
	__u32 type;		/* of the data object, one of PCI-SIG's */
	__u32 request_size;
	__u32 response_size;
	__u64 request;
	__u64 response;
};

#define CHAMBER_TSM_TRANSFER _IOW(0xc4, 1, struct chamber_tsm_transfer)

#endif
