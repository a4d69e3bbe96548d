//! Who has won: the rule alone, on numbers. A row is won or lost only where ranges do not overlap, whatever the medians
//! say; everything else is level.

use serde::{Deserialize, Serialize};

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Costs and times.
    Lower,
    /// Rates.
    Higher,
}

/// The values of several rounds in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Least.
    pub min: f64,
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// Greatest.
    pub max: f64,
}

/// How we stand against all rivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Our worst round is better than every rival's best.
    Won,
    /// Some ranges overlap, and nobody's worst round is better than our best.
    Level,
    /// Some rival's worst round is better than our best.
    Lost,
    /// We have no figure, or not one of every round: that is no win, whatever the rivals did.
    Failed,
    /// No rival has figures of every round, so there is nobody to win against.
    NoRival,
}

impl Range {
    /// `None` without values, or with one that is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        if sorted.iter().any(|value| !value.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { min, median, max })
    }

    /// Whether every value here is better than every value there.
    pub fn beats(self, other: Self, better: Better) -> bool {
        match better {
            Better::Lower => self.max < other.min,
            Better::Higher => self.min > other.max,
        }
    }

    /// Whether the median is better; on equal medians neither is.
    pub fn leads(self, other: Self, better: Better) -> bool {
        match better {
            Better::Lower => self.median < other.median,
            Better::Higher => self.median > other.median,
        }
    }

    /// Median by median; `None` where that says nothing, around zero.
    pub fn ratio(self, other: Self) -> Option<f64> {
        (self.median > 0.0 && other.median > 0.0).then(|| self.median / other.median)
    }
}

/// Judges our range against those of the rivals.
pub fn judge(ours: Option<Range>, rivals: &[Range], better: Better) -> Verdict {
    let Some(ours) = ours else { return Verdict::Failed };
    if rivals.is_empty() {
        Verdict::NoRival
    } else if rivals.iter().any(|rival| rival.beats(ours, better)) {
        Verdict::Lost
    } else if rivals.iter().all(|rival| ours.beats(*rival, better)) {
        Verdict::Won
    } else {
        Verdict::Level
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(values: &[f64]) -> Range {
        Range::of(values).unwrap()
    }

    #[test]
    fn medians_are_of_sorted_values() {
        assert_eq!(range(&[3.0, 1.0, 2.0]), Range { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(range(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Range::of(&[]), None);
        assert_eq!(Range::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ranges_that_touch_are_level() {
        let (ours, rival) = (range(&[8.0, 9.0, 10.0]), range(&[10.0, 12.0]));
        assert_eq!(judge(Some(ours), &[rival], Better::Lower), Verdict::Level);
        let apart = range(&[10.1, 12.0]);
        assert_eq!(judge(Some(ours), &[apart], Better::Lower), Verdict::Won);
        assert_eq!(judge(Some(ours), &[apart], Better::Higher), Verdict::Lost);
    }

    #[test]
    fn a_win_is_against_every_rival() {
        let ours = range(&[8.0, 9.0]);
        let (slow, near) = (range(&[20.0, 21.0]), range(&[9.0, 30.0]));
        assert_eq!(judge(Some(ours), &[slow, near], Better::Lower), Verdict::Level);
        assert_eq!(judge(Some(ours), &[slow], Better::Lower), Verdict::Won);
        let fast = range(&[1.0, 7.9]);
        assert_eq!(judge(Some(ours), &[slow, fast], Better::Lower), Verdict::Lost);
    }

    #[test]
    fn nothing_is_no_win() {
        assert_eq!(judge(None, &[], Better::Lower), Verdict::Failed);
        assert_eq!(judge(None, &[range(&[1.0])], Better::Lower), Verdict::Failed);
        assert_eq!(judge(Some(range(&[1.0])), &[], Better::Lower), Verdict::NoRival);
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.1..100.0_f64, 1..7)
    }

    proptest! {
        #[test]
        fn the_order_of_rounds_and_rivals_is_nothing(
            mut ours in values(), mut rivals in prop::collection::vec(values(), 1..4)
        ) {
            let judged = |ours: &[f64], rivals: &[Vec<f64>]| {
                let rivals: Vec<Range> = rivals.iter().map(|values| range(values)).collect();
                judge(Some(range(ours)), &rivals, Better::Lower)
            };
            let before = judged(&ours, &rivals);
            ours.reverse();
            rivals.reverse();
            prop_assert_eq!(before, judged(&ours, &rivals));
        }

        #[test]
        fn what_one_wins_the_other_loses(ours in values(), rival in values()) {
            let (ours, rival) = (range(&ours), range(&rival));
            let turned = match judge(Some(rival), &[ours], Better::Lower) {
                Verdict::Won => Verdict::Lost,
                Verdict::Lost => Verdict::Won,
                same @ (Verdict::Level | Verdict::Failed | Verdict::NoRival) => same,
            };
            prop_assert_eq!(judge(Some(ours), &[rival], Better::Lower), turned);
        }

        #[test]
        fn upside_down_is_the_same_by_the_other_rule(ours in values(), rival in values()) {
            let negated = |values: &[f64]| range(&values.iter().map(|value| -value).collect::<Vec<_>>());
            prop_assert_eq!(
                judge(Some(range(&ours)), &[range(&rival)], Better::Lower),
                judge(Some(negated(&ours)), &[negated(&rival)], Better::Higher)
            );
        }

        #[test]
        fn one_more_round_makes_no_victory(ours in values(), rival in values(), more in 0.1..100.0_f64) {
            let won = |ours: &[f64]| judge(Some(range(ours)), &[range(&rival)], Better::Lower) == Verdict::Won;
            let longer: Vec<f64> = ours.iter().copied().chain([more]).collect();
            prop_assert!(!won(&longer) || won(&ours));
        }
    }
}
