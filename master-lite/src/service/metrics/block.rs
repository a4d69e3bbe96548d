//! Many points in little room. A block is written column by column, since one figure of a node is much like itself a
//! minute before: of each value only the difference to the one before it is kept, and of what does not change nothing
//! but for how long. A busy node's point takes a third of what it takes by itself.
//!
//! Figures that are counts are kept exactly. Buckets keep eight bits above 255 (a part in 256, far less than what a
//! bucket leaves open), fractions and the network's bytes twelve (a part in four thousand).

use super::point::{BoundSets, Point, Record};

/// Points that are no longer added to, oldest first.
#[derive(Debug)]
pub(super) struct Block {
    /// Which stretch the oldest is of.
    pub(super) first_slot: u64,
    /// And the newest.
    pub(super) last_slot: u64,
    /// How many there are.
    pub(super) points: usize,
    bytes: Box<[u8]>,
}

impl Block {
    /// Packs records of rising slots.
    pub(super) fn pack(records: &[Record]) -> Self {
        let widths = Record::widths(records);
        let rows: Vec<Vec<u64>> = records.iter().map(|record| record.row(&widths)).collect();
        let mut writer = Writer::default();
        widths.iter().for_each(|width| writer.number(*width as u64));
        for column in 0..rows.first().map_or(0, Vec::len) {
            let mut before = 0;
            for row in &rows {
                writer.step(zigzag(row[column].wrapping_sub(before)));
                before = row[column];
            }
        }
        Self {
            first_slot: records.first().map_or(0, |record| record.slot),
            last_slot: records.last().map_or(0, |record| record.slot),
            points: records.len(),
            bytes: writer.finish(),
        }
    }

    /// The points again, each with the stretch that it is of.
    pub(super) fn visit(&self, sets: &BoundSets, mut visit: impl FnMut(u64, Point)) {
        let mut reader = Reader { bytes: &self.bytes, still: 0 };
        let widths = [(); Record::WIDTHS].map(|()| usize::try_from(reader.number()).unwrap_or(0));
        let columns = Record::columns(&widths);
        let mut rows = vec![0; columns * self.points];
        for column in 0..columns {
            let mut before = 0_u64;
            for number in rows.iter_mut().skip(column).step_by(columns) {
                before = before.wrapping_add(unzigzag(reader.step()));
                *number = before;
            }
        }
        for row in rows.chunks_exact(columns) {
            let (slot, point) = Record::point_of_row(row, &widths, sets);
            visit(slot, point);
        }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

/// Small differences become small numbers, whichever way they go.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ if difference >> 63 == 1 { u64::MAX } else { 0 }
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ if number & 1 == 1 { u64::MAX } else { 0 }
}

/// Steps as variable-length numbers: an even one is twice the step, an odd one twice the number of steps that are 0, and a
/// 0 stands before a step that is too large to be doubled.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    still: u64,
}

impl Writer {
    fn step(&mut self, step: u64) {
        if step == 0 {
            self.still += 1;
            return;
        }
        self.rest();
        if step >> 63 == 0 {
            self.number(step << 1);
        } else {
            self.number(0);
            self.number(step);
        }
    }

    fn rest(&mut self) {
        if self.still > 0 {
            let still = std::mem::take(&mut self.still);
            self.number(still << 1 | 1);
        }
    }

    fn number(&mut self, number: u64) {
        prost::encoding::encode_varint(number, &mut self.bytes);
    }

    fn finish(mut self) -> Box<[u8]> {
        self.rest();
        // A copy: shrunk in place, each block would leave a hole behind it that the next one does not fit into.
        self.bytes.as_slice().into()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    still: u64,
}

impl Reader<'_> {
    fn step(&mut self) -> u64 {
        if self.still > 0 {
            self.still -= 1;
            return 0;
        }
        match self.number() {
            0 => self.number(),
            still if still & 1 == 1 => {
                self.still = (still >> 1).saturating_sub(1);
                0
            }
            step => step >> 1,
        }
    }

    /// What we have written ourselves can be read.
    fn number(&mut self) -> u64 {
        prost::encoding::decode_varint(&mut self.bytes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::histogram::Histogram;
    use super::super::point::Figures;
    use super::*;

    #[test]
    fn differences_of_any_size_are_read_back() {
        for number in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1] {
            assert_eq!(unzigzag(zigzag(number)), number);
        }
        assert_eq!((zigzag(1), zigzag(u64::MAX)), (2, 1));
    }

    fn are_near(kept: &[u64], exact: &[u64]) -> bool {
        kept.len() == exact.len()
            && kept.iter().zip(exact).all(|(kept, exact)| kept.abs_diff(*exact) <= exact / 256)
    }

    fn is_near(kept: f64, exact: f64) -> bool {
        (kept - exact).abs() <= exact.abs() / 4_000.0
    }

    proptest! {
        #[test]
        fn unpacking_gives_the_points_again(
            points in vec(
                (
                    1_u64..5,
                    any::<u64>(),
                    any::<Option<u64>>(),
                    vec(prop_oneof![3 => Just(0_u64), 1 => any::<u32>().prop_map(u64::from)], 8),
                    0_usize..4,
                    0.0_f32..1e6,
                ),
                1..60,
            ),
        ) {
            let mut sets = BoundSets::default();
            let bounds = [sets.shared(&[1.0, 2.0, 3.0]).unwrap(), sets.shared(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap()];
            let mut slot = 1_000_000;
            let records: Vec<Record> = points.iter().enumerate().map(|(number, (gap, requests, flaps, counts, times, sum))| {
                slot += gap;
                let figures = Figures { requests: *requests, bgp_flaps: *flaps, load: *sum, ..Figures::default() };
                let mut point = Point { figures, ..Point::default() };
                let bounds = &bounds[number % 2];
                point.times[*times] = Histogram::new(bounds.clone(), counts[..=bounds.len()].to_vec(), f64::from(*sum)).ok();
                Record::pack(slot, &point, &sets)
            }).collect();
            let mut unpacked = Vec::new();
            Block::pack(&records).visit(&sets, |slot, point| unpacked.push((slot, point)));
            prop_assert_eq!(unpacked.len(), records.len());
            for ((slot, kept), record) in unpacked.iter().zip(&records) {
                prop_assert_eq!(*slot, record.slot);
                let exact = record.unpack(&sets);
                prop_assert_eq!(kept.figures.requests, exact.figures.requests);
                prop_assert_eq!(kept.figures.bgp_flaps, exact.figures.bgp_flaps);
                prop_assert!(is_near(kept.figures.load.into(), exact.figures.load.into()));
                for (kept, exact) in kept.times.iter().zip(&exact.times) {
                    prop_assert_eq!(kept.is_some(), exact.is_some());
                    let Some((kept, exact)) = kept.as_ref().zip(exact.as_ref()) else { continue };
                    prop_assert!(are_near(kept.counts(), exact.counts()), "{:?} {:?}", kept, exact);
                    prop_assert!(is_near(kept.sum(), exact.sum()), "{:?} {:?}", kept, exact);
                }
            }
        }
    }
}
