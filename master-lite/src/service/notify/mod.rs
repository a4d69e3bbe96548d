//! Telling others: messages about alerts go to webhooks, signed, in order, tried again for a while. What waits is in
//! memory; alerts themselves are stored, so that after a restart their end is still told.

mod address;
mod deliver;
mod queue;
mod sign;
pub(crate) mod webhooks;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify as Bell;

pub(crate) use address::AddressGuard;
pub(crate) use deliver::Courier;
pub(crate) use queue::{Delivery, Standing, Verdict};

use queue::Queue;
use webhooks::{WEBHOOKS, Webhook};

use super::alerts::rule::Severity;
use super::refusal::{Kind, Refusal};
use super::secret::new_id;
use crate::keys;
use crate::store::{Source as _, Store};

/// The tables.
pub(crate) const TABLES: [&str; 1] = [WEBHOOKS.name()];

/// Tries under way at once: each may wait for a resolver on a thread of its own, and there are few of those.
pub(crate) const TRIES_AT_ONCE_MAX: usize = 4;

/// What waits is looked at this often even if nothing seems due: clocks are set, too.
const LOOK_AFTER_MAX: Duration = Duration::from_secs(1);

/// The webhooks, and what waits for them.
pub(crate) struct Notify {
    store: Store,
    guard: AddressGuard,
    queue: Mutex<Queue>,
    bell: Bell,
}

impl Notify {
    /// Over a store; addresses that the guard refuses are not sent to.
    pub(crate) fn new(store: Store, guard: AddressGuard) -> Self {
        Self { store, guard, queue: Mutex::default(), bell: Bell::new() }
    }

    /// Queues a message for every webhook that wants to hear of alerts this bad.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn tell(&self, severity: Severity, body: &str) -> Result<(), Refusal> {
        let webhooks = self.store.read()?.all(WEBHOOKS)?;
        let wanted =
            webhooks.into_iter().filter(|(_, webhook)| webhook.enabled && severity >= webhook.severity);
        for (id, _) in wanted {
            self.push(&id, body);
        }
        Ok(())
    }

    /// Queues a message for one webhook, whether it is enabled or not.
    ///
    /// # Errors
    /// There is no such webhook, or too much waits for it already.
    pub(crate) fn tell_one(&self, id: &str, body: &str) -> Result<(), Refusal> {
        self.find(id)?;
        if self.push(id, body) {
            return Ok(());
        }
        Err(Refusal::conflict("id", "full", "too many messages wait for this webhook"))
    }

    /// A message to try now, with its webhook as it is now.
    pub(crate) fn poll(&self, now_ms: u64) -> Option<(Webhook, Delivery)> {
        loop {
            let delivery = self.queue().poll(now_ms)?;
            match self.find(&delivery.webhook) {
                Ok(webhook) => return Some((webhook, delivery)),
                // It was deleted between the two.
                Err(refusal) if refusal.kind == Kind::NotFound => self.forget(&delivery.webhook),
                Err(refusal) => {
                    self.handle_verdict(&delivery.webhook, Verdict::Again(refusal.message), now_ms)
                }
            }
        }
    }

    /// How a try ended.
    pub(crate) fn handle_verdict(&self, webhook: &str, verdict: Verdict, now_ms: u64) {
        match &verdict {
            Verdict::Delivered => tracing::debug!(webhook, "a message was delivered"),
            Verdict::Again(error) | Verdict::Never(error) => {
                tracing::warn!(webhook, error, "a message was not delivered");
            }
        }
        let [chance] = keys::random::<1>();
        self.queue().handle_verdict(webhook, verdict, f64::from(chance) / 255.0, now_ms);
        self.bell.notify_one();
    }

    /// Waits until a message may be due.
    pub(crate) async fn wait(&self, now_ms: u64) {
        let due_ms = self.queue().next_due_ms();
        let wait =
            due_ms.map_or(LOOK_AFTER_MAX, |due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
        // Either is a reason to look.
        let _ = tokio::time::timeout(wait.min(LOOK_AFTER_MAX), self.bell.notified()).await;
    }

    /// How it goes with a webhook since the master's start.
    pub(crate) fn standing(&self, id: &str) -> Standing {
        self.queue().standing(id)
    }

    /// How it goes with all of them.
    pub(crate) fn total(&self) -> Standing {
        self.queue().total()
    }

    /// What delivers.
    pub(crate) fn courier(&self) -> Courier {
        Courier::new(self.guard.clone())
    }

    fn push(&self, id: &str, body: &str) -> bool {
        let delivery = Delivery {
            id: format!("msg_{}", new_id()),
            webhook: id.to_owned(),
            body: body.to_owned(),
            tries: 0,
        };
        let is_queued = self.queue().push(delivery);
        if !is_queued {
            tracing::warn!(webhook = id, "a message was dropped: too many wait already");
        }
        self.bell.notify_one();
        is_queued
    }

    fn forget(&self, id: &str) {
        self.queue().forget(id);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
