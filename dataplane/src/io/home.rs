//! Sockets that are put aside by one worker and taken up by any: leases, and the post between the workers for them.
//!
//! A socket that is put aside stays with its driver, which notices when the peer closes or speaks. Its own worker takes
//! it up again by looking into a table; another worker asks for it by post, and gets the bare descriptor.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Mailbox, Stream, driver, sleep, spawn};

/// Runtimes that a process can have begun in its life: one a worker, and one more for each that was started again after
/// a panic. Those beyond keep their sockets to themselves.
const HOMES_MOST: usize = 1024;
/// How long the asking for another worker's socket may take; a connect would be through by then.
const ANSWER_WITHIN: Duration = Duration::from_millis(20);

static HOMES: [OnceLock<Home>; HOMES_MOST] = [const { OnceLock::new() }; HOMES_MOST];
static HOMES_BEGUN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of the runtime of this thread.
    static HERE: Cell<usize> = const { Cell::new(usize::MAX) };
    static QUESTIONS: RefCell<Questions> = RefCell::default();
}

/// Where the runtime of a thread gets its post.
#[derive(Debug)]
struct Home {
    mailbox: Mailbox<Letter>,
    is_open: AtomicBool,
}

#[derive(Debug)]
enum Letter {
    /// Nobody will take this socket up.
    Close { key: u32 },
    /// The home `asker` wants this socket, as its question `question`.
    Want { key: u32, asker: usize, question: u64 },
    /// The answer to it.
    Answer { question: u64, fd: Option<OwnedFd> },
}

/// The questions of this thread that wait for an answer.
#[derive(Debug, Default)]
struct Questions {
    asked: u64,
    waiting: HashMap<u64, Question>,
}

#[derive(Debug)]
enum Question {
    Asked(Option<Waker>),
    Answered(Option<OwnedFd>),
}

/// Begins to receive post on this thread: until the returned value is dropped. Errors: there is no event to be woken by.
pub(super) fn open() -> io::Result<impl Drop> {
    let number = HOMES_BEGUN.fetch_add(1, Ordering::Relaxed);
    HERE.set(number);
    if let Some(place) = HOMES.get(number) {
        let home = Home { mailbox: Mailbox::new()?, is_open: AtomicBool::new(true) };
        let home = place.get_or_init(|| home);
        spawn(async {
            if let Err(error) = home.mailbox.read(handle).await {
                tracing::error!(%error, "a worker does not hear what others want of it");
            }
        });
    }
    Ok(Closing(number))
}

/// As [`open`], for a runtime that nobody writes to.
#[cfg(test)]
pub(super) fn alone() -> impl Drop {
    HERE.set(HOMES_MOST);
    Closing(HOMES_MOST)
}

/// Ends the post of a thread.
struct Closing(usize);

impl Drop for Closing {
    fn drop(&mut self) {
        HERE.set(usize::MAX);
        if let Some(home) = HOMES.get(self.0).and_then(OnceLock::get) {
            home.is_open.store(false, Ordering::Release);
        }
        QUESTIONS.with_borrow_mut(|questions| questions.waiting.clear());
    }
}

/// Does what another worker asks for; true, to go on reading.
fn handle(letter: Letter) -> bool {
    match letter {
        Letter::Close { key } => driver::close(key),
        Letter::Want { key, asker, question } => spawn(async move {
            let fd = match Stream::from_lease(key) {
                Some(stream) => stream.release().await,
                None => None,
            };
            post(asker, Letter::Answer { question, fd });
        }),
        Letter::Answer { question, fd } => QUESTIONS.with_borrow_mut(|questions| {
            // An answer that comes too late closes its descriptor here.
            if let Some(asked) = questions.waiting.get_mut(&question)
                && let Question::Asked(waker) = std::mem::replace(asked, Question::Answered(fd))
                && let Some(waker) = waker
            {
                waker.wake();
            }
        }),
    }
    true
}

/// False, and the letter gone, when nobody is at home there.
fn post(home: usize, letter: Letter) -> bool {
    let open = HOMES.get(home).and_then(OnceLock::get).filter(|home| home.is_open.load(Ordering::Acquire));
    open.map(|home| home.mailbox.post(letter)).is_some()
}

/// A connected socket that was put aside. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Lease {
    home: usize,
    key: u32,
}

impl Lease {
    /// A lease of a socket of this thread.
    pub(super) fn new(key: u32) -> Self {
        Self { home: HERE.get(), key }
    }

    /// Takes up a socket that this worker has put aside; none if it was closed or spoken on meanwhile.
    pub(crate) fn redeem(self) -> Option<Stream> {
        let is_here = self.home == HERE.get();
        let key = self.key;
        if is_here {
            std::mem::forget(self);
        }
        is_here.then(|| Stream::from_lease(key)).flatten()
    }

    /// Takes up a socket that any worker has put aside; none if it was closed or spoken on meanwhile, or its worker does
    /// not answer.
    pub(crate) async fn claim(self) -> Option<Stream> {
        if self.home == HERE.get() {
            return self.redeem();
        }
        let Self { home, key } = self;
        std::mem::forget(self);
        let answer = Answer::new();
        if !post(home, Letter::Want { key, asker: HERE.get(), question: answer.0 }) {
            return None;
        }
        let mut late = std::pin::pin!(sleep(ANSWER_WITHIN));
        let fd = std::future::poll_fn(|context| match answer.take(context.waker()) {
            Poll::Ready(fd) => Poll::Ready(fd),
            Poll::Pending => late.as_mut().poll(context).map(|()| None),
        })
        .await?;
        Stream::adopt(fd).ok()
    }

    /// Whether the socket is still open and silent; asked by the worker that has put it aside.
    pub(crate) fn is_quiet(&self) -> bool {
        self.home == HERE.get() && driver::with(|driver| driver.is_quiet(self.key))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.home == HERE.get() {
            driver::close(self.key);
        } else {
            // Where nobody is at home any more, its sockets are closed.
            post(self.home, Letter::Close { key: self.key });
        }
    }
}

/// An answer that is waited for.
struct Answer(u64);

impl Answer {
    fn new() -> Self {
        QUESTIONS.with_borrow_mut(|questions| {
            questions.asked += 1;
            questions.waiting.insert(questions.asked, Question::Asked(None));
            Self(questions.asked)
        })
    }

    fn take(&self, waiting: &Waker) -> Poll<Option<OwnedFd>> {
        QUESTIONS.with_borrow_mut(|questions| match questions.waiting.get_mut(&self.0) {
            Some(Question::Answered(fd)) => Poll::Ready(fd.take()),
            Some(Question::Asked(waker)) => {
                *waker = Some(waiting.clone());
                Poll::Pending
            }
            None => Poll::Ready(None),
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        QUESTIONS.with_borrow_mut(|questions| questions.waiting.remove(&self.0));
    }
}
