//! A worker's clock. It stands still between two ticks and costs nothing to read.
//!
//! After a second in which nothing happened it ticks a tenth as often, after five a twenty-fifth, so that an idle node
//! leaves its cores alone; the first thing that happens then sets it right, and back to its usual pace. So a deadline of
//! less than a second is exact to a tick, and a longer one may be late by a tenth of a second (from five seconds on by a
//! quarter) on a worker that has nothing else to do. Whoever cannot bear that holds the clock [`Awake`].

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::{Stream, timer};
use crate::sys::event;

/// Resolution of every deadline.
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// Ticks from one to the next, from so many ticks of silence on.
const PACES: [(u64, u32); 3] = [(500, 25), (100, 10), (0, 1)];
/// The clock is not slow.
const STEADY: u64 = 0;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// While the clock is slow, the time of its next tick.
    static SLOW_UNTIL: Cell<u64> = const { Cell::new(STEADY) };
    /// Turns of the event loop since the last tick.
    static TURNS: Cell<u64> = const { Cell::new(0) };
    static KEEPER: RefCell<Option<Waker>> = const { RefCell::new(None) };
    /// Those that hold the clock awake.
    static AWAKE: Cell<u32> = const { Cell::new(0) };
}

/// Keeps this worker's clock at its usual pace for as long as the returned value lives, however little happens: for
/// deadlines that must not be late by a tenth of a second on a worker that is silent, as a transport's retransmissions
/// are.
#[cfg_attr(not(test), expect(dead_code, reason = "QUIC's loss detection is to be its first user"))]
pub(crate) fn keep_awake() -> Awake {
    AWAKE.set(AWAKE.get() + 1);
    Awake { _here: PhantomData }
}

/// Holds this worker's clock awake.
#[derive(Debug)]
pub(crate) struct Awake {
    /// It counts on its own thread.
    _here: PhantomData<*const ()>,
}

impl Drop for Awake {
    fn drop(&mut self) {
        AWAKE.set(AWAKE.get() - 1);
    }
}

/// The process's clock in ticks, as of this worker's last tick.
pub(crate) fn now() -> u64 {
    NOW.get()
}

/// The process's clock in ticks.
pub(super) fn read() -> u64 {
    #[cfg(test)]
    if let Some(now) = crate::sys::simulated::now() {
        return (now.as_millis() / TICK.as_millis()) as u64;
    }
    static STARTED: OnceLock<Instant> = OnceLock::new();
    (STARTED.get_or_init(Instant::now).elapsed().as_millis() / TICK.as_millis()) as u64
}

/// The event loop has turned: something happened, if only a tick.
pub(super) fn turned() {
    TURNS.set(TURNS.get() + 1);
    let until = SLOW_UNTIL.get();
    if until == STEADY {
        return;
    }
    let now = read();
    NOW.set(now);
    if now < until
        && let Some(keeper) = KEEPER.take()
    {
        keeper.wake();
    }
}

/// Keeps the time forever, calling `each_tick` with it.
pub(crate) async fn keep_time(mut each_tick: impl FnMut(u64)) -> io::Result<()> {
    let ticker = Stream::adopt(event::periodic_timer(TICK)?)?;
    SLOW_UNTIL.set(STEADY);
    NOW.set(read());
    let mut quiet_since = now();
    let mut pace = 1;
    loop {
        let has_ticked = ticks(&ticker).await?;
        let now = read();
        if has_ticked {
            event::take(&ticker);
            NOW.set(now);
            timer::advance(now);
            each_tick(now);
        }
        // The tick itself is a turn.
        if TURNS.take() > 1 || !has_ticked || AWAKE.get() > 0 {
            quiet_since = now;
        }
        let next = pace_after(now - quiet_since);
        if next != pace {
            event::set_period(&ticker, TICK * next)?;
            pace = next;
        }
        SLOW_UNTIL.set(if pace == 1 { STEADY } else { now + u64::from(pace) });
    }
}

/// Ticks from one to the next after so many of silence.
fn pace_after(silence: u64) -> u32 {
    PACES.iter().find(|(from, _)| silence >= *from).map_or(1, |(_, pace)| *pace)
}

/// Waits for the next tick; false when something else happens first, while the clock is slow.
async fn ticks(ticker: &Stream) -> io::Result<bool> {
    let mut ticks = std::pin::pin!(ticker.readable());
    std::future::poll_fn(|context| {
        if let Poll::Ready(ticked) = ticks.as_mut().poll(context) {
            return Poll::Ready(ticked.map(|()| true));
        }
        if SLOW_UNTIL.get() > now() {
            if TURNS.get() > 0 {
                return Poll::Ready(Ok(false));
            }
            KEEPER.replace(Some(context.waker().clone()));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::{Mode, run, sleep, spawn, turn};
    use super::*;

    /// One worker whose silence ends after six seconds.
    fn keep_time_in_silence(mode: Mode) {
        let noise = event::event().unwrap();
        let signal = noise.try_clone().unwrap();
        let noisy = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(6));
            event::signal(&signal);
        });
        run(mode, async {
            let ticks = Rc::new(Cell::new(0u32));
            let counted = Rc::clone(&ticks);
            spawn(async move { keep_time(|_| counted.set(counted.get() + 1)).await.unwrap() });
            let noise = Stream::adopt(noise).unwrap();
            noise.readable().await.unwrap();
            // A hundred in the first second, forty in the next four, four in the last.
            assert!((30..200).contains(&ticks.get()), "{} ticks", ticks.get());
            assert!(read() - now() <= 5, "the clock is {} ticks behind", read() - now());
            let (before, ticks_before) = (Instant::now(), ticks.get());
            sleep(Duration::from_millis(200)).await;
            assert!(before.elapsed() >= Duration::from_millis(190), "{:?}", before.elapsed());
            assert!(ticks.get() > ticks_before + 2, "it ticks at its usual pace again");
        })
        .unwrap();
        noisy.join().unwrap();
    }

    #[test]
    fn a_clock_slows_down_in_silence_and_is_right_again_when_something_happens() {
        let modes = [Mode::IoUring, Mode::Epoll];
        let keepers = modes.map(|mode| std::thread::spawn(move || keep_time_in_silence(mode)));
        keepers.into_iter().for_each(|keeper| keeper.join().unwrap());
    }

    /// One worker that is silent for two seconds, first with its clock held awake and then not.
    fn hold_awake(mode: Mode) {
        run(mode, async {
            let ticks = Rc::new(Cell::new(0u32));
            let counted = Rc::clone(&ticks);
            spawn(async move { keep_time(|_| counted.set(counted.get() + 1)).await.unwrap() });
            // The clock is set when it begins.
            turn().await;
            let (first, second) = (keep_awake(), keep_awake());
            drop(first);
            sleep(Duration::from_secs(2)).await;
            // A clock that nobody holds has ticked a hundred and ten times by then.
            let held = ticks.take();
            assert!(held > 130, "{held} ticks while it was held");
            drop(second);
            sleep(Duration::from_secs(2)).await;
            let free = ticks.get();
            assert!(free < held && free < 125, "{free} ticks afterwards, and {held} before");
        })
        .unwrap();
    }

    #[test]
    fn a_clock_that_is_held_awake_keeps_its_pace_in_silence() {
        let modes = [Mode::IoUring, Mode::Epoll];
        let keepers = modes.map(|mode| std::thread::spawn(move || hold_awake(mode)));
        keepers.into_iter().for_each(|keeper| keeper.join().unwrap());
    }

    #[test]
    fn the_longer_the_silence_the_fewer_ticks() {
        assert_eq!([0, 99, 100, 499, 500, 100_000].map(pace_after), [1, 1, 10, 10, 25, 25]);
    }
}
