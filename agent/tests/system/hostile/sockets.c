// What is tried with a listener that we were given, and with what was accepted from it.
#define _GNU_SOURCE
#include "attempts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct option {
    const char *name;
    int level, option;
    const void *value;
    socklen_t len;
};

static const int off = 0, on = 1, device = 1;
static struct sock_filter all[] = { { BPF_RET | BPF_K, 0, 0, 0 } };
static const struct sock_fprog filter = { 1, all };

static const struct option options[] = {
    { "SO_DETACH_REUSEPORT_BPF", SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &off, sizeof off },
    { "SO_ATTACH_REUSEPORT_CBPF", SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &filter, sizeof filter },
    { "SO_ATTACH_REUSEPORT_EBPF", SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &off, sizeof off },
    { "SO_ATTACH_FILTER", SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter },
    { "SO_ATTACH_BPF", SOL_SOCKET, SO_ATTACH_BPF, &off, sizeof off },
    { "SO_DETACH_FILTER", SOL_SOCKET, SO_DETACH_FILTER, &off, sizeof off },
    { "SO_LOCK_FILTER", SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on },
    { "SO_REUSEPORT=0", SOL_SOCKET, SO_REUSEPORT, &off, sizeof off },
    { "SO_REUSEADDR=0", SOL_SOCKET, SO_REUSEADDR, &off, sizeof off },
    { "SO_BINDTODEVICE", SOL_SOCKET, SO_BINDTODEVICE, "lo", 2 },
    { "SO_BINDTOIFINDEX", SOL_SOCKET, SO_BINDTOIFINDEX, &device, sizeof device },
    { "SO_MARK", SOL_SOCKET, SO_MARK, &on, sizeof on },
    { "SO_INCOMING_CPU", SOL_SOCKET, SO_INCOMING_CPU, &off, sizeof off },
    { "SO_DONTROUTE", SOL_SOCKET, SO_DONTROUTE, &on, sizeof on },
    { "IP_TRANSPARENT", IPPROTO_IP, IP_TRANSPARENT, &on, sizeof on },
    { "IP_FREEBIND", IPPROTO_IP, IP_FREEBIND, &on, sizeof on },
    { "IP_OPTIONS", IPPROTO_IP, IP_OPTIONS, "\x83\x07\x04\x7f\0\0\1", 7 },
    { "IPV6_TRANSPARENT", IPPROTO_IPV6, IPV6_TRANSPARENT, &on, sizeof on },
    { "IPV6_FREEBIND", IPPROTO_IPV6, IPV6_FREEBIND, &on, sizeof on },
    { "TCP_REPAIR", IPPROTO_TCP, TCP_REPAIR, &on, sizeof on },
    { "TCP_FASTOPEN_CONNECT", IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on },
    { "TCP_ULP=smc", IPPROTO_TCP, TCP_ULP, "smc", 3 },
};

void try_options(struct report *report, int socket) {
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        const struct option *o = &options[i];
        tell(report, o->name, setsockopt(socket, o->level, o->option, o->value, o->len));
    }
}

static struct sockaddr_in6 loopback(const char *address, int port) {
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    inet_pton(AF_INET6, address, &at.sin6_addr);
    return at;
}

// The agent's metrics: something of the host that listens on its loopback.
enum { HOST_PORT = 9478 };

void try_elsewhere(struct report *report, int socket) {
    struct sockaddr_in6 v6 = loopback("::1", HOST_PORT), v4 = loopback("::ffff:127.0.0.1", HOST_PORT);
    struct sockaddr_in6 other = loopback("::1", 4444);
    struct sockaddr *to[] = { (struct sockaddr *) &v4, (struct sockaddr *) &v6 };
    tell(report, "bind", bind(socket, (struct sockaddr *) &other, sizeof other));
    tell(report, "connect-v4", connect(socket, to[0], sizeof v4));
    tell(report, "connect-v6", connect(socket, to[1], sizeof v6));
    tell(report, "sendto", sendto(socket, "x", 1, MSG_NOSIGNAL, to[0], sizeof v4));
    tell(report, "fastopen-v4", sendto(socket, "x", 1, MSG_NOSIGNAL | MSG_FASTOPEN, to[0], sizeof v4));
    tell(report, "fastopen-v6", sendto(socket, "x", 1, MSG_NOSIGNAL | MSG_FASTOPEN, to[1], sizeof v6));
}

// A socket's network namespace can be asked for, and its interfaces changed, by whoever is its administrator.
void try_namespace(struct report *report, int socket) {
    struct ifreq loopback = { .ifr_name = "lo", .ifr_mtu = 60000 };
    tell(report, "SIOCSIFMTU", ioctl(socket, SIOCSIFMTU, &loopback));
    tell(report, "SIOCGSKNS", ioctl(socket, SIOCGSKNS));
}

// No hook sees it. It stays in its SO_REUSEPORT group, and who comes later joins that group all the same.
void try_owner(struct report *report, int listener) {
    tell(report, "fchown", fchown(listener, 4242, 4242));
}

void try_disconnected(struct report *report, int accepted) {
    struct sockaddr nobody = { .sa_family = AF_UNSPEC };
    try_options(report, accepted);
    tell(report, "disconnect", connect(accepted, &nobody, sizeof nobody));
    try_elsewhere(report, accepted);
    tell(report, "listen", listen(accepted, 8));
    try_options(report, accepted);
}

void try_shut(struct report *report, int listener) {
    tell(report, "shutdown", shutdown(listener, SHUT_RDWR));
    try_elsewhere(report, listener);
    try_options(report, listener);
    tell(report, "listen", listen(listener, 8));
}

#ifdef __x86_64__
// i386's calls from a 64-bit process; pointers have to be below 4 GiB.
enum { SETSOCKOPT_32 = 366, LISTEN_32 = 363, SOCKETCALL_32 = 102, URING_SETUP_32 = 425 };
// x32's: the native ones with a bit.
enum { X32 = 0x40000000 };

static long call_32(long number, long a, long b, long c, long d, long e) {
    long result;
    register long fifth __asm__("rdi") = e;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "r"(fifth)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result >= -4095 && result < 0) {
        errno = (int) -result;
        return -1;
    }
    return result;
}

void try_32_bit(struct report *report, int listener) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
    int *low = mmap(0, 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (low == MAP_FAILED)
        return tell(report, "mmap", -1);
    long value = (long) low;
    int detach = SO_DETACH_REUSEPORT_BPF, reuse = SO_REUSEPORT;
    tell(report, "32-SO_DETACH_REUSEPORT_BPF", call_32(SETSOCKOPT_32, listener, SOL_SOCKET, detach, value, 4));
    tell(report, "32-SO_REUSEPORT=0", call_32(SETSOCKOPT_32, listener, SOL_SOCKET, reuse, value, 4));
    int words[] = { listener, SOL_SOCKET, detach, (int) (value + 64), 4 };
    memcpy(low, words, sizeof words);
    tell(report, "32-socketcall", call_32(SOCKETCALL_32, 14, value, 0, 0, 0));
    tell(report, "32-io_uring_setup", call_32(URING_SETUP_32, 1, value + 256, 0, 0, 0));
    tell(report, "32-listen", call_32(LISTEN_32, listener, 8, 0, 0, 0));
    tell(report, "x32-SO_DETACH_REUSEPORT_BPF", syscall(X32 | 541, listener, SOL_SOCKET, detach, low + 16, 4));
    tell(report, "x32-listen", syscall(X32 | 50, listener, 8));
    munmap(low, 4096);
}
#endif
