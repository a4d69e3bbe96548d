//! Workers: one pinned thread each, with its own runtime, listeners, pools, timers and counters.
//!
//! What the control thread wants of a worker comes through its mailbox. Nothing else is shared but immutable snapshots,
//! counters with one writer each, and the shelves of idle connections.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;

use dataplane_core::limit::Admission;
use dataplane_core::stats::WorkerStats;
use proto::config::Bind;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::io::{self as driver, Mailbox, Mode};
use crate::listener::{self, Accepted, Stop};
use crate::protocol::{Context, Live};
use crate::sys::cpu;

/// Ticks between two looks at all idle upstream connections, for those that origins have closed: five seconds.
const SWEEP_TICKS: u64 = 500;
/// Ticks between two looks for those that are too old: half a second, since an origin may allow them only one.
const SWEEP_DUE_TICKS: u64 = 50;

/// What a worker is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Serve by this config from the next exchange on.
    Apply(Arc<Live>),
    /// Accept on this socket, too.
    Listen {
        /// The listener it belongs to, which the applied config has.
        listener: String,
        /// The address it is bound to.
        bind: Bind,
        /// The listening socket, non-blocking.
        socket: OwnedFd,
    },
    /// Stop accepting there: what waits in the queue is taken, then the socket is closed.
    Unlisten {
        /// The listener's name.
        listener: String,
        /// The address.
        bind: Bind,
    },
    /// Serve a connection that another worker has accepted.
    Adopt(Accepted),
    /// End silent connections, since another worker has no place for a newcomer and no silent client of its own.
    MakeRoom,
    /// Stop accepting, and close connections after their exchanges.
    Drain,
    /// Keep connections again; what to accept on is said by `Listen`.
    Undrain,
    /// End now.
    Stop,
}

/// How many workers there are to be, and how they run.
#[derive(Debug)]
pub(crate) struct WorkerOptions {
    /// At least one.
    pub(crate) count: usize,
    /// How they talk to the kernel.
    pub(crate) mode: Mode,
    /// One set of counters each.
    pub(crate) stats: Vec<Arc<WorkerStats>>,
    /// The node's limits.
    pub(crate) admission: Arc<Admission>,
}

/// All workers of this process.
#[derive(Debug)]
pub(crate) struct Workers {
    seats: Vec<Seat>,
    threads: Vec<JoinHandle<()>>,
    restarted: Arc<Notify>,
}

/// What is known of one worker from outside of its thread.
#[derive(Clone, Debug)]
struct Seat {
    mailbox: Arc<Mailbox<Order>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The worker turns: it reads its mailbox.
    is_running: AtomicBool,
    /// The worker was started again, and has not been given its config and sockets since.
    is_bare: AtomicBool,
    /// Times the worker was started again after a panic.
    restarts: AtomicU64,
}

impl Workers {
    /// Starts them. Errors: a thread or a mailbox cannot be made.
    pub(crate) fn start(options: &WorkerOptions) -> io::Result<Self> {
        let seats = (0..options.count)
            .map(|_| Ok(Seat { mailbox: Arc::new(Mailbox::new()?), state: Arc::default() }))
            .collect::<io::Result<Vec<Seat>>>()?;
        let cores = cpu::allowed();
        let restarted = Arc::<Notify>::default();
        let all_stats: Arc<[Arc<WorkerStats>]> = options.stats.clone().into();
        let threads = (0..options.count)
            .map(|number| {
                let worker = Worker {
                    number,
                    core: cores[number % cores.len()],
                    mode: options.mode,
                    seats: seats.clone(),
                    all_stats: Arc::clone(&all_stats),
                    admission: Arc::clone(&options.admission),
                    restarted: Arc::clone(&restarted),
                };
                std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || worker.run())
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self { seats, threads, restarted })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.seats.len()
    }

    /// Leaves an order for one worker.
    pub(crate) fn post(&self, worker: usize, order: Order) {
        self.seats[worker].mailbox.post(order);
    }

    /// Leaves an order for each worker.
    pub(crate) fn post_all(&self, order: impl Fn() -> Order) {
        self.seats.iter().for_each(|seat| seat.mailbox.post(order()));
    }

    /// Whether every worker turns.
    pub(crate) fn are_running(&self) -> bool {
        self.seats.iter().all(|seat| seat.state.is_running.load(Ordering::Acquire))
    }

    /// Whether every worker turns and has what it was given.
    pub(crate) fn are_serving(&self) -> bool {
        self.are_running() && !self.seats.iter().any(|seat| seat.state.is_bare.load(Ordering::Acquire))
    }

    /// Times that workers were started again after a panic. Each time is a bug, and the worker has lost its listeners:
    /// whoever sees this number grow gives it config and sockets anew.
    pub(crate) fn restarts(&self) -> Vec<u64> {
        self.seats.iter().map(|seat| seat.state.restarts.load(Ordering::Acquire)).collect()
    }

    /// Waits until a worker was started again.
    pub(crate) async fn restarted(&self) {
        self.restarted.notified().await;
    }

    /// Whether all threads have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// One worker on its thread.
struct Worker {
    number: usize,
    core: usize,
    mode: Mode,
    seats: Vec<Seat>,
    all_stats: Arc<[Arc<WorkerStats>]>,
    admission: Arc<Admission>,
    restarted: Arc<Notify>,
}

impl Worker {
    fn run(self) {
        if let Err(error) = cpu::pin_this_thread(self.core) {
            warn!(worker = self.number, core = self.core, %error, "cannot pin the worker to its core");
        }
        let state = &self.seats[self.number].state;
        loop {
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| driver::run(self.mode, self.serve())));
            state.is_running.store(false, Ordering::Release);
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    error!(worker = self.number, %error, "the worker cannot run");
                    return;
                }
                Err(_) => {
                    error!(worker = self.number, "the worker panicked and is started again");
                    self.count_restart();
                }
            }
        }
    }

    /// Works until told to stop. After a panic it begins anew at an empty desk, on the same runtime: what other desks have
    /// begun is served to its end, and then closed.
    async fn serve(&self) {
        let state = &self.seats[self.number].state;
        let mut former = Vec::new();
        loop {
            let desk = Desk::new(self);
            state.is_running.store(true, Ordering::Release);
            match catch_panic(self.work(&desk, &former)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    error!(worker = self.number, %error, "the worker has no clock or mailbox any more");
                    break;
                }
                Err(_) => {
                    error!(worker = self.number, "the worker panicked and begins anew");
                    state.is_bare.store(true, Ordering::Release);
                    self.count_restart();
                    desk.handle(Order::Drain);
                    former.push(desk.context);
                    former.retain(|context| Rc::strong_count(context) > 1);
                }
            }
        }
        info!(worker = self.number, "worker stopped");
    }

    fn count_restart(&self) {
        self.seats[self.number].state.restarts.fetch_add(1, Ordering::AcqRel);
        self.restarted.notify_one();
    }

    /// Reads the mailbox and keeps the time, until told to stop; everything else runs in tasks beside this.
    async fn work(&self, desk: &Desk<'_>, former: &[Rc<Context>]) -> io::Result<()> {
        let mut clock = pin!(driver::keep_time(|tick| {
            each_tick(&desk.context, tick);
            former.iter().for_each(|context| context.end_unused());
        }));
        let mut orders = pin!(self.seats[self.number].mailbox.read(|order| desk.handle(order)));
        std::future::poll_fn(|context| match clock.as_mut().poll(context) {
            Poll::Ready(stopped) => Poll::Ready(stopped),
            Poll::Pending => orders.as_mut().poll(context),
        })
        .await
    }
}

/// One worker without a thread, for tests that bring a runtime of their own.
#[cfg(test)]
pub(crate) struct LoneWorker(Worker);

#[cfg(test)]
impl LoneWorker {
    /// Errors: there is no event for its mailbox.
    pub(crate) fn new(stats: Arc<WorkerStats>, admission: Arc<Admission>) -> io::Result<Self> {
        let seat = Seat { mailbox: Arc::new(Mailbox::new()?), state: Arc::default() };
        let (seats, all_stats, mode) = (vec![seat], [stats].into(), Mode::IoUring);
        Ok(Self(Worker { number: 0, core: 0, mode, seats, all_stats, admission, restarted: Arc::default() }))
    }

    /// Where its orders are left.
    pub(crate) fn mailbox(&self) -> Arc<Mailbox<Order>> {
        Arc::clone(&self.0.seats[0].mailbox)
    }

    /// Works until told to stop; how often it panicked.
    pub(crate) async fn serve(&self) -> u64 {
        self.0.serve().await;
        self.0.seats[0].state.restarts.load(Ordering::Acquire)
    }
}

/// What `work` comes to, or that it panicked.
async fn catch_panic<T>(work: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

/// A worker at work: its context and its accept loops.
struct Desk<'w> {
    worker: &'w Worker,
    context: Rc<Context>,
    accepting: RefCell<Vec<Accepting>>,
}

/// One accept loop.
struct Accepting {
    listener: String,
    bind: Bind,
    stop: Rc<Stop>,
}

impl<'w> Desk<'w> {
    fn new(worker: &'w Worker) -> Self {
        let (all_stats, admission) = (Arc::clone(&worker.all_stats), Arc::clone(&worker.admission));
        let (seats, number) = (worker.seats.clone(), worker.number);
        let ask_others = move || {
            let others = seats.iter().enumerate().filter(|(other, _)| *other != number);
            others.for_each(|(_, seat)| seat.mailbox.post(Order::MakeRoom));
        };
        let context = Rc::new(Context::new(worker.number, all_stats, admission, Box::new(ask_others)));
        Self { worker, context, accepting: RefCell::default() }
    }

    /// Does as told; false ends the worker.
    fn handle(&self, order: Order) -> bool {
        match order {
            Order::Apply(live) => {
                self.context.apply(live);
                self.worker.seats[self.worker.number].state.is_bare.store(false, Ordering::Release);
            }
            Order::Listen { listener, bind, socket } => self.listen(listener, bind, socket),
            Order::Unlisten { listener, bind } => {
                self.stop_accepting(|accepting| accepting.listener == listener && accepting.bind == bind);
            }
            Order::Adopt(Accepted { socket, peer, listener, permit }) => {
                if let Some(ingress) = self.context.ingress(&listener) {
                    self.context.stats().handovers_in.increment();
                    permit.begin();
                    listener::begin(socket, peer, &ingress, &self.context);
                }
            }
            Order::MakeRoom => self.context.make_room_for_others(),
            Order::Drain => {
                self.context.drain();
                self.stop_accepting(|_| true);
            }
            Order::Undrain => self.context.undrain(),
            Order::Stop => return false,
        }
        true
    }

    fn listen(&self, listener: String, bind: Bind, socket: OwnedFd) {
        let Some(ingress) = self.context.ingress(&listener) else {
            error!(listener, "asked to listen for a listener that the config does not have");
            return;
        };
        let stop = Rc::new(Stop::default());
        let seats = self.worker.seats.clone();
        let hand_over = move |other: usize, accepted| seats[other].mailbox.post(Order::Adopt(accepted));
        let accepting =
            listener::accept(socket, ingress, Rc::clone(&self.context), hand_over, Rc::clone(&stop));
        driver::spawn(async move {
            if let Err(error) = accepting.await {
                error!(%error, "a listening socket failed");
            }
        });
        self.accepting.borrow_mut().push(Accepting { listener, bind, stop });
    }

    fn stop_accepting(&self, which: impl Fn(&Accepting) -> bool) {
        self.accepting.borrow_mut().retain(|accepting| {
            let stops = which(accepting);
            if stops {
                accepting.stop.stop();
            }
            !stops
        });
    }
}

fn each_tick(context: &Context, tick: u64) {
    let stats = context.stats();
    let before = stats.heartbeat_tick.value();
    stats.heartbeat_tick.set(tick);
    stats.loop_turns.add(driver::take_turns());
    stats.buffers.set(driver::buffers_out() as u64);
    stats.buffer_bytes.set(driver::bytes_out() as u64);
    stats.buffer_bytes_peak.set(driver::bytes_peak() as u64);
    context.end_unused();
    // Not every tick is seen: the clock is slow while nothing happens.
    if tick / SWEEP_TICKS != before / SWEEP_TICKS {
        context.sweep();
    } else if tick / SWEEP_DUE_TICKS != before / SWEEP_DUE_TICKS {
        context.sweep_due();
    }
}
