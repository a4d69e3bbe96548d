//! Reading the audit log, and noting in it what was refused. What is done is noted by the change itself.

use std::ops::Bound;
use std::sync::Mutex;

use super::call::{Actor, Call};
use super::page::{Page, Paging};
use super::refusal::Refusal;
use super::throttle::Throttle;
use crate::store::{AUDIT, AuditRecord, Order, Source, Store};

/// Refusals of people who have not said who they are that are noted in a minute: enough to see an attack, too few to
/// wash the log away with one. The rest is only in the process's log.
pub(crate) const ANONYMOUS_PER_MINUTE: u32 = 60;

/// The same for those who have, and may not look at something: a program may ask again every second.
pub(crate) const READS_PER_MINUTE: u32 = 20;

/// The audit log.
pub(crate) struct Audit {
    store: Store,
    anonymous: Mutex<Throttle<()>>,
    reads: Mutex<Throttle<()>>,
}

/// Which entries are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    /// Of this actor.
    pub(crate) actor: Option<String>,
    /// Of actions that begin so, such as `configs.`.
    pub(crate) action: Option<String>,
    /// To this target.
    pub(crate) target: Option<String>,
    /// With this outcome.
    pub(crate) outcome: Option<String>,
}

impl Audit {
    /// Over a store.
    pub(crate) fn new(store: Store) -> Self {
        let throttle = |per_minute| Mutex::new(Throttle::new(per_minute, 60_000));
        Self { store, anonymous: throttle(ANONYMOUS_PER_MINUTE), reads: throttle(READS_PER_MINUTE) }
    }

    /// The entries with their numbers, the newest first.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(
        &self,
        filter: &AuditFilter,
        paging: Paging,
    ) -> Result<Page<(u64, AuditRecord)>, Refusal> {
        let mut page = Page { items: Vec::new(), total: 0, paging };
        let wanted = paging.skipped()..paging.skipped() + paging.page_size;
        self.store.read()?.visit(AUDIT, Bound::Unbounded, Order::Descending, |number, record| {
            if filter.is_met_by(&record) {
                if wanted.contains(&page.total) {
                    page.items.push((number, record));
                }
                page.total += 1;
            }
            true
        })?;
        Ok(page)
    }

    /// Notes that a change was refused.
    pub(crate) fn note_refused(&self, call: &Call, action: &str, target: &str, why: &str) {
        let is_noted = call.actor != Actor::Anonymous || has_room(&self.anonymous, call.at_ms);
        self.note(call, action, target, why, is_noted);
    }

    /// Notes that a look at something was refused.
    pub(crate) fn note_refused_read(&self, call: &Call, action: &str, target: &str, why: &str) {
        let throttle = if call.actor == Actor::Anonymous { &self.anonymous } else { &self.reads };
        self.note(call, action, target, why, has_room(throttle, call.at_ms));
    }

    fn note(&self, call: &Call, action: &str, target: &str, why: &str, is_noted: bool) {
        if !is_noted {
            tracing::warn!(action, target, why, address = ?call.address, "refused, and not noted: too many");
            return;
        }
        if let Err(error) = self.store.note(&call.refused(action, target, why)) {
            tracing::error!(%error, action, target, why, "a refusal could not be noted");
        }
    }
}

/// Whether one more may be noted in this minute; it counts from now on.
fn has_room(throttle: &Mutex<Throttle<()>>, at_ms: u64) -> bool {
    let mut counts = throttle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let has_room = counts.check(&(), at_ms).is_ok();
    if has_room {
        counts.count(&(), at_ms);
    }
    has_room
}

impl AuditFilter {
    fn is_met_by(&self, record: &AuditRecord) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&self.actor, &record.actor)
            && is(&self.target, &record.target)
            && is(&self.outcome, &record.outcome)
            && self.action.as_deref().is_none_or(|wanted| record.action.starts_with(wanted))
    }
}
