//! Who waits: a place for one waker.

use std::task::{Context, Waker};

/// Notes who waits.
pub(super) fn wait(slot: &mut Option<Waker>, context: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(context.waker()) => {}
        Some(_) | None => *slot = Some(context.waker().clone()),
    }
}

/// Wakes who waits.
pub(super) fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}
