//! The exchanges of a simulation: what each is to be, and what became of it so far.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::wire::chunked;
use crate::io::simulated::{Random, fault, pattern, resets};

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Sized,
    Chunked,
    UntilClose,
}

/// What the origin does instead of answering to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    None,
    /// Closes before the first byte, so many times.
    BeforeHead(usize),
    /// Closes in the middle of its answer.
    Dies,
    /// Falls silent in the middle, or before the first byte.
    Stalls,
    /// Sends on and on, until nobody is there any more.
    Endless,
}

/// What an endless answer goes on with.
const ENDLESS: u8 = b'-';

/// One exchange. Its number is in its path, and its bytes follow from the number.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) number: u64,
    pub(super) is_get: bool,
    request: Framing,
    request_bytes: usize,
    pub(super) answer: Framing,
    pub(super) answer_bytes: usize,
    /// The origin answers before it has the whole request.
    pub(super) is_early: bool,
    /// Events with pauses in between.
    pub(super) is_stream: bool,
    pub(super) failure: Failure,
    /// Where in the encoded answer the failure is.
    pub(super) fails_at: usize,
    /// The client goes away with so many bytes of the answer, or of its own request.
    pub(super) client_leaves_at: Option<usize>,
    /// Something has happened for which it need not end well.
    pub(super) is_excused: Cell<bool>,
    /// Times that an origin has seen its head.
    pub(super) seen: Cell<usize>,
    /// Times that an origin has closed on it before the first byte.
    pub(super) dropped: Cell<usize>,
    pub(super) is_over: Cell<bool>,
    /// An origin has fallen silent in the middle of it.
    pub(super) is_stalled: Cell<bool>,
    /// When the client went away.
    pub(super) left_at: Cell<Option<Duration>>,
}

impl Exchange {
    pub(super) fn new(number: u64, random: &mut Random) -> Self {
        let request = random.of([Framing::None, Framing::None, Framing::Sized, Framing::Chunked]);
        let answer = random.of([Framing::Sized, Framing::Chunked, Framing::Chunked, Framing::UntilClose]);
        let is_get = request == Framing::None && random.percent(70);
        let (request_most, answer_most) =
            (random.of([1, 2_000, 40_000]), random.of([1, 300, 20_000, 120_000]));
        let failure = match random.below(20) {
            0 => Failure::BeforeHead(random.within(1..=2)),
            1 => Failure::Dies,
            2 => Failure::Stalls,
            3 => Failure::Endless,
            _ => Failure::None,
        };
        let answer = if failure == Failure::Endless { Framing::Chunked } else { answer };
        let leaves = failure == Failure::Endless || random.percent(8);
        Self {
            number,
            is_get,
            request,
            request_bytes: random.length(request_most),
            answer,
            answer_bytes: random.length(answer_most),
            is_early: random.percent(10),
            is_stream: random.percent(20),
            failure,
            fails_at: random.length(answer_most + 100),
            client_leaves_at: leaves.then(|| random.length(answer_most)),
            is_excused: Cell::new(leaves),
            seen: Cell::new(0),
            dropped: Cell::new(0),
            is_over: Cell::new(false),
            is_stalled: Cell::new(false),
            left_at: Cell::new(None),
        }
    }

    /// The whole request.
    pub(super) fn request(&self, is_last: bool, random: &mut Random) -> Vec<u8> {
        let body = self.request_body(0, self.request_bytes);
        let close = if is_last { "Connection: close\r\n" } else { "" };
        let method = if self.is_get { "GET" } else { "POST" };
        let number = self.number;
        let head = |framing: &str| {
            format!("{method} /{number} HTTP/1.1\r\nHost: simulated\r\n{close}{framing}\r\n").into_bytes()
        };
        match self.request {
            Framing::None if self.is_get => head(""),
            Framing::None | Framing::UntilClose => head("Content-Length: 0\r\n"),
            Framing::Sized => [head(&format!("Content-Length: {}\r\n", body.len())), body].concat(),
            Framing::Chunked => {
                let body = chunked(&body, || random.length(9000));
                [head("Transfer-Encoding: chunked\r\n"), body].concat()
            }
        }
    }

    /// The whole answer, or the beginning of an endless one.
    pub(super) fn answer(&self, is_last: bool, random: &mut Random) -> Vec<u8> {
        let body = self.answer_body(0, self.answer_bytes);
        let close = if is_last { "Connection: close\r\n" } else { "" };
        let head = |framing: &str| format!("HTTP/1.1 200 OK\r\n{close}{framing}\r\n").into_bytes();
        match self.answer {
            Framing::Sized => [head(&format!("Content-Length: {}\r\n", body.len())), body].concat(),
            Framing::Chunked => {
                let mut body = chunked(&body, || random.length(9000));
                if self.failure == Failure::Endless {
                    body.truncate(body.len() - b"0\r\n\r\n".len());
                }
                [head("Transfer-Encoding: chunked\r\n"), body].concat()
            }
            Framing::None | Framing::UntilClose => [head(""), body].concat(),
        }
    }

    pub(super) fn request_len(&self) -> usize {
        if self.request == Framing::None { 0 } else { self.request_bytes }
    }

    pub(super) fn request_body(&self, from: usize, count: usize) -> Vec<u8> {
        pattern(self.number << 1, from, count)
    }

    pub(super) fn answer_body(&self, from: usize, count: usize) -> Vec<u8> {
        let mut body = pattern(self.number << 1 | 1, from, count);
        if self.failure == Failure::Endless {
            let own = self.answer_bytes.saturating_sub(from).min(count);
            body[own..].fill(ENDLESS);
        }
        body
    }

    /// Whether it need not end well.
    pub(super) fn is_excused(&self) -> bool {
        self.is_excused.get() || resets() > 0
    }

    pub(super) fn fault(&self, what: &str) {
        fault(format!("exchange {}: {what}: {self:#?}", self.number));
    }
}

/// What all the actors of a run know.
#[derive(Debug)]
pub(super) struct World {
    pub(super) exchanges: Vec<Exchange>,
    /// Origins close connections on which nothing is asked.
    pub(super) closes_idle: bool,
    /// The worker has little memory to lend.
    pub(super) is_short_of_memory: bool,
    /// The worker was told to drain.
    pub(super) is_draining: Cell<bool>,
    pub(super) clients: Cell<usize>,
    /// Connections that origins have, for the story's end.
    pub(super) at_origins: RefCell<Vec<usize>>,
}

pub(super) type SharedWorld = Rc<World>;

impl World {
    pub(super) fn at(&self, number: u64) -> Option<&Exchange> {
        self.exchanges.get(number as usize)
    }
}
