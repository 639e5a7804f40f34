/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel counts of each slot of each published address: written by the steering program (what it picks), the
 * program on the guard's cgroups (what shards accept themselves), relay workers (what they accept) and the agent
 * (corrections, weights, bounds). `lb/src/cells.rs` is the same layout. One map for all addresses, because one program
 * on the guard's cgroups writes it.
 *
 * The map's first values are of eight cells each, so that those of an address lie side by side: at a stride of 512 bytes
 * those of 256 slots fall into few sets of the CPU's caches. The values after them are tallies, one for each cell.
 */
#ifndef SHERD_CELLS_H
#define SHERD_CELLS_H

#include <linux/types.h>

#define CELLS_VERSION 3
#define CELLS 8192
#define CELLS_OF_A_VALUE 8
#define FIRST_TALLY (CELLS / CELLS_OF_A_VALUE)
#define CELL_VALUES (FIRST_TALLY + CELLS)
#define NO_CELL 0xffffffffu

#define RTT_BUCKETS 20      /* of 2^n to 2^(n+1) us from 16 us on; the first and the last are open */
#define RTT_FIRST_BITS 4
#define DURATION_BUCKETS 25 /* of 2^n to 2^(n+1) us from about 1 ms on */
#define DURATION_FIRST_BITS 10
#define ANSWER_BUCKETS 7 /* of 2^(2n) to 2^(2n+2) us from 64 us on; the first and the last are open */
#define ANSWER_FIRST_BITS 6
#define ANSWER_MAX_US (1 << 26) /* about a minute: an answer that takes longer counts as that, its square then fits */

/* What a slot's load is made of, on one cache line: picked - closed - relayed_closed - lost + pressure. */
struct cell {
	__u64 picked;         /* connections steered here */
	__u64 established;    /* of these: that its shard's listener got, whose handshake was completed */
	__u64 closed;         /* of these. Until they are as many, the cell is nobody else's */
	__s64 lost;           /* picked and never established, as far as the agent has found out */
	__u64 relayed;        /* of these: that its worker accepted */
	__u64 relayed_closed; /* of these */
	__u32 pressure;       /* load that no connection shows: the agent's word */
	__u32 bound;          /* a load over it sends connections to their second choice; 0: never */
	__u32 weight;
	__u32 timed; /* the span of 4 ms in which a connection was last chosen to be timed */
};

/* What only telemetry reads. */
struct tally {
	__u64 bytes_received; /* of closed connections */
	__u64 bytes_acked;
	__u64 retransmits;
	__u64 rtt_us;      /* sum of the smoothed round-trip times that closed connections had at their end */
	__u64 duration_us; /* sum, of those that were timed */
	__u64 migrated;    /* connections that came from a closed listener */
	__u64 contained;   /* in tally 0: sockets of the guard that were made to listen without being listeners of ours */
	__u64 version;     /* in tally 0: of the map */
	__u64 unanswered;  /* closed connections, of which at most a byte was acknowledged: a FIN counts as one */
	__u64 ignored;     /* of these: whose client had sent something */
	__u64 answer_us;   /* sum, of those that were timed: from the handshake to the first answer's acknowledgement */
	__u64 answer_us_squared; /* sum of the squares */
	__u64 answer[ANSWER_BUCKETS];
	__u64 rtt[RTT_BUCKETS];
	__u64 duration[DURATION_BUCKETS]; /* of those that were timed */
};

struct cell_value {
	union {
		struct cell cells[CELLS_OF_A_VALUE];
		struct tally tally;
	};
};

_Static_assert(sizeof(struct cell) == 64 && sizeof(struct tally) == 512 && sizeof(struct cell_value) == 512,
	       "lb/src/cells.rs has these sizes");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CELL_VALUES);
	__type(key, __u32);
	__type(value, struct cell_value);
} cells SEC(".maps");

/* The cell of this number, or NULL. */
static __always_inline struct cell *cell_at(__u32 number)
{
	__u32 key = number / CELLS_OF_A_VALUE;
	struct cell_value *value = number < CELLS ? bpf_map_lookup_elem(&cells, &key) : NULL;

	return value ? &value->cells[number % CELLS_OF_A_VALUE] : NULL;
}

/* The tally of the cell of this number, or NULL. */
static __always_inline struct tally *tally_at(__u32 number)
{
	__u32 key = FIRST_TALLY + number;
	struct cell_value *value = bpf_map_lookup_elem(&cells, &key);

	return value ? &value->tally : NULL;
}

#endif
