//! The agents that have opened sessions of one node, told from each other by their instance ids: random, and new with every
//! start of an agent. Pure.
//!
//! One that comes in the place of another is as a rule the same agent, started anew; the one before never comes again. If it
//! does, two agents use the node's credential at once. The one that was there first stays, and the other is shut out: a
//! copy is made of something that is in use.

use serde::{Deserialize, Serialize};

/// Instances that are remembered of a node, and of those that are shut out. An agent that was replaced waits half a minute
/// before it comes again; a copy that is started anew each second has not pushed it out by then.
pub(crate) const REMEMBERED_MAX: usize = 64;

/// Characters of an instance that the log shows: enough to tell two apart.
const SHOWN_CHARS: usize = 8;

/// The instances of a node, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instances {
    /// Which has the session, or had the last one; empty: none yet.
    current: String,
    /// Those before it, the newest last.
    before: Vec<String>,
    /// Those that are shut out.
    shut_out: Vec<String>,
}

/// What an instance that opens a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The one that had the last session.
    Same,
    /// The first one of the node.
    First,
    /// One that was never seen before, in the place of another.
    New,
    /// One that another had come in the place of, which is shut out now: its beginning.
    Back(String),
    /// One that is shut out.
    ShutOut,
}

impl Instances {
    /// Whether an instance is shut out.
    pub(crate) fn is_shut_out(&self, instance_id: &[u8]) -> bool {
        self.shut_out.contains(&name(instance_id))
    }

    /// An instance has opened a session, and lives.
    pub(crate) fn arrive(&mut self, instance_id: &[u8]) -> Arrival {
        let instance = name(instance_id);
        if self.shut_out.contains(&instance) {
            return Arrival::ShutOut;
        }
        if self.current == instance {
            return Arrival::Same;
        }
        let other = std::mem::replace(&mut self.current, instance.clone());
        if let Some(place) = self.before.iter().position(|before| *before == instance) {
            // Whatever came since then came in its place.
            let since: Vec<String> = self.before.drain(place..).skip(1).chain([other.clone()]).collect();
            self.shut_out.extend(since);
            forget_oldest(&mut self.shut_out);
            return Arrival::Back(other.chars().take(SHOWN_CHARS).collect());
        }
        if other.is_empty() {
            return Arrival::First;
        }
        self.before.push(other);
        forget_oldest(&mut self.before);
        Arrival::New
    }
}

fn name(instance_id: &[u8]) -> String {
    instance_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn forget_oldest(instances: &mut Vec<String>) {
    instances.drain(..instances.len().saturating_sub(REMEMBERED_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shut_out_of(other: u8) -> Arrival {
        Arrival::Back(format!("{other:02x}").repeat(4))
    }

    #[test]
    fn an_agent_that_is_started_anew_is_no_copy() {
        let mut instances = Instances::default();
        for (instance, arrival) in [(1, Arrival::First), (2, Arrival::New), (3, Arrival::New)] {
            assert_eq!(instances.arrive(&[instance; 16]), arrival);
            assert_eq!(instances.arrive(&[instance; 16]), Arrival::Same);
        }
    }

    #[test]
    fn of_two_that_take_turns_the_later_one_is_shut_out() {
        let mut instances = Instances::default();
        instances.arrive(&[1; 16]);
        assert_eq!(instances.arrive(&[2; 16]), Arrival::New);
        assert_eq!(instances.arrive(&[1; 16]), shut_out_of(2));
        assert_eq!(instances.arrive(&[2; 16]), Arrival::ShutOut);
        assert_eq!(instances.arrive(&[1; 16]), Arrival::Same);
        // The copy is started anew, and is found out in the same way.
        assert_eq!(instances.arrive(&[3; 16]), Arrival::New);
        assert_eq!(instances.arrive(&[1; 16]), shut_out_of(3));
        assert_eq!(instances.arrive(&[3; 16]), Arrival::ShutOut);
    }

    #[test]
    fn all_that_came_in_the_place_of_one_are_shut_out_with_the_last() {
        let mut instances = Instances::default();
        (0..4).for_each(|instance| drop(instances.arrive(&[instance; 16])));
        assert_eq!(instances.arrive(&[1; 16]), shut_out_of(3));
        assert_eq!(
            [2, 3].map(|instance| instances.arrive(&[instance; 16])),
            [Arrival::ShutOut, Arrival::ShutOut]
        );
        assert_eq!(instances.arrive(&[0; 16]), shut_out_of(1), "the one before it is still known");
    }

    #[test]
    fn a_copy_that_never_stays_takes_no_memory() {
        let mut instances = Instances::default();
        for instance in 0..=u8::try_from(REMEMBERED_MAX).unwrap() + 1 {
            instances.arrive(&[instance; 16]);
        }
        assert_eq!(instances.before.len(), REMEMBERED_MAX);
        assert_eq!(instances.arrive(&[0; 16]), Arrival::New, "forgotten");
        for instance in 100..=101 + u8::try_from(REMEMBERED_MAX).unwrap() {
            instances.arrive(&[instance; 16]);
            instances.arrive(&[0; 16]);
        }
        assert_eq!(instances.shut_out.len(), REMEMBERED_MAX);
    }
}
