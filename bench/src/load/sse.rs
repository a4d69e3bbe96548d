//! Streams of the origin's `/sse`: each event carries its number and the time at which the origin wrote it, so that
//! order, loss, content, delay and merging are seen event by event.

use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::record::Failure;

use super::check::Check;
use super::exchange::Reading;
use super::tally::Wrong;

/// Events written further apart than the time in which they can have arrived, and by more than this, were held by
/// somebody. Less is what a busy CPU does to the waking of origin and generator. Half an interval of a fast stream.
const HOLD_MIN_NS: u64 = 5_000_000;

/// Least size of an event: number and time at their longest.
pub(crate) const EVENT_SIZE_MIN: u64 = 100;

/// Greatest, as the origin's knob allows.
pub(crate) const EVENT_SIZE_MAX: u64 = 1 << 20;

/// What each stream is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sse {
    pub(crate) events: u64,
    pub(crate) events_per_second: f64,
    pub(crate) event_size: u64,
    pub(crate) origin_holds: Option<u64>,
}

/// One stream on its way here.
#[derive(Debug)]
pub(crate) struct Stream {
    events: u64,
    event_size: usize,
    interval_ns: f64,
    next: u64,
    /// An event that did not come in one piece.
    part: Vec<u8>,
    first_written_ns: u64,
    last: Option<Seen>,
}

/// The event before.
#[derive(Clone, Copy, Debug)]
struct Seen {
    written_ns: u64,
    read_ns: u64,
}

impl Sse {
    pub(crate) fn path(&self) -> String {
        let Self { events, events_per_second, event_size, origin_holds } = self;
        let hold = origin_holds.map(|hold| format!("&hold={hold}")).unwrap_or_default();
        format!("/sse?tokens={events}&tokens_per_second={events_per_second}&token_size={event_size}{hold}")
    }

    pub(crate) fn check(&self) -> Check {
        let paced = self.events_per_second > 0.0;
        Check::Stream(Box::new(Stream {
            events: self.events,
            event_size: self.event_size as usize,
            interval_ns: if paced { 1e9 / self.events_per_second } else { 0.0 },
            next: 0,
            part: Vec::new(),
            first_written_ns: 0,
            last: None,
        }))
    }
}

impl Stream {
    pub(crate) fn piece(&mut self, mut bytes: &[u8], reading: &mut Reading<'_>) -> Result<(), Wrong> {
        if !self.part.is_empty() {
            let missing = self.event_size.saturating_sub(self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < self.event_size {
                return Ok(());
            }
            let part = std::mem::take(&mut self.part);
            self.event(&part, reading)?;
        }
        while bytes.len() >= self.event_size {
            let (event, rest) = bytes.split_at(self.event_size);
            self.event(event, reading)?;
            bytes = rest;
        }
        self.part.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), Wrong> {
        if self.next == self.events && self.part.is_empty() {
            return Ok(());
        }
        if !self.part.is_empty() {
            return Err(not_an_event(self.next, &self.part));
        }
        let text = format!("the stream ended after {} events instead of {}", self.next, self.events);
        Err(Wrong::new(Failure::Content, text))
    }

    fn event(&mut self, event: &[u8], reading: &mut Reading<'_>) -> Result<(), Wrong> {
        let parsed = Event::parse(event).ok_or_else(|| not_an_event(self.next, event))?;
        if parsed.seq != self.next {
            let text = format!("event {} where event {} was due", parsed.seq, self.next);
            return Err(Wrong::new(Failure::Order, text));
        }
        if self.next == self.events {
            return Err(Wrong::new(Failure::Content, "more events than were asked for"));
        }
        self.count(parsed.written_ns, reading);
        self.next += 1;
        Ok(())
    }

    fn count(&mut self, written_ns: u64, reading: &mut Reading<'_>) {
        let (now, events) = (reading.now_ns, &mut reading.tally.events);
        events.count += 1;
        reading.tally.bytes.checked += self.event_size as u64;
        events.delay.record_ns(now.saturating_sub(written_ns));
        match self.last {
            None => {
                self.first_written_ns = written_ns;
                events.ttft.record_ns(now.saturating_sub(reading.intended_ns));
            }
            Some(last) => {
                events.gap.record_ns(now - last.read_ns);
                if last.read_ns == now {
                    events.same_read += 1;
                    events.merged +=
                        u64::from(self.was_held(last.written_ns, written_ns, reading.arrived_ns, now));
                }
            }
        }
        if self.interval_ns > 0.0 {
            let due_ns = self.first_written_ns + (self.next as f64 * self.interval_ns) as u64;
            events.lateness.record_ns(now.saturating_sub(due_ns));
            events.origin_lateness.record_ns(written_ns.saturating_sub(due_ns));
        }
        self.last = Some(Seen { written_ns, read_ns: now });
    }

    /// Whether two events of one read came closer together than they were written. They arrived between the
    /// generator's last look and now; if the origin wrote them further apart than that, the way took it from them.
    fn was_held(&self, first_ns: u64, second_ns: u64, arrived_ns: u64, now_ns: u64) -> bool {
        let apart_at_origin = second_ns.saturating_sub(first_ns);
        let apart_here = now_ns.saturating_sub(arrived_ns);
        let least = HOLD_MIN_NS.min((self.interval_ns / 2.0) as u64);
        self.interval_ns > 0.0 && apart_at_origin > apart_here + least
    }
}

/// The numbers in an event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    seq: u64,
    written_ns: u64,
}

impl Event {
    /// Every byte of it is checked: `id: 7\ndata: {"seq":7,"ns":123,"pad":"…"}\n\n`.
    fn parse(event: &[u8]) -> Option<Self> {
        let (id, rest) = number(event.strip_prefix(b"id: ")?);
        let (seq, rest) = number(rest.strip_prefix(b"\ndata: {\"seq\":")?);
        let (written_ns, rest) = number(rest.strip_prefix(b",\"ns\":")?);
        let pad = rest.strip_prefix(b",\"pad\":\"")?.strip_suffix(b"\"}\n\n")?;
        (id == seq && pad.iter().all(|byte| *byte == b'.')).then_some(Self { seq, written_ns })
    }
}

/// The digits at the front, as a number; 0 if there are none, which the caller's next prefix refuses.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        if !byte.is_ascii_digit() {
            return (value, &bytes[at..]);
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
    }
    (value, &[])
}

/// An error event of the origin says more than that the event is wrong.
fn not_an_event(due: u64, event: &[u8]) -> Wrong {
    let is_error = memmem::find(event, b"event: error").is_some();
    let what = if is_error { "the origin's error event" } else { "something else" };
    let shown = String::from_utf8_lossy(&event[..event.len().min(60)]).into_owned();
    Wrong::new(Failure::Content, format!("{what} where event {due} was due: {shown:?}"))
}
