//! The tasks of one worker and the queue of those that can go on. One thread, no locks, no counted references.
//!
//! A task is a boxed future in a table, and its waker is nothing but its number there and the number of its thread. A
//! task's number may be used again while an old waker still lies about somewhere: its wake then makes the new task look
//! once in vain, which every future must bear anyhow.
//!
//! A waker works on the thread of its task alone. Used on another thread it wakes nothing there; that is counted
//! ([`lost_wakes`]) and logged, since the task may wait forever. Other threads speak to a worker through its mailbox.
//!
//! A panic ends the task in which it happened, and nothing else: while the task runs, when it is dropped, and when it is
//! dropped at the end of the thread's work.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::table::Table;

/// The number of the future that the runtime was started with; no table is that long.
const MAIN: u32 = u32::MAX - 1;

type Future = Pin<Box<dyn std::future::Future<Output = ()>>>;

thread_local! {
    static TASKS: Tasks = const { Tasks::new() };
}

struct Tasks {
    /// The number of this thread among all that have run tasks; 0 before it has.
    thread: Cell<u32>,
    table: RefCell<Table<Task>>,
    ready: RefCell<VecDeque<u32>>,
    is_main_ready: Cell<bool>,
}

struct Task {
    /// Taken out while it is polled.
    future: Option<Future>,
    /// It stands in the queue already.
    is_ready: bool,
}

/// What a task takes beside its future.
#[cfg(test)]
pub(crate) const TASK_BYTES: usize = Table::<Task>::ENTRY_BYTES;

/// Starts a task on this thread. A panic in it, or in what it drops, ends it alone, and is counted.
pub(crate) fn spawn(task: impl std::future::Future<Output = ()> + 'static) {
    TASKS.with(|tasks| {
        let number = tasks.table.borrow_mut().insert(Task { future: Some(Box::pin(task)), is_ready: true });
        tasks.ready.borrow_mut().push_back(number);
    });
}

/// Panics of tasks since the process began, on all threads. Each is a bug.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Wakes since the process began that came on another thread than the task's, and woke nothing. Each is a bug.
pub(crate) fn lost_wakes() -> u64 {
    LOST_WAKES.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);
static LOST_WAKES: AtomicU64 = AtomicU64::new(0);
/// Threads that have run tasks.
static THREADS: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
thread_local! {
    static PANICS_HERE: Cell<u64> = const { Cell::new(0) };
}

/// As [`panics`], on this thread.
#[cfg(test)]
pub(crate) fn panics_here() -> u64 {
    PANICS_HERE.get()
}

/// Runs `main` and what it spawns until `main` is done; `turn` waits for completions, or only collects them when told
/// not to wait.
pub(super) fn run<T, E>(
    main: impl std::future::Future<Output = T>,
    mut turn: impl FnMut(bool) -> Result<(), E>,
) -> Result<T, E> {
    let mut main = std::pin::pin!(main);
    let main_waker = waker(MAIN);
    TASKS.with(|tasks| tasks.is_main_ready.set(true));
    loop {
        if TASKS.with(|tasks| tasks.is_main_ready.replace(false))
            && let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&main_waker))
        {
            return Ok(output);
        }
        poll_ready();
        let is_idle = TASKS.with(|tasks| !tasks.is_main_ready.get() && tasks.ready.borrow().is_empty());
        turn(is_idle)?;
    }
}

/// Ends all tasks that are left.
pub(super) fn clear() {
    // A future that is dropped may spawn, or wake others: so one by one, with the table free meanwhile, and again.
    while TASKS.with(|tasks| tasks.table.borrow().len()) > 0 {
        let end = TASKS.with(|tasks| tasks.table.borrow().end());
        for number in 0..end {
            let task = TASKS.with(|tasks| tasks.table.borrow_mut().remove(number));
            count_panic(|| drop(task));
        }
    }
    TASKS.with(|tasks| tasks.ready.borrow_mut().clear());
}

/// Polls the tasks that were ready when this began; those that become ready meanwhile have their turn after the kernel.
fn poll_ready() {
    let count = TASKS.with(|tasks| tasks.ready.borrow().len());
    for _ in 0..count {
        let Some(number) = TASKS.with(|tasks| tasks.ready.borrow_mut().pop_front()) else { return };
        poll(number);
    }
}

fn poll(number: u32) {
    let future = TASKS.with(|tasks| {
        let mut table = tasks.table.borrow_mut();
        let task = table.get_mut(number)?;
        task.is_ready = false;
        task.future.take()
    });
    let Some(mut future) = future else { return };
    let waker = waker(number);
    let mut context = Context::from_waker(&waker);
    let is_over = count_panic(|| future.as_mut().poll(&mut context)).is_none_or(|polled| polled.is_ready());
    let ended = TASKS.with(|tasks| {
        let mut table = tasks.table.borrow_mut();
        if is_over {
            table.remove(number);
            return Some(future);
        }
        if let Some(task) = table.get_mut(number) {
            task.future = Some(future);
        }
        None
    });
    // Dropped with the table free: what the future holds may come back here.
    if ended.is_some() {
        count_panic(|| drop(ended));
    }
}

/// Does something of a task; none, and the panic counted, if it panics.
fn count_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(output) => Some(output),
        Err(payload) => {
            PANICS.fetch_add(1, Ordering::Relaxed);
            #[cfg(test)]
            PANICS_HERE.set(PANICS_HERE.get() + 1);
            // Whatever a panic was raised with might panic in its own drop.
            std::mem::forget(payload);
            None
        }
    }
}

impl Tasks {
    const fn new() -> Self {
        Self {
            thread: Cell::new(0),
            table: RefCell::new(Table::new()),
            ready: RefCell::new(VecDeque::new()),
            is_main_ready: Cell::new(false),
        }
    }

    fn thread(&self) -> u32 {
        if self.thread.get() == 0 {
            self.thread.set(THREADS.fetch_add(1, Ordering::Relaxed) + 1);
        }
        self.thread.get()
    }

    fn wake(&self, number: u32) {
        if number == MAIN {
            self.is_main_ready.set(true);
            return;
        }
        if let Some(task) = self.table.borrow_mut().get_mut(number)
            && !task.is_ready
        {
            task.is_ready = true;
            self.ready.borrow_mut().push_back(number);
        }
    }
}

/// Wakes a task of this thread. At the end of a thread the table may be gone before the last who wakes.
pub(super) fn wake(number: u32) {
    let _ = TASKS.try_with(|tasks| tasks.wake(number));
}

/// The number of the task that a waker wakes; none if it is not one of ours.
pub(super) fn number(waker: &Waker) -> Option<u32> {
    std::ptr::eq(waker.vtable(), &VTABLE).then(|| parts(waker.data()).1)
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone_waker, wake_by_waker, wake_by_waker, forget);

fn clone_waker(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake_by_waker(data: *const ()) {
    let (thread, number) = parts(data);
    let _ = TASKS.try_with(|tasks| match tasks.thread.get() == thread {
        true => tasks.wake(number),
        false => count_lost_wake(number),
    });
}

fn forget(_: *const ()) {}

#[cold]
fn count_lost_wake(task: u32) {
    LOST_WAKES.fetch_add(1, Ordering::Relaxed);
    tracing::error!(
        task,
        "a task was to be woken on another thread than its own, and was not: this is a bug"
    );
}

/// A waker whose data is the numbers of the task and of its thread: nothing is pointed to, so nothing is to be kept alive.
fn waker(number: u32) -> Waker {
    const { assert!(usize::BITS == 64) };
    let thread = TASKS.with(Tasks::thread) as usize;
    let data = std::ptr::without_provenance(thread << u32::BITS | number as usize);
    // SAFETY: the functions above never follow the pointer, and may be called from any thread.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

/// The numbers of a waker's thread and task.
fn parts(data: *const ()) -> (u32, u32) {
    ((data.addr() >> u32::BITS) as u32, data.addr() as u32)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// Runs without a kernel: a turn that would have to wait is a test that hangs.
    fn run_alone<T>(main: impl std::future::Future<Output = T>) -> T {
        let result = run(main, |is_idle| if is_idle { Err("nobody will wake anybody") } else { Ok(()) });
        clear();
        result.unwrap()
    }

    /// Lets the others have their turn once.
    async fn yield_now() {
        let mut is_second = false;
        std::future::poll_fn(|context| {
            if is_second {
                return Poll::Ready(());
            }
            is_second = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn tasks_take_turns_and_end() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        run_alone(async {
            for name in ["a", "b"] {
                let seen = Rc::clone(&seen);
                spawn(async move {
                    for step in 0..2 {
                        seen.borrow_mut().push((name, step));
                        yield_now().await;
                    }
                });
            }
            while seen.borrow().len() < 4 {
                yield_now().await;
            }
        });
        assert_eq!(*seen.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
        assert_eq!(Rc::strong_count(&seen), 1, "ended tasks have let go of what they held");
    }

    #[test]
    fn a_panic_ends_its_task_alone_and_is_counted() {
        let before = panics();
        let is_done = Rc::new(Cell::new(false));
        run_alone(async {
            spawn(async { panic!("a bug on purpose, in a test") });
            let done = Rc::clone(&is_done);
            spawn(async move { done.set(true) });
            while !is_done.get() {
                yield_now().await;
            }
        });
        assert!(panics() > before);
    }

    /// Panics when it is dropped.
    struct Trap;

    impl Drop for Trap {
        fn drop(&mut self) {
            panic!("a bug on purpose in a drop, in a test");
        }
    }

    /// A future that holds a trap, and is over when `is_over` says so.
    fn trapped(is_over: bool) -> impl std::future::Future<Output = ()> {
        let trap = Trap;
        std::future::poll_fn(move |_| {
            let _held = &trap;
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    #[test]
    fn a_panic_in_the_drop_of_a_task_that_is_done_ends_nothing_else() {
        let before = panics();
        let is_done = Rc::new(Cell::new(false));
        run_alone(async {
            spawn(trapped(true));
            let done = Rc::clone(&is_done);
            spawn(async move { done.set(true) });
            while !is_done.get() {
                yield_now().await;
            }
        });
        assert!(panics() > before);
    }

    #[test]
    fn a_panic_in_the_drop_of_a_task_that_is_left_keeps_no_other_from_being_dropped() {
        let (before, held) = (panics(), Rc::new(()));
        run_alone(async {
            let kept = Rc::clone(&held);
            (0..3).for_each(|_| spawn(trapped(false)));
            spawn(async move {
                let _kept = kept;
                std::future::pending::<()>().await;
            });
            yield_now().await;
        });
        assert_eq!(Rc::strong_count(&held), 1);
        assert!(panics() >= before + 3);
    }

    /// As when a worker begins anew: the panic of the main future is under way while its tasks are dropped.
    #[test]
    fn a_panic_in_a_drop_while_another_panic_unwinds_is_contained() {
        struct Clearing;
        impl Drop for Clearing {
            fn drop(&mut self) {
                clear();
            }
        }
        let before = panics();
        let ended = std::panic::catch_unwind(|| {
            let _clearing = Clearing;
            let main = async {
                spawn(trapped(false));
                panic!("a bug on purpose in the main future, in a test");
            };
            run::<(), ()>(main, |_| Ok(()))
        });
        assert!(ended.is_err() && panics() > before);
    }

    /// Gives the waker of the task that asks.
    async fn own_waker() -> Waker {
        std::future::poll_fn(|context| Poll::Ready(context.waker().clone())).await
    }

    #[test]
    fn a_wake_on_another_thread_wakes_nothing_there_and_is_counted() {
        let before = lost_wakes();
        let waker = run_alone(own_waker());
        let looks = std::thread::spawn(move || {
            let looks = Rc::new(Cell::new(0));
            run_alone(async {
                // The main future and the first task have the same numbers on each thread.
                let counted = Rc::clone(&looks);
                spawn(std::future::poll_fn(move |_| {
                    counted.set(counted.get() + 1);
                    Poll::<()>::Pending
                }));
                yield_now().await;
                let task = std::ptr::without_provenance((parts(waker.data()).0 as usize) << u32::BITS);
                // SAFETY: as of every waker of this file.
                unsafe { Waker::from_raw(RawWaker::new(task, &VTABLE)) }.wake();
                waker.wake();
                TASKS.with(|tasks| assert!(!tasks.is_main_ready.get()));
                yield_now().await;
            });
            looks.get()
        });
        assert_eq!(looks.join().unwrap(), 1, "the task of this number was woken");
        assert!(lost_wakes() >= before + 2);
    }

    #[test]
    fn what_is_left_is_dropped_at_the_end() {
        let held = Rc::new(());
        run_alone(async {
            let held = Rc::clone(&held);
            spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
            yield_now().await;
        });
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
