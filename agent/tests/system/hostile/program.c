// A program that answers its clients honestly, and tries on request what a hostile one would: `GET /ATTEMPTS` on a
// connection of a client answers with a line for each attempt. Static, without anything of the host.
#define _GNU_SOURCE
#include "attempts.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int listener;
static int kept = -1; // a connection to try things with
static volatile int connections;

static void tell_line(struct report *report, const char *format, ...) {
    va_list words;
    va_start(words, format);
    int len = vsnprintf(report->text + report->len, sizeof report->text - report->len, format, words);
    va_end(words);
    if (len > 0 && report->len + len < sizeof report->text)
        report->len += len;
}

void tell(struct report *report, const char *name, long result) {
    tell_line(report, "%s %s\n", name, result == -1 ? strerrorname_np(errno) : "OK");
}

void tell_text(struct report *report, const char *name, const char *text) {
    tell_line(report, "%s %s\n", name, text);
}

void tell_number(struct report *report, const char *name, long number) {
    tell_line(report, "%s %ld\n", name, number);
}

// The path of a request without a body; 0 when the client has closed.
static int request(int client, char *path) {
    char text[1024];
    size_t len = 0;
    while (len < sizeof text - 1) {
        ssize_t got = read(client, text + len, sizeof text - 1 - len);
        if (got <= 0)
            return 0;
        text[len += got] = 0;
        if (strstr(text, "\r\n\r\n"))
            return sscanf(text, "GET %63s", path) == 1;
    }
    return 0;
}

static int answer(int client, const char *body, size_t len) {
    char head[128];
    int head_len = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", len);
    return send(client, head, head_len, MSG_NOSIGNAL | MSG_MORE) == head_len
        && send(client, body, len, MSG_NOSIGNAL) == (ssize_t) len;
}

// What a path asks for, other than who we are.
static void attempt(const char *path, struct report *report) {
    const char *number = strchr(path + 1, '/');
    long count = number ? atol(number + 1) : 0;
    if (!strcmp(path, "/listener")) {
        try_options(report, listener);
        try_elsewhere(report, listener);
    } else if (!strcmp(path, "/owner"))
        try_owner(report, listener);
    else if (!strcmp(path, "/namespace"))
        try_namespace(report, listener);
    else if (!strcmp(path, "/connection"))
        try_disconnected(report, kept);
    else if (!strcmp(path, "/options"))
        try_options(report, kept);
    else if (!strcmp(path, "/shut"))
        try_shut(report, listener);
    else if (!strcmp(path, "/descriptors"))
        try_descriptors(report);
    else if (!strcmp(path, "/pins"))
        try_pins(report);
    else if (!strncmp(path, "/door/", 6))
        try_door(report, count);
    else if (!strncmp(path, "/storm/", 7))
        try_storm(report, listener, count);
    else if (!strncmp(path, "/bomb/", 6))
        try_bomb(report, count);
    else if (!strcmp(path, "/pass-connection"))
        tell(report, "pass", pass(kept));
    else if (!strcmp(path, "/pass-listener"))
        tell(report, "pass", pass(listener));
#ifdef __x86_64__
    else if (!strcmp(path, "/32-bit"))
        try_32_bit(report, listener);
#endif
    else
        tell_text(report, path, "unknown");
}

// Whether the connection is kept.
static int serve(int client) {
    char path[64], body[128];
    while (request(client, path)) {
        if (!strcmp(path, "/")) {
            int len = snprintf(body, sizeof body, "{\"slot\":%s,\"pid\":%d}", getenv("SHERD_SLOT"), getpid());
            if (!answer(client, body, len))
                return 0;
        } else if (!strcmp(path, "/keep")) {
            if (kept >= 0)
                close(kept);
            kept = client;
            answer(client, "kept OK\n", 8);
            return 1;
        } else {
            struct report *report = calloc(1, sizeof *report);
            attempt(path, report);
            answer(client, report->text, report->len);
            free(report);
        }
    }
    return 0;
}

static void *connection(void *client) {
    if (!serve((intptr_t) client))
        close((intptr_t) client);
    __atomic_fetch_sub(&connections, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void accept_all(void) {
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 1 << 17);
    for (;;) {
        pthread_t thread;
        intptr_t client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0 && errno == EINVAL)
            return;
        if (client < 0)
            continue;
        __atomic_fetch_add(&connections, 1, __ATOMIC_SEQ_CST);
        if (pthread_create(&thread, &detached, connection, (void *) client))
            _exit(2);
    }
}

static void end(int signal) {
    _exit(signal == SIGTERM ? 0 : 1);
}

int main(int count, char **words) {
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(80) };
    int yes = 1;
    if (count == 2)
        return without_filter(words[1]);
    remember_descriptors();
    signal(SIGTERM, end);
    listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *) &at, sizeof at) || listen(listener, 1024)) {
        perror("listen");
        return 1;
    }
    accept_all();
    // It was shut: who was accepted is served to the end.
    while (__atomic_load_n(&connections, __ATOMIC_SEQ_CST) > 0)
        usleep(1000);
    return 3;
}
