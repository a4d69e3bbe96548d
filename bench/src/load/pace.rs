//! When requests are to be sent: a sequence of times that is fixed before the run and asks nobody how the server does.
//! It has no clock. Two cursors over the same schedule give the same times, so that the queue of requests that wait
//! for a free connection needs no memory: one cursor stands at the next arrival, the other at the next one to be sent.

use serde::{Deserialize, Serialize};

use crate::record::Arrivals;

/// The arrivals of one process. Nanoseconds from the start of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) arrivals: Arrivals,
    /// Mean distance of two arrivals.
    pub(crate) interval_ns: f64,
    /// The first arrival of a constant rate, so that the processes take turns.
    pub(crate) offset_ns: f64,
    pub(crate) seed: u64,
    /// No arrival at this time or later.
    pub(crate) until_ns: u64,
    /// No more arrivals than these.
    pub(crate) count_max: u64,
}

/// A cursor over a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    schedule: Schedule,
    index: u64,
    at_ns: f64,
    random: u64,
}

/// The requests whose time has come and that are not yet sent: what lies between two cursors.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    due: Pace,
    unsent: Pace,
    waiting: u64,
}

impl Queue {
    pub(crate) fn new(schedule: Schedule) -> Self {
        let due = Pace::new(schedule);
        Self { unsent: due.clone(), due, waiting: 0 }
    }

    /// The time of the next arrival; `None` behind the last one.
    pub(crate) fn next_arrival_ns(&self) -> Option<u64> {
        self.due.next_ns()
    }

    /// Takes in the next arrival if its time has come.
    pub(crate) fn admit(&mut self, now_ns: u64) -> Option<u64> {
        let at_ns = self.due.next_ns().filter(|at_ns| *at_ns <= now_ns)?;
        self.due.advance();
        self.waiting += 1;
        Some(at_ns)
    }

    /// The time at which the oldest of those that wait was to be sent.
    pub(crate) fn oldest_ns(&self) -> Option<u64> {
        self.unsent.next_ns().filter(|_| self.waiting > 0)
    }

    /// The oldest of those that wait is sent, or given up.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let at_ns = self.oldest_ns()?;
        self.unsent.advance();
        self.waiting -= 1;
        Some(at_ns)
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }
}

impl Schedule {
    /// So many arrivals at equal distances over a time.
    pub(crate) fn spread(count: u64, over_ns: u64) -> Self {
        Self {
            arrivals: Arrivals::Constant,
            interval_ns: over_ns as f64 / count.max(1) as f64,
            offset_ns: 0.0,
            seed: 0,
            until_ns: u64::MAX,
            count_max: count,
        }
    }
}

impl Pace {
    pub(crate) fn new(schedule: Schedule) -> Self {
        let mut pace = Self { index: 0, at_ns: schedule.offset_ns, random: schedule.seed, schedule };
        if pace.schedule.arrivals == Arrivals::Poisson {
            pace.at_ns = pace.distance();
        }
        pace
    }

    /// The time at which the cursor stands; `None` behind the last arrival.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let at_ns = self.at_ns as u64;
        (self.index < self.schedule.count_max && at_ns < self.schedule.until_ns).then_some(at_ns)
    }

    pub(crate) fn advance(&mut self) {
        self.index += 1;
        self.at_ns = match self.schedule.arrivals {
            // From the index, not from the last time: sums of rounded distances would drift.
            Arrivals::Constant => self.schedule.offset_ns + self.index as f64 * self.schedule.interval_ns,
            Arrivals::Poisson => self.at_ns + self.distance(),
        };
    }

    /// Exponentially distributed with the mean of the schedule, by inversion.
    fn distance(&mut self) -> f64 {
        let bits = self.next_random() >> 11;
        // In (0, 1]: the logarithm of 0 is none.
        let uniform = (bits + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln() * self.schedule.interval_ns
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(arrivals: Arrivals, rate: f64, seed: u64) -> Schedule {
        Schedule {
            arrivals,
            interval_ns: 1e9 / rate,
            offset_ns: 0.0,
            seed,
            until_ns: 1_000_000_000,
            count_max: u64::MAX,
        }
    }

    fn times(schedule: Schedule) -> Vec<u64> {
        let mut pace = Pace::new(schedule);
        std::iter::from_fn(|| {
            let at = pace.next_ns();
            pace.advance();
            at
        })
        .collect()
    }

    #[test]
    fn a_constant_rate_neither_drifts_nor_runs_over() {
        let times = times(schedule(Arrivals::Constant, 3000.0, 0));
        assert_eq!(times.len(), 3000);
        assert_eq!((times[0], times[1500], times[2999]), (0, 500_000_000, 999_666_666));
    }

    #[test]
    fn a_count_ends_the_schedule_before_its_time() {
        let times = times(Schedule { count_max: 5, ..schedule(Arrivals::Constant, 100.0, 0) });
        assert_eq!(times, [0, 10_000_000, 20_000_000, 30_000_000, 40_000_000]);
    }

    #[test]
    fn what_waits_keeps_the_time_it_was_meant_for() {
        let mut queue = Queue::new(schedule(Arrivals::Poisson, 100.0, 7));
        let mut admitted = Vec::new();
        while let Some(at) = queue.admit(500_000_000) {
            admitted.push(at);
        }
        assert_eq!(queue.waiting(), admitted.len() as u64);
        assert!(queue.next_arrival_ns().is_some_and(|at| at > 500_000_000));
        let taken: Vec<u64> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!((taken, queue.waiting()), (admitted, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn poisson_arrivals_have_their_rate_their_spread_and_their_seed(seed in any::<u64>()) {
            let wanted = schedule(Arrivals::Poisson, 20_000.0, seed);
            let times = times(wanted.clone());
            // The count of a second is Poisson distributed too: six standard deviations of its mean.
            prop_assert!((times.len() as f64 - 20_000.0).abs() < 6.0 * 20_000_f64.sqrt(), "{}", times.len());
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
            // Of an exponential distribution 1/e lies above the mean.
            let long = gaps.iter().filter(|gap| **gap > wanted.interval_ns).count() as f64 / gaps.len() as f64;
            prop_assert!((long - (-1_f64).exp()).abs() < 0.03, "{long}");
            prop_assert_eq!(times, self::times(wanted));
        }
    }
}
