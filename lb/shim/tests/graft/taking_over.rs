//! A broker ends between receiving a call and answering it: the next one answers, and the program has noticed nothing.

use sherd_testkit::in_new_netns;

use crate::{
    programs::{needed, script},
    rig::{INNER, Rig, Stuck},
};

const BODY: &str = r"
listener = socket.socket()
listener.setblocking(False)
listener.bind(('0.0.0.0', 9000))
epoll = select.epoll()
epoll.register(listener.fileno(), select.EPOLLIN)
listener.listen()
while epoll.poll():
    connection, peer = listener.accept()
    connection.setblocking(True)
    serve(connection, peer)
";

/// `moved`: how many registrations are left for the second broker.
fn check(name: &str, stuck: Stuck, moved: usize) {
    if !needed(name) {
        return;
    }
    in_new_netns(move || {
        let mut rig = Rig::start_stuck(&["python3", "-c", &script(BODY)], stuck);
        rig.take_over();
        let grafted = rig.grafted();
        assert_eq!((grafted.address.port(), grafted.moved_registrations), (INNER, moved));
        for _ in 0..20 {
            let (answer, from) = rig.ask();
            assert_eq!(answer, from.to_string());
        }
    });
}

#[test]
fn a_call_that_was_received() {
    check("a_call_that_was_received", Stuck::Deciding, 1);
}

#[test]
fn a_call_whose_listener_is_in_place() {
    check("a_call_whose_listener_is_in_place", Stuck::Placed, 0);
}
