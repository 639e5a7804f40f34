/* SPDX-License-Identifier: Apache-2.0 */
/* What steer.bpf.c and `lb/src/front/maps.rs` share. A change of any of it needs a new STATE_VERSION. */
#ifndef SHERD_STEER_H
#define SHERD_STEER_H

#include <linux/types.h>

#define STATE_MAGIC 0x64726873 /* "shrd" */
#define STATE_VERSION 4
#define MAX_SLOTS 1024
#define MASK_WORDS (MAX_SLOTS / 64)
#define LEVELS 5 /* own (a CPU's slots), same L3, same node, same package, any */
#define CHUNK_ENTRIES 2048

enum policy { POLICY_CONNECTION = 0, POLICY_CLIENT = 1, POLICY_LOCAL = 2, POLICY_BALANCED = 3 };

struct mask {
	__u64 word[MASK_WORDS];
};

struct row {
	struct mask level[LEVELS];
};

struct chunk {
	__u16 slot[CHUNK_ENTRIES]; /* 0xffff: no slot */
};

struct seed {
	__u64 key[2];
};

struct generation {
	__u32 policy;
	__u32 table_len;
};

/*
 * An agent of another version takes over `magic` to `max_slots`, `in`, `index_of`, `cell_base` and `cells_id` where they are,
 * and makes all other maps but `sockets` anew: these offsets never change.
 */
struct state {
	__u32 magic;
	__u32 version;
	__u32 sequence; /* bit 0 is the active generation; each flip adds one */
	__u32 refuse;   /* with no slot in: 1 refuses, 0 waits at the anchor */
	struct seed seed;
	/*
	 * Rows of slots per generation. In `sockets`: relayed slots' listeners below it, at it the anchor, above it
	 * the listeners that shards accept from themselves, by slot: so many in place A, then as many in place B. An
	 * array that an older version has made may lack B; lb/src/front/places.rs has this layout.
	 */
	__u32 max_slots;
	__u32 cpus;      /* rows of CPUs per generation */
	__u32 chunks;    /* of the table per generation */
	__u32 words;     /* of a mask that can have bits: (max_slots + 63) / 64 */
	struct generation generations[2];
	struct mask in;             /* slots in service */
	__u16 index_of[MAX_SLOTS];  /* a slot's index in `sockets` */
	__u32 forced;               /* entries of `forced`; with none it isn't looked into */
	__u32 cell_base;            /* slot s has cell cell_base + s of `cells`; NO_CELL: nothing is counted, no load is known */
	__u32 cells_id;             /* the kernel's number of that map */
	__u32 reserved;
};

/* A connection that we make ourselves, to a listener of our choice. */
struct force_key {
	__u32 saddr[4];
	__u32 sport; /* as on the wire */
};

_Static_assert(__builtin_offsetof(struct state, generations) == 48 && __builtin_offsetof(struct state, in) == 64 &&
		       __builtin_offsetof(struct state, index_of) == 192 && 
		       __builtin_offsetof(struct state, forced) == 2240 && sizeof(struct state) == 2256,
	       "lb/src/front/maps.rs has these offsets");

struct totals {
	__u64 failovers; /* connections that got another slot than the first choice */
	__u64 anchored;
	__u64 dropped;
	__u64 retries;  /* selections that failed: an empty entry */
	__u64 foreign;  /* of these: a socket of another SO_REUSEPORT group. Must stay 0 */
	__u64 migrated; /* connections moved from a closed listener */
	__u64 unread;   /* packets whose addresses could not be read. Must stay 0 */
	__u64 deflected; /* connections that got their second choice because the first had too much to do */
};

#endif
