//! An origin of a simulation: it answers what it is asked as the exchange says, checks every byte of the requests, and
//! fails where it is to fail.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::exchange::{Exchange, Failure, Framing, SharedWorld};
use super::wire::{Event, Kind, Reader};
use crate::io::simulated::{Actor, Random, fault};
use crate::sys::simulated as time;

/// A client that goes away is told of to the origin within this time, even by a kernel that puts everything off; and
/// before any deadline passes.
const CANCELLED_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Origin {
    pub(super) world: SharedWorld,
    pub(super) number: usize,
    pub(super) listener: UnixListener,
    pub(super) connections: Vec<Connection>,
}

pub(super) struct Connection {
    socket: UnixStream,
    reader: Reader,
    /// It has served an exchange.
    is_used: bool,
    request: Option<Request>,
    answer: Option<Answer>,
}

/// The request that is coming in.
struct Request {
    number: u64,
    received: usize,
    /// Before it was whole.
    is_answered: bool,
}

/// The answer that is going out.
struct Answer {
    number: u64,
    bytes: Vec<u8>,
    sent: usize,
    pauses_until: Duration,
    /// The connection is closed behind it.
    is_last: bool,
}

/// What a step of a connection came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Moved,
    Closed,
}

impl Actor for Origin {
    fn state(&self) -> String {
        let of = |connection: &Connection| {
            let Connection { socket, reader, request, answer, .. } = connection;
            let request =
                request.as_ref().map(|request| (request.number, request.received, request.is_answered));
            let answer = answer.as_ref().map(|answer| (answer.number, answer.sent, answer.bytes.len()));
            format!("{socket:?}: {reader:?}, request {request:?}, answer {answer:?}")
        };
        format!("origin: {:#?}", self.connections.iter().map(of).collect::<Vec<_>>())
    }

    fn step(&mut self, random: &mut Random) -> bool {
        let mut has_moved = false;
        if let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_err() {
                fault("a socket cannot be made not to wait".to_owned());
            }
            let reader = Reader::new(Kind::Requests);
            self.connections.push(Connection { socket, reader, is_used: false, request: None, answer: None });
            has_moved = true;
        }
        for index in (0..self.connections.len()).rev() {
            if random.percent(30) {
                continue;
            }
            match self.connections[index].step(&self.world, random) {
                Step::Nothing => {}
                Step::Moved => has_moved = true,
                Step::Closed => {
                    self.connections.swap_remove(index);
                    has_moved = true;
                }
            }
        }
        self.world.at_origins.borrow_mut()[self.number] = self.connections.len();
        has_moved
    }
}

impl Connection {
    fn step(&mut self, world: &SharedWorld, random: &mut Random) -> Step {
        if self.answer.is_some() {
            return self.write(world, random);
        }
        let is_idle = self.is_used && self.request.is_none() && !self.reader.is_within();
        if is_idle && world.closes_idle && random.below(300) == 0 {
            return Step::Closed;
        }
        let mut room = [0; 8192];
        let most = random.length(room.len());
        match self.socket.read(&mut room[..most]) {
            Ok(0) => self.see_end(world),
            Ok(count) => {
                self.reader.feed(&room[..count]);
                self.take_events(world, random)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Nothing,
            Err(_) => self.see_end(world),
        }
    }

    fn take_events(&mut self, world: &SharedWorld, random: &mut Random) -> Step {
        loop {
            let event = match self.reader.next() {
                Ok(None) => return Step::Moved,
                Ok(Some(event)) => event,
                Err(error) => {
                    fault(format!("an origin was sent what is no HTTP: {error}"));
                    return Step::Closed;
                }
            };
            match (event, &mut self.request) {
                (Event::Head(head), request) => {
                    let path = head.line.split(' ').nth(1).and_then(|path| path.strip_prefix('/'));
                    let exchange =
                        path.and_then(|path| path.parse().ok()).and_then(|number| world.at(number));
                    let Some(exchange) = exchange else {
                        fault(format!("a request that nobody has sent: {:?}", head.line));
                        return Step::Closed;
                    };
                    see(exchange);
                    *request = Some(Request { number: exchange.number, received: 0, is_answered: false });
                    if exchange.is_early && exchange.request_len() > 0 {
                        return self.begin_answer(exchange, random);
                    }
                }
                (Event::Body(bytes), Some(request)) => {
                    let Some(exchange) = world.at(request.number) else { return Step::Closed };
                    if bytes != exchange.request_body(request.received, bytes.len()) {
                        exchange.fault(&format!("another byte of the request at {}", request.received));
                    }
                    request.received += bytes.len();
                }
                (Event::End, Some(request)) => {
                    let Some(exchange) = world.at(request.number) else { return Step::Closed };
                    if request.received != exchange.request_len() {
                        exchange.fault(&format!("its request looks whole with {} bytes", request.received));
                    }
                    let is_answered = std::mem::take(&mut request.is_answered);
                    self.request = None;
                    if !is_answered {
                        return self.begin_answer(exchange, random);
                    }
                }
                (Event::Body(_) | Event::End, None) => fault("a request without a head".to_owned()),
            }
        }
    }

    fn begin_answer(&mut self, exchange: &Exchange, random: &mut Random) -> Step {
        if let Failure::BeforeHead(times) = exchange.failure
            && exchange.dropped.get() < times
        {
            exchange.dropped.set(exchange.dropped.get() + 1);
            // Another try may follow, but need not.
            exchange.is_excused.set(true);
            return Step::Closed;
        }
        if let Some(request) = &mut self.request {
            request.is_answered = true;
            if exchange.answer == Framing::UntilClose {
                // Its end is a reset, since it has not read everything.
                exchange.is_excused.set(true);
            }
        }
        let is_last = exchange.answer == Framing::UntilClose || random.percent(10);
        let bytes = exchange.answer(is_last, random);
        let number = exchange.number;
        self.answer = Some(Answer { number, bytes, sent: 0, pauses_until: Duration::ZERO, is_last });
        Step::Moved
    }

    fn write(&mut self, world: &SharedWorld, random: &mut Random) -> Step {
        let Some(answer) = &mut self.answer else { return Step::Nothing };
        let Some(exchange) = world.at(answer.number) else { return Step::Closed };
        let now = time::now().unwrap_or_default();
        if now < answer.pauses_until {
            return Step::Nothing;
        }
        let last = answer.bytes.len() - 1;
        let (fails_at, stays) = match exchange.failure {
            Failure::Dies => (exchange.fails_at.min(last), false),
            Failure::Stalls => (exchange.fails_at.min(last), true),
            Failure::None | Failure::BeforeHead(_) | Failure::Endless => (usize::MAX, false),
        };
        if answer.sent >= fails_at {
            exchange.is_excused.set(true);
            return if stays { self.wait_for_end(exchange) } else { Step::Closed };
        }
        let left = (answer.bytes.len() - answer.sent).min(fails_at - answer.sent);
        let count = random.length(left.min(if exchange.is_stream { 300 } else { 30_000 }));
        match self.socket.write(&answer.bytes[answer.sent..][..count]) {
            Ok(count) => answer.sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Nothing,
            Err(_) => {
                if !exchange.is_excused() {
                    exchange.fault("the proxy has left in the middle of the answer");
                }
                return Step::Closed;
            }
        }
        if exchange.is_stream {
            answer.pauses_until = now + Duration::from_millis(random.of([0, 0, 5, 300]));
        }
        if answer.sent < answer.bytes.len() {
            return Step::Moved;
        }
        if exchange.failure == Failure::Endless {
            answer.bytes = b"1\r\n-\r\n".repeat(100);
            (answer.sent, answer.pauses_until) = (0, now + Duration::from_millis(50));
            return Step::Moved;
        }
        let is_last = answer.is_last;
        (self.answer, self.is_used) = (None, true);
        // What came meanwhile has been read already.
        if is_last { Step::Closed } else { self.take_events(world, random) }
    }

    /// Says nothing more, until the proxy is gone.
    fn wait_for_end(&mut self, exchange: &Exchange) -> Step {
        exchange.is_stalled.set(true);
        let now = time::now().unwrap_or_default();
        if exchange.left_at.get().is_some_and(|left_at| now > left_at + CANCELLED_WITHIN) {
            exchange.fault("its client is gone, and the origin has not been told");
        }
        // What is left of the request comes before the end.
        match self.socket.read(&mut [0; 64 * 1024]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Nothing,
            Ok(0) | Err(_) => Step::Closed,
            Ok(_) => Step::Moved,
        }
    }

    /// The proxy has closed.
    fn see_end(&mut self, world: &SharedWorld) -> Step {
        if let Some(exchange) = self.request.as_ref().and_then(|request| world.at(request.number))
            && !self.request.as_ref().is_some_and(|request| request.is_answered)
            && !exchange.is_excused()
        {
            exchange.fault("its request was cut");
        }
        Step::Closed
    }
}

/// A head has come. More than once it may do so only where nothing is lost by it, and an origin has failed before.
fn see(exchange: &Exchange) {
    let seen = exchange.seen.get();
    exchange.seen.set(seen + 1);
    let may_see_again = exchange.is_get && exchange.dropped.get() >= seen;
    if seen > 0 && !may_see_again && crate::io::simulated::resets() == 0 {
        exchange.fault("an origin sees it for the second time");
    }
}
