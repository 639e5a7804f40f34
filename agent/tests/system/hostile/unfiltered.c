// A process that `docker exec` starts has no filter of the shim: it gets a descriptor of the program's and tries with it.
#define _GNU_SOURCE
#include "attempts.h"

#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const struct sockaddr_un meeting = { .sun_family = AF_UNIX, .sun_path = "\0hostile" };
enum { MEETING_LEN = offsetof(struct sockaddr_un, sun_path) + 8 };

long pass(int descriptor) {
    char space[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec part = { "x", 1 };
    struct msghdr message = { .msg_name = (void *) &meeting, .msg_namelen = MEETING_LEN, .msg_iov = &part, .msg_iovlen = 1 };
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
    int meet = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    long sent = sendmsg(meet, &message, 0);
    int error = errno;
    close(meet);
    errno = error;
    return sent;
}

static int receive(int meet) {
    char space[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = { &byte, 1 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
    int descriptor = -1;
    if (recvmsg(meet, &message, 0) == 1 && CMSG_FIRSTHDR(&message))
        memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof descriptor);
    return descriptor;
}

static void say(struct report *report) {
    fwrite(report->text, 1, report->len, stdout);
    fflush(stdout);
    report->len = 0;
}

// It was accepted; now it listens, and waits for somebody to come.
static void make_listen(struct report *report, int accepted) {
    struct sockaddr nobody = { .sa_family = AF_UNSPEC };
    struct sockaddr_in6 at;
    socklen_t len = sizeof at;
    tell(report, "disconnect", connect(accepted, &nobody, sizeof nobody));
    try_elsewhere(report, accepted);
    tell(report, "listen", listen(accepted, 8));
    getsockname(accepted, (struct sockaddr *) &at, &len);
    tell_number(report, "port", ntohs(at.sin6_port));
    say(report);
    tell(report, "accept", accept(accepted, NULL, NULL));
}

int without_filter(const char *attempt) {
    struct report report = { 0 };
    int meet = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    alarm(60);
    if (bind(meet, (const struct sockaddr *) &meeting, MEETING_LEN)) {
        perror("bind");
        return 1;
    }
    tell_text(&report, "waits", "OK");
    say(&report);
    int given = receive(meet);
    if (!strcmp(attempt, "make-listen"))
        make_listen(&report, given);
    else if (!strcmp(attempt, "options"))
        try_options(&report, given);
#ifdef __x86_64__
    else if (!strcmp(attempt, "32-bit"))
        try_32_bit(&report, given);
#endif
    say(&report);
    return 0;
}
