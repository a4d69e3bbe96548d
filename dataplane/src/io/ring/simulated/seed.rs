//! Seeds: a run of a simulation depends on nothing but its seed.
//!
//! A failing run prints its seed. `MILLRACE_SEED=n` replays that one, `MILLRACE_SEEDS=n` runs the first n, and with
//! `MILLRACE_GO_ON` set a failure does not end the others.

use std::ops::RangeInclusive;

/// Numbers that follow from a seed (SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        random.next();
        random
    }

    /// Another sequence, which follows from this one.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }

    /// One of `range`.
    pub(crate) fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        let (first, last) = range.into_inner();
        first + (self.next() % (last - first + 1) as u64) as usize
    }

    /// One of `count` numbers from 0 up; 0 if there are none.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        if count == 0 { 0 } else { self.within(0..=count - 1) }
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A length from 1 to `most`: as often all of it as little of it.
    pub(crate) fn length(&mut self, most: usize) -> usize {
        match self.below(4) {
            0 => most,
            1 => self.within(1..=most.min(16)),
            _ => self.within(1..=most),
        }
    }

    /// One of these.
    pub(crate) fn of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[self.below(N)]
    }

    /// Puts them in another order.
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for index in (1..things.len()).rev() {
            things.swap(index, self.below(index + 1));
        }
    }
}

/// A number that looks nothing like its neighbours'.
pub(super) fn mixed(number: u64) -> u64 {
    let mut mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// `count` bytes of the endless sequence `name`, from its byte `from` on.
pub(crate) fn pattern(name: u64, from: usize, count: usize) -> Vec<u8> {
    let first = from / 8;
    let words = (first..=(from + count) / 8).flat_map(|word| mixed(name << 40 ^ word as u64).to_le_bytes());
    words.skip(from % 8).take(count).collect()
}

/// Runs `story` with so many seeds, or with those that the environment asks for; each on a thread of its own, since a
/// runtime keeps much in thread-local places.
pub(crate) fn each_seed(count: u64, story: fn(u64)) {
    let asked = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seeds = match asked("MILLRACE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("MILLRACE_SEEDS").unwrap_or(count),
    };
    let is_told_to_go_on = std::env::var_os("MILLRACE_GO_ON").is_some();
    let mut failed = Vec::new();
    for seed in seeds {
        let run = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || story(seed));
        if run.expect("a thread for the run").join().is_err() {
            failed.push(seed);
            if !is_told_to_go_on {
                break;
            }
        }
    }
    assert!(
        failed.is_empty(),
        "failed with the seeds {failed:?}: replay one with MILLRACE_SEED={}",
        failed[0]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.next()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
