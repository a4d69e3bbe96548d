//! Connections that serve one exchange after the other, and are put aside or handed over in between.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use super::super::{Actor, Random, each_seed, pattern, resets, simulate};
use super::{Link, SEEDS, Segment, come_to_rest, pair, rest};
use crate::io::driver::Told;
use crate::io::{Buf, Stream, keep_time, sleep, spawn};

/// A connection that serves one exchange after the other, and is put aside in between.
struct Echo {
    link: Rc<Link>,
    socket: Option<UnixStream>,
    /// Of the request that is being received.
    requested: usize,
    /// Of the answer to it that was sent; none while the request is not there.
    answered: Option<usize>,
    leaves_per_mille: usize,
    has_spoken_unasked: Rc<Cell<bool>>,
}

/// Lengths of the exchanges of a connection: request and answer.
fn lengths(link: &Link, exchange: usize) -> (usize, usize) {
    let mut random = Random::new(link.number << 32 | exchange as u64);
    (random.length(20_000), random.length(40_000))
}

impl Actor for Echo {
    fn state(&self) -> String {
        format!("{:?}", self.link)
    }

    fn step(&mut self, random: &mut Random) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let exchange = self.link.outbound.borrow().len() - 1;
        let (request, answer) = lengths(&self.link, exchange);
        let mut has_left = random.below(1000) < self.leaves_per_mille;
        let mut has_moved = has_left;
        match self.answered {
            None => {
                let mut room = [0; 4096];
                let most = random.length(room.len());
                match socket.read(&mut room[..most]) {
                    Ok(0) => has_left = true,
                    Ok(count) => {
                        if room[..count] != self.link.outbound_bytes(exchange, self.requested, count) {
                            self.link.fault("the peer received other bytes than were sent");
                        }
                        self.requested += count;
                        self.answered = (self.requested == request).then_some(0);
                        has_moved = true;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if self.requested == 0 && random.below(2000) < self.leaves_per_mille {
                            self.has_spoken_unasked.set(true);
                            let _ = socket.write(b"unasked");
                        }
                    }
                    Err(_) => has_left = true,
                }
            }
            Some(sent) if sent < answer => {
                let count = random.length(answer - sent);
                match socket.write(&pattern(self.link.number << 8 | 0x80 | exchange as u64, sent, count)) {
                    Ok(count) => {
                        (self.answered, has_moved) = (Some(sent + count), true);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => has_left = true,
                }
            }
            // The next exchange begins when our side says so.
            Some(_) => {
                if self.link.is_all_sent.replace(false) {
                    self.link.outbound.borrow_mut().push(Segment::default());
                    (self.requested, self.answered, has_moved) = (0, None, true);
                }
                has_left |= self.link.is_our_side_over.get();
            }
        }
        if has_left {
            self.socket = None;
            self.link.has_peer_ended.set(true);
            self.link.is_peer_over.set(true);
        }
        has_moved
    }
}

#[test]
fn connections_that_are_put_aside_between_exchanges_are_lost_only_when_the_peer_has_moved() {
    each_seed(SEEDS, |seed| {
        let mut random = Random::new(!seed);
        let mut actors: Vec<Box<dyn Actor>> = Vec::new();
        let mut connections = Vec::new();
        for number in 0..random.within(1..=8) {
            let link = Link::new(number as u64);
            let (ours, socket) = pair(&mut random);
            let has_spoken_unasked = Rc::new(Cell::new(false));
            actors.push(Box::new(Echo {
                link: Rc::clone(&link),
                socket: Some(socket),
                requested: 0,
                answered: None,
                leaves_per_mille: random.of([0, 0, 5]),
                has_spoken_unasked: Rc::clone(&has_spoken_unasked),
            }));
            connections.push((link, ours, has_spoken_unasked, random.fork()));
        }
        simulate(seed, actors, async {
            spawn(async { keep_time(|_| {}).await.expect("a clock") });
            let links: Vec<Rc<Link>> = connections.iter().map(|(link, ..)| Rc::clone(link)).collect();
            for (link, ours, has_spoken_unasked, mut random) in connections {
                spawn(async move {
                    let stream = Stream::adopt(ours.into()).expect("a stream");
                    let is_whole = exchange_and_rest(&link, stream, &has_spoken_unasked, &mut random).await;
                    let is_excused = link.has_peer_ended.get() || has_spoken_unasked.get() || resets() > 0;
                    if !is_whole && !is_excused {
                        link.fault("a connection was lost that nobody had ended");
                    }
                    link.is_our_side_over.set(true);
                });
            }
            come_to_rest(&links).await;
        });
    });
}

/// Some exchanges, with the connection put aside or handed over in between; false when it was lost.
async fn exchange_and_rest(
    link: &Link,
    mut stream: Stream,
    has_spoken_unasked: &Cell<bool>,
    random: &mut Random,
) -> bool {
    for exchange in 0..random.within(1..=6) {
        let (request, answer) = lengths(link, exchange);
        let mut sent = 0;
        while sent < request {
            let count = (request - sent).min(7000);
            let mut buf = Buf::small();
            buf.append(&link.outbound_bytes(exchange, sent, count));
            let is_last = sent + count == request;
            let told = if is_last && stream.is_listening() { Told::WithNext } else { Told::AtOnce };
            while !buf.is_empty() {
                let (result, left) = stream.send(buf, told).await;
                let Ok(taken) = result else { return false };
                (sent, buf) = (sent + taken, left);
            }
        }
        let mut received = 0;
        while received < answer {
            let outcome = if random.percent(20) { stream.recv_bulk().await } else { stream.recv().await };
            let Ok(Some(buf)) = outcome else { return false };
            if buf.bytes() != pattern(link.number << 8 | 0x80 | exchange as u64, received, buf.len()) {
                if !has_spoken_unasked.get() {
                    link.fault("received other bytes than were sent");
                }
                return false;
            }
            received += buf.len();
        }
        rest(random).await;
        let Some(next) = put_aside(stream, random).await else { return false };
        stream = next;
        link.is_all_sent.set(true);
        while link.is_all_sent.get() && !link.has_peer_ended.get() {
            sleep(Duration::from_millis(10)).await;
        }
    }
    true
}

/// Puts a connection aside and takes it up again here; or hands it over, as to another worker.
async fn put_aside(stream: Stream, random: &mut Random) -> Option<Stream> {
    match random.below(3) {
        0 => Some(stream),
        1 => {
            let lease = stream.lease()?;
            rest(random).await;
            if random.percent(50) && !lease.is_quiet() {
                return None;
            }
            lease.redeem()
        }
        _ => {
            let lease = stream.lease()?;
            rest(random).await;
            let stream = lease.redeem()?;
            Stream::adopt(stream.release().await?).ok()
        }
    }
}
