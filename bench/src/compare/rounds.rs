//! The order of runs: row by row, and in each row round by round through all contestants (A B C A B C …), so that what
//! drifts on the machine drifts for everybody. Each run has a fresh process. Who had a fault is out for that row.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::case::{Case, Pace, Workload};
use super::measure::{Bench, Measured};
use super::{Tool, unmeasured};
use crate::contest::{Contestant, Fault, Process, Program, Role, start_origin};
use crate::report::{Entrant, Failure, Figure, Row, Sample, Settings, Table};

/// How often a run is made that the load generator could not do well: other users of the machine come and go.
const TRIES_MAX: u32 = 3;

/// Rounds of a row that are made anew, for everybody, because some run of theirs could not be done well at all. Who keeps
/// the generator from it in every round is found out by this, too.
const SPOILT_MAX: u32 = 3;

/// How far somebody goes in a closed loop.
#[derive(Clone, Copy)]
struct Knee {
    contestant: Contestant,
    requests_per_s: f64,
    /// Whether the load generator had no CPU left either: then it goes at least so far.
    is_saturated: bool,
}

/// A comparison with its origin running.
pub(super) struct Comparison<'a> {
    bench: Bench,
    settings: Settings,
    asked: &'a [Contestant],
    entrants: &'a [Entrant],
    is_quick: bool,
    origin: RefCell<Process>,
    /// By row, once they have been looked for.
    knees: RefCell<BTreeMap<u8, Result<Knee, Fault>>>,
    _dir: tempfile::TempDir,
}

impl<'a> Comparison<'a> {
    /// Starts the origin.
    pub(super) fn start(
        settings: Settings,
        (asked, is_quick): (&'a [Contestant], bool),
        entrants: &'a [Entrant],
        tool: Tool,
        duration: Duration,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("millrace-compare-").tempdir()?;
        let (process, origin) = start_origin(settings.load_cpu, &dir.path().join("origin.log"))?;
        let bench = Bench {
            program: std::env::current_exe()?,
            origin,
            dir: dir.path().to_owned(),
            proxy_cpu: settings.proxy_cpu,
            load_cpu: settings.load_cpu,
            duration,
            tool,
        };
        let origin = RefCell::new(process);
        Ok(Self { bench, settings, asked, entrants, is_quick, origin, knees: RefCell::default(), _dir: dir })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All rows. Errors: the origin has ended.
    pub(super) fn run(&self, cases: &[&'static Case]) -> anyhow::Result<Vec<Row>> {
        cases.iter().map(|case| self.row(case)).collect()
    }

    fn row(&self, case: &'static Case) -> anyhow::Result<Row> {
        let mut tally = Tally::new(case, case.contestants(self.asked, self.is_quick));
        let rate = case.workload.pace().map(|pace| self.rate(case, pace, &mut tally)).transpose();
        let (mut round, mut spoilt) = (1, 0);
        while round <= self.settings.rounds {
            self.origin.borrow_mut().check().context("the origin has ended")?;
            let made = self.round(case, round, &rate, &tally.standing());
            if made.is_spoilt() && spoilt < SPOILT_MAX {
                spoilt += 1;
                continue;
            }
            tally.add_round(round, made);
            round += 1;
        }
        if spoilt > 0 {
            tally.notes.push(format!(
                "{spoilt} rounds were made anew, with everybody: the load generator had not kept up in them"
            ));
        }
        if tally.has_none() {
            bail!("{}: nobody takes part", case.name);
        }
        Ok(tally.into_row())
    }

    /// One run of everybody who stands, in turn, and before them one without a proxy where the row needs it.
    fn round(
        &self,
        case: &Case,
        round: u32,
        rate: &Result<Option<f64>, Fault>,
        standing: &[Contestant],
    ) -> Round {
        let direct = case.workload.needs_direct().then(|| match rate {
            Ok(rate) => self.measure(case, None, *rate),
            Err(fault) => Err(fault.clone()),
        });
        let mut runs = Vec::new();
        for contestant in standing {
            let measured = match (rate, &direct) {
                (Err(fault), _) => Err(fault.clone()),
                (Ok(_), Some(Err(Fault::Saturated(why)))) => {
                    Err(Fault::Saturated(format!("without a proxy: {why}")))
                }
                (Ok(_), Some(Err(fault))) => Err(unmeasured(format!("without a proxy: {fault}"))),
                (Ok(rate), _) => self.measure(case, Some(*contestant), *rate),
            };
            say(case, round, *contestant, &measured);
            runs.push((*contestant, measured));
        }
        Round { direct: direct.and_then(Result::ok), runs }
    }

    /// One run, and another one where the generator could not do it.
    fn measure(
        &self,
        case: &Case,
        contestant: Option<Contestant>,
        rate: Option<f64>,
    ) -> Result<Measured, Fault> {
        let contestant = match contestant {
            Some(contestant) => Some((contestant, self.program(contestant)?)),
            None => None,
        };
        let mut result = self.bench.run(case.workload, contestant, rate);
        for _ in 1..TRIES_MAX {
            if !matches!(result, Err(Fault::Saturated(_) | Fault::Unmeasured(_))) {
                break;
            }
            result = self.bench.run(case.workload, contestant, rate);
        }
        result
    }

    fn program(&self, contestant: Contestant) -> Result<&Program, Fault> {
        let entrant = self.entrants.iter().find(|entrant| entrant.contestant == contestant);
        match entrant.map(|entrant| (&entrant.program, &entrant.fault)) {
            Some((Some(program), _)) => Ok(program),
            Some((None, Some(fault))) => Err(fault.clone()),
            Some((None, None)) | None => Err(unmeasured("nobody has looked for it")),
        }
    }

    /// A share of what the slowest one answers in a closed loop, which is looked for once for all cases of a row.
    fn rate(&self, case: &Case, pace: Pace, tally: &mut Tally) -> Result<f64, Fault> {
        let Pace { share, is_of_rivals } = pace;
        let known = self.knees.borrow().get(&case.number).cloned();
        let found = known.unwrap_or_else(|| {
            let found = self.find_slowest(case.workload, is_of_rivals, &tally.standing());
            self.knees.borrow_mut().insert(case.number, found.clone());
            found
        });
        let Knee { contestant, requests_per_s, is_saturated } = found?;
        let rate = (requests_per_s * share).round();
        let least = if is_saturated { "at least (the load generator had no CPU left) " } else { "" };
        tally.notes.push(format!(
            "the slowest in a closed loop, {contestant}, answers {least}{requests_per_s:.0} requests a second; the load \
             here is {rate:.0}"
        ));
        Ok(rate)
    }

    /// Of the rivals, or of all; of all too if there is no rival.
    fn find_slowest(
        &self,
        workload: Workload,
        is_of_rivals: bool,
        contestants: &[Contestant],
    ) -> Result<Knee, Fault> {
        let is_rival = |contestant: &Contestant| contestant.role() == Role::Rival;
        let has_rivals = contestants.iter().any(is_rival);
        let is_asked = |contestant: &&Contestant| !is_of_rivals || !has_rivals || is_rival(contestant);
        let knee = |contestant: &Contestant| {
            let program = self.program(*contestant)?;
            let measured = self.bench.run(workload, Some((*contestant, program)), None)?;
            let rate = measured.sample.get(&Figure::RequestsPerS).copied();
            let (contestant, is_saturated) = (*contestant, measured.is_saturated);
            rate.map(|requests_per_s| Knee { contestant, requests_per_s, is_saturated })
                .ok_or_else(|| unmeasured("no rate"))
        };
        // Who has a fault here will have it in the row again, and be named there.
        let knees: Vec<Result<Knee, Fault>> = contestants.iter().filter(is_asked).map(knee).collect();
        let least =
            knees.iter().flatten().copied().min_by(|a, b| a.requests_per_s.total_cmp(&b.requests_per_s));
        let fault = knees.iter().find_map(|knee| knee.as_ref().err().cloned());
        least.ok_or_else(|| fault.unwrap_or_else(|| unmeasured("nobody to take the rate of")))
    }
}

/// What a round has given.
struct Round {
    direct: Option<Measured>,
    runs: Vec<(Contestant, Result<Measured, Fault>)>,
}

impl Round {
    fn is_spoilt(&self) -> bool {
        self.runs.iter().any(|(_, measured)| matches!(measured, Err(Fault::Saturated(_))))
    }
}

/// What a row has given so far.
struct Tally {
    case: &'static Case,
    contestants: Vec<Contestant>,
    samples: BTreeMap<Contestant, Vec<Sample>>,
    direct: Vec<Sample>,
    failures: Vec<Failure>,
    notes: Vec<String>,
    runs: u32,
    saturated_runs: u32,
}

impl Tally {
    fn new(case: &'static Case, contestants: Vec<Contestant>) -> Self {
        Self {
            case,
            contestants,
            samples: BTreeMap::new(),
            direct: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
            runs: 0,
            saturated_runs: 0,
        }
    }

    fn has_none(&self) -> bool {
        self.contestants.is_empty()
    }

    /// Those who had no fault.
    fn standing(&self) -> Vec<Contestant> {
        let has_failed =
            |contestant: &Contestant| self.failures.iter().any(|failure| failure.contestant == *contestant);
        self.contestants.iter().copied().filter(|contestant| !has_failed(contestant)).collect()
    }

    fn add_round(&mut self, round: u32, Round { direct, runs }: Round) {
        for (contestant, measured) in runs {
            self.add(contestant, round, measured, direct.as_ref());
        }
        self.direct.extend(direct.map(|direct| direct.sample));
    }

    fn add(
        &mut self,
        contestant: Contestant,
        round: u32,
        measured: Result<Measured, Fault>,
        direct: Option<&Measured>,
    ) {
        match measured {
            Ok(measured) => {
                self.runs += 1;
                self.saturated_runs += u32::from(measured.is_saturated);
                let sample = over_direct(measured.sample, direct.map(|direct| &direct.sample));
                self.samples.entry(contestant).or_default().push(sample);
            }
            Err(fault) => self.failures.push(Failure { contestant, round, fault }),
        }
    }

    fn into_row(mut self) -> Row {
        self.note_direct();
        if self.saturated_runs > 0 {
            self.notes.push(format!(
                "in {} of {} runs the load generator had no CPU left: the rates are its own, the CPU figures are the \
                 proxies'",
                self.saturated_runs, self.runs
            ));
        }
        let struck: Vec<Contestant> = self.failures.iter().map(|failure| failure.contestant).collect();
        let table = |figure: &Figure| {
            let values = |contestant: &Contestant| {
                let samples = self.samples.get(contestant).map_or(&[][..], Vec::as_slice);
                let values = samples.iter().filter_map(|sample| sample.get(figure).copied()).collect();
                (*contestant, values)
            };
            let samples: Vec<(Contestant, Vec<f64>)> = self.contestants.iter().map(values).collect();
            Table::new(*figure, &samples, &struck, self.case.targets)
        };
        Row {
            name: self.case.name.to_owned(),
            number: self.case.number,
            title: self.case.title.to_owned(),
            tables: self.case.figures.iter().map(table).collect(),
            failures: self.failures,
            notes: self.notes,
        }
    }

    /// What was taken off the added figures.
    fn note_direct(&mut self) {
        let figures = self.case.figures.iter().filter(|figure| figure.is_over_direct());
        let words = figures.filter_map(|figure| {
            let values: Vec<f64> =
                self.direct.iter().filter_map(|sample| sample.get(figure).copied()).collect();
            let median = crate::report::Range::of(&values)?.median;
            Some(format!("{} {median:.0} {}", figure.title(), figure.unit()))
        });
        let words = words.collect::<Vec<_>>().join(", ");
        if !words.is_empty() {
            self.notes.push(format!("taken off as the run without a proxy, by medians: {words}"));
        }
    }
}

/// A sample with what a run without a proxy gives taken off where a figure asks for it.
fn over_direct(mut sample: Sample, direct: Option<&Sample>) -> Sample {
    for (figure, value) in &mut sample {
        if figure.is_over_direct()
            && let Some(direct) = direct.and_then(|direct| direct.get(figure))
        {
            *value -= direct;
        }
    }
    sample
}

fn say(case: &Case, round: u32, contestant: Contestant, measured: &Result<Measured, Fault>) {
    let name = case.name;
    match measured {
        Ok(measured) => {
            let figure = case.figures[0];
            let value = measured.sample.get(&figure).copied().unwrap_or(f64::NAN);
            eprintln!("{name:<14} round {round}  {contestant:<14} {value:10.2} {}", figure.unit());
        }
        Err(fault) => eprintln!("{name:<14} round {round}  {contestant:<14} {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::CASES;
    use crate::report::Verdict;

    fn measured(figure: Figure, value: f64) -> Measured {
        Measured { sample: Sample::from([(figure, value)]), is_saturated: false }
    }

    fn case(name: &str) -> &'static Case {
        CASES.iter().find(|case| case.name == name).unwrap()
    }

    #[test]
    fn who_had_a_fault_is_named_and_out_for_the_row() {
        let everybody = vec![Contestant::Millrace, Contestant::Nginx, Contestant::Haproxy];
        let mut tally = Tally::new(case("get-64"), everybody);
        for round in 1..=2 {
            for contestant in tally.standing() {
                let result = if contestant == Contestant::Nginx {
                    Err(Fault::Missing("no nginx".to_owned()))
                } else if contestant == Contestant::Haproxy && round == 2 {
                    Err(Fault::Died("signal: 9".to_owned()))
                } else {
                    Ok(measured(Figure::CpuPerRequestUs, 9.0))
                };
                tally.add(contestant, round, result, None);
            }
        }
        let row = tally.into_row();
        let rounds: Vec<(Contestant, u32)> =
            row.failures.iter().map(|failure| (failure.contestant, failure.round)).collect();
        assert_eq!(rounds, [(Contestant::Nginx, 1), (Contestant::Haproxy, 2)]);
        let table = row.main_table().unwrap();
        assert_eq!(table.verdict, Some(Verdict::NoRival));
        assert_eq!(table.entries.iter().map(|entry| entry.samples.len()).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(table.entries.iter().map(|entry| entry.counts).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_round_is_spoilt_by_a_busy_machine_and_not_by_a_contestant() {
        let round = |fault: Fault| {
            let good = (Contestant::Nginx, Ok(measured(Figure::AddedP50Us, 9.0)));
            Round { direct: None, runs: vec![good, (Contestant::Millrace, Err(fault))] }
        };
        assert!(round(Fault::Saturated("it was busy".to_owned())).is_spoilt());
        for fault in [Fault::Died("signal: 9".to_owned()), Fault::Wrong("502".to_owned())] {
            assert!(!round(fault).is_spoilt());
        }
    }

    #[test]
    fn a_round_without_a_proxy_is_taken_off_its_own_runs() {
        let mut tally = Tally::new(case("latency-30"), vec![Contestant::Millrace]);
        for (round, direct, ours) in [(1, 10.0, 15.0), (2, 100.0, 107.0)] {
            let runs = vec![(Contestant::Millrace, Ok(measured(Figure::AddedP50Us, ours)))];
            tally.add_round(round, Round { direct: Some(measured(Figure::AddedP50Us, direct)), runs });
        }
        let row = tally.into_row();
        assert_eq!(row.main_table().unwrap().entries[0].samples, [5.0, 7.0]);
        assert!(row.notes[0].contains("p50 55 µs"), "{:?}", row.notes);
    }

    #[test]
    fn only_added_figures_are_over_direct_and_of_their_own_round() {
        let sample = Sample::from([(Figure::AddedP50Us, 50.0), (Figure::RequestsPerS, 100.0)]);
        let direct = Sample::from([(Figure::AddedP50Us, 30.0), (Figure::RequestsPerS, 90.0)]);
        let over = over_direct(sample, Some(&direct));
        assert_eq!(over, Sample::from([(Figure::AddedP50Us, 20.0), (Figure::RequestsPerS, 100.0)]));
    }
}
