// SPDX-License-Identifier: Apache-2.0
/*
 * Which listener of a published address gets a new connection. `lb/src/table/model.rs` is the same function in
 * Rust; a test compares the two on every policy. All state comes from the maps of steer.h, whose writer is
 * `lb/src/front/maps.rs`; the program writes only its own counters.
 *
 * Wants Linux 5.14: SELECT_OR_MIGRATE, atomics with fetch, memory arguments of global functions.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "cells.h"
#include "steer.h"
#include "siphash.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the keyed hash loads its blocks little-endian"
#endif

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

#define NONE 0xffffu
#define GENERATION_TRIES 3
#define SELECT_TRIES 8
#define BALANCED_CHOICES 4
#define TCP_NEW_SYN_RECV 12
#define EBADFD 77
#define AF_INET 2
#define TCP_SYN 0x02
#define TCP_ACK 0x10

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

/* Generation g's table is chunks [g * chunks, (g + 1) * chunks). Sized when it is made. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct chunk);
} table SEC(".maps");

/* Generation g's rows start at g * (max_slots + cpus): a row per slot, then a row per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct row);
} rows SEC(".maps");

/* A socket fits one array only, so this is made once, at its largest. 8-byte values let user space read the cookies back. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

/* Not allocated ahead: it is nearly always empty. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct force_key);
	__type(value, __u64);
} forced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} picks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

/* Nearly every connection leaves all of them as they are, and their cache line alone. */
#define ADD(counter, n)                                                           \
	do {                                                                      \
		__u32 only = 0;                                                   \
		struct totals *counted = bpf_map_lookup_elem(&totals, &only);     \
		if (counted)                                                      \
			counted->counter += (n);                                  \
	} while (0)

struct flow {
	__u32 saddr[4]; /* the client's; IPv4 uses the first word */
	__u32 daddr[4];
	__u32 ports; /* source, then destination, as on the wire */
	__u32 is_v6;
	__u32 is_new; /* a SYN, or a connection that migrates: strays for a closed one come here too, and are not counted */
	__u32 is_open; /* it was established at another listener, whose cell keeps it */
};

/* As much of TCP's header as is looked at. */
struct tcp_start {
	__u32 ports;
	__u32 seq;
	__u32 ack;
	__u8 offset;
	__u8 flags;
	__u16 window;
};

static __always_inline __u64 join(__u32 low, __u32 high)
{
	return (__u64)high << 32 | low;
}

static __always_inline __u64 hash_v4(const struct flow *f, const struct seed *seed, __u32 policy)
{
	__u64 connection[2] = { join(f->saddr[0], f->daddr[0]), (12ull << 56) | f->ports };
	__u64 client[1] = { (4ull << 56) | f->saddr[0] };

	return policy == POLICY_CLIENT ? siphash13(seed, client, 1) : siphash13(seed, connection, 2);
}

static __always_inline __u64 hash_v6(const struct flow *f, const struct seed *seed, __u32 policy)
{
	__u64 connection[5] = {
		join(f->saddr[0], f->saddr[1]), join(f->saddr[2], f->saddr[3]), join(f->daddr[0], f->daddr[1]),
		join(f->daddr[2], f->daddr[3]), (36ull << 56) | f->ports,
	};
	__u64 client[3] = { connection[0], connection[1], 16ull << 56 };

	return policy == POLICY_CLIENT ? siphash13(seed, client, 3) : siphash13(seed, connection, 5);
}

/* A global function, so that the verifier walks the rounds once. */
__attribute__((noinline)) __u64 hash_flow(const struct flow *f, const struct seed *seed, __u32 policy)
{
	if (!f || !seed)
		return 0;
	return f->is_v6 ? hash_v6(f, seed, policy) : hash_v4(f, seed, policy);
}

/*
 * A queued or half-open connection of a closed listener comes with an empty skb: all is in its socket. The wide
 * load of dst_port is what kernels before 5.18 accept; in network order it is the low half.
 */
static __always_inline void read_migrating(struct bpf_sock *sk, struct flow *f)
{
	f->ports = bpf_htons(sk->src_port) << 16 | (*(volatile __u32 *)&sk->dst_port & 0xffff);
	f->is_v6 = sk->family != AF_INET;
	f->is_new = 1;
	f->is_open = sk->state != TCP_NEW_SYN_RECV;
	if (!f->is_v6) {
		f->saddr[0] = sk->dst_ip4;
		f->daddr[0] = sk->src_ip4;
		return;
	}
#pragma unroll
	for (int i = 0; i < 4; i++) {
		f->saddr[i] = sk->dst_ip6[i];
		f->daddr[i] = sk->src_ip6[i];
	}
}

static __always_inline void take_start(const struct tcp_start *tcp, struct flow *f)
{
	f->ports = tcp->ports;
	f->is_new = (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline long read_packet(struct sk_reuseport_md *md, struct flow *f)
{
	const struct tcp_start *start = (void *)(long)md->data;
	__u32 addresses[2]; /* source and destination lie one after the other in both headers */

	f->is_v6 = md->eth_protocol != bpf_htons(ETH_P_IP);
	if ((void *)(start + 1) <= (void *)(long)md->data_end) { /* all but packets whose header a driver left in a fragment */
		take_start(start, f);
	} else {
		struct tcp_start copy;

		if (bpf_skb_load_bytes(md, 0, &copy, sizeof(copy)))
			return -1;
		take_start(&copy, f);
	}
	if (f->is_v6)
		return bpf_skb_load_bytes_relative(md, 8, f->saddr, 32, BPF_HDR_START_NET);
	if (bpf_skb_load_bytes_relative(md, 12, addresses, sizeof(addresses), BPF_HDR_START_NET))
		return -1;
	f->saddr[0] = addresses[0];
	f->daddr[0] = addresses[1];
	return 0;
}

static __always_inline __u32 popcount(__u64 x)
{
	x -= (x >> 1) & 0x5555555555555555ull;
	x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
	return (x * 0x0101010101010101ull) >> 56;
}

/* Position of the j-th (from 0) set bit, without a branch: the verifier would follow each of 64 paths. */
static __always_inline __u32 nth_set_bit(__u64 x, __s64 j)
{
	__u32 position = 0;

#pragma unroll
	for (int width = 32; width; width >>= 1) {
		__s64 below = popcount(x & ((1ull << width) - 1));
		__u64 skip = ~((j - below) >> 63); /* all ones where j >= below */

		x >>= width & skip;
		j -= below & skip;
		position += width & skip;
	}
	return position;
}

/* One of the slots in both masks, by hash over all of them, or NONE. A global function: its loops are verified once. */
__attribute__((noinline)) __u32 spread_over(const struct mask *level, const struct mask *allowed, __u32 words, __u32 hash)
{
	__u32 total = 0;
	__s64 j;

	if (!level || !allowed)
		return NONE;
	for (__u32 i = 0; i < MASK_WORDS && i < words; i++)
		total += popcount(level->word[i] & READ_ONCE(allowed->word[i]));
	if (!total)
		return NONE;
	j = (__u64)hash * total >> 32;
	for (__u32 i = 0; i < MASK_WORDS && i < words; i++) {
		__u64 word = level->word[i] & READ_ONCE(allowed->word[i]);
		__s64 here = popcount(word);

		if (j < here)
			return i << 6 | nth_set_bit(word, j);
		j -= here;
	}
	return NONE; /* a bit went out between the two loops */
}

/* Of the nearest level of `row` that has an allowed slot: level << 16 | slot, or NONE. */
__attribute__((noinline)) __u32 spread(const struct row *row, const struct mask *allowed, __u32 words, __u32 hash)
{
	if (!row || !allowed)
		return NONE;
	for (__u32 level = 0; level < LEVELS; level++) {
		__u32 slot = spread_over(&row->level[level], allowed, words, hash);

		if (slot < MAX_SLOTS)
			return level << 16 | slot;
	}
	return NONE;
}

static __always_inline int is_in(const struct mask *mask, __u32 slot)
{
	return (READ_ONCE(mask->word[(slot >> 6) & (MASK_WORDS - 1)]) >> (slot & 63)) & 1;
}

/* The cell of a slot, or NULL. */
static __always_inline struct cell *cell_of(__u32 base, __u32 slot)
{
	return base == NO_CELL ? NULL : cell_at(base + slot);
}

/* What a slot has to do. Its counters are read one after the other, so it may be seen below 0. */
static __always_inline __u64 load_of(const struct cell *cell)
{
	__s64 open = READ_ONCE(cell->picked) - READ_ONCE(cell->closed) - READ_ONCE(cell->relayed_closed) -
		     READ_ONCE(cell->lost);

	return (open > 0 ? open : 0) + READ_ONCE(cell->pressure);
}

/* A slot, and what it has to do for its weight, read once. Where nothing is counted all are even. */
struct candidate {
	__u64 load;
	__u32 weight;
	__u32 slot;
};

static __always_inline struct candidate candidate_of(__u32 base, __u32 slot)
{
	const struct cell *cell = cell_of(base, slot);
	struct candidate candidate = { 0, 0, slot };

	if (cell) {
		candidate.load = load_of(cell);
		candidate.weight = READ_ONCE(cell->weight);
	}
	return candidate;
}

/* Of two that are even it is the first. */
static __always_inline int is_lighter(const struct candidate *second, const struct candidate *first)
{
	return second->load * first->weight < first->load * second->weight;
}

static __always_inline __u32 lighter(__u32 base, __u32 first, __u32 second)
{
	struct candidate a = candidate_of(base, first), b = candidate_of(base, second);

	return is_lighter(&b, &a) ? second : first;
}

static __always_inline int is_over_bound(__u32 base, __u32 slot)
{
	const struct cell *cell = cell_of(base, slot);
	__u32 bound;

	if (!cell)
		return 0;
	bound = READ_ONCE(cell->bound);
	return bound && load_of(cell) > bound;
}

/* Further choices: the finalizer of MurmurHash3, so that each bit of the keyed hash counts. */
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

struct choice {
	__u32 slot;
	__u32 origin; /* the row to fail over by; NONE where there is none */
	__u32 spread_hash;
	__u32 failed_over;
	__u32 deflected;
	__u32 generation;
};

static __always_inline const struct row *row_of(const struct state *s, __u32 generation, __u32 origin)
{
	__u32 key = generation * (s->max_slots + s->cpus) + origin;

	return bpf_map_lookup_elem(&rows, &key);
}

/* The slot of a table's entry, in service or not; NONE where the table has none. */
static __always_inline __u32 entry_of(const struct state *s, __u32 generation, __u64 hash)
{
	__u32 index = (hash & 0xffffffff) * s->generations[generation & 1].table_len >> 32;
	__u32 key = generation * s->chunks + index / CHUNK_ENTRIES;
	const struct chunk *chunk = bpf_map_lookup_elem(&table, &key);
	__u32 slot;

	if (!chunk)
		return NONE;
	slot = chunk->slot[index % CHUNK_ENTRIES];
	return slot < s->max_slots ? slot : NONE;
}

/* The lightest of this slot and of more choices by the same hash. Where the first is out, one that is in. */
static __always_inline __u32 lightest(const struct state *s, __u32 generation, __u64 hash, __u32 first)
{
	struct candidate best = { 0, 0, NONE };

	if (is_in(&s->in, first))
		best = candidate_of(s->cell_base, first);
	for (int i = 1; i < BALANCED_CHOICES; i++) {
		struct candidate next;
		__u32 slot;

		hash = mix(hash);
		slot = entry_of(s, generation, hash);
		if (slot == NONE || slot == best.slot || !is_in(&s->in, slot))
			continue;
		next = candidate_of(s->cell_base, slot);
		if (best.slot == NONE || is_lighter(&next, &best))
			best = next;
	}
	return best.slot;
}

static __always_inline void choose(const struct state *s, __u32 generation, const struct flow *flow,
				   struct choice *out)
{
	const struct generation *g = &s->generations[generation & 1];
	__u32 policy = READ_ONCE(g->policy);
	__u64 hash = hash_flow(flow, &s->seed, policy);
	const struct row *row;
	__u32 found;

	out->slot = NONE;
	out->spread_hash = hash >> 32;
	out->generation = generation;
	out->failed_over = 0;
	out->deflected = 0;
	if (policy == POLICY_LOCAL) {
		out->origin = s->max_slots + bpf_get_smp_processor_id();
		if (out->origin >= s->max_slots + s->cpus)
			out->origin = s->max_slots;
	} else {
		out->origin = entry_of(s, generation, hash);
		if (out->origin == NONE)
			return;
		if (policy == POLICY_BALANCED) {
			out->slot = lightest(s, generation, hash, out->origin);
			if (out->slot != NONE)
				return;
		} else if (is_in(&s->in, out->origin)) {
			out->slot = out->origin;
			if (policy == POLICY_CONNECTION && is_over_bound(s->cell_base, out->origin)) {
				__u32 second = entry_of(s, generation, mix(hash));

				if (second != NONE && is_in(&s->in, second))
					out->slot = lighter(s->cell_base, out->origin, second);
				out->deflected = out->slot != out->origin;
			}
			return;
		}
		out->failed_over = 1;
	}
	row = row_of(s, generation, out->origin);
	if (!row)
		return;
	found = spread(row, &s->in, s->words, out->spread_hash);
	if (found == NONE)
		return;
	out->slot = found & 0xffff;
	out->failed_over |= found >> 16 != 0;
}

/*
 * Loads before it come first. An x86 CPU keeps the order of loads, and the kernel compiles instruction by instruction, so
 * only clang has to be told. Elsewhere a full barrier: BPF has no other before 6.x.
 */
static __always_inline void order_loads(void)
{
#ifdef SHERD_ORDERED_LOADS
	asm volatile("" ::: "memory");
#else
	__u64 fence = 0;

	__sync_fetch_and_add(&fence, 1);
#endif
}

/* A whole answer of one generation. The writer reuses a generation only after the next flip, which `sequence` shows. */
static __always_inline void choose_consistently(const struct state *s, const struct flow *flow, struct choice *out)
{
	for (int i = 0; i < GENERATION_TRIES; i++) {
		__u32 sequence = READ_ONCE(s->sequence);

		choose(s, sequence & 1, flow, out);
		order_loads();
		if (READ_ONCE(s->sequence) == sequence)
			return;
	}
}

static __always_inline long select_index(struct sk_reuseport_md *md, __u32 index)
{
	return bpf_sk_select_reuseport(md, &sockets, &index, 0);
}

/* Where a connection of our own is forced to, or NULL. Its source is an address of this host and a port that we hold. */
static __always_inline const __u64 *forced_index(const struct state *s, const struct flow *f)
{
	struct force_key key;

	if (!READ_ONCE(s->forced))
		return NULL;
	__builtin_memcpy(key.saddr, f->saddr, sizeof(key.saddr));
	key.sport = f->ports & 0xffff;
	return bpf_map_lookup_elem(&forced, &key);
}

static __always_inline void forbid(struct mask *mask, __u32 slot)
{
	for (__u32 i = 0; i < MASK_WORDS; i++)
		mask->word[i] &= ~((__u64)(i == slot >> 6) << (slot & 63));
}

/* A connection of our own is load as any other, because its end is counted too. */
static __always_inline void count_forced(const struct state *s, __u32 index)
{
	/* Relayed slots' listeners, the anchor, and then those that shards hold: at either place they are the slot's. */
	struct cell *cell = cell_of(s->cell_base, index > s->max_slots ? (index - s->max_slots - 1) % s->max_slots : index);

	if (cell)
		__sync_fetch_and_add(&cell->picked, 1);
}

/* A connection is the slot's from here on. One that was established elsewhere stays on the cell of its listener. */
static __always_inline void count_pick(const struct state *s, __u32 slot, const struct flow *flow, int migrates)
{
	__u64 *count = bpf_map_lookup_elem(&picks, &slot);
	struct cell *cell;

	if (count)
		*count += 1;
	cell = cell_of(s->cell_base, slot);
	if (!cell)
		return;
	if (!flow->is_open)
		__sync_fetch_and_add(&cell->picked, 1);
	if (migrates) {
		struct tally *tally = tally_at(s->cell_base + slot);

		if (tally)
			__sync_fetch_and_add(&tally->migrated, 1);
	}
}

/* Selects the chosen slot's listener; where its entry is empty (the listener closed), the next nearest, bounded. */
static __always_inline int select_slot(struct sk_reuseport_md *md, const struct state *s, struct choice *choice,
				       const struct flow *flow, int migrates)
{
	struct mask allowed;

	for (int i = 0; i < SELECT_TRIES; i++) {
		__u32 slot = choice->slot;
		const struct row *row;
		long error;

		if (slot >= MAX_SLOTS)
			return 0;
		error = select_index(md, s->index_of[slot]);
		if (!error) {
			if (flow->is_new)
				count_pick(s, slot, flow, migrates);
			if (flow->is_new & (choice->failed_over | choice->deflected)) {
				ADD(failovers, choice->failed_over);
				ADD(deflected, choice->deflected);
			}
			return 1;
		}
		ADD(retries, 1);
		ADD(foreign, error == -EBADFD);
		if (i == 0)
			__builtin_memcpy(&allowed, &s->in, sizeof(allowed));
		forbid(&allowed, slot);
		row = row_of(s, choice->generation, choice->origin);
		if (!row)
			return 0;
		choice->slot = spread(row, &allowed, s->words, choice->spread_hash) & 0xffff;
		choice->failed_over = 1;
		choice->deflected = 0;
	}
	return 0;
}

SEC("sk_reuseport/migrate")
int steer(struct sk_reuseport_md *md)
{
	struct bpf_sock *migrating = md->migrating_sk;
	const __u64 *index;
	struct flow flow = {};
	struct choice choice = {};
	struct state *s;
	__u32 zero = 0;

	s = bpf_map_lookup_elem(&state, &zero);
	if (!s)
		return SK_DROP;
	if (migrating)
		read_migrating(migrating, &flow);
	else if (read_packet(md, &flow))
		ADD(unread, 1); /* still steered: by a hash of nothing */
	index = migrating ? NULL : forced_index(s, &flow);
	if (index) { /* there or nowhere: elsewhere it would say something about another slot */
		if (select_index(md, *index))
			return SK_DROP;
		if (flow.is_new)
			count_forced(s, *index);
		return SK_PASS;
	}
	choose_consistently(s, &flow, &choice);
	if (select_slot(md, s, &choice, &flow, migrating != NULL)) {
		if (migrating)
			ADD(migrated, 1);
		return SK_PASS;
	}
	/* What the client believes to be established is never refused: a migrating connection waits at the anchor. */
	if ((s->refuse && !migrating) || select_index(md, s->max_slots)) {
		ADD(dropped, flow.is_new);
		return SK_DROP;
	}
	ADD(anchored, flow.is_new);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Apache-2.0";
