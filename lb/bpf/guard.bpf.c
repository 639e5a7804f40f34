// SPDX-License-Identifier: Apache-2.0
/*
 * What a socket that was made in the guard's cgroup may not do, whoever holds it: connect, send to an address, be
 * bound again, and get an option that is not listed here. The kernel runs these by the cgroup that the *socket* was
 * made in (sk_cgrp_data, inherited by what it accepts), not by that of the task that makes the call.
 *
 * What they never see: connect(AF_UNSPEC), listen(2), shutdown(2), fchown(2), and setsockopt(2) by a 32-bit system
 * call (`do_sock_setsockopt`: `if (!compat)`). `lb/src/guard/programs.rs` loads them.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <asm/socket.h>
#include <bpf/bpf_helpers.h>

#define REFUSE 0 /* the kernel answers EPERM */
#define ALLOW 1

#define SOL_TLS 282
#define PRIORITY_HIGHEST 6 /* TC_PRIO_INTERACTIVE: up to here the kernel asks for no capability either */
#define VALUE_MAX 16       /* what the kernel always has room for */

#define BIT(n) (1ull << (n))
#define CELLS 8192         /* cells.h: each may have a cgroup */
#define UNUSED __attribute__((unused))

/* The ids of the guard's cgroup, set before the programs are attached, and of those below it. Most guards have few. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CELLS);
	__type(key, __u64);
	__type(value, __u64);
} inside SEC(".maps");

/*
 * Options of each level that servers set on what they accept, or on a socket that listens already, and that change
 * nothing but the connection itself. All others are refused, those of later kernels too. Among them:
 *   who gets connections   SO_REUSEPORT = 0, SO_ATTACH_* and SO_DETACH_* (filters, steering), SO_LOCK_FILTER, SO_INCOMING_CPU
 *   where packets go       SO_BINDTODEVICE, SO_BINDTOIFINDEX, SO_MARK, SO_DONTROUTE, IP_OPTIONS (source routes), IPV6_RTHDR,
 *                          IP_UNICAST_IF, IPV6_PKTINFO, multicast
 *   whose address it is    IP_TRANSPARENT, IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE, TCP_REPAIR*
 *   what it is             IPV6_ADDRFORM, TCP_ULP but "tls" ("smc" puts another socket, outside the guard, in its place),
 *                          TCP_FASTOPEN_CONNECT
 *   keys and policies      TCP_MD5SIG*, TCP_AO_*, TCP_FASTOPEN_KEY, IP_XFRM_POLICY, IP_IPSEC_POLICY
 *   the host               iptables, ipvs and the like are "options" of IPPROTO_IP: this socket's namespace is the host's
 */
#define SOCKET_OPTIONS                                                                                             \
	(BIT(SO_SNDBUF) | BIT(SO_RCVBUF) | BIT(SO_KEEPALIVE) | BIT(SO_OOBINLINE) | BIT(SO_LINGER) |                \
	 BIT(SO_RCVLOWAT) | BIT(SO_RCVTIMEO_OLD) | BIT(SO_SNDTIMEO_OLD) | BIT(SO_TIMESTAMP_OLD) |                  \
	 BIT(SO_TIMESTAMPNS_OLD) | BIT(SO_TIMESTAMPING_OLD) | BIT(SO_BUSY_POLL) | BIT(SO_MAX_PACING_RATE) |        \
	 BIT(SO_ZEROCOPY) | BIT(SO_TIMESTAMP_NEW))
#define SOCKET_OPTIONS_FROM_64                                                                                     \
	(BIT(SO_TIMESTAMPNS_NEW - 64) | BIT(SO_TIMESTAMPING_NEW - 64) | BIT(SO_RCVTIMEO_NEW - 64) |                \
	 BIT(SO_SNDTIMEO_NEW - 64))

/* TCP_FASTOPEN and TCP_DEFER_ACCEPT: nginx sets them after listen(2). TCP_CONGESTION: the kernel has a list of its own. */
#define TCP_OPTIONS                                                                                                \
	(BIT(TCP_NODELAY) | BIT(TCP_MAXSEG) | BIT(TCP_CORK) | BIT(TCP_KEEPIDLE) | BIT(TCP_KEEPINTVL) |             \
	 BIT(TCP_KEEPCNT) | BIT(TCP_SYNCNT) | BIT(TCP_LINGER2) | BIT(TCP_DEFER_ACCEPT) | BIT(TCP_WINDOW_CLAMP) |   \
	 BIT(TCP_QUICKACK) | BIT(TCP_CONGESTION) | BIT(TCP_THIN_LINEAR_TIMEOUTS) | BIT(TCP_THIN_DUPACK) |          \
	 BIT(TCP_USER_TIMEOUT) | BIT(TCP_FASTOPEN) | BIT(TCP_NOTSENT_LOWAT) | BIT(TCP_SAVE_SYN) | BIT(TCP_INQ))

#define IP_OPTIONS_LISTED (BIT(IP_TOS) | BIT(IP_TTL) | BIT(IP_RECVERR) | BIT(IP_RECVTTL) | BIT(IP_RECVTOS))

/* IPV6_V6ONLY: the maker of the socket sets it; once a socket is bound the kernel answers EINVAL. */
#define IPV6_OPTIONS (BIT(IPV6_UNICAST_HOPS) | BIT(IPV6_RECVERR) | BIT(IPV6_V6ONLY) | BIT(IPV6_RECVHOPLIMIT))
#define IPV6_OPTIONS_FROM_64 (BIT(IPV6_RECVTCLASS - 64) | BIT(IPV6_TCLASS - 64))

/* TLS_TX, TLS_RX, TLS_TX_ZEROCOPY_RO, TLS_RX_EXPECT_NO_PAD: encryption in the kernel, which also forbids disconnecting. */
#define TLS_OPTIONS (BIT(1) | BIT(2) | BIT(3) | BIT(4))

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx UNUSED)
{
	return REFUSE;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx UNUSED)
{
	return REFUSE;
}

/* TCP never gets here (sendto with MSG_FASTOPEN is a connect): for the case that anything else is made in the guard. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx UNUSED)
{
	return REFUSE;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx UNUSED)
{
	return REFUSE;
}

/* The maker binds what it makes; nobody else is in its cgroups. */
static __always_inline int is_inside(void)
{
	__u64 id = bpf_get_current_cgroup_id();

	return bpf_map_lookup_elem(&inside, &id) != NULL;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx UNUSED)
{
	return is_inside();
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx UNUSED)
{
	return is_inside();
}

static __always_inline int has(__u64 options, __u32 option)
{
	return option < 64 && options >> option & 1;
}

/*
 * Allowed with some values only. The kernel then uses the copy that was looked at here, as `optlen` stays: its caller
 * can't exchange it in between. Not so beyond a page, so long values are refused.
 */
static __always_inline int value_is_allowed(struct bpf_sockopt *ctx)
{
	const __u8 *value = ctx->optval;
	__u32 number;

	if (value + VALUE_MAX > (const __u8 *)ctx->optval_end || ctx->optlen < 3 || ctx->optlen > VALUE_MAX)
		return REFUSE;
	if (ctx->level == IPPROTO_TCP) /* TCP_ULP */
		return value[0] == 't' && value[1] == 'l' && value[2] == 's' && (ctx->optlen == 3 || !value[3]);
	number = *(const __u32 *)value;
	if (ctx->optname == SO_PRIORITY) /* Erlang sets it on all that it accepts. More could be a class of the host's qdisc */
		return number <= PRIORITY_HIGHEST;
	/*
	 * SO_REUSEADDR and SO_REUSEPORT are on already, so 1 changes nothing (Puma, Netty and nginx set them late). Off, an
	 * accepted socket of another uid is a bind conflict for our next listener (`inet_bind_conflict`).
	 */
	return number != 0;
}

/* Of a value that nobody looks at the kernel needs no copy: it takes the caller's when `optlen` is 0 (5.8). */
static __always_inline int without_copy(struct bpf_sockopt *ctx, int allowed)
{
	ctx->optlen = 0;
	return allowed;
}

SEC("cgroup/setsockopt")
int setsockopt(struct bpf_sockopt *ctx)
{
	__u32 option = ctx->optname;

	switch (ctx->level) {
	case SOL_SOCKET:
		if (option == SO_REUSEADDR || option == SO_REUSEPORT || option == SO_PRIORITY)
			return value_is_allowed(ctx);
		return without_copy(ctx, has(SOCKET_OPTIONS, option) || has(SOCKET_OPTIONS_FROM_64, option - 64));
	case IPPROTO_TCP:
		if (option == TCP_ULP)
			return value_is_allowed(ctx);
		return without_copy(ctx, has(TCP_OPTIONS, option));
	case IPPROTO_IP:
		return without_copy(ctx, has(IP_OPTIONS_LISTED, option));
	case IPPROTO_IPV6:
		return without_copy(ctx, has(IPV6_OPTIONS, option) || has(IPV6_OPTIONS_FROM_64, option - 64));
	case SOL_TLS:
		return without_copy(ctx, has(TLS_OPTIONS, option));
	default:
		return REFUSE;
	}
}

char LICENSE[] SEC("license") = "Apache-2.0";
