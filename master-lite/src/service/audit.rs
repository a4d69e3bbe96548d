//! Reading the audit log, and noting in it what was refused. What is done is noted by the change itself.

use std::hash::Hash;
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

/// The same for each of those who have, where a program may do it again every second: looks at something that it may not
/// see or that is not there, and an agent's rubbish.
pub(crate) const REPEATS_PER_MINUTE: u32 = 20;

/// The audit log.
pub(crate) struct Audit {
    store: Store,
    anonymous: Mutex<Throttle<()>>,
    repeats: Mutex<Throttle<String>>,
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
        let anonymous = Mutex::new(Throttle::new(ANONYMOUS_PER_MINUTE, 60_000));
        let repeats = Mutex::new(Throttle::new(REPEATS_PER_MINUTE, 60_000));
        Self { store, anonymous, repeats }
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
        let is_noted = call.actor != Actor::Anonymous || has_room(&self.anonymous, &(), call.at_ms);
        self.note(call, action, target, why, is_noted);
    }

    /// Notes that something was refused that a program may do again and again: some of it.
    pub(crate) fn note_repeated(&self, call: &Call, action: &str, target: &str, why: &str) {
        let is_noted = if call.actor == Actor::Anonymous {
            has_room(&self.anonymous, &(), call.at_ms)
        } else {
            has_room(&self.repeats, &call.actor.name().to_owned(), call.at_ms)
        };
        self.note(call, action, target, why, is_noted);
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
fn has_room<K: Clone + Eq + Hash>(throttle: &Mutex<Throttle<K>>, key: &K, at_ms: u64) -> bool {
    let mut counts = throttle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let has_room = counts.check(key, at_ms).is_ok();
    if has_room {
        counts.count(key, at_ms);
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
