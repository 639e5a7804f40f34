/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel counts of each slot of each published address: written by the steering program (what it picks), the
 * program on the guard's cgroup (what shards accept themselves), relay workers (what they accept) and the agent
 * (corrections, weights, bounds). `lb/src/cells.rs` is the same layout. One map for all addresses, because one program
 * on the guard's cgroup writes it.
 */
#ifndef SHERD_CELLS_H
#define SHERD_CELLS_H

#include <linux/types.h>

#define CELLS_VERSION 1
#define CELLS 8192
#define NO_CELL 0xffffffffu

#define RTT_BUCKETS 20      /* of 2^n to 2^(n+1) us from 16 us on; the first and the last are open */
#define RTT_FIRST_BITS 4
#define DURATION_BUCKETS 26 /* of 2^n to 2^(n+1) us from about 1 ms on */
#define DURATION_FIRST_BITS 10

struct cell {
	/* What the load is made of, on a cache line of its own: picked - closed - lost + pressure. */
	__u64 picked;      /* connections steered here */
	__u64 established; /* of these: whose handshake was completed, or that the worker accepted */
	__u64 closed;      /* of these */
	__s64 lost;        /* picked and never established, as far as the agent has found out */
	__u32 pressure;    /* load that no connection shows: the agent's word */
	__u32 bound;       /* a load over it sends connections to their second choice; 0: never */
	__u32 weight;
	__u32 version;     /* of the map, in cell 0, which no slot has */
	__u64 migrated;    /* connections that came from a closed listener */
	__u64 reserved;

	__u64 bytes_received; /* of closed connections */
	__u64 bytes_acked;
	__u64 retransmits;
	__u64 rtt_us;      /* sum of the smoothed round-trip times that closed connections had at their end */
	__u64 duration_us; /* sum */
	__u64 contained;   /* in cell 0: sockets of the guard that were made to listen without being listeners of ours */
	__u64 spare[4];
	__u64 rtt[RTT_BUCKETS];
	__u64 duration[DURATION_BUCKETS];
};

_Static_assert(sizeof(struct cell) == 512, "lb/src/cells.rs has this size");

#endif
