// SPDX-License-Identifier: Apache-2.0
/*
 * What becomes of the connections that shards accept themselves: attached to the guard's cgroup, it hears of each
 * socket of the guard and writes to the cell that the connection's listener was given (cells.h).
 *
 * It also contains what seccomp doesn't see: an accepted socket can be disconnected (connect with AF_UNSPEC, which no
 * hook sees) and made to listen, by `docker exec`, io_uring, or a passed descriptor. Such a listener is bound to a
 * device that doesn't exist, so that no packet ever finds it; the agent destroys it. `lb/src/guard/programs.rs` loads it.
 */
#include <linux/bpf.h>
#include <asm/socket.h>
#include <bpf/bpf_helpers.h>

#include "cells.h"

#define SOL_SOCKET 1
#define NOWHERE 0x7ffffffe /* no device has this index: the kernel gives them from 1 up. `sockdiag::NOWHERE` is the same */

/* Each accepted socket has a copy of its listener's. */
struct account {
	__u64 listener; /* its SO_COOKIE: the agent's own mark on it, which a copy doesn't bear */
	__u64 since;    /* ns; 0: not established, or counted as closed */
	__u32 cell;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CELLS);
	__type(key, __u32);
	__type(value, struct cell);
} cells SEC(".maps");

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

static __always_inline void opened(struct bpf_sock_ops *ctx, struct account *account)
{
	struct cell *cell = bpf_map_lookup_elem(&cells, &account->cell);

	if (!cell)
		return;
	account->since = bpf_ktime_get_ns();
	add(&cell->established, 1);
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void closed(struct bpf_sock_ops *ctx, struct account *account)
{
	struct cell *cell = bpf_map_lookup_elem(&cells, &account->cell);
	__u64 us;
	__u32 rtt_us;

	if (!cell || !account->since)
		return;
	us = (bpf_ktime_get_ns() - account->since) / 1000;
	rtt_us = ctx->srtt_us >> 3;
	account->since = 0;
	add(&cell->closed, 1);
	add(&cell->bytes_received, ctx->bytes_received);
	add(&cell->bytes_acked, ctx->bytes_acked);
	if (ctx->total_retrans)
		add(&cell->retransmits, ctx->total_retrans);
	add(&cell->rtt_us, rtt_us);
	add(&cell->duration_us, us);
	add(&cell->rtt[bucket_of(rtt_us, RTT_FIRST_BITS, RTT_BUCKETS)], 1);
	add(&cell->duration[bucket_of(us, DURATION_FIRST_BITS, DURATION_BUCKETS)], 1);
}

/* Only what the agent marked may listen. */
static __always_inline void listens(struct bpf_sock_ops *ctx, const struct account *account)
{
	__u32 none = 0;
	struct cell *cell;
	int nowhere = NOWHERE;

	if (account && account->listener == bpf_get_socket_cookie(ctx))
		return;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &nowhere, sizeof(nowhere));
	cell = bpf_map_lookup_elem(&cells, &none);
	if (cell)
		add(&cell->contained, 1);
}

SEC("sockops")
int account(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct account *account;

	switch (ctx->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE)
			return 1;
		break;
	default:
		return 1;
	}
	if (!sk)
		return 1;
	account = bpf_sk_storage_get(&accounts, sk, NULL, 0);
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		listens(ctx, account);
	else if (account && ctx->op == BPF_SOCK_OPS_STATE_CB)
		closed(ctx, account);
	else if (account)
		opened(ctx, account);
	return 1;
}

char LICENSE[] SEC("license") = "Apache-2.0";
