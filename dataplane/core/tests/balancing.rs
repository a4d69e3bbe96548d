//! The laws that every balancing policy keeps, run over `Policy::ALL`, and what is particular to each.

use dataplane_core::balance::{Balancer, Endpoints, Tried};
use proptest::prelude::*;
use proto::config::Policy;

#[derive(Clone, Copy, Debug)]
struct Endpoint {
    is_available: bool,
    in_flight: u32,
    weight: u32,
}

struct Cluster(Vec<Endpoint>);

impl Endpoints for Cluster {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn is_available(&self, endpoint: usize) -> bool {
        self.0[endpoint].is_available
    }
    fn in_flight(&self, endpoint: usize) -> u32 {
        self.0[endpoint].in_flight
    }
    fn weight(&self, endpoint: usize) -> u32 {
        self.0[endpoint].weight
    }
}

impl Cluster {
    fn of_weights(weights: &[u32]) -> Self {
        Cluster(weights.iter().map(|w| Endpoint { is_available: true, in_flight: 0, weight: *w }).collect())
    }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(Policy::ALL.to_vec())
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let endpoint = (any::<bool>(), 0_u32..5, 0_u32..10)
        .prop_map(|(is_available, in_flight, weight)| Endpoint { is_available, in_flight, weight });
    prop::collection::vec(endpoint, 0..12).prop_map(Cluster)
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn tried(endpoints: &[usize]) -> Tried {
    let mut tried = Tried::NONE;
    endpoints.iter().for_each(|endpoint| tried.add(*endpoint));
    tried
}

proptest! {
    /// Laws one and two, while the endpoints change under the balancer at every pick.
    #[test]
    fn picks_only_what_may_be_taken_and_always_if_anything_may(
        policy in any_policy(),
        start in 0_usize..40,
        picks in prop::collection::vec((any_cluster(), prop::collection::vec(0_usize..12, 0..Tried::MAX)), 1..50),
    ) {
        let mut balancer = Balancer::new(policy, start);
        for (cluster, excluded) in picks {
            let may_take = |at: usize| cluster.is_available(at) && !excluded.contains(&at);
            match balancer.pick(&cluster, &tried(&excluded)) {
                Some(picked) => prop_assert!(may_take(picked), "{picked} of {cluster:?} without {excluded:?}"),
                None => prop_assert!(!(0..cluster.len()).any(may_take), "none of {cluster:?}"),
            }
        }
    }

    /// Exchanges that never end: what each policy evens out is then the number of picks.
    #[test]
    fn shares_a_long_run_by_weight(
        policy in any_policy(),
        start in 0_usize..20,
        weights in prop::collection::vec(1_u32..20, 1..8),
    ) {
        let mut cluster = Cluster::of_weights(&weights);
        let mut balancer = Balancer::new(policy, start);
        let heeds_weights = !matches!(policy, Policy::RoundRobin);
        let share = |at: usize| if heeds_weights { weights[at] } else { 1 };
        let round: u32 = (0..weights.len()).map(share).sum();
        let mut counts = vec![0_u32; weights.len()];
        for _ in 0..round * 20 {
            let picked = balancer.pick(&cluster, &Tried::NONE).unwrap();
            counts[picked] += 1;
            cluster.0[picked].in_flight += 1;
        }
        for (at, count) in counts.iter().enumerate() {
            let fair = 20 * share(at);
            prop_assert!(count.abs_diff(fair) <= share(at).max(2), "{at} got {count}, fair is {fair}: {counts:?}");
        }
    }

    #[test]
    fn picks_the_same_for_the_same_inputs(
        policy in any_policy(),
        start in 0_usize..20,
        clusters in prop::collection::vec(any_cluster(), 1..50),
    ) {
        let run = || {
            let mut balancer = Balancer::new(policy, start);
            clusters.iter().map(|cluster| balancer.pick(cluster, &Tried::NONE)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }

    /// An endpoint that is down costs the others nothing but its share.
    #[test]
    fn shares_the_turns_of_a_missing_endpoint_evenly(policy in any_policy(), len in 2_usize..8, down in 0_usize..8) {
        let mut cluster = Cluster::of_weights(&vec![1; len]);
        cluster.0[down % len].is_available = false;
        let mut balancer = Balancer::new(policy, 0);
        let mut counts = vec![0_u32; len];
        for _ in 0..(len - 1) * 10 {
            counts[balancer.pick(&cluster, &Tried::NONE).unwrap()] += 1;
        }
        for (at, count) in counts.iter().enumerate() {
            prop_assert_eq!(*count, if at == down % len { 0 } else { 10 });
        }
    }
}

#[test]
fn picks_nothing_when_nothing_is_available() {
    for policy in Policy::ALL {
        let mut cluster = Cluster::of_weights(&[1, 1, 1]);
        cluster.0.iter_mut().for_each(|endpoint| endpoint.is_available = false);
        let mut balancer = Balancer::new(policy, 0);
        assert_eq!(balancer.pick(&cluster, &Tried::NONE), None, "{policy:?}");
        assert_eq!(balancer.pick(&Cluster(Vec::new()), &Tried::NONE), None, "{policy:?}");
    }
}

#[test]
fn workers_that_start_together_start_apart() {
    for policy in Policy::ALL {
        let cluster = Cluster::of_weights(&[1, 1, 1]);
        let first = |start| Balancer::new(policy, start).pick(&cluster, &Tried::NONE);
        assert_eq!(
            [first(0), first(1), first(2), first(3)],
            [Some(0), Some(1), Some(2), Some(0)],
            "{policy:?}"
        );
    }
}

#[test]
fn goes_on_where_it_was_when_endpoints_change() {
    for policy in Policy::ALL {
        let cluster = Cluster::of_weights(&[1, 1, 1]);
        let mut balancer = Balancer::new(policy, 0);
        assert_eq!(balancer.pick(&cluster, &Tried::NONE), Some(0), "{policy:?}");
        // Two new ones in front, the first one gone: the rotation has 1 and 2 to go before anyone gets a second turn.
        balancer.carry_over(&[None, None, Some(1), Some(2)]);
        let cluster = Cluster::of_weights(&[1, 1, 1, 1]);
        let picks: Vec<_> = (0..4).filter_map(|_| balancer.pick(&cluster, &Tried::NONE)).collect();
        assert_eq!(picks[0], 2, "{policy:?}: {picks:?}");
        let mut each = picks.clone();
        each.sort_unstable();
        each.dedup();
        assert!(each.len() >= 3, "{policy:?}: {picks:?}");
    }
}

#[test]
fn forgets_the_oldest_of_too_many_tries() {
    let mut all = Tried::NONE;
    (0..=Tried::MAX).for_each(|endpoint| all.add(endpoint));
    assert!(!all.contains(0));
    assert!((1..=Tried::MAX).all(|endpoint| all.contains(endpoint)));
    assert_eq!(all.count(), Tried::MAX + 1);
}

#[test]
fn weighted_round_robin_interleaves() {
    let cluster = Cluster::of_weights(&[5, 1, 1]);
    let mut balancer = Balancer::new(Policy::WeightedRoundRobin, 0);
    let picks: Vec<_> = (0..7).filter_map(|_| balancer.pick(&cluster, &Tried::NONE)).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn round_robin_goes_on_behind_an_endpoint_that_was_tried() {
    let cluster = Cluster::of_weights(&[1, 1, 1]);
    let mut balancer = Balancer::new(Policy::RoundRobin, 0);
    assert_eq!(balancer.pick(&cluster, &Tried::NONE), Some(0));
    assert_eq!(balancer.pick(&cluster, &tried(&[0, 1])), Some(2));
    assert_eq!(balancer.pick(&cluster, &Tried::NONE), Some(0));
}

#[test]
fn least_in_flight_takes_the_emptiest_for_its_weight() {
    let mut cluster = Cluster::of_weights(&[1, 4, 2]);
    let loads = [2, 7, 4];
    cluster.0.iter_mut().zip(loads).for_each(|(endpoint, load)| endpoint.in_flight = load);
    let mut balancer = Balancer::new(Policy::LeastInFlight, 0);
    assert_eq!(balancer.pick(&cluster, &Tried::NONE), Some(1), "7/4 is less than 2/1 and 4/2");
    assert_eq!(balancer.pick(&cluster, &tried(&[1])), Some(2), "the heavier of two equals");
    assert_eq!(balancer.pick(&cluster, &tried(&[1])), Some(0), "then the other");
}

#[test]
fn least_in_flight_uses_a_quiet_cluster_by_weight() {
    let cluster = Cluster::of_weights(&[3, 1]);
    let mut balancer = Balancer::new(Policy::LeastInFlight, 0);
    let firsts = (0..40).filter(|_| balancer.pick(&cluster, &Tried::NONE) == Some(0)).count();
    assert_eq!(firsts, 30);
}
