//! Hostile programs want what they accepted and disconnected to listen on the host.

use std::{io::Read, net::TcpStream, path::Path, process::Command};

use sherd_testkit::{Need, in_new_netns, needs};

use crate::{broker::SOON, rig::Rig};

/// One thread calls listen(2) at a descriptor, another one puts there by turns a socket of the program's own, for which the
/// call is in order, and what it accepted and disconnected, which would listen at a port of the host. Says how often
/// the call succeeded and was refused, and whether the disconnected socket listens.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int own, spare;
static volatile int ends;
enum { AT = 100 };

static int bound(int port) {
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return bind(fd, (struct sockaddr *) &at, sizeof at) ? -1 : fd;
}

static int listens(int fd) {
    int is = 0;
    socklen_t len = sizeof is;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is, &len) || is;
}

static void *exchange(void *nothing) {
    while (!ends) {
        dup2(own, AT);
        dup2(spare, AT);
    }
    return nothing;
}

int main(int count, char **words) {
    struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    int done = 0, refused = 0, other = 0, won = 0, listener = bound(9000);
    pthread_t thread;
    if (listen(listener, 8) || (spare = accept(listener, 0, 0)) < 0 || connect(spare, &nowhere, sizeof nowhere))
        return 1;
    own = bound(9001);
    dup2(own, AT);
    pthread_create(&thread, 0, exchange, 0);
    for (int turn = 0; turn < atoi(words[1]) && !won; turn++) {
        if (listen(AT, 8) == 0) done++;
        else if (errno == EPERM) refused++;
        else other = errno;
        won = listens(spare);
    }
    ends = 1;
    pthread_join(thread, 0);
    printf("%d %d %d %d\n", done, refused, other, won);
    return count != 2;
}
"#;

/// The same socket, by the 32-bit call; a socket of its own listens so.
#[cfg(target_arch = "x86_64")]
const FOREIGN: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

static int listen_32(int fd) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(363), "b"(fd), "c"(8) : "memory", "r8", "r9", "r10", "r11");
    return result;
}

int main(void) {
    struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(9000), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *) &at, sizeof at))
        return 1;
    int own = listen_32(listener), spare = accept(listener, 0, 0);
    if (connect(spare, &nowhere, sizeof nowhere))
        return 1;
    printf("%d %d\n", own, listen_32(spare));
    return 0;
}
"#;

fn compiled(folder: &Path, text: &str) -> String {
    let (source, program) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&source, text).expect("a folder of ours");
    let built = Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("gcc").success());
    program.into_os_string().into_string().expect("UTF-8")
}

/// Lets the program accept one client, and waits until it has said all.
fn said_of_a_client(rig: Rig) -> String {
    drop(rig.grafted());
    let mut stream = TcpStream::connect(rig.address).expect("it is published");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    // The program disconnects it, may be before this, and then goes on.
    let _ = stream.read(&mut [0]);
    String::from_utf8(rig.program.finish().stdout).expect("text")
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_32_bit_call_is_trapped_too() {
    if !needs("the_32_bit_call_is_trapped_too", &[Need::Root, Need::Bpf, Need::Program("gcc")]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = compiled(folder.path(), FOREIGN);
    // EPERM.
    in_new_netns(move || assert_eq!(said_of_a_client(Rig::start(&[&program])), "0 -1\n"));
}

#[test]
fn an_exchanged_descriptor_never_listens_on_the_host() {
    let name = "an_exchanged_descriptor_never_listens_on_the_host";
    if !needs(name, &[Need::Root, Need::Bpf, Need::Program("gcc")]) {
        return;
    }
    let turns = if std::env::var("SHERD_PROVE").as_deref() == Ok("1") { 100_000 } else { 3_000 };
    let folder = tempfile::tempdir().expect("a folder");
    let program = compiled(folder.path(), PROGRAM);
    in_new_netns(move || {
        let said = said_of_a_client(Rig::start(&[&program, &turns.to_string()]));
        let numbers: Vec<u32> = said.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [done, refused, other, won] = numbers[..] else { panic!("{said:?}") };
        assert_eq!((other, won), (0, 0), "{done} calls succeeded, {refused} were refused");
        assert!(done > 0 && refused > 0, "both sockets were looked at: {done} and {refused}");
        println!("{done} calls succeeded, {refused} were refused");
    });
}
