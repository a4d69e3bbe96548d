//! The tasks of one worker and the queue of those that can go on. One thread, no locks, no counted references.
//!
//! A task is a boxed future in a table, and its waker is nothing but its number there. A number may be used again while
//! an old waker still lies about somewhere: its wake then makes the new task look once in vain, which every future must
//! bear anyhow.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::table::Table;

/// The number of the future that the runtime was started with; no table is that long.
const MAIN: u32 = u32::MAX - 1;

type Future = Pin<Box<dyn std::future::Future<Output = ()>>>;

thread_local! {
    static TASKS: Tasks = const { Tasks::new() };
}

struct Tasks {
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

/// Starts a task on this thread. A panic in it ends it alone, and is counted.
pub(crate) fn spawn(task: impl std::future::Future<Output = ()> + 'static) {
    TASKS.with(|tasks| {
        let number = tasks.table.borrow_mut().insert(Task { future: Some(Box::pin(task)), is_ready: true });
        tasks.ready.borrow_mut().push_back(number);
    });
}

/// Tasks that ended by a panic since the process began, on all threads. Each is a bug.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

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
            drop(task);
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
    let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
    let is_over = !matches!(polled, Ok(Poll::Pending));
    if polled.is_err() {
        PANICS.fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        PANICS_HERE.set(PANICS_HERE.get() + 1);
    }
    // The future itself is dropped after this: what it holds may come back here.
    let _ended = TASKS.with(|tasks| {
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
}

impl Tasks {
    const fn new() -> Self {
        Self {
            table: RefCell::new(Table::new()),
            ready: RefCell::new(VecDeque::new()),
            is_main_ready: Cell::new(false),
        }
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
    std::ptr::eq(waker.vtable(), &VTABLE).then(|| waker.data().addr() as u32)
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone_waker, wake_by_waker, wake_by_waker, forget);

fn clone_waker(number: *const ()) -> RawWaker {
    RawWaker::new(number, &VTABLE)
}

fn wake_by_waker(number: *const ()) {
    wake(number.addr() as u32);
}

fn forget(_: *const ()) {}

/// A waker whose data is the task's number: nothing is pointed to, so nothing is to be kept alive.
fn waker(number: u32) -> Waker {
    let data = std::ptr::without_provenance(number as usize);
    // SAFETY: the functions above never follow the pointer. They may be called from any thread: there they wake a task of
    // that thread, or none.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
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
        assert_eq!(panics(), before + 1);
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
