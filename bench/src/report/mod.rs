//! The report of a comparison: what was measured, on what, and who has won by the rule of `verdict`. It is made of
//! figures and faults alone, so that it can be made again, and tested, without a measurement. `markdown` and `plot`
//! show it, `report.json` holds all of it.

mod figure;
mod markdown;
mod plot;
mod verdict;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub use figure::Figure;
pub use verdict::{Better, Range, Verdict, judge};

use crate::contest::{Contestant, Fault, Program, Role};
use crate::host::Host;

/// Raised when a field of `report.json` changes its meaning or goes away.
pub const FORMAT: u32 = 1;
/// Fewer rounds say too little to call a row won or lost.
pub const ROUNDS_MIN: u32 = 5;

/// What one measurement gave.
pub type Sample = BTreeMap<Figure, f64>;

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// When it was finished.
    pub date: String,
    /// Where.
    pub host: Host,
    /// How.
    pub settings: Settings,
    /// Who.
    pub entrants: Vec<Entrant>,
    /// What came out, in the order of measurement.
    pub rows: Vec<Row>,
}

/// How a comparison was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Interleaved rounds of each row.
    pub rounds: u32,
    /// Measured time of each run.
    pub duration_s: f64,
    /// Time before it.
    pub warmup_s: f64,
    /// Load generator of the rows that other tools can do.
    pub tool: String,
    /// CPU of the contestants.
    pub proxy_cpu: u32,
    /// CPU of the load generator and the origin.
    pub load_cpu: u32,
}

/// A contestant and its program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entrant {
    /// Who.
    pub contestant: Contestant,
    /// As what.
    pub role: Role,
    /// Its program, if it has one.
    pub program: Option<Program>,
    /// Why not.
    pub fault: Option<Fault>,
}

/// One workload with what every contestant gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name in files, such as `get-64`.
    pub name: String,
    /// Number in the table of targets.
    pub number: u8,
    /// In words.
    pub title: String,
    /// By figure; the first one is the row's own.
    pub tables: Vec<Table>,
    /// Everything that went wrong.
    pub failures: Vec<Failure>,
    /// What a reader has to know besides.
    pub notes: Vec<String>,
}

/// A contestant's fault in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Who.
    pub contestant: Contestant,
    /// Counted from 1.
    pub round: u32,
    /// What.
    pub fault: Fault,
}

/// One figure of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What.
    pub figure: Figure,
    /// Who, in the order of measurement; those without any value too.
    pub entries: Vec<Entry>,
    /// Rival with the best median of those that count.
    pub best_rival: Option<Contestant>,
    /// `None` for a figure that only explains.
    pub verdict: Option<Verdict>,
    /// Targets of this figure.
    pub targets: Vec<Outcome>,
}

/// A contestant's values of one figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Who.
    pub contestant: Contestant,
    /// By round, those that were measured.
    pub samples: Vec<f64>,
    /// The same in short.
    pub range: Option<Range>,
    /// Whether it has a value of every round; only then it takes part in the verdict.
    pub counts: bool,
    /// Ours over this one's, by medians.
    pub ours_over: Option<f64>,
    /// This one's over the floor's, by medians.
    pub over_floor: Option<f64>,
}

/// A goal for our figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Which figure.
    pub figure: Figure,
    /// How far.
    pub limit: Limit,
}

/// What a figure is held against. For a figure that is better higher, the limits are from below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many times a contestant's.
    Times(f64, Contestant),
    /// So many times the best rival's.
    TimesBest(f64),
    /// So many times the bare relay's.
    TimesFloor(f64),
    /// A value.
    Value(f64),
}

/// How a target came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// In words.
    pub target: String,
    /// Our ratio, or our value where the target is one.
    pub actual: Option<f64>,
    /// `None` where there was nothing to hold it against.
    pub is_met: Option<bool>,
}

impl Report {
    /// Writes `report.md`, `report.json` and a plot for each row into `dir`, which is made.
    ///
    /// # Errors
    /// What cannot be written, or drawn.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let write = |name: &str, text: String| {
            let file = dir.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for row in &self.rows {
            if let Some(drawing) = plot::svg(row)? {
                write(&plot::file_name(row), drawing)?;
            }
        }
        write("report.json", serde_json::to_string_pretty(self)? + "\n")?;
        write("report.md", markdown::render(self))
    }

    /// The tables of the report, for a terminal.
    pub fn summary(&self) -> String {
        markdown::summary(self)
    }
}

impl Row {
    /// The first figure of the row, which its plot shows.
    pub fn main_table(&self) -> Option<&Table> {
        self.tables.first()
    }
}

impl Table {
    /// Judges the samples of one figure. `struck` are those who had a fault in this row.
    pub fn new(
        figure: Figure,
        samples: &[(Contestant, Vec<f64>)],
        struck: &[Contestant],
        targets: &[Target],
    ) -> Self {
        let mut entries: Vec<Entry> = samples
            .iter()
            .map(|(contestant, samples)| Entry {
                contestant: *contestant,
                samples: samples.clone(),
                range: Range::of(samples),
                counts: !samples.is_empty() && !struck.contains(contestant),
                ours_over: None,
                over_floor: None,
            })
            .collect();
        let ours = standing(&entries, Role::Ours).first().map(|(_, range)| *range);
        let floor = standing(&entries, Role::Floor).first().map(|(_, range)| *range);
        let rivals = standing(&entries, Role::Rival);
        let best = figure.better().and_then(|better| best_of(&rivals, better));
        for entry in &mut entries {
            let range = entry.range.filter(|_| entry.counts);
            entry.ours_over = ours.zip(range).and_then(|(ours, range)| ours.ratio(range));
            entry.over_floor = range.zip(floor).and_then(|(range, floor)| range.ratio(floor));
        }
        let ranges: Vec<Range> = rivals.iter().map(|(_, range)| *range).collect();
        let has_us = entries.iter().any(|entry| entry.contestant.role() == Role::Ours);
        let outcome = |target: &Target| outcome(*target, &entries, ours, best.map(|(_, range)| range));
        let targets = targets.iter().filter(|target| target.figure == figure && has_us);
        Self {
            figure,
            best_rival: best.map(|(contestant, _)| contestant),
            verdict: figure.better().filter(|_| has_us).map(|better| judge(ours, &ranges, better)),
            targets: targets.map(outcome).collect(),
            entries,
        }
    }
}

/// Those of one role that take part.
fn standing(entries: &[Entry], role: Role) -> Vec<(Contestant, Range)> {
    let of_role = entries.iter().filter(|entry| entry.counts && entry.contestant.role() == role);
    of_role.filter_map(|entry| Some((entry.contestant, entry.range?))).collect()
}

fn best_of(rivals: &[(Contestant, Range)], better: Better) -> Option<(Contestant, Range)> {
    rivals.iter().copied().reduce(|best, next| if next.1.leads(best.1, better) { next } else { best })
}

fn outcome(target: Target, entries: &[Entry], ours: Option<Range>, best: Option<Range>) -> Outcome {
    let of = |wanted: &dyn Fn(Contestant) -> bool| {
        let entry = entries.iter().find(|entry| entry.counts && wanted(entry.contestant))?;
        entry.range
    };
    let (bound, than, against) = match target.limit {
        Limit::Times(bound, rival) => (bound, format!(" × {rival}"), of(&|contestant| contestant == rival)),
        Limit::TimesBest(bound) => (bound, " × the best rival".to_owned(), best),
        Limit::TimesFloor(bound) => {
            (bound, " × the floor".to_owned(), of(&|contestant| contestant.role() == Role::Floor))
        }
        Limit::Value(bound) => (bound, target.figure.unit().to_owned(), None),
    };
    let actual = match target.limit {
        Limit::Value(_) => ours.map(|range| range.median),
        Limit::Times(..) | Limit::TimesBest(_) | Limit::TimesFloor(_) => {
            ours.zip(against).and_then(|(ours, against)| ours.ratio(against))
        }
    };
    let is_higher_better = target.figure.better() == Some(Better::Higher);
    let sign = if is_higher_better { "≥" } else { "≤" };
    let is_met = match (actual, ours, against) {
        (Some(actual), ..) => Some(if is_higher_better { actual >= bound } else { actual <= bound }),
        // Around zero, where there is no ratio: who takes off what a run without a proxy takes may be below it.
        (None, Some(ours), Some(against)) => {
            Some(if is_higher_better { ours.median >= against.median } else { ours.median <= against.median })
        }
        (None, ..) => None,
    };
    Outcome { target: format!("{sign} {bound}{than}"), actual, is_met }
}

#[cfg(test)]
mod tests;
