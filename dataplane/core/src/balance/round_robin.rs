//! Round robin: each endpoint in turn, whatever its weight. An endpoint that cannot be taken is passed over, and its
//! turns are shared by all the others.

use super::{Endpoints, Tried, may_take};

/// Where the rotation stands.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    pub(super) fn new(start: usize) -> Self {
        RoundRobin { next: start }
    }

    pub(super) fn pick(&mut self, endpoints: &impl Endpoints, tried: &Tried) -> Option<usize> {
        let len = endpoints.len();
        let start = if self.next < len { self.next } else { self.next.checked_rem(len)? };
        let mut turns = (start..len).chain(0..start);
        let picked = turns.find(|endpoint| may_take(endpoints, tried, *endpoint))?;
        self.next = if picked + 1 < len { picked + 1 } else { 0 };
        Some(picked)
    }

    /// Goes on with the first endpoint that has not had its turn and is still there.
    pub(super) fn carry_over(&mut self, kept: &[Option<usize>]) {
        let coming = kept.iter().enumerate().filter_map(|(new, old)| old.map(|old| (old, new)));
        let next = coming.filter(|(old, _)| *old >= self.next).min().map_or(0, |(_, new)| new);
        self.next = next;
    }
}
