// SPDX-License-Identifier: Apache-2.0
/*
 * What becomes of the connections that shards accept themselves: attached to the guard's cgroups, it hears of each
 * socket of the guard and writes to the cell (cells.h) of the cgroup that the connection's listener was made in.
 *
 * It also contains what seccomp doesn't see: an accepted socket can be disconnected (connect with AF_UNSPEC, which no
 * hook sees) and made to listen, by `docker exec`, io_uring, or a passed descriptor. Such a listener is bound to a
 * device that doesn't exist, so that no packet ever finds it; the agent destroys it. `lb/src/guard/programs.rs` loads it.
 *
 * It runs eight times for a connection, mostly for what it doesn't look at: what is nothing to it comes first.
 */
#include <linux/bpf.h>
#include <asm/socket.h>
#include <bpf/bpf_helpers.h>

#include "cells.h"

#define SOL_SOCKET 1
#define NOWHERE 0x7ffffffe /* no device has this index: the kernel gives them from 1 up. `sockdiag::NOWHERE` is the same */

/*
 * The cell of each cgroup that the program is attached to; 0: none, as the map has it at first. An accepted socket is of
 * its listener's cgroup, so nothing has to be kept of each. A socket storage that copies to what is accepted
 * (BPF_F_CLONE) costs 1.2 us more for each connection: two allocations and two locks, of which every CPU shares some.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, __u64);
} places SEC(".maps");

#define TIMED_SPAN_BITS 22 /* of ns: 4.2 ms */

/* The agent's mark on its listeners. What they accept has none. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} marks SEC(".maps");

/* When connections that are timed were established, ns. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} times SEC(".maps");

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* The position of the highest bit set, of the buckets from `first_bits` on. */
static __always_inline __u32 bucket_of(__u64 value, __u32 first_bits, __u32 buckets)
{
	__u32 bucket = 0;

	value >>= first_bits;
#pragma unroll
	for (int width = 32; width; width >>= 1) {
		__u32 skip = value >> width ? width : 0;

		value >>= skip;
		bucket += skip;
	}
	return bucket < buckets ? bucket : buckets - 1;
}

static __always_inline __u32 place(void)
{
	return *(__u64 *)bpf_get_local_storage(&places, 0);
}

/*
 * From here on its states are heard of, until `closed`. Of each slot one connection in 4 ms is timed: that needs room, which
 * costs more than all else here.
 */
static __always_inline void opened(struct bpf_sock_ops *ctx)
{
	__u32 number = place(), span = bpf_ktime_get_coarse_ns() >> TIMED_SPAN_BITS;
	__u32 heard = BPF_SOCK_OPS_STATE_CB_FLAG;
	struct cell *cell = cell_at(number);
	struct bpf_sock *sk = ctx->sk;

	if (!number || !cell)
		return;
	add(&cell->established, 1);
	if (cell->timed != span && sk) {
		__u64 now = bpf_ktime_get_ns();

		cell->timed = span;
		if (bpf_sk_storage_get(&times, sk, &now, BPF_SK_STORAGE_GET_F_CREATE))
			heard |= BPF_SOCK_OPS_RTT_CB_FLAG;
	}
	bpf_sock_ops_cb_flags_set(ctx, heard);
}

/*
 * Of a connection that is timed something was acknowledged. When it is the first answer, it has been told how long that
 * took: by the client too, which asks when it likes and acknowledges a round-trip time later.
 */
static __always_inline void acknowledged(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tally *tally;
	const __u64 *since;
	__u64 us;

	if (ctx->bytes_acked <= 1)
		return;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	tally = tally_at(place());
	since = sk ? bpf_sk_storage_get(&times, sk, NULL, 0) : NULL;
	if (!tally || !since)
		return;
	us = (bpf_ktime_get_ns() - *since) / 1000;
	if (us > ANSWER_MAX_US)
		us = ANSWER_MAX_US;
	add(&tally->answer_us, us);
	add(&tally->answer_us_squared, us * us);
	add(&tally->answer[bucket_of(us, ANSWER_FIRST_BITS, 2 * ANSWER_BUCKETS) / 2], 1);
}

static __always_inline void closed(struct bpf_sock_ops *ctx)
{
	__u32 number = place(), rtt_us = ctx->srtt_us >> 3;
	struct cell *cell = cell_at(number);
	struct tally *tally = tally_at(number);
	struct bpf_sock *sk = ctx->sk;
	const __u64 *since;

	if (!cell || !tally)
		return;
	/* Once: what becomes of the socket later is no connection of ours. */
	bpf_sock_ops_cb_flags_set(ctx, 0);
	add(&cell->closed, 1);
	add(&tally->bytes_received, ctx->bytes_received);
	add(&tally->bytes_acked, ctx->bytes_acked);
	if (ctx->bytes_acked <= 1) {
		add(&tally->unanswered, 1);
		/* A FIN counts as one there too. */
		if (ctx->bytes_received > 1)
			add(&tally->ignored, 1);
	}
	if (ctx->total_retrans)
		add(&tally->retransmits, ctx->total_retrans);
	add(&tally->rtt_us, rtt_us);
	add(&tally->rtt[bucket_of(rtt_us, RTT_FIRST_BITS, RTT_BUCKETS)], 1);
	since = sk ? bpf_sk_storage_get(&times, sk, NULL, 0) : NULL;
	if (since) {
		__u64 us = (bpf_ktime_get_ns() - *since) / 1000;

		add(&tally->duration_us, us);
		add(&tally->duration[bucket_of(us, DURATION_FIRST_BITS, DURATION_BUCKETS)], 1);
	}
}

/* Only what the agent marked may listen. */
static __always_inline void listens(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tally *common;
	int nowhere = NOWHERE;

	if (sk && bpf_sk_storage_get(&marks, sk, NULL, 0))
		return;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &nowhere, sizeof(nowhere));
	common = tally_at(0);
	if (common)
		add(&common->contained, 1);
}

SEC("sockops")
int account(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			closed(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		opened(ctx);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		acknowledged(ctx);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listens(ctx);
		break;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Apache-2.0";
