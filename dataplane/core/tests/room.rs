//! Claims about whose place a newcomer gets: in the order that is said, a few at a time, and never a client that is busy.

use dataplane_core::room::{BATCH_MAX, IDLE_AFTER_TICKS, Longest, Rank};
use proptest::prelude::*;

const MOMENT: u64 = IDLE_AFTER_TICKS;

/// Those that go, of clients with these silences, and whether each has asked before.
fn going(connections: usize, clients: &[(u64, bool)]) -> Vec<usize> {
    let mut longest = Longest::of(connections);
    for (index, (silent, has_asked)) in clients.iter().enumerate() {
        if let Some(rank) = Rank::of(*silent, *has_asked) {
            longest.offer(rank, index);
        }
    }
    longest.into_items().collect()
}

#[test]
fn who_never_asked_goes_before_who_was_served_and_the_longest_silent_first() {
    let clients = [(MOMENT, true), (5 * MOMENT, true), (MOMENT, false), (2 * MOMENT, false), (0, false)];
    assert_eq!(going(640, &clients), [3, 2, 1, 0]);
    assert_eq!(going(64, &clients), [3]);
}

#[test]
fn a_client_that_was_just_answered_stays() {
    assert_eq!(going(640, &[(0, true), (MOMENT - 1, true)]), [0_usize; 0]);
    assert_eq!(going(640, &[(0, true), (MOMENT, true)]), [1]);
}

#[test]
fn a_newcomer_takes_the_place_of_one_that_has_not_asked_yet_only_where_nobody_is_idle_and_of_one_alone() {
    assert_eq!(going(640, &[(3, false), (4, false), (5, true)]), [1]);
    assert_eq!(going(640, &[(3, false), (4, false), (MOMENT, true)]), [2]);
}

#[test]
fn many_connections_give_up_more_at_once_and_never_too_many() {
    let clients = vec![(MOMENT, true); 10_000];
    for (connections, most) in [(0, 1), (1, 1), (64, 1), (65, 2), (640, 10), (1_000_000, BATCH_MAX)] {
        assert_eq!(going(connections, &clients).len(), most, "{connections}");
    }
}

proptest! {
    #[test]
    fn those_that_go_are_the_first_of_all_in_the_order(clients in prop::collection::vec((0..3 * MOMENT, any::<bool>()), 0..200), connections in 0..4000_usize) {
        let rank = |index: &usize| Rank::of(clients[*index].0, clients[*index].1);
        let gone = going(connections, &clients);
        let mut all: Vec<Rank> = (0..clients.len()).filter_map(|index| rank(&index)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let ranks: Vec<Rank> = gone.iter().filter_map(rank).collect();
        prop_assert_eq!(&ranks[..], &all[..gone.len()]);
        prop_assert_eq!(gone.is_empty(), all.is_empty());
        prop_assert!(gone.iter().collect::<std::collections::HashSet<_>>().len() == gone.len());
    }
}
