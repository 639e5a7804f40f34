// Says which container answers, and which client asked. Listens as event loops do that register first ("epoll"), or
// through io_uring ("uring"), which no seccomp filter sees.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

// <linux/io_uring.h> of Linux 6.11.
enum { OP_LISTEN = 57 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void end(int signal) {
    _exit(signal == SIGTERM ? 0 : 1);
}

static void answer(int client, const struct sockaddr_in *from) {
    char request[4096], text[256], address[INET_ADDRSTRLEN];
    if (read(client, request, sizeof request) > 0) {
        inet_ntop(AF_INET, &from->sin_addr, address, sizeof address);
        int len = snprintf(text, sizeof text, "HTTP/1.0 200 OK\r\n\r\n%s client=%s:%d\n", getenv("HOSTNAME"), address,
                           ntohs(from->sin_port));
        if (write(client, text, len) != len)
            perror("write");
    }
    close(client);
}

// Whether there was a client.
static int accept_from(int listener) {
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    int client = accept(listener, (struct sockaddr *) &from, &len);
    if (client >= 0)
        answer(client, &from);
    return client >= 0;
}

static void listen_by_uring(int listener) {
    struct io_uring_params params = { 0 };
    int ring = syscall(SYS_io_uring_setup, 1, &params);
    if (ring < 0)
        fail("io_uring_setup");
    int shared = PROT_READ | PROT_WRITE;
    char *rings = mmap(0, 4096, shared, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(0, 4096, shared, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || entry == MAP_FAILED)
        fail("mmap");
    memset(entry, 0, sizeof *entry);
    entry->opcode = OP_LISTEN;
    entry->fd = listener;
    entry->len = 128;
    *(unsigned *) (rings + params.sq_off.array) = 0;
    __atomic_store_n((unsigned *) (rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1)
        fail("io_uring_enter");
    struct io_uring_cqe *done = (struct io_uring_cqe *) (rings + params.cq_off.cqes);
    if (done->res < 0) {
        fprintf(stderr, "IORING_OP_LISTEN: %s\n", strerror(-done->res));
        exit(1);
    }
}

int main(int count, char **words) {
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(80) };
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    signal(SIGTERM, end);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (count != 2 || bind(listener, (struct sockaddr *) &at, sizeof at))
        fail("bind");
    if (!strcmp(words[1], "uring")) {
        listen_by_uring(listener);
        for (;;)
            accept_from(listener);
    }
    struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u64 = 0x5eed00000000 };
    int loop = epoll_create1(0);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event) || listen(listener, 128))
        fail("listen");
    while (epoll_wait(loop, &event, 1, -1) == 1)
        while (event.data.u64 == 0x5eed00000000 && accept_from(listener)) {
        }
    fail("epoll_wait");
}
