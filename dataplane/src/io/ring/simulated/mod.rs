//! A kernel for tests in place of the real one, with a world around it: one thread, one seed, and everything that may
//! go wrong goes wrong at some seed.
//!
//! It reads the ring's raw submission entries and does them as Linux does, with system calls that do not wait, on real
//! sockets; so `shutdown`, `peek` and the like of the code above need no stand-ins. By its seed it
//!
//! - puts operations off over turns, and lets them end in any order;
//! - shortens sends and receives, finds no room for sends that do not wait, resets connections;
//! - holds completions back (a full completion queue), leaves entries in the submission queue, is interrupted, is busy;
//! - runs out of provided buffers;
//! - lets time pass, and moves the [`Actor`]s at the other ends of the sockets.
//!
//! It watches the memory that it was lent (`memory`), that no two operations have one name, and that no descriptor is
//! closed under an operation. What it finds ends the run. It is no model of TCP: no loss, no windows, only what a
//! Unix-domain socket does.

mod memory;
mod operation;
mod seed;
mod stories;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::squeue::Entry;

use super::kernel::{Completion, Kernel};
use super::provided::Provided;
use super::{NOBODY, Offers, Ring};
use crate::io::runtime;
use crate::sys::simulated as time;
use memory::Buffers;
use operation::{Means, Operation, Progress, Request, Which};

pub(crate) use memory::come_back;
pub(crate) use seed::{Random, each_seed, pattern};

/// With nothing but the clock for so long, the run hangs.
const HANGS_AFTER: Duration = Duration::from_secs(10 * 60);

thread_local! {
    /// What the run has done wrong.
    static FAULT: RefCell<Option<String>> = const { RefCell::new(None) };
    static RESETS: Cell<usize> = const { Cell::new(0) };
    /// A number that follows from every completion so far.
    static TRACE: Cell<u64> = const { Cell::new(0) };
}

/// The run did something that it must not: it ends with the next turn. For places where a panic would be caught, or
/// would abort.
pub(crate) fn fault(what: String) {
    FAULT.with_borrow_mut(|fault| _ = fault.get_or_insert(what));
}

/// Connections that the kernel has reset by itself: of these nothing is to be expected.
pub(crate) fn resets() -> usize {
    RESETS.get()
}

/// What has happened so far, as a number: two runs of one seed have the same.
pub(crate) fn trace() -> u64 {
    TRACE.get()
}

/// Somebody outside of the worker, moved by the kernel.
pub(crate) trait Actor {
    /// Does a little; false when there was nothing to do.
    fn step(&mut self, random: &mut Random) -> bool;

    /// What it is at, for a run that hangs.
    fn state(&self) -> String;
}

/// How a kernel treats its ring: in percent, where nothing else is said.
#[derive(Debug)]
struct Temper {
    /// Operations that are put off although they could go on.
    late: usize,
    /// Sends and receives that move less than they could.
    short: usize,
    /// Silent sends that find no room although there is some.
    full: usize,
    resets_per_mille: usize,
    /// Calls that are interrupted.
    interrupted: usize,
    /// Calls that leave entries in the queue.
    leaves: usize,
    /// Places in the submission queue: few, so that it fills up.
    entries: usize,
    /// Places in the completion queue.
    completions: usize,
    /// Calls in which time passes.
    time: usize,
}

impl Temper {
    fn new(random: &mut Random) -> Self {
        Self {
            late: random.of([0, 10, 50, 80]),
            short: random.of([0, 10, 50]),
            full: random.of([0, 5, 50]),
            resets_per_mille: random.of([0, 0, 0, 2]),
            interrupted: random.of([0, 5, 20]),
            leaves: random.of([0, 5, 30]),
            entries: random.of([1, 3, 24]),
            completions: random.of([1, 2, 4, 16, 1000]),
            time: random.of([1, 10, 50]),
        }
    }
}

/// The completion queue, and what has found no place in it.
#[derive(Debug)]
struct Completions {
    places: usize,
    told: VecDeque<Completion>,
    held_back: VecDeque<Completion>,
}

impl Completions {
    fn are_full(&self) -> bool {
        self.told.len() >= self.places || !self.held_back.is_empty()
    }

    fn tell(&mut self, user_data: u64, result: i32, flags: u32) {
        let what = user_data ^ u64::from(result as u32) << 32 ^ u64::from(flags) << 16;
        TRACE.set(seed::mixed(TRACE.get() ^ what));
        let queue = if self.are_full() { &mut self.held_back } else { &mut self.told };
        queue.push_back((user_data, result, flags));
    }

    /// Puts into the queue what it has places for.
    fn flush(&mut self) {
        while self.told.len() < self.places
            && let Some(completion) = self.held_back.pop_front()
        {
            self.told.push_back(completion);
        }
    }

    /// Whether the last completion of an operation of this name waits to be taken.
    fn ends(&self, user_data: u64) -> bool {
        let is_end = |(name, _, flags): &Completion| *name == user_data && operation::is_last(*flags);
        self.told.iter().chain(&self.held_back).any(is_end)
    }
}

/// What a call into the kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Submit,
    Collect,
    Wait,
}

struct SimulatedKernel {
    random: Random,
    temper: Temper,
    queue: VecDeque<Entry>,
    operations: Vec<Operation>,
    completions: Completions,
    buffers: Buffers,
    actors: Vec<Box<dyn Actor>>,
    /// When something happened last, but for the clock.
    moved: Duration,
}

impl Kernel for SimulatedKernel {
    // So that they run out.
    const LENT_AT_FIRST: u16 = 2;

    unsafe fn register_buffers(&mut self, at: u64, places: u16, _group: u16) -> io::Result<()> {
        self.buffers = Buffers::new(at, places);
        Ok(())
    }

    unsafe fn push(&mut self, entry: &Entry) -> bool {
        let has_room = self.queue.len() < self.temper.entries;
        if has_room {
            self.queue.push_back(entry.clone());
        }
        has_room
    }

    fn submit(&mut self) -> io::Result<usize> {
        self.enter(Call::Submit)
    }

    fn collect(&mut self) -> io::Result<usize> {
        self.enter(Call::Collect)
    }

    fn submit_and_wait(&mut self) -> io::Result<usize> {
        self.enter(Call::Wait)
    }

    fn take_completions(&mut self, completed: &mut Vec<Completion>) {
        completed.extend(self.completions.told.drain(..));
    }

    fn has_told_all(&mut self) -> bool {
        self.queue.is_empty() && self.completions.held_back.is_empty()
    }
}

impl SimulatedKernel {
    fn new(random: Random, temper: Temper, actors: Vec<Box<dyn Actor>>) -> Self {
        let completions =
            Completions { places: temper.completions, told: VecDeque::new(), held_back: VecDeque::new() };
        let buffers = Buffers::new(0, 0);
        Self {
            random,
            temper,
            queue: VecDeque::new(),
            operations: Vec::new(),
            completions,
            buffers,
            actors,
            moved: Duration::ZERO,
        }
    }

    fn enter(&mut self, call: Call) -> io::Result<usize> {
        end_if_faulty();
        if self.random.percent(self.temper.interrupted) {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        if !self.completions.held_back.is_empty() && self.random.percent(20) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.buffers.look();
        let taken = self.take_entries();
        if call == Call::Submit || !self.queue.is_empty() {
            // What it does not take it leaves to the next call, before it waits.
            return Ok(taken);
        }
        self.completions.flush();
        self.let_world_move();
        self.go_on();
        let mut rounds = 0;
        while call == Call::Wait && self.completions.told.is_empty() {
            rounds += 1;
            if !self.let_world_move() && rounds > 1 {
                time::pass_to_next_timer();
                // The longer nothing happens the faster: what is waited for is a deadline.
                time::pass(time::now().unwrap_or_default().saturating_sub(self.moved) / 16);
            }
            self.go_on();
            self.end_if_hung();
        }
        end_if_faulty();
        Ok(taken)
    }

    /// Takes the entries of the queue in order, or some of them.
    fn take_entries(&mut self) -> usize {
        let is_interrupted = self.random.percent(self.temper.leaves);
        let count = if is_interrupted { self.random.below(self.queue.len()) } else { self.queue.len() };
        for entry in self.queue.drain(..count).collect::<Vec<_>>() {
            match Request::read(&entry) {
                Request::Operation(operation) => self.begin(operation),
                Request::Cancel { user_data, which } => self.cancel(user_data, which),
            }
        }
        count
    }

    fn begin(&mut self, operation: Operation) {
        let name = operation.user_data;
        let is_used = self.operations.iter().any(|other| other.user_data == name);
        if is_used || self.completions.ends(name) {
            fault(format!("two operations have the name {name}"));
        }
        let is_put_off = !operation.is_done_at_once() && self.random.percent(self.temper.late);
        self.operations.push(operation);
        if !is_put_off {
            self.go_on_with(self.operations.len() - 1);
        }
    }

    /// An operation that is under way ends soon; success is not told of.
    fn cancel(&mut self, user_data: u64, which: Which) {
        let is_meant = |operation: &&mut Operation| match which {
            Which::Named(target) => operation.user_data == target,
            Which::All => true,
        };
        let mut count = 0;
        for operation in self.operations.iter_mut().filter(is_meant) {
            operation.is_cancelled = true;
            count += 1;
        }
        if count == 0 {
            self.completions.tell(user_data, -libc::ENOENT, 0);
        }
        if user_data != NOBODY {
            fault("somebody waits for a cancel".to_owned());
        }
    }

    /// Lets operations go on, in any order.
    fn go_on(&mut self) {
        self.random.shuffle(&mut self.operations);
        let mut index = 0;
        while index < self.operations.len() {
            let is_put_off = self.random.percent(self.temper.late);
            if is_put_off || self.go_on_with(index) == Progress::Waits {
                index += 1;
            }
        }
    }

    /// An operation that is over is replaced by the last one.
    fn go_on_with(&mut self, index: usize) -> Progress {
        let told = self.completions.told.len() + self.completions.held_back.len();
        let mut means = Means {
            completions: &mut self.completions,
            buffers: &mut self.buffers,
            random: &mut self.random,
            temper: &self.temper,
        };
        let progress = self.operations[index].go_on(&mut means);
        let has_moved = progress == Progress::Over
            || self.completions.told.len() + self.completions.held_back.len() > told;
        if has_moved && self.operations[index].moves_bytes() {
            self.has_moved();
        }
        if progress == Progress::Over {
            self.operations.swap_remove(index);
        }
        progress
    }

    /// Lets some of the others do something, and time pass; false when nobody did anything.
    fn let_world_move(&mut self) -> bool {
        if self.random.percent(self.temper.time) {
            time::pass(Duration::from_millis(self.random.of([1, 1, 1, 5, 20])));
        }
        let mut has_moved = false;
        self.random.shuffle(&mut self.actors);
        for actor in &mut self.actors {
            if self.random.percent(50) {
                has_moved |= actor.step(&mut self.random);
            }
        }
        if has_moved {
            self.has_moved();
        }
        has_moved
    }

    fn has_moved(&mut self) {
        self.moved = time::now().unwrap_or_default();
    }

    fn end_if_hung(&self) {
        let now = time::now().unwrap_or_default();
        assert!(
            now - self.moved < HANGS_AFTER,
            "nothing but the clock has moved since {:?}, {} operations are under way: {:#?}\nand the others are at {:#?}",
            self.moved,
            self.operations.len(),
            self.operations,
            self.actors.iter().map(|actor| actor.state()).collect::<Vec<_>>()
        );
    }
}

fn end_if_faulty() {
    let fault = FAULT.take();
    assert!(fault.is_none(), "{}", fault.unwrap_or_default());
}

/// Runs `main`, and what it spawns, on a ring whose kernel is simulated, with `actors` around it.
pub(crate) fn simulate<T>(seed: u64, actors: Vec<Box<dyn Actor>>, main: impl Future<Output = T>) -> T {
    let mut random = Random::new(seed);
    let temper = Temper::new(&mut random);
    simulate_with(random, temper, actors, main)
}

fn simulate_with<T>(
    random: Random,
    temper: Temper,
    actors: Vec<Box<dyn Actor>>,
    main: impl Future<Output = T>,
) -> T {
    time::begin();
    let mut kernel = SimulatedKernel::new(random, temper, actors);
    let provided = Provided::register(&mut kernel).expect("it always registers");
    let offers =
        Offers { is_limiting: kernel.random.percent(80), is_silence_success: kernel.random.percent(90) };
    let output = runtime::run_alone(Ring::on(kernel, provided, offers), main);
    end_if_faulty();
    output.expect("the simulated kernel fails no turn")
}
