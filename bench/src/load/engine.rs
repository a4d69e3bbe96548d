//! The loop of one generator process: one thread, non-blocking sockets, edge-triggered epoll. When a request is to be
//! sent is `pace`'s business, what it is `scenario`'s, whether the answer is right `check`'s. Nothing is allocated per
//! request, and no answer ever moves the time of a later request (an open loop; a closed one is the other choice).

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::dial::{Sources, dial_and_wait};
use crate::origin::monotonic_ns;
use crate::record::Failure;
use crate::sched;

use super::exchange::{Answer, Message, Progress, Reading};
use super::pace::Queue;
use super::plan::{Plan, Times};
use super::slot::{Read, Slot, Socket, Work};
use super::tally::{Tally, Wrong};

/// Events of one wait.
const EVENTS_MAX: usize = 512;

/// One read: large bodies come in as few as possible.
const READ_SIZE: usize = 256 << 10;

/// Reads of one connection in a row, before the others and the time table get their turn.
const READS_IN_A_ROW_MAX: u32 = 16;

/// Pause after a connect that failed: a server that is gone is not asked a million times a second.
const CONNECT_PAUSE_NS: u64 = 10_000_000;

/// How often the watcher hears how far the run is.
const PROGRESS_EVERY_NS: u64 = 250_000_000;

/// Longest distance of two looks at the deadlines.
const SWEEP_MAX_NS: u64 = 1_000_000_000;

/// Shortest, for short timeouts.
const SWEEP_MIN_NS: u64 = 2_000_000;

/// A wait that took longer has slept: whatever it found came in just now. One that did not may have found what arrived
/// while the events before were worked off.
const SLEPT_NS: u64 = 20_000;

/// Statuses by which a server turns a request away.
const REJECTIONS: [u16; 2] = [503, 429];

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) completed: u64,
    pub(crate) rejected: u64,
    pub(crate) failed: u64,
    pub(crate) events: u64,
    pub(crate) under_way: u64,
    pub(crate) waiting: u64,
}

/// A generator with its connections open, ready to begin.
pub(crate) struct Engine {
    plan: Plan,
    message: Message,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    /// Without work, the one that has been so for longest first: so that all are used.
    idle: VecDeque<u32>,
    /// After a failed connect, until that time.
    resting: VecDeque<(u64, u32)>,
    /// There may be more to read, and no event will say so.
    unread: Vec<u32>,
    sources: Sources,
    times: Times,
    /// `None` in a closed loop.
    queue: Option<Queue>,
    buffer: Vec<u8>,
    tally: Tally,
    under_way: u64,
    start_ns: u64,
    /// See [`Reading::arrived_ns`].
    arrived_ns: u64,
}

impl Engine {
    /// Opens the connections, unless each request is to have its own.
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        if let Some(cpu) = plan.cpus.first() {
            let pinned = sched::pin_this_thread(*cpu);
            pinned
                .map_err(|error| io::Error::new(error.kind(), format!("cannot run on CPU {cpu}: {error}")))?;
        }
        // The kernel may wake a sleeper 50 µs late to save power; that would be our lag.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let mut engine = Self {
            message: plan.scenario.message(&plan.target, &plan.headers),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: (0..plan.connections).map(|_| Slot::default()).collect(),
            idle: (0..plan.connections).collect(),
            resting: VecDeque::new(),
            unread: Vec::new(),
            queue: None,
            sources: Sources::new(plan.sources),
            times: Times::default(),
            buffer: vec![0; READ_SIZE],
            tally: Tally::default(),
            under_way: 0,
            start_ns: 0,
            arrived_ns: 0,
            plan,
        };
        if engine.plan.scenario.keeps_connections() {
            engine.open_all()?;
        }
        Ok(engine)
    }

    /// Runs from `start_ns` (`CLOCK_MONOTONIC`) to the end, and says now and then how far it is. The connections stay
    /// open for the next run.
    pub(crate) fn run(
        &mut self,
        start_ns: u64,
        times: Times,
        mut tell: impl FnMut(Standing),
    ) -> io::Result<Tally> {
        self.start_ns = start_ns;
        self.queue = times.schedule.clone().map(Queue::new);
        self.times = times;
        let sweep_every = (self.plan.timeout_ns / 10).clamp(SWEEP_MIN_NS, SWEEP_MAX_NS);
        let counted_from = start_ns + self.times.warmup_ns;
        let (mut next_sweep, mut next_tell) = (start_ns, start_ns + PROGRESS_EVERY_NS);
        let (mut woke_ns, mut usage) = (monotonic_ns(), None);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let now = monotonic_ns();
            if usage.is_none() && now >= counted_from {
                usage = Some((sched::of_this_thread()?, now));
            }
            self.begin_what_is_due(now);
            if now >= next_sweep {
                self.sweep(now);
                next_sweep = now + sweep_every;
            }
            if now >= next_tell {
                tell(self.standing());
                next_tell = now + PROGRESS_EVERY_NS;
            }
            if self.is_over(now) {
                break;
            }
            events.clear();
            let wait = self.next_wake(now, next_sweep.min(next_tell)).saturating_sub(now);
            let wait = Timespec::try_from(Duration::from_nanos(wait)).map_err(io::Error::other)?;
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let looked_ns = std::mem::replace(&mut woke_ns, monotonic_ns());
            self.arrived_ns = if woke_ns - now > SLEPT_NS { woke_ns } else { looked_ns };
            self.work_off(&events);
        }
        tell(self.standing());
        self.account(usage)
    }

    fn open_all(&mut self) -> io::Result<()> {
        let patience = Duration::from_nanos(self.plan.timeout_ns);
        for index in 0..self.slots.len() {
            let target = self.plan.target.address;
            let socket = dial_and_wait(&mut self.sources, target, patience).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot connect to {target} ({index} are open): {error}"),
                )
            })?;
            self.register(index as u32, &socket)?;
            self.slots[index].socket = Socket::Open(socket);
        }
        Ok(())
    }

    /// Registered once for everything, edge-triggered: no system call when a socket goes from writing to reading.
    fn register(&mut self, index: u32, socket: &OwnedFd) -> io::Result<()> {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.tally.connections += 1;
        self.tally.connections_again += u64::from(slot.was_open && self.plan.scenario.keeps_connections());
        slot.was_open = true;
        let data = epoll::EventData::new_u64(u64::from(slot.generation) << 32 | u64::from(index));
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, data, flags)?)
    }

    fn begin_what_is_due(&mut self, now: u64) {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.idle.extend(self.resting.pop_front().map(|(_, index)| index));
        }
        if now < self.start_ns {
            return;
        }
        self.admit(now);
        // Each at most once: a connection that fails at once comes back later.
        for _ in 0..self.idle.len() {
            let Some(intended) = self.next_intended(now) else { break };
            let Some(index) = self.idle.pop_front() else { break };
            self.begin(index, intended, now);
        }
    }

    /// Takes in the arrivals whose time has come, and gives up those that nobody would wait for any longer.
    fn admit(&mut self, now: u64) {
        let since_start = now - self.start_ns;
        let Some(queue) = &mut self.queue else { return };
        let tally = &mut self.tally;
        while let Some(at) = queue.admit(since_start) {
            if at >= self.times.warmup_ns {
                tally.requests.intended += 1;
                tally.lag.record_ns(since_start - at);
            }
        }
        while let Some(at) = queue.oldest_ns().filter(|at| since_start - at > self.plan.timeout_ns) {
            queue.take();
            if at >= self.times.warmup_ns {
                tally.requests.unsent += 1;
                tally.latency.record_ns(since_start - at);
            }
        }
    }

    /// When the next request was to be sent, if there is one to be sent now.
    fn next_intended(&mut self, now: u64) -> Option<u64> {
        match &mut self.queue {
            Some(queue) => queue.take().map(|at| self.start_ns + at),
            None => (now < self.start_ns + self.times.sending_ends_ns()).then_some(now),
        }
    }

    fn begin(&mut self, index: u32, intended_ns: u64, now: u64) {
        let counted = intended_ns >= self.start_ns + self.times.warmup_ns;
        if counted {
            self.tally.requests.sent += 1;
            self.tally.requests.intended += u64::from(self.queue.is_none());
        }
        self.under_way += 1;
        let slot = &mut self.slots[index as usize];
        slot.work = Some(Work {
            intended_ns,
            begun_ns: now,
            deadline_ns: now + self.plan.timeout_ns,
            sent: 0,
            counted,
            exchange: self.plan.scenario.exchange(),
        });
        match slot.socket {
            Socket::Open(_) => self.write(index),
            Socket::None | Socket::Connecting(_) => self.connect(index),
        }
    }

    fn connect(&mut self, index: u32) {
        let dialled = self.sources.dial(self.plan.target.address);
        let dialled = dialled.and_then(|socket| self.register(index, &socket).map(|()| socket));
        match dialled {
            Ok(socket) => self.slots[index as usize].socket = Socket::Connecting(socket),
            Err(error) => self.fail(index, connect_failed(&error)),
        }
    }

    fn write(&mut self, index: u32) {
        match self.slots[index as usize].write(&self.message) {
            Ok(count) => self.tally.bytes.sent += count,
            Err(error) => {
                self.fail(index, Wrong::new(Failure::Reset, format!("cannot send: {error}")));
            }
        }
    }

    fn work_off(&mut self, events: &[epoll::Event]) {
        for index in std::mem::take(&mut self.unread) {
            self.read(index, true);
        }
        for event in events {
            let (data, flags) = (event.data.u64(), event.flags);
            let (index, generation) = (data as u32, (data >> 32) as u32);
            let slot = &self.slots[index as usize];
            if slot.generation != generation {
                continue;
            }
            if matches!(slot.socket, Socket::Connecting(_)) {
                self.connected(index);
            } else if flags.contains(epoll::EventFlags::OUT) && slot.has_unsent(&self.message) {
                self.write(index);
            }
            let ends = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            if flags.intersects(ends | epoll::EventFlags::IN) {
                self.read(index, flags.intersects(ends));
            }
        }
    }

    fn connected(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if let Err(error) = slot.connected() {
            return self.fail(index, connect_failed(&error));
        }
        if let Some(work) = slot.work.as_mut().filter(|work| work.counted) {
            self.tally.connect.record_ns(monotonic_ns().saturating_sub(work.begun_ns));
        }
        self.write(index);
    }

    /// Reads until there is no more. A read that does not fill the buffer was the last one, unless the peer has closed.
    fn read(&mut self, index: u32, to_the_end: bool) {
        for _ in 0..READS_IN_A_ROW_MAX {
            let count = match self.slots[index as usize].read(&mut self.buffer) {
                Read::Nothing => return,
                Read::Closed => return self.closed(index),
                Read::Reset => return self.reset(index),
                Read::Bytes(count) => count,
            };
            self.tally.bytes.received += count as u64;
            let has_work = self.take(index, count);
            if !has_work && !to_the_end {
                return;
            }
            if count < self.buffer.len() && !to_the_end {
                return;
            }
        }
        self.unread.push(index);
    }

    /// Hands what was read to the exchange; whether it goes on.
    fn take(&mut self, index: u32, count: usize) -> bool {
        let now_ns = monotonic_ns();
        let Some(work) = &mut self.slots[index as usize].work else {
            let counted = now_ns >= self.start_ns + self.times.warmup_ns;
            self.tally.fail(Wrong::new(Failure::Malformed, "bytes that nobody asked for"), counted);
            self.slots[index as usize].socket = Socket::None;
            return false;
        };
        if self.plan.scenario.times_out_by_silence() {
            work.deadline_ns = now_ns + self.plan.timeout_ns;
        }
        let mut reading = Reading {
            now_ns,
            arrived_ns: self.arrived_ns,
            intended_ns: work.intended_ns,
            tally: &mut self.tally,
        };
        match work.exchange.take(&self.buffer[..count], &mut reading) {
            Ok(Progress::More) => return true,
            Ok(Progress::Done(answer)) => self.complete(index, answer, now_ns),
            Err(wrong) => self.fail(index, wrong),
        }
        false
    }

    /// The peer has closed. Between two exchanges it may: the next one opens a connection of its own.
    fn closed(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let now_ns = monotonic_ns();
        let Some(work) = &mut slot.work else {
            slot.socket = Socket::None;
            self.tally.closed_while_idle += 1;
            return;
        };
        let mut reading = Reading {
            now_ns,
            arrived_ns: self.arrived_ns,
            intended_ns: work.intended_ns,
            tally: &mut self.tally,
        };
        match work.exchange.closed(&mut reading) {
            Ok(Progress::Done(answer)) => self.complete(index, answer, now_ns),
            Ok(Progress::More) => {}
            Err(wrong) => self.fail(index, wrong),
        }
    }

    fn reset(&mut self, index: u32) {
        self.tally.closed_while_idle += u64::from(self.slots[index as usize].work.is_none());
        self.fail(index, Wrong::new(Failure::Reset, "the connection was reset"));
    }

    fn complete(&mut self, index: u32, answer: Answer, now: u64) {
        let slot = &mut self.slots[index as usize];
        let Some(work) = slot.work.take() else { return };
        let keeps = answer.keeps_connection && self.plan.scenario.keeps_connections();
        if !keeps || work.sent < self.message.length() {
            slot.socket = Socket::None;
        }
        self.under_way -= 1;
        self.idle.push_back(index);
        let refused = answer.status.filter(|status| *status != 200);
        if let Some(status) = refused.filter(|status| !self.plan.overload || !REJECTIONS.contains(status)) {
            self.tally.fail(Wrong::new(Failure::Status, format!("status {status}")), work.counted);
        }
        if !work.counted {
            return;
        }
        if let Some(status) = answer.status {
            *self.tally.statuses.entry(status).or_default() += 1;
        }
        self.tally.last_ns = self.tally.last_ns.max(now - self.start_ns);
        if refused.is_none() {
            self.tally.requests.completed += 1;
            self.tally.latency.record_ns(now - work.intended_ns);
            self.tally.service.record_ns(now - work.begun_ns);
        } else if self.plan.overload && refused.is_some_and(|status| REJECTIONS.contains(&status)) {
            self.tally.requests.rejected += 1;
            self.tally.requests.rejected_without_retry_after += u64::from(!answer.has_retry_after);
            self.tally.rejected.record_ns(now - work.intended_ns);
        }
    }

    /// The exchange failed, and its connection with it.
    fn fail(&mut self, index: u32, wrong: Wrong) {
        let slot = &mut self.slots[index as usize];
        slot.socket = Socket::None;
        let Some(work) = slot.work.take() else { return };
        self.under_way -= 1;
        let now = monotonic_ns();
        match wrong.kind {
            Failure::Connect => self.resting.push_back((now + CONNECT_PAUSE_NS, index)),
            Failure::Reset
            | Failure::Closed
            | Failure::Timeout
            | Failure::Status
            | Failure::Malformed
            | Failure::Content
            | Failure::Order
            | Failure::Unsent => self.idle.push_back(index),
        }
        self.tally.last_ns = self.tally.last_ns.max(now.saturating_sub(self.start_ns));
        self.tally.fail(wrong, work.counted);
    }

    fn sweep(&mut self, now: u64) {
        for index in 0..self.slots.len() as u32 {
            let work = &self.slots[index as usize].work;
            if work.as_ref().is_some_and(|work| work.deadline_ns <= now) {
                self.fail(index, Wrong::new(Failure::Timeout, "no complete answer within --timeout"));
            }
        }
    }

    fn next_wake(&self, now: u64, chore_ns: u64) -> u64 {
        if !self.unread.is_empty() {
            return now;
        }
        let arrival = self.queue.as_ref().and_then(Queue::next_arrival_ns).map(|at| self.start_ns + at);
        let arrival = arrival.or((now < self.start_ns).then_some(self.start_ns));
        let rested = self.resting.front().map(|(until, _)| *until);
        let begins = if self.idle.is_empty() { None } else { self.closed_loop_begins(now) };
        [arrival, rested, begins].into_iter().flatten().fold(chore_ns, u64::min)
    }

    /// In a closed loop an idle connection has something to do at once, until the end.
    fn closed_loop_begins(&self, now: u64) -> Option<u64> {
        let ends = self.start_ns + self.times.sending_ends_ns();
        (self.queue.is_none() && now < ends).then_some(now.max(self.start_ns))
    }

    fn is_over(&self, now: u64) -> bool {
        let all_sent = match &self.queue {
            Some(queue) => queue.next_arrival_ns().is_none() && queue.waiting() == 0,
            None => now >= self.start_ns + self.times.sending_ends_ns(),
        };
        all_sent && self.under_way == 0
    }

    fn standing(&self) -> Standing {
        let requests = &self.tally.requests;
        Standing {
            completed: requests.completed,
            rejected: requests.rejected,
            failed: requests.failed + requests.failed_in_warmup,
            events: self.tally.events.count,
            under_way: self.under_way,
            waiting: self.queue.as_ref().map_or(0, Queue::waiting),
        }
    }

    fn account(&mut self, begun: Option<(sched::Usage, u64)>) -> io::Result<Tally> {
        if let Some((before, since_ns)) = begun {
            let used = sched::of_this_thread()?.since(before);
            (self.tally.ran_ns, self.tally.waited_ns) = (used.ran_ns, used.waited_ns);
            let elapsed_ns = monotonic_ns().saturating_sub(since_ns).max(1);
            self.tally.busy = (used.ran_ns + used.waited_ns) as f64 / elapsed_ns as f64;
        }
        Ok(std::mem::take(&mut self.tally))
    }
}

fn connect_failed(error: &io::Error) -> Wrong {
    Wrong::new(Failure::Connect, format!("cannot connect: {error}"))
}
