// What a hostile program tries, and how it says what came of it: one line for each attempt, `NAME ERRNO` or `NAME OK`.
#pragma once
#include <stddef.h>

// Where a group of attempts writes its lines.
struct report {
    size_t len;
    char text[8192];
};

// The result of a system call: OK when it is not -1, else errno's name.
void tell(struct report *report, const char *name, long result);
void tell_text(struct report *report, const char *name, const char *text);
void tell_number(struct report *report, const char *name, long number);

// Options, bind, connect and datagrams on a socket that we were given.
void try_options(struct report *report, int socket);
void try_elsewhere(struct report *report, int socket);
void try_namespace(struct report *report, int socket);
void try_owner(struct report *report, int listener);
void try_disconnected(struct report *report, int accepted);
void try_shut(struct report *report, int listener);
void try_32_bit(struct report *report, int listener);

// What is left of the shim, and what else could steer.
void try_descriptors(struct report *report);
void remember_descriptors(void);
void try_pins(struct report *report);
void try_door(struct report *report, long visitors);

// Very many listeners.
void try_storm(struct report *report, int listener, long calls);
void try_bomb(struct report *report, long processes);

// A descriptor to a process that `docker exec` started, and what that one does with it.
long pass(int descriptor);
int without_filter(const char *attempt);
