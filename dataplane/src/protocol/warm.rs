//! Which connections stay warm: those whose requests follow each other closely keep what a request needs while they wait.
//!
//! A connection that falls silent is parked: its state between requests is a small value in a small task.

use std::cell::Cell;

/// Connections that one worker keeps warm at most; with their state of a few kilobytes each. More than that are parked
/// after each request.
const WARM_MOST: u32 = 512;

thread_local! {
    static WARM: Cell<u32> = const { Cell::new(0) };
}

/// The right to stay warm.
pub(crate) struct Warm(());

impl Warm {
    /// The right, unless too many have it.
    pub(crate) fn claim() -> Option<Self> {
        let held = WARM.get();
        (held < WARM_MOST).then(|| {
            WARM.set(held + 1);
            Self(())
        })
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        WARM.set(WARM.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_kept_warm_than_the_limit_and_each_gives_its_place_back() {
        let mut held: Vec<_> = (0..WARM_MOST).map(|_| Warm::claim()).collect();
        assert!(held.iter().all(Option::is_some) && Warm::claim().is_none());
        held.pop();
        assert!(Warm::claim().is_some());
    }
}
