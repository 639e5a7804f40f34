// What is tried with what the shim left, with its door, and with very many listeners.
#define _GNU_SOURCE
#include "attempts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define DOOR "/.sherd/run/broker"

enum { DESCRIPTORS = 1024, FILES_AT_ONCE = 253 };

static char at_start[4096];

// Before we have opened anything: what we were born with.
void remember_descriptors(void) {
    size_t len = 0;
    for (int number = 0; number < DESCRIPTORS; number++) {
        char link[64], target[256];
        snprintf(link, sizeof link, "/proc/self/fd/%d", number);
        ssize_t target_len = readlink(link, target, sizeof target - 1);
        if (target_len < 0)
            continue;
        target[target_len] = 0;
        len += snprintf(at_start + len, sizeof at_start - len, "%s%d", len ? "," : "", number);
        if (strstr(target, "seccomp") || strstr(target, "bpf") || !strncmp(target, "socket:", 7))
            len += snprintf(at_start + len, sizeof at_start - len, "=%s", target);
    }
}

void try_descriptors(struct report *report) {
    struct sock_filter allow[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog program = { 1, allow };
    long answered = 0;
    tell_text(report, "born-with", at_start);
    for (int number = 0; number < DESCRIPTORS; number++) {
        struct seccomp_notif_resp response = { .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
        __u64 id = 0;
        answered += ioctl(number, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0 || errno == ENOENT;
        answered += ioctl(number, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0 || errno == ENOENT;
    }
    tell_number(report, "notify-fds", answered);
    long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    tell(report, "second-listener", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}

void try_pins(struct report *report) {
    union bpf_attr attr;
    const char *pin = "/sys/fs/bpf/sherd";
    memset(&attr, 0, sizeof attr);
    attr.pathname = (__u64) (unsigned long) pin;
    tell(report, "BPF_OBJ_GET", syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof attr));
    memset(&attr, 0, sizeof attr);
    tell(report, "BPF_PROG_GET_NEXT_ID", syscall(SYS_bpf, BPF_PROG_GET_NEXT_ID, &attr, sizeof attr));
    tell(report, "open-pin", open(pin, O_RDONLY));
    tell(report, "mount-bpf", mount("bpf", "/tmp", "bpf", 0, NULL));
    tell(report, "unlink-door", unlink(DOOR));
    tell(report, "chmod-door", chmod(DOOR, 0));
    tell(report, "file-at-door", open("/.sherd/run/other", O_CREAT | O_WRONLY, 0600));
    tell(report, "write-shim", open("/.sherd/bin/sherd-shim", O_WRONLY));
}

// With `flags` SOCK_NONBLOCK it doesn't wait for room in the queue.
static int visitor(int flags) {
    struct sockaddr_un at = { .sun_family = AF_UNIX, .sun_path = DOOR };
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (door >= 0 && connect(door, (struct sockaddr *) &at, sizeof at)) {
        close(door);
        return -1;
    }
    return door;
}

// `count` copies of `descriptor` on a message of `len` bytes.
static int send_to(int door, const char *bytes, size_t len, int descriptor, int count) {
    char space[CMSG_SPACE(FILES_AT_ONCE * sizeof(int))] = { 0 };
    struct iovec part = { (void *) bytes, len };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    if (count) {
        message.msg_control = space;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(count * sizeof(int));
        for (int i = 0; i < count; i++)
            memcpy(CMSG_DATA(rights) + i * sizeof(int), &descriptor, sizeof(int));
    }
    return sendmsg(door, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

// Whoever comes without a notify fd is turned away: the only answer is the end of the connection.
static const char *answer_of(int door) {
    char byte;
    struct pollfd readable = { .fd = door, .events = POLLIN };
    if (poll(&readable, 1, 30000) != 1)
        return "silence";
    return recv(door, &byte, 1, MSG_DONTWAIT) == 1 ? "answered" : "closed";
}

void try_door(struct report *report, long visitors) {
    static char garbage[1 << 16];
    static const char trapped[] = "sherdshm\1\0\0\0\0\0\0", future[] = "sherdshm\2\0\0\0\0\0\0", bad[] = "sherdshm\1\0\0\0\xff\xff\xff";
    const struct {
        const char *name, *bytes;
        size_t len;
        int files;
    } cases[] = {
        { "door-one-byte", garbage, 1, 0 },
        { "door-garbage", garbage, 16, 0 },
        { "door-64k", garbage, sizeof garbage, 0 },
        { "door-hello-without-fd", trapped, 16, 0 },
        { "door-hello-with-file", trapped, 16, 1 },
        { "door-hello-with-253", trapped, 16, FILES_AT_ONCE },
        { "door-garbage-with-253", garbage, 16, FILES_AT_ONCE },
        { "door-version", future, 16, 1 },
        { "door-status", bad, 16, 0 },
    };
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    memset(garbage, 'x', sizeof garbage);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int door = visitor(0);
        if (door < 0 || send_to(door, cases[i].bytes, cases[i].len, file, cases[i].files))
            tell(report, cases[i].name, -1);
        else
            tell_text(report, cases[i].name, answer_of(door));
        if (door >= 0)
            close(door);
    }
    // A crowd with descriptors in hand. Not waited for: refused or thrown away, none is served.
    long came = 0, served = 0;
    for (long i = 0; i < visitors; i++) {
        int door = visitor(SOCK_NONBLOCK);
        if (door < 0)
            continue;
        came++;
        if (!send_to(door, garbage, i % 40, file, i % 3 ? FILES_AT_ONCE : 0)) {
            char byte;
            served += recv(door, &byte, 1, MSG_DONTWAIT) == 1;
        }
        close(door);
    }
    close(file);
    tell_text(report, "door-crowd", came ? "came" : "nobody");
    tell_number(report, "door-crowd-served", served);
}

static int listener_at(int port, int *answer) {
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    int socket_ = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(socket_, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes);
    *answer = bind(socket_, (struct sockaddr *) &at, sizeof at) ? -1 : listen(socket_, 8);
    return socket_;
}

// Calls on the listener that we have, and on sockets of our own elsewhere, in turn.
void try_storm(struct report *report, int listener, long calls) {
    long refused = 0;
    int error = 0;
    for (long i = 0; i < calls; i++) {
        int answer;
        if (i % 2)
            answer = listen(listener, 1024);
        else
            close(listener_at(1000 + i % 100, &answer));
        if (answer) {
            refused++;
            error = errno;
        }
    }
    tell_number(report, "storm-refused", refused);
    if (refused)
        tell_text(report, "storm-error", strerrorname_np(error));
}

// Processes that each bind a socket of their own to our port, listen, and end with it.
void try_bomb(struct report *report, long processes) {
    long listened = 0;
    for (long i = 0; i < processes; i++) {
        pid_t child = fork();
        if (child == 0) {
            int answer;
            listener_at(80, &answer);
            _exit(answer ? 1 : 0);
        }
        if (child > 0 && i % 16 == 15)
            for (int status; waitpid(-1, &status, WNOHANG) > 0;)
                listened += status == 0;
    }
    for (int status; waitpid(-1, &status, 0) > 0;)
        listened += status == 0;
    tell_number(report, "bomb-listened", listened);
}
