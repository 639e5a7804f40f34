//! A direction between two simulated sockets, under random arrivals, room and order of events.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Both sockets as the kernel would show them, with the edges that epoll would report.
#[derive(Debug, Default)]
struct Wires {
    /// Received and not yet read; a mark stops a receive, as urgent data does.
    queue: VecDeque<u8>,
    mark: Option<usize>,
    fin: bool,
    room: usize,
    /// The last write was refused or short: room is an edge.
    wants_room: bool,
    delivered: Vec<u8>,
    pipes: usize,
    /// Bytes in the one pipe that may be filled at a time.
    piped: VecDeque<u8>,
    interrupt: bool,
}

const PIPE: usize = 40 << 10;

impl Wires {
    fn interrupted(&mut self) -> Result<(), Errno> {
        if std::mem::take(&mut self.interrupt) { Err(Errno::EINTR) } else { Ok(()) }
    }

    fn read(&mut self, most: usize) -> Result<Vec<u8>, Errno> {
        self.interrupted()?;
        if self.queue.is_empty() {
            return if self.fin { Ok(Vec::new()) } else { Err(Errno::EAGAIN) };
        }
        let to_mark = self.mark.filter(|mark| *mark > 0).unwrap_or(usize::MAX);
        let len = most.min(self.queue.len()).min(to_mark);
        self.mark = self.mark.and_then(|mark| mark.checked_sub(len)).filter(|mark| *mark > 0);
        Ok(self.queue.drain(..len).collect())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        self.interrupted()?;
        let len = bytes.len().min(self.room);
        self.wants_room |= len < bytes.len();
        if len == 0 {
            return Err(Errno::EAGAIN);
        }
        self.room -= len;
        self.delivered.extend(&bytes[..len]);
        Ok(len)
    }
}

impl Ends for Wires {
    type Pipe = ();

    fn receive(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let bytes = self.read(into.len())?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        self.write(bytes)
    }

    fn take_pipe(&mut self) -> Option<()> {
        self.pipes = self.pipes.checked_sub(1)?;
        assert!(self.piped.is_empty(), "a pipe is empty when it is taken");
        Some(())
    }

    fn return_pipe(&mut self, (): ()) {
        assert!(self.piped.is_empty(), "a pipe is empty when it is returned");
        self.pipes += 1;
    }

    fn fill(&mut self, (): &()) -> Result<usize, Errno> {
        let bytes = self.read(PIPE)?;
        self.piped.extend(&bytes);
        Ok(bytes.len())
    }

    fn empty(&mut self, (): &(), len: usize) -> Result<usize, Errno> {
        let bytes: Vec<u8> = self.piped.iter().take(len).copied().collect();
        let written = self.write(&bytes)?;
        self.piped.drain(..written);
        Ok(written)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Arrive {
        len: usize,
        marked: bool,
    },
    Room(usize),
    Interrupt,
    /// Takes the one pipe away, or gives it back.
    Pipe(bool),
    Fin,
    /// Another worker goes on.
    HandOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (prop_oneof![1..200usize, 1..100_000usize], prop::bool::weighted(0.1))
            .prop_map(|(len, marked)| Step::Arrive { len, marked }),
        5 => prop_oneof![1..50usize, 1..150_000usize].prop_map(Step::Room),
        1 => Just(Step::Interrupt),
        1 => any::<bool>().prop_map(Step::Pipe),
        1 => Just(Step::Fin),
        2 => Just(Step::HandOver),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the worker does with an event: marks the arrival, pumps, and comes back while there is more to do.
fn event(direction: &mut Direction<()>, wires: &mut Wires, arrival: Option<Arrival>) -> Flow {
    let mut scratch = vec![0; 8 << 10];
    match arrival {
        Some(arrival) => direction.arrived(arrival),
        None if !direction.is_blocked() => return Flow::Drained,
        None => {}
    }
    loop {
        let flow = direction.pump(wires, &mut scratch).expect("nothing fails here");
        if flow != Flow::More {
            assert_eq!(flow == Flow::Blocked, direction.is_blocked());
            return flow;
        }
    }
}

/// The same in other hands: it is pumped at once, and epoll reports what is there already.
fn hand_over(direction: &mut Direction<()>, wires: &mut Wires) -> Flow {
    let rest = direction.stop(|(), len| {
        assert_eq!(wires.piped.len(), len);
        wires.pipes += 1;
        Ok::<_, Errno>(wires.piped.drain(..).collect())
    });
    *direction = Direction::resume(rest.expect("nothing fails here"));
    let flow = direction.pump(wires, &mut [0; 8 << 10]).expect("nothing fails here");
    match (wires.queue.is_empty(), wires.fin) {
        (true, false) => flow,
        (_, is_over) if wires.mark.is_none() && is_over => event(direction, wires, Some(Arrival::BytesAndEnd)),
        _ => event(direction, wires, Some(Arrival::Uncertain)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_byte_arrives_once_in_order_and_then_the_end(steps in steps()) {
        let mut wires = Wires { pipes: 1, ..Wires::default() };
        let mut direction = Direction::new();
        let mut sent = Vec::new();
        let mut flow = Flow::Drained;
        for step in steps.into_iter().chain([Step::Fin, Step::Room(usize::MAX >> 1)]) {
            match step {
                Step::Arrive { len, marked } if !wires.fin => {
                    let bytes: Vec<u8> = (sent.len()..sent.len() + len).map(|n| (n % 251) as u8).collect();
                    if marked {
                        wires.mark = Some(wires.queue.len() + len / 2);
                    }
                    sent.extend(&bytes);
                    wires.queue.extend(&bytes);
                    let arrival = if wires.mark.is_some() { Arrival::Uncertain } else { Arrival::Bytes };
                    flow = event(&mut direction, &mut wires, Some(arrival));
                }
                Step::Fin if !wires.fin => {
                    wires.fin = true;
                    let arrival = if wires.mark.is_some() { Arrival::Uncertain } else { Arrival::BytesAndEnd };
                    flow = event(&mut direction, &mut wires, Some(arrival));
                }
                Step::Room(room) => {
                    wires.room = wires.room.saturating_add(room);
                    if std::mem::take(&mut wires.wants_room) {
                        flow = event(&mut direction, &mut wires, None);
                    }
                }
                Step::HandOver => flow = hand_over(&mut direction, &mut wires),
                Step::Interrupt => wires.interrupt = true,
                Step::Pipe(back) if direction.held.is_none() => wires.pipes = usize::from(back),
                _ => {}
            }
            prop_assert!(sent.starts_with(&wires.delivered));
            let held = sent.len() - wires.delivered.len() - wires.queue.len();
            prop_assert!(held <= PIPE, "{held} bytes held");
        }
        prop_assert_eq!(flow, Flow::Ended);
        prop_assert_eq!(wires.delivered, sent);
        prop_assert!(direction.held.is_none());
    }
}

#[test]
fn a_short_receive_is_not_followed_by_another() {
    let mut wires = Wires { room: 100, ..Wires::default() };
    wires.queue.extend(b"request");
    let mut direction = Direction::new();
    direction.arrived(Arrival::Bytes);
    assert_eq!(direction.pump(&mut wires, &mut [0; 64]), Ok(Flow::Drained));
    // The end is there, but no event said so: a receive would have found it.
    wires.fin = true;
    assert_eq!(direction.pump(&mut wires, &mut [0; 64]), Ok(Flow::Drained));
    direction.arrived(Arrival::BytesAndEnd);
    assert_eq!(direction.pump(&mut wires, &mut [0; 64]), Ok(Flow::Ended));
}
