//! Streams that send, receive and watch side by side, and are given up at any point.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::super::{Actor, Random, Temper, each_seed, resets, simulate, simulate_with};
use super::{Link, SEEDS, Segment, come_to_rest, pair, rest, settle};
use crate::io::driver::{Input, Told};
use crate::io::{Buf, Stream, keep_time, sleep, spawn};
use crate::sys::event;

/// The other end of a stream.
struct Peer {
    link: Rc<Link>,
    socket: Option<UnixStream>,
    to_send: usize,
    /// Where it is in what comes.
    segment: usize,
    offset: usize,
    has_seen_end: bool,
    /// In percent, how often it reads.
    reads: usize,
    /// In a thousand, how often it goes away without a word.
    leaves_per_mille: usize,
}

impl Peer {
    fn read(&mut self, random: &mut Random) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let mut room = [0; 4096];
        let most = random.length(room.len());
        match socket.read(&mut room[..most]) {
            Ok(0) => self.see_end(),
            Ok(count) => self.check(&room[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.has_seen_end = true,
        }
        true
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let segments = self.link.outbound.borrow();
            let Some(segment) = segments.get(self.segment) else {
                return self.link.fault("the peer received what was never sent");
            };
            let expected = self.link.outbound_bytes(self.segment, self.offset, bytes.len());
            let same = expected.iter().zip(bytes).take_while(|(expected, byte)| expected == byte).count();
            self.offset += same;
            bytes = &bytes[same..];
            if self.offset > segment.most {
                return self.link.fault("the peer received more than was sent");
            }
            if !bytes.is_empty() {
                if self.offset < segment.least || self.segment + 1 == segments.len() {
                    let place = (self.segment, self.offset);
                    return self.link.fault(&format!("the peer received another byte at {place:?}"));
                }
                (self.segment, self.offset) = (self.segment + 1, 0);
            }
        }
    }

    fn see_end(&mut self) {
        self.has_seen_end = true;
        let segments = self.link.outbound.borrow();
        let is_whole = self.segment + 1 == segments.len()
            && segments.get(self.segment).is_some_and(|segment| self.offset == segment.most);
        let is_nothing = segments.last().is_some_and(|last| last.most == 0);
        if self.link.is_all_sent.get() && !is_whole && !is_nothing && resets() == 0 {
            self.link.fault(&format!("of what was sent only {} bytes arrived", self.offset));
        }
    }

    fn write(&mut self, random: &mut Random) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let sent = self.link.inbound.get();
        if sent == self.to_send {
            if self.link.has_peer_ended.replace(true) {
                return false;
            }
            let _ = socket.shutdown(Shutdown::Write);
            return true;
        }
        let count = random.length((self.to_send - sent).min(9000));
        match socket.write(&self.link.inbound_bytes(sent, count)) {
            Ok(count) => self.link.inbound.set(sent + count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.to_send = sent,
        }
        true
    }
}

impl Actor for Peer {
    fn state(&self) -> String {
        format!("{:?}", self.link)
    }

    fn step(&mut self, random: &mut Random) -> bool {
        if self.socket.is_none() {
            return false;
        }
        let has_moved = match random.percent(self.reads) && !self.has_seen_end {
            true => self.read(random),
            false => self.write(random),
        };
        let leaves = random.below(1000) < self.leaves_per_mille;
        if leaves || self.has_seen_end && self.link.has_peer_ended.get() {
            self.socket = None;
            self.link.has_peer_ended.set(true);
            self.link.is_peer_over.set(true);
        }
        has_moved
    }
}

#[test]
fn streams_keep_their_bytes_whatever_the_kernel_does() {
    each_seed(SEEDS, |seed| {
        let mut random = Random::new(!seed);
        let count = random.within(1..=10);
        let mut actors: Vec<Box<dyn Actor>> = Vec::new();
        let mut streams = Vec::new();
        for number in 0..count {
            let link = Link::new(number as u64);
            let (ours, socket) = pair(&mut random);
            actors.push(Box::new(Peer {
                link: Rc::clone(&link),
                socket: Some(socket),
                to_send: random.of([0, 10, 5_000, 60_000]),
                segment: 0,
                offset: 0,
                has_seen_end: false,
                reads: random.of([10, 50, 90]),
                leaves_per_mille: random.of([0, 0, 5]),
            }));
            streams.push((link, ours, random.fork()));
        }
        simulate(seed, actors, async {
            spawn(async { keep_time(|_| {}).await.expect("a clock") });
            let links: Vec<Rc<Link>> = streams.iter().map(|(link, ..)| Rc::clone(link)).collect();
            for (link, ours, random) in streams {
                spawn(lead(link, Stream::adopt(ours.into()).expect("a stream"), random));
            }
            come_to_rest(&links).await;
        });
    });
}

/// Two sends that tell of failures only find no room. The completion queue has a place for one of them, so that the first
/// is told of in a turn that does not know all. From then on it waits for room; the next turn, which knows all, must not
/// take it for one that has nothing to tell.
#[test]
fn a_silent_send_that_failed_while_completions_were_held_back_keeps_its_buffer() {
    each_seed(20, |seed| {
        let temper = Temper {
            late: 90,
            short: 0,
            full: 100,
            resets_per_mille: 0,
            interrupted: 0,
            leaves: 0,
            entries: 24,
            completions: 1,
            time: 10,
        };
        simulate_with(Random::new(seed), temper, Vec::new(), async {
            spawn(async { keep_time(|_| {}).await.expect("a clock") });
            let pairs = [(); 2].map(|()| pair(&mut Random::new(seed)));
            let [(first, mut first_peer), (second, mut second_peer)] = pairs;
            let [first, second] = [first, second].map(|ours| Stream::adopt(ours.into()).expect("a stream"));
            let piece = |bytes: &[u8]| {
                let mut buf = Buf::small();
                buf.append(bytes);
                buf
            };
            let mut sends = [
                Box::pin(first.send(piece(b"first"), Told::WithNext)),
                Box::pin(second.send(piece(b"second"), Told::WithNext)),
            ];
            for send in &mut sends {
                assert_eq!(settle(0, send.as_mut()).await.map(|(sent, _)| sent.ok()), None);
            }
            let [of_first, of_second] = sends;
            let ((first_sent, _), (second_sent, _)) = (of_first.await, of_second.await);
            assert_eq!((first_sent.ok(), second_sent.ok()), (Some(5), Some(6)));
            let mut received = [0; 16];
            assert_eq!(first_peer.read(&mut received).ok(), Some(5), "it was sent before it was told of");
            assert_eq!(&received[..5], b"first");
            assert_eq!(second_peer.read(&mut received).ok(), Some(6));
            assert_eq!(&received[..6], b"second");
        });
    });
}

/// The submission queue has one place, and a call to empty it is often interrupted. What is left over may be the wait for
/// the clock: nobody would ever wake a worker that waits before the kernel has it.
#[test]
fn a_worker_does_not_wait_while_the_kernel_has_not_everything() {
    each_seed(20, |seed| {
        let temper = Temper {
            late: 0,
            short: 0,
            full: 0,
            resets_per_mille: 0,
            interrupted: 50,
            leaves: 0,
            entries: 1,
            completions: 1000,
            time: 1,
        };
        simulate_with(Random::new(seed), temper, Vec::new(), async {
            let events =
                [(); 4].map(|()| Stream::adopt(event::event().expect("an event")).expect("a stream"));
            spawn(async move {
                let [mut first, mut second, mut third, mut fourth] =
                    events.each_ref().map(|event| Box::pin(event.readable()));
                std::future::poll_fn(|context| {
                    let waits = [&mut first, &mut second, &mut third, &mut fourth];
                    waits.into_iter().for_each(|wait| assert!(wait.as_mut().poll(context).is_pending()));
                    Poll::<()>::Pending
                })
                .await;
            });
            spawn(async { keep_time(|_| {}).await.expect("a clock") });
            sleep(Duration::from_secs(1)).await;
        });
    });
}

/// The life of one stream: it sends, receives and watches side by side, for as long as it wants.
async fn lead(link: Rc<Link>, stream: Stream, mut random: Random) {
    {
        let polls_most = random.of([usize::MAX, usize::MAX, 1, 5, 100]);
        let mut polls = 0;
        let (mut of_sender, mut of_receiver) = (random.fork(), random.fork());
        let is_watching = random.percent(50);
        let mut sender = pin!(send(&link, &stream, &mut of_sender));
        let mut receiver = pin!(receive(&link, &stream, &mut of_receiver));
        let (mut is_sent, mut is_received, mut is_watched) = (false, false, !is_watching);
        std::future::poll_fn(|context| {
            polls += 1;
            is_sent = is_sent || sender.as_mut().poll(context).is_ready();
            is_received = is_received || receiver.as_mut().poll(context).is_ready();
            if !is_watched && stream.poll_hangup(context).is_ready() {
                is_watched = true;
                if !link.has_peer_ended.get() && resets() == 0 {
                    link.fault("a hangup was told of that nobody did");
                }
            }
            let is_over = is_sent && is_received && is_watched || polls >= polls_most;
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    if random.percent(20) {
        stream.reset_on_close();
    }
    drop(stream);
    link.is_our_side_over.set(true);
}

async fn send(link: &Link, stream: &Stream, random: &mut Random) {
    let pieces = random.of([0, 1, 5, 25]);
    let gives_up = random.of([0, 0, 10]);
    for _ in 0..pieces {
        rest(random).await;
        let number = link.outbound.borrow().len() - 1;
        let most = random.of([100, 7000, 30_000]);
        let count = random.length(most);
        let from = link.outbound.borrow()[number].least;
        let mut buf = if count > 7000 { Buf::large() } else { Buf::small() };
        buf.append(&link.outbound_bytes(number, from, count));
        link.outbound.borrow_mut()[number].most = from + count;
        while !buf.is_empty() {
            let told = if random.percent(60) { Told::WithNext } else { Told::AtOnce };
            let patience = if random.percent(gives_up) { random.below(4) } else { usize::MAX };
            let Some((sent, left)) = settle(patience, stream.send(buf, told)).await else {
                link.outbound.borrow_mut().push(Segment::default());
                break;
            };
            let Ok(sent) = sent else { return };
            link.outbound.borrow_mut()[number].least += sent;
            buf = left;
        }
    }
    link.is_all_sent.set(true);
    if random.percent(80) {
        stream.shutdown_write();
    }
}

async fn receive(link: &Link, stream: &Stream, random: &mut Random) {
    let mut received = 0;
    let lazy = random.of([0, 30, 80]);
    let large = random.of([0, 20, 90]);
    loop {
        if random.percent(lazy) {
            rest(random).await;
        }
        match random.below(6) {
            0 if settle(random.below(3), stream.input()).await == Some(Input::Ended) => {}
            1 => _ = stream.is_quiet(),
            2 => stream.listen(),
            _ => {}
        }
        let patience = if random.percent(10) { random.below(4) } else { usize::MAX };
        let mut before = 0;
        let outcome = if random.percent(large) {
            settle(patience, stream.recv_bulk()).await
        } else if random.percent(10) {
            before = random.below(50);
            let mut partial = Buf::of(random.within(before + 1..=200));
            partial.append(&vec![b'p'; before]);
            let is_more = settle(usize::MAX, stream.recv_behind(&mut partial)).await;
            is_more.map(|received| received.map(|is_more| is_more.then_some(partial)))
        } else {
            settle(patience, stream.recv()).await
        };
        match outcome {
            None => {}
            Some(Ok(Some(buf))) => {
                let bytes = &buf.bytes()[before..];
                if bytes != link.inbound_bytes(received, bytes.len()) {
                    link.fault(&format!("received other bytes than were sent, from {received} on"));
                }
                received += bytes.len();
                if received > link.inbound.get() {
                    link.fault("received more than was sent");
                }
            }
            Some(Ok(None)) => {
                let is_end = link.has_peer_ended.get() && received == link.inbound.get();
                if !is_end && resets() == 0 {
                    link.fault(&format!("received only {received} bytes before the end"));
                }
                return;
            }
            Some(Err(_)) => return,
        }
    }
}
