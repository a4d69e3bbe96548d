//! What one generator process counts while it runs, in a form that can be sent to the process that started it and
//! added up there. It judges nothing: `outcome` makes the record of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::record::{Bytes, Failure, Requests};

/// Failures that are kept in words: enough to see what is wrong, little enough to read.
const EXAMPLES_MAX: usize = 10;

/// Counters and histograms of one process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) requests: Requests,
    pub(crate) failures: BTreeMap<Failure, u64>,
    pub(crate) examples: Vec<String>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) bytes: Bytes,
    pub(crate) connections: u64,
    pub(crate) connections_again: u64,
    pub(crate) closed_while_idle: u64,
    pub(crate) connect: Histogram,
    pub(crate) latency: Histogram,
    pub(crate) service: Histogram,
    pub(crate) rejected: Histogram,
    pub(crate) lag: Histogram,
    pub(crate) events: Events,
    /// The last completion, in nanoseconds from the start of the run.
    pub(crate) last_ns: u64,
    pub(crate) ran_ns: u64,
    pub(crate) waited_ns: u64,
    /// Share of the measured time in which the process ran or was ready to.
    pub(crate) busy: f64,
}

/// What only streams count.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Events {
    pub(crate) count: u64,
    pub(crate) same_read: u64,
    pub(crate) merged: u64,
    pub(crate) ttft: Histogram,
    pub(crate) gap: Histogram,
    pub(crate) delay: Histogram,
    pub(crate) lateness: Histogram,
    pub(crate) origin_lateness: Histogram,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) kind: Failure,
    pub(crate) text: String,
}

impl Wrong {
    pub(crate) fn new(kind: Failure, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl Tally {
    /// `counted` is false before the measured time.
    pub(crate) fn fail(&mut self, wrong: Wrong, counted: bool) {
        self.requests.failed += u64::from(counted);
        self.requests.failed_in_warmup += u64::from(!counted);
        *self.failures.entry(wrong.kind).or_default() += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(wrong.text);
        }
    }

    /// Adds what another process counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.requests.merge(other.requests);
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
        self.bytes.sent += other.bytes.sent;
        self.bytes.received += other.bytes.received;
        self.bytes.checked += other.bytes.checked;
        self.connections += other.connections;
        self.connections_again += other.connections_again;
        self.closed_while_idle += other.closed_while_idle;
        self.connect.merge(&other.connect);
        self.latency.merge(&other.latency);
        self.service.merge(&other.service);
        self.rejected.merge(&other.rejected);
        self.lag.merge(&other.lag);
        self.events.merge(&other.events);
        self.last_ns = self.last_ns.max(other.last_ns);
        self.ran_ns += other.ran_ns;
        self.waited_ns += other.waited_ns;
        self.busy = self.busy.max(other.busy);
    }
}

impl Events {
    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.same_read += other.same_read;
        self.merged += other.merged;
        self.ttft.merge(&other.ttft);
        self.gap.merge(&other.gap);
        self.delay.merge(&other.delay);
        self.lateness.merge(&other.lateness);
        self.origin_lateness.merge(&other.origin_lateness);
    }
}

impl Requests {
    fn merge(&mut self, other: Self) {
        self.intended += other.intended;
        self.sent += other.sent;
        self.completed += other.completed;
        self.rejected += other.rejected;
        self.rejected_without_retry_after += other.rejected_without_retry_after;
        self.failed += other.failed;
        self.unsent += other.unsent;
        self.failed_in_warmup += other.failed_in_warmup;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_few_and_failures_are_all_counted() {
        let mut tally = Tally::default();
        (0..25).for_each(|index| tally.fail(Wrong::new(Failure::Content, format!("{index}")), true));
        let mut sum = tally.clone();
        sum.merge(tally);
        assert_eq!((sum.examples.len(), sum.requests.failed), (EXAMPLES_MAX, 50));
        assert_eq!(sum.failures, BTreeMap::from([(Failure::Content, 50)]));
    }
}
