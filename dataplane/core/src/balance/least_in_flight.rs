//! Least in flight: the endpoint with the fewest exchanges in flight for its weight. Among equals it goes by smooth
//! weighted round robin, so that a quiet cluster is used evenly too.
//!
//! It counts this worker's exchanges. With many workers each evens out its own share, which evens out the whole.

use super::{Endpoints, Tried, WeightedRoundRobin, may_take, weight};

/// The rotation among equals.
#[derive(Clone, Debug)]
pub struct LeastInFlight {
    equals: WeightedRoundRobin,
}

impl LeastInFlight {
    pub(super) fn new(start: usize) -> Self {
        LeastInFlight { equals: WeightedRoundRobin::new(start) }
    }

    pub(super) fn pick(&mut self, endpoints: &impl Endpoints, tried: &Tried) -> Option<usize> {
        let len = endpoints.len();
        let mut least: Option<Load> = None;
        let mut equals = 0_usize;
        let mut picked = None;
        for endpoint in (0..len).filter(|endpoint| may_take(endpoints, tried, *endpoint)) {
            let load = Load::of(endpoints, endpoint);
            match least {
                Some(least) if least.is_less_than(load) => continue,
                Some(least) if !load.is_less_than(least) => equals += 1,
                Some(_) | None => {
                    least = Some(load);
                    picked = Some(endpoint);
                    equals = 1;
                }
            }
        }
        if equals <= 1 {
            return picked;
        }
        let least = least?;
        self.equals.pick_among(len, endpoints, |endpoint| {
            may_take(endpoints, tried, endpoint) && !least.is_less_than(Load::of(endpoints, endpoint))
        })
    }

    pub(super) fn carry_over(&mut self, kept: &[Option<usize>]) {
        self.equals.carry_over(kept);
    }
}

/// Exchanges in flight per weight, a fraction compared without dividing.
#[derive(Clone, Copy)]
struct Load {
    in_flight: i64,
    weight: i64,
}

impl Load {
    fn of(endpoints: &impl Endpoints, endpoint: usize) -> Self {
        Load { in_flight: i64::from(endpoints.in_flight(endpoint)), weight: weight(endpoints, endpoint) }
    }

    fn is_less_than(self, other: Self) -> bool {
        // a/b < c/d is a·d < c·b for b, d > 0; both are below 2^32, so the product fits in 63 bits but for the
        // corner where both are near their maximum, which saturates.
        self.in_flight.saturating_mul(other.weight) < other.in_flight.saturating_mul(self.weight)
    }
}
