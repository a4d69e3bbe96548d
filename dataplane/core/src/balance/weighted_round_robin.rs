//! Smooth weighted round robin, the algorithm of nginx: weights 5, 1, 1 give a a b a c a a, not a a a a a b c.
//!
//! At each pick every candidate gains its weight; the one with the most is picked and pays what all gained together.
//! The sum stays the same, so over a run of that length each is picked exactly as often as its weight says.

use super::{Endpoints, Tried, may_take, weight};

/// What each endpoint has gained and not spent.
#[derive(Clone, Debug)]
pub struct WeightedRoundRobin {
    credits: Vec<i64>,
    /// Picks still to be made up front, see `Balancer::new`.
    ahead: usize,
}

impl WeightedRoundRobin {
    pub(super) fn new(start: usize) -> Self {
        WeightedRoundRobin { credits: Vec::new(), ahead: start }
    }

    pub(super) fn pick(&mut self, endpoints: &impl Endpoints, tried: &Tried) -> Option<usize> {
        self.pick_among(endpoints.len(), endpoints, |endpoint| may_take(endpoints, tried, endpoint))
    }

    /// Picks among those endpoints that are a `candidate`.
    pub(super) fn pick_among(
        &mut self,
        len: usize,
        endpoints: &impl Endpoints,
        candidate: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.credits.len() != len {
            // Allocates only when the endpoints have changed.
            self.credits.resize(len, 0);
        }
        for _ in 0..std::mem::take(&mut self.ahead).min(len) {
            self.turn(endpoints, &candidate);
        }
        self.turn(endpoints, &candidate)
    }

    fn turn(&mut self, endpoints: &impl Endpoints, candidate: &impl Fn(usize) -> bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (endpoint, credit) in self.credits.iter_mut().enumerate() {
            if !candidate(endpoint) {
                continue;
            }
            let weight = weight(endpoints, endpoint);
            *credit += weight;
            total += weight;
            if best.is_none_or(|(_, most)| *credit > most) {
                best = Some((endpoint, *credit));
            }
        }
        let (picked, _) = best?;
        self.credits[picked] -= total;
        Some(picked)
    }

    /// Endpoints that stay keep what they gained; a new one begins with nothing.
    pub(super) fn carry_over(&mut self, kept: &[Option<usize>]) {
        let credit = |old: &Option<usize>| old.and_then(|old| self.credits.get(old).copied()).unwrap_or(0);
        self.credits = kept.iter().map(credit).collect();
    }
}
