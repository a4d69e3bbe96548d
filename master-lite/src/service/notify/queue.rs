//! What waits to be delivered to webhooks. Pure: time and chance are arguments. Each webhook has a lane of its own, so that
//! one that is down holds up no other, and gets its messages in their order: "resolved" never comes before "firing".
//! Bounded; what waits is lost when the master stops.

use std::collections::{BTreeMap, VecDeque};

/// Messages that wait for one webhook. An hour of an alert every ten seconds; past that the receiver has more to catch
/// up with than it can use.
pub(crate) const LANE_MAX: usize = 360;

/// Tries of one message: with the waits between them about half an hour, the time a receiver takes to be deployed.
pub(crate) const TRIES_MAX: u32 = 12;

/// The wait after the first failed try; it doubles with each.
const BACKOFF_MS: u64 = 1_000;

/// The longest wait.
const BACKOFF_MS_MAX: u64 = 300_000;

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The same for every try, so that a receiver knows a message that comes twice.
    pub(crate) id: String,
    /// To whom.
    pub(crate) webhook: String,
    /// What.
    pub(crate) body: String,
    /// Tries so far.
    pub(crate) tries: u32,
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is there.
    Delivered,
    /// It is not, and may be tried again.
    Again(String),
    /// It is not, and never will be.
    Never(String),
}

/// How it goes with a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Messages delivered since the master's start.
    pub(crate) delivered: u64,
    /// Messages given up.
    pub(crate) failed: u64,
    /// Messages that found the lane full.
    pub(crate) dropped: u64,
    /// Messages that wait.
    pub(crate) waiting: usize,
    /// When the last one was delivered.
    pub(crate) delivered_at_ms: Option<u64>,
    /// Why the last try failed; none after a success.
    pub(crate) error: Option<String>,
}

/// All lanes.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: BTreeMap<String, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Delivery>,
    due_ms: u64,
    is_under_way: bool,
    standing: Standing,
}

impl Queue {
    /// Adds a message; whether there was room.
    pub(crate) fn push(&mut self, delivery: Delivery) -> bool {
        let lane = self.lanes.entry(delivery.webhook.clone()).or_default();
        if lane.waiting.len() >= LANE_MAX {
            lane.standing.dropped += 1;
            return false;
        }
        lane.waiting.push_back(delivery);
        true
    }

    /// A message that is due; its webhook gets no other before the verdict.
    pub(crate) fn poll(&mut self, now_ms: u64) -> Option<Delivery> {
        let due = |lane: &&mut Lane| !lane.is_under_way && lane.due_ms <= now_ms && !lane.waiting.is_empty();
        let lane = self.lanes.values_mut().find(due)?;
        lane.is_under_way = true;
        lane.waiting.front().cloned()
    }

    /// When [`Queue::poll`] will have something; none while it needs a push or a verdict first.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let waiting = self.lanes.values().filter(|lane| !lane.is_under_way && !lane.waiting.is_empty());
        waiting.map(|lane| lane.due_ms).min()
    }

    /// How a try ended. `chance`, from 0 to 1, spreads the next tries of many masters and webhooks.
    pub(crate) fn handle_verdict(&mut self, webhook: &str, verdict: Verdict, chance: f64, now_ms: u64) {
        // A webhook that was deleted meanwhile has no lane.
        let Some(lane) = self.lanes.get_mut(webhook).filter(|lane| lane.is_under_way) else { return };
        lane.is_under_way = false;
        lane.due_ms = 0;
        let Some(delivery) = lane.waiting.front_mut() else { return };
        delivery.tries += 1;
        match verdict {
            Verdict::Again(error) if delivery.tries < TRIES_MAX => {
                lane.due_ms = now_ms.saturating_add(backoff_ms(delivery.tries, chance));
                lane.standing.error = Some(error);
                return;
            }
            Verdict::Again(error) | Verdict::Never(error) => {
                lane.standing.failed += 1;
                lane.standing.error = Some(error);
            }
            Verdict::Delivered => {
                lane.standing.delivered += 1;
                lane.standing.delivered_at_ms = Some(now_ms);
                lane.standing.error = None;
            }
        }
        lane.waiting.pop_front();
    }

    /// Forgets a webhook and what waits for it.
    pub(crate) fn forget(&mut self, webhook: &str) {
        self.lanes.remove(webhook);
    }

    /// How it goes with a webhook.
    pub(crate) fn standing(&self, webhook: &str) -> Standing {
        let Some(lane) = self.lanes.get(webhook) else { return Standing::default() };
        Standing { waiting: lane.waiting.len(), ..lane.standing.clone() }
    }

    /// How it goes with all webhooks together; times and errors are not of all.
    pub(crate) fn total(&self) -> Standing {
        self.lanes.values().fold(Standing::default(), |sum, lane| Standing {
            delivered: sum.delivered + lane.standing.delivered,
            failed: sum.failed + lane.standing.failed,
            dropped: sum.dropped + lane.standing.dropped,
            waiting: sum.waiting + lane.waiting.len(),
            ..sum
        })
    }
}

/// Half of the wait is certain, half by chance.
fn backoff_ms(tries: u32, chance: f64) -> u64 {
    let full_ms = BACKOFF_MS.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(BACKOFF_MS_MAX);
    full_ms / 2 + (full_ms as f64 / 2.0 * chance.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn delivery(webhook: &str, id: usize) -> Delivery {
        Delivery { id: id.to_string(), webhook: webhook.into(), body: "{}".into(), tries: 0 }
    }

    fn again() -> Verdict {
        Verdict::Again("refused".into())
    }

    #[test]
    fn one_webhook_that_is_down_holds_up_no_other() {
        let mut queue = Queue::default();
        for (webhook, id) in [("a", 1), ("a", 2), ("b", 3)] {
            assert!(queue.push(delivery(webhook, id)));
        }
        assert_eq!(queue.poll(0).unwrap().id, "1");
        queue.handle_verdict("a", again(), 0.0, 0);
        assert_eq!(queue.poll(0).unwrap().id, "3");
        assert_eq!(queue.poll(0), None, "the second of `a` waits behind the first");
        assert_eq!(queue.next_due_ms(), Some(500));
    }

    #[test]
    fn waits_longer_each_time_and_gives_up_in_the_end() {
        let mut queue = Queue::default();
        queue.push(delivery("a", 1));
        let (mut now_ms, mut waits) = (0, Vec::new());
        while queue.poll(now_ms).is_some() {
            queue.handle_verdict("a", again(), 1.0, now_ms);
            if let Some(due_ms) = queue.next_due_ms() {
                waits.push(due_ms - now_ms);
                now_ms = due_ms;
            }
        }
        assert_eq!(waits.len(), TRIES_MAX as usize - 1);
        assert!(waits.is_sorted() && waits[0] == BACKOFF_MS && waits.last() == Some(&BACKOFF_MS_MAX));
        let standing = queue.standing("a");
        assert_eq!((standing.failed, standing.waiting, standing.error.as_deref()), (1, 0, Some("refused")));
    }

    #[test]
    fn what_can_never_be_delivered_is_not_tried_again() {
        let mut queue = Queue::default();
        queue.push(delivery("a", 1));
        queue.poll(0);
        queue.handle_verdict("a", Verdict::Never("gone".into()), 0.0, 0);
        assert_eq!((queue.poll(u64::MAX), queue.standing("a").failed), (None, 1));
    }

    #[test]
    fn a_full_lane_drops_and_counts() {
        let mut queue = Queue::default();
        for id in 0..LANE_MAX {
            assert!(queue.push(delivery("a", id)));
        }
        assert!(!queue.push(delivery("a", LANE_MAX)));
        assert!(queue.push(delivery("b", 0)));
        assert_eq!((queue.standing("a").dropped, queue.total().waiting), (1, LANE_MAX + 1));
    }

    #[test]
    fn a_webhook_that_is_deleted_takes_its_messages_along() {
        let mut queue = Queue::default();
        queue.push(delivery("a", 1));
        queue.poll(0);
        queue.forget("a");
        queue.handle_verdict("a", again(), 0.0, 0);
        assert_eq!(queue.next_due_ms(), None);
    }

    proptest! {
        #[test]
        fn messages_of_a_webhook_arrive_in_order_and_each_is_accounted_for(
            targets in vec(0_usize..3, 1..60),
            fails in vec(any::<bool>(), 0..200),
        ) {
            let mut queue = Queue::default();
            for (id, webhook) in targets.iter().enumerate() {
                queue.push(delivery(&webhook.to_string(), id));
            }
            let (mut now_ms, mut fails, mut last) = (0, fails.into_iter(), [None; 3]);
            while let Some(due_ms) = queue.next_due_ms() {
                now_ms = due_ms.max(now_ms);
                let Some(next) = queue.poll(now_ms) else { break };
                if fails.next().unwrap_or(false) {
                    queue.handle_verdict(&next.webhook, again(), 0.5, now_ms);
                    continue;
                }
                let id: usize = next.id.parse().unwrap();
                let lane: usize = next.webhook.parse().unwrap();
                prop_assert!(last[lane] < Some(id));
                last[lane] = Some(id);
                queue.handle_verdict(&next.webhook, Verdict::Delivered, 0.5, now_ms);
            }
            let total = queue.total();
            prop_assert_eq!(total.delivered + total.failed, targets.len() as u64);
            prop_assert_eq!(total.waiting, 0);
        }
    }
}
