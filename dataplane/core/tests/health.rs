//! Claims about active health checks: rise and fall, and when probes are due.

use std::time::Duration;

use dataplane_core::health::{HealthMachine, ProbeStep, Transition};
use proptest::prelude::*;
use proto::config::{Health, HealthKind};

const INTERVAL: Duration = Duration::from_secs(5);

fn config(healthy_after: u32, unhealthy_after: u32) -> Health {
    let timeout = Duration::from_secs(1);
    Health { kind: HealthKind::Tcp, interval: INTERVAL, timeout, healthy_after, unhealthy_after }
}

fn machine(healthy_after: u32, unhealthy_after: u32) -> HealthMachine {
    HealthMachine::new(&config(healthy_after, unhealthy_after), 1, Duration::ZERO)
}

/// Times at which an endpoint with this seed is probed, each probe answered at once.
fn probe_times(seed: u64, begin: Duration, count: usize) -> Vec<Duration> {
    let mut machine = HealthMachine::new(&config(1, 1), seed, begin);
    let mut now = begin;
    let mut times = Vec::new();
    while times.len() < count {
        match machine.poll_next(now) {
            ProbeStep::Start => {
                times.push(now);
                assert_eq!(machine.handle_probe(true), None);
            }
            ProbeStep::WaitUntil(due) => {
                assert!(due > now, "it never asks to wait for what has passed");
                now = due;
            }
            ProbeStep::Probing => panic!("no probe is on its way"),
        }
    }
    times
}

#[test]
fn begins_healthy_and_falls_after_enough_failures_in_a_row() {
    let mut machine = machine(2, 3);
    assert!(machine.is_healthy());
    let results = [false, false, true, false, false, false, false];
    let transitions: Vec<_> = results.into_iter().map(|is_good| machine.handle_probe(is_good)).collect();
    let fell = Some(Transition::BecameUnhealthy);
    assert_eq!(transitions, [None, None, None, None, None, fell, None], "a good probe begins the count anew");
    assert!(!machine.is_healthy());
}

#[test]
fn rises_after_enough_successes_in_a_row() {
    let mut machine = machine(2, 1);
    assert_eq!(machine.handle_probe(false), Some(Transition::BecameUnhealthy));
    let results = [true, false, true, true, true];
    let transitions: Vec<_> = results.into_iter().map(|is_good| machine.handle_probe(is_good)).collect();
    assert_eq!(transitions, [None, None, None, Some(Transition::BecameHealthy), None]);
    assert!(machine.is_healthy());
}

#[test]
fn probes_an_endpoint_once_at_a_time() {
    let mut machine = machine(1, 1);
    assert_eq!(machine.poll_next(INTERVAL), ProbeStep::Start);
    assert_eq!(machine.poll_next(INTERVAL * 10), ProbeStep::Probing);
    machine.handle_probe(true);
    assert_eq!(machine.poll_next(INTERVAL * 10), ProbeStep::Start, "it is overdue by now");
}

#[test]
fn does_not_make_up_for_missed_probes_and_keeps_its_place() {
    let times = probe_times(9, Duration::ZERO, 3);
    let mut machine = HealthMachine::new(&config(1, 1), 9, Duration::ZERO);
    let late = times[2] + INTERVAL * 7 + Duration::from_millis(1);
    assert_eq!(machine.poll_next(late), ProbeStep::Start);
    machine.handle_probe(true);
    assert_eq!(machine.poll_next(late), ProbeStep::WaitUntil(times[2] + INTERVAL * 8));
}

#[test]
fn spreads_the_probes_of_many_endpoints() {
    let times: Vec<_> = (0..1_000).map(|seed| probe_times(seed, Duration::ZERO, 5)).collect();
    let busiest_tenth_of_a_second = |nth: usize| {
        let mut slots = std::collections::BTreeMap::new();
        times.iter().for_each(|each| *slots.entry(each[nth].as_millis() / 100).or_insert(0) += 1);
        slots.into_values().max().unwrap_or(0)
    };
    // Five slots of a tenth of a second for the first, 25 (at least) for all later ones.
    assert!(busiest_tenth_of_a_second(0) < 300);
    assert!(busiest_tenth_of_a_second(1) < 80);
    assert!(busiest_tenth_of_a_second(4) < 80);
}

#[test]
fn a_shorter_interval_takes_effect_at_once_and_what_is_known_stays() {
    let mut machine = machine(1, 2);
    assert_eq!(machine.poll_next(INTERVAL), ProbeStep::Start);
    assert_eq!(machine.handle_probe(false), None);
    let interval = Duration::from_millis(10);
    machine.reconfigure(&Health { interval, ..config(1, 2) }, INTERVAL);
    assert_eq!(machine.poll_next(INTERVAL + interval), ProbeStep::Start);
    assert_eq!(
        machine.handle_probe(false),
        Some(Transition::BecameUnhealthy),
        "the first failure still counts"
    );
}

proptest! {
    #[test]
    fn first_probe_is_soon_and_no_two_are_further_apart_than_the_interval(seed: u64, begin_ms in 0_u64..1_000_000) {
        let begin = Duration::from_millis(begin_ms);
        let times = probe_times(seed, begin, 6);
        prop_assert!(times[0] - begin <= INTERVAL / 10);
        prop_assert!(times[1] - times[0] >= INTERVAL / 2 && times[1] - times[0] <= INTERVAL);
        prop_assert!(times[1..].windows(2).all(|pair| pair[1] - pair[0] == INTERVAL));
        prop_assert_eq!(&times, &probe_times(seed, begin, 6), "the same seed gives the same times");
    }

    /// The machine against its definition: it changes when the last `n` results all contradict it.
    #[test]
    fn changes_exactly_when_enough_results_in_a_row_contradict_it(
        rise in 1_u32..5, fall in 1_u32..5, results in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut machine = machine(rise, fall);
        let mut healthy = true;
        let mut since_change: Vec<bool> = Vec::new();
        for result in results {
            since_change.push(result);
            let needed = if healthy { fall } else { rise } as usize;
            let contrary = since_change.iter().rev().take_while(|result| **result != healthy).count();
            let expected = (contrary >= needed).then(|| {
                healthy = !healthy;
                since_change.clear();
                if healthy { Transition::BecameHealthy } else { Transition::BecameUnhealthy }
            });
            prop_assert_eq!(machine.handle_probe(result), expected);
            prop_assert_eq!(machine.is_healthy(), healthy);
        }
    }
}
