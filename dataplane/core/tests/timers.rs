//! The timer wheel against a model: a map from timer to deadline.

use std::collections::BTreeMap;

use dataplane_core::timer::{TimerId, Wheel};
use proptest::prelude::*;

/// No timer fired.
const NONE: [u32; 0] = [];

#[test]
fn fires_at_its_deadline_and_not_before() {
    for distance in [0, 1, 63, 64, 65, 4_095, 4_096, 4_097, 262_144, 1 << 30, 1 << 36, (1 << 36) + 1, 1 << 40]
    {
        for now in [0, 1, 63, 64, 4_095, (1 << 36) - 1, 1 << 36] {
            let mut wheel = Wheel::new(now);
            let timer = wheel.register(7);
            let deadline = now + distance;
            wheel.schedule(timer, deadline);
            if distance > 0 {
                assert_eq!(fired(&mut wheel, deadline - 1), NONE, "{now} + {distance}");
            }
            assert_eq!(fired(&mut wheel, deadline), [7], "{now} + {distance}");
            assert_eq!(wheel.deadline(timer), None);
            assert_eq!(fired(&mut wheel, deadline + 100), NONE);
        }
    }
}

#[test]
fn a_deadline_moved_later_fires_once_and_late() {
    let mut wheel = Wheel::new(0);
    let timer = wheel.register(1);
    (10..1_000).for_each(|deadline| assert!(wheel.schedule(timer, deadline)));
    assert_eq!(fired(&mut wheel, 998), NONE);
    assert_eq!(fired(&mut wheel, 999), [1]);
}

#[test]
fn a_deadline_moved_earlier_fires_early() {
    let mut wheel = Wheel::new(0);
    let timer = wheel.register(1);
    wheel.schedule(timer, 7_500);
    wheel.schedule(timer, 20);
    assert_eq!(fired(&mut wheel, 20), [1]);
    assert_eq!(fired(&mut wheel, 8_000), NONE);
}

#[test]
fn a_deadline_in_the_past_fires_at_the_next_tick() {
    let mut wheel = Wheel::new(0);
    let timer = wheel.register(1);
    assert_eq!(fired(&mut wheel, 100), NONE);
    wheel.schedule(timer, 50);
    assert_eq!(fired(&mut wheel, 100), NONE, "tick 100 has been looked at");
    assert_eq!(fired(&mut wheel, 101), [1]);
}

#[test]
fn a_disarmed_timer_can_be_armed_again() {
    let mut wheel = Wheel::new(0);
    let timer = wheel.register(1);
    wheel.schedule(timer, 10);
    assert!(wheel.disarm(timer));
    assert_eq!((wheel.deadline(timer), fired(&mut wheel, 10)), (None, vec![]));
    wheel.schedule(timer, 20);
    assert_eq!((wheel.deadline(timer), fired(&mut wheel, 20)), (Some(20), vec![1]));
}

#[test]
fn a_removed_timer_never_fires_and_its_id_is_dead() {
    let mut wheel = Wheel::new(0);
    let old = wheel.register(1);
    wheel.schedule(old, 10);
    assert!(wheel.remove(old));
    let new = wheel.register(2);
    assert_ne!(old, new, "the place is used again, the id is not");
    assert!(!wheel.schedule(old, 5) && !wheel.disarm(old) && !wheel.remove(old));
    assert_eq!(wheel.deadline(old), None);
    wheel.schedule(new, 10);
    assert_eq!(fired(&mut wheel, 20), [2]);
    assert_eq!(wheel.len(), 1);
}

#[test]
fn says_when_to_wake_up() {
    let mut wheel = Wheel::new(0);
    assert_eq!(wheel.next_wake(), None);
    let timer = wheel.register(1);
    assert_eq!(wheel.next_wake(), None, "not armed");
    wheel.schedule(timer, 5);
    assert_eq!(wheel.next_wake(), Some(5));
    wheel.disarm(timer);
    fired(&mut wheel, 5);
    assert_eq!(wheel.next_wake(), None);
    wheel.schedule(timer, 50);
    wheel.schedule(timer, 40);
    assert_eq!(wheel.next_wake(), Some(40));
    wheel.remove(timer);
    assert_eq!(wheel.next_wake(), None, "nothing wakes for a removed timer");
}

/// Tick 64 begins both a slot of 64 ticks, where the first timer waits, and a turn of single ticks, where the second
/// is filed: the first must not wait behind it.
#[test]
fn a_timer_filed_long_ago_does_not_wait_behind_one_filed_now() {
    let mut wheel = Wheel::new(0);
    let (first, second) = (wheel.register(1), wheel.register(2));
    wheel.schedule(first, 70);
    assert_eq!(fired(&mut wheel, 63), NONE);
    wheel.schedule(second, 80);
    assert_eq!(wheel.next_wake(), Some(64));
    assert_eq!(fired(&mut wheel, 70), [1]);
    assert_eq!(fired(&mut wheel, 80), [2]);
}

/// Re-arming is the common case: a hundred thousand idle deadlines, each moved a hundred times. Moved within their
/// slots they cost a store; a wheel that searched or sorted would not get through this in any time.
#[test]
fn keeps_a_hundred_thousand_moving_deadlines() {
    let mut wheel = Wheel::new(0);
    let timers: Vec<TimerId> = (0..100_000).map(|key| wheel.register(key)).collect();
    for now in 0..100_u64 {
        timers.iter().for_each(|timer| assert!(wheel.schedule(*timer, now + 7_500)));
        assert_eq!(fired(&mut wheel, now), NONE);
    }
    assert_eq!(fired(&mut wheel, 99 + 7_499), NONE);
    assert_eq!(fired(&mut wheel, 99 + 7_500).len(), timers.len());
}

#[derive(Clone, Debug)]
enum Step {
    Register,
    Schedule(usize, u64),
    Disarm(usize),
    Remove(usize),
    Advance(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let distance = prop_oneof![4 => 0_u64..70, 3 => 0_u64..10_000, 1 => 0_u64..(1 << 38)];
    let advance = prop_oneof![4 => 1_u64..5, 4 => 1_u64..200, 2 => 1_u64..20_000, 1 => 1_u64..(1 << 37)];
    prop_oneof![
        1 => Just(Step::Register),
        6 => (any::<usize>(), distance).prop_map(|(timer, distance)| Step::Schedule(timer, distance)),
        1 => any::<usize>().prop_map(Step::Disarm),
        1 => any::<usize>().prop_map(Step::Remove),
        3 => advance.prop_map(Step::Advance),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn fires_what_a_sorted_map_would(origin in 0_u64..(1 << 37), steps in prop::collection::vec(any_step(), 1..200)) {
        let mut now = origin;
        let mut wheel = Wheel::new(now);
        let mut ids: Vec<TimerId> = Vec::new();
        // Key to deadline; a key is the place in `ids`, never used twice.
        let mut model: BTreeMap<u32, Option<u64>> = BTreeMap::new();
        for step in steps {
            let known = |at: usize, ids: &[TimerId]| (!ids.is_empty()).then(|| at % ids.len());
            match step {
                Step::Register => {
                    let key = u32::try_from(ids.len()).unwrap();
                    ids.push(wheel.register(key));
                    model.insert(key, None);
                }
                Step::Schedule(at, distance) => {
                    // Up to 35 ticks into the past.
                    let deadline = (now + distance).saturating_sub(35);
                    let Some(at) = known(at, &ids) else { continue };
                    let armed = model.get_mut(&(at as u32)).map(|entry| *entry = Some(deadline)).is_some();
                    prop_assert_eq!(wheel.schedule(ids[at], deadline), armed);
                }
                Step::Disarm(at) => {
                    let Some(at) = known(at, &ids) else { continue };
                    let known = model.get_mut(&(at as u32)).map(|entry| *entry = None).is_some();
                    prop_assert_eq!(wheel.disarm(ids[at]), known);
                }
                Step::Remove(at) => {
                    let Some(at) = known(at, &ids) else { continue };
                    prop_assert_eq!(wheel.remove(ids[at]), model.remove(&(at as u32)).is_some());
                }
                Step::Advance(by) => {
                    now += by;
                    let due = |deadline: &Option<u64>| deadline.is_some_and(|deadline| deadline <= now);
                    let expected: Vec<u32> = model.iter().filter(|(_, d)| due(d)).map(|(key, _)| *key).collect();
                    model.values_mut().filter(|d| due(d)).for_each(|deadline| *deadline = None);
                    prop_assert_eq!(fired(&mut wheel, now), expected);
                }
            }
            prop_assert_eq!(wheel.len(), model.len());
            let first = model.values().flatten().min();
            let wake = wheel.next_wake();
            prop_assert!(first.is_none_or(|first| wake.is_some_and(|wake| wake <= (*first).max(now + 1))));
        }
    }
}

fn fired(wheel: &mut Wheel, now: u64) -> Vec<u32> {
    let mut keys = Vec::new();
    wheel.advance(now, |key| keys.push(key));
    keys.sort_unstable();
    keys
}
