//! A client of a simulation: one connection at a time, one exchange after the other or several at once, checked byte by
//! byte. It may be slow, and go away at any point.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::exchange::{Exchange, Framing, SharedWorld};
use super::wire::{Event, Kind, Reader};
use crate::io::simulated::{Actor, Random, fault};
use crate::sys::{simulated as time, socket};

/// Connections that a request is tried on, where the proxy may close between two requests.
const TRIES_MOST: usize = 20;

pub(super) struct Client {
    pub(super) world: SharedWorld,
    pub(super) proxy: PathBuf,
    /// Exchanges that were not begun.
    pub(super) ahead: VecDeque<u64>,
    /// In percent, how often it reads rather than writes.
    pub(super) reads: usize,
    /// Requests that it sends ahead of their answers.
    pub(super) pipelines: usize,
    pub(super) connection: Option<Connection>,
    pub(super) tries: usize,
    pub(super) pauses_until: Duration,
}

pub(super) struct Connection {
    socket: UnixStream,
    to_write: VecDeque<u8>,
    written: usize,
    reader: Reader,
    /// Exchanges that were asked for, by age.
    asked: VecDeque<u64>,
    answering: Option<Answering>,
    /// Answers that came whole.
    answered: usize,
    /// No further answer is to come.
    is_last: bool,
}

/// The answer that is coming in.
struct Answering {
    status: u16,
    received: usize,
}

impl Actor for Client {
    fn state(&self) -> String {
        let of_connection = self.connection.as_ref().map(|connection| {
            let Connection { socket, asked, written, to_write, reader, answered, is_last, .. } = connection;
            let left = to_write.len();
            format!("{socket:?}: {asked:?} asked, {written} written, {left} left, {reader:?}, {answered} answered, last: {is_last}")
        });
        format!("client, until {:?}, ahead {:?}, {of_connection:?}", self.pauses_until, self.ahead)
    }

    fn step(&mut self, random: &mut Random) -> bool {
        if time::now() < Some(self.pauses_until) || self.is_over() {
            return false;
        }
        let has_moved = match &mut self.connection {
            None => self.connect(),
            Some(_) if random.percent(self.reads) => self.read(random),
            Some(_) => self.write(random),
        };
        if self.connection.as_ref().is_some_and(|connection| self.leaves(connection)) {
            self.end();
        }
        if self.is_over() {
            self.world.clients.set(self.world.clients.get() - 1);
        }
        has_moved
    }
}

impl Client {
    fn is_over(&self) -> bool {
        self.connection.is_none() && self.ahead.is_empty()
    }

    fn connect(&mut self) -> bool {
        match socket::connect_unix(&self.proxy, u32::MAX) {
            Ok((socket, _)) => self.connection = Some(Connection::new(socket)),
            Err(error) if error.kind() == ErrorKind::WouldBlock || socket::is_exhausted(&error) => {
                return false;
            }
            Err(error) => {
                if !self.world.is_draining.get() {
                    fault(format!("the proxy does not listen: {error}"));
                }
                self.ahead.clear();
            }
        }
        true
    }

    /// Whether it has had enough.
    fn leaves(&self, connection: &Connection) -> bool {
        let Some(exchange) = connection.asked.front().and_then(|number| self.world.at(*number)) else {
            return false;
        };
        let received = connection.answering.as_ref().map_or(0, |answering| answering.received);
        // Every other client has no patience with silence.
        let is_tired = exchange.is_stalled.get() && exchange.number % 2 == 0;
        is_tired || exchange.client_leaves_at.is_some_and(|most| received.max(connection.written) >= most)
    }

    /// The connection is over. What was asked for on it is over as well.
    fn end(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        for exchange in connection.asked.iter().filter_map(|number| self.world.at(*number)) {
            exchange.is_excused.set(true);
            exchange.is_over.set(true);
            exchange.left_at.set(time::now());
        }
    }

    fn write(&mut self, random: &mut Random) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        if connection.to_write.is_empty() {
            let may_ask = !connection.is_last && connection.asked.len() <= self.pipelines;
            let Some(number) = self.ahead.front().copied().filter(|_| may_ask) else { return false };
            self.ahead.pop_front();
            let Some(exchange) = self.world.at(number) else { return false };
            connection.is_last = random.percent(10);
            connection.to_write = exchange.request(connection.is_last, random).into();
            connection.asked.push_back(number);
            connection.written = 0;
        }
        let (bytes, _) = connection.to_write.as_slices();
        match connection.socket.write(&bytes[..random.length(bytes.len())]) {
            Ok(count) => {
                connection.to_write.drain(..count);
                connection.written += count;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            // What it has to say comes with the next read.
            Err(_) => {
                connection.to_write.clear();
                false
            }
        }
    }

    fn read(&mut self, random: &mut Random) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let mut room = [0; 8192];
        let most = random.length(room.len());
        match connection.socket.read(&mut room[..most]) {
            Ok(0) => self.see_end(),
            Ok(count) => {
                connection.reader.feed(&room[..count]);
                self.take_events(random);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.see_end(),
        }
        true
    }

    fn take_events(&mut self, random: &mut Random) {
        while let Some(connection) = &mut self.connection {
            match connection.reader.next() {
                Ok(None) => return,
                Ok(Some(event)) => self.take(event, random),
                Err(error) => return fault(format!("a client was sent what is no HTTP: {error}")),
            }
        }
    }

    fn take(&mut self, event: Event, random: &mut Random) {
        let Some(connection) = &mut self.connection else { return };
        let exchange = connection.asked.front().and_then(|number| self.world.at(*number));
        let Some(exchange) = exchange else { return fault(format!("an answer to no request: {event:?}")) };
        match (event, &mut connection.answering) {
            (Event::Head(head), answering) => {
                let status = head.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
                if status != 200 && !exchange.is_excused() && !may_fail(exchange, status, &self.world) {
                    exchange.fault(&format!("was answered {:?}", head.line));
                }
                connection.is_last |= head.is_last;
                *answering = Some(Answering { status, received: 0 });
            }
            (Event::Body(bytes), Some(answering)) => {
                let from = answering.received;
                answering.received += bytes.len();
                if answering.status == 200 && bytes != exchange.answer_body(from, bytes.len()) {
                    exchange.fault(&format!("another byte at {from} or behind"));
                }
            }
            (Event::End, Some(answering)) => {
                if answering.status == 200 {
                    check_whole(exchange, answering.received);
                }
                exchange.is_over.set(true);
                connection.asked.pop_front();
                connection.answering = None;
                connection.answered += 1;
                self.tries = 0;
                if random.percent(20) {
                    let pause = random.of([1, 50, 1_500, 30_000]);
                    self.pauses_until = time::now().unwrap_or_default() + Duration::from_millis(pause);
                }
            }
            (Event::Body(_) | Event::End, None) => exchange.fault("a body without a head"),
        }
    }

    /// The proxy has closed.
    fn see_end(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut unanswered = connection.asked.iter().filter_map(|number| self.world.at(*number));
        if connection.reader.is_within()
            && let Some(exchange) = unanswered.next()
        {
            match &connection.answering {
                Some(answering) if connection.reader.is_whole_at_close() && answering.status == 200 => {
                    check_whole(exchange, answering.received);
                }
                _ if exchange.is_excused() => {}
                _ => exchange.fault("its answer was cut"),
            }
            exchange.is_over.set(true);
        }
        // What was not answered at all is asked for again, unless an origin has had it.
        let mut again = Vec::new();
        for exchange in unanswered {
            let is_kept_open =
                connection.answered == 0 && !connection.is_last && exchange.number == connection.asked[0];
            if exchange.is_excused() || exchange.client_leaves_at.is_some() {
                exchange.is_over.set(true);
            } else if exchange.seen.get() > 0 {
                exchange.fault("an origin has seen it, but there was no answer");
            } else if is_kept_open
                && !self.world.is_draining.get()
                && connection.to_write.is_empty()
                && exchange.request_len() == 0
            {
                exchange.fault("there was no answer on a new connection");
            } else {
                again.push(exchange.number);
            }
        }
        self.tries += 1;
        if self.tries > TRIES_MOST {
            fault(format!("{again:?} were not answered on {TRIES_MOST} connections"));
        }
        for number in again.into_iter().rev() {
            self.ahead.push_front(number);
        }
    }
}

/// Whether an exchange may fail through nobody's fault: its connection was closed while the request was on its way, or the
/// worker had no memory for it.
fn may_fail(exchange: &Exchange, status: u16, world: &SharedWorld) -> bool {
    match status {
        503 => world.is_short_of_memory,
        // It pauses behind answers, in the middle of the next request too.
        408 => true,
        _ => !exchange.is_get && world.closes_idle,
    }
}

fn check_whole(exchange: &Exchange, received: usize) {
    let is_whole = received == exchange.answer_bytes && exchange.failure != super::exchange::Failure::Endless;
    // The end of the origin's connection was the end of its answer.
    let is_unknowable = exchange.answer == Framing::UntilClose && exchange.is_excused();
    if !is_whole && !is_unknowable {
        exchange.fault(&format!("looks whole with {received} bytes"));
    }
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
            to_write: VecDeque::new(),
            written: 0,
            reader: Reader::new(Kind::Answers),
            asked: VecDeque::new(),
            answering: None,
            answered: 0,
            is_last: false,
        }
    }
}
