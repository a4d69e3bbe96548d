//! What is measured: one case for each workload, with its figures, its targets and those who take part. The numbers are
//! those of the table of targets in the README.

use crate::contest::Contestant;
use crate::floor::Kind;
use crate::report::{Figure, Limit, Target};

const OURS: Contestant = Contestant::Millrace;
const FLOOR: Contestant = Contestant::Relay(Kind::Ring);
/// Those who are in every row.
const MAIN: &[Contestant] = &[OURS, Contestant::Nginx, Contestant::Haproxy, FLOOR];
/// Those who answer for themselves, which a relay cannot.
const PROXIES: &[Contestant] = &[OURS, Contestant::Nginx, Contestant::Haproxy];
const PROXIES_AND_BUFFERED: &[Contestant] =
    &[OURS, Contestant::Nginx, Contestant::Haproxy, Contestant::NginxBuffered];
const CHURNERS: &[Contestant] = &[OURS, Contestant::Nginx, Contestant::Haproxy, Contestant::Caddy, FLOOR];

/// Of the slowest contestant's rate: as much as everybody can do without falling behind.
const POST_SHARE: f64 = 0.8;

/// A row's workload, figures, targets and contestants.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Name in files.
    pub name: &'static str,
    /// Number in the table of targets.
    pub number: u8,
    /// In words.
    pub title: &'static str,
    /// What is done.
    pub workload: Workload,
    /// What is read off; the first one is the row's own.
    pub figures: &'static [Figure],
    /// What ours is to reach.
    pub targets: &'static [Target],
    /// Those who take part unless others are asked for.
    pub usual: &'static [Contestant],
    /// Whether it is part of the two-minute set.
    pub is_quick: bool,
}

impl Case {
    /// Those who take part: whoever was asked for, else the usual ones, of which the two-minute set leaves out some. An
    /// earlier build has to be asked for.
    pub fn contestants(&self, asked: &[Contestant], is_quick: bool) -> Vec<Contestant> {
        if !asked.is_empty() {
            return asked.to_vec();
        }
        let is_in = |contestant: &&Contestant| {
            **contestant != Contestant::MillraceBefore && (!is_quick || MAIN.contains(contestant))
        };
        self.usual.iter().filter(is_in).copied().collect()
    }
}

/// What the load does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
    /// Small answers, closed loop.
    Get {
        /// At once.
        connections: u32,
    },
    /// A prompt and a short answer, open loop: here the load and the origin need more CPU than the proxy, so that in a
    /// closed loop each contestant would get another load.
    Post,
    /// Small answers, open loop.
    Latency {
        /// Of the knee.
        share: f64,
    },
    /// Streams of events.
    Sse {
        /// At once.
        streams: u32,
        /// On each.
        events_per_second: f64,
    },
    /// Large answers, closed loop.
    Body {
        /// As `load` takes it.
        size: &'static str,
        /// At once.
        connections: u32,
    },
    /// A connection for each request, closed loop.
    Churn,
    /// Connections that say nothing after one request, and a few streams among them.
    Idle {
        /// In all.
        connections: u32,
    },
    /// Clients that read far slower than the origin sends.
    SlowReaders,
    /// More than can be answered, with most of the CPU taken by others.
    Overload,
}

/// The rate of an open loop, as a share of the rate that somebody reaches in a closed one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Of the slowest one's.
    pub share: f64,
    /// The slowest rival's, or the slowest of all.
    pub is_of_rivals: bool,
}

impl Workload {
    /// Of an open loop.
    pub fn pace(self) -> Option<Pace> {
        match self {
            Self::Latency { share } => Some(Pace { share, is_of_rivals: true }),
            Self::Post => Some(Pace { share: POST_SHARE, is_of_rivals: false }),
            Self::Get { .. }
            | Self::Sse { .. }
            | Self::Body { .. }
            | Self::Churn
            | Self::Idle { .. }
            | Self::SlowReaders
            | Self::Overload => None,
        }
    }

    /// Whether a run without a proxy belongs to each round.
    pub fn needs_direct(self) -> bool {
        match self {
            Self::Latency { .. } | Self::Sse { .. } => true,
            Self::Get { .. }
            | Self::Post
            | Self::Body { .. }
            | Self::Churn
            | Self::SlowReaders
            | Self::Idle { .. }
            | Self::Overload => false,
        }
    }
}

const fn times(figure: Figure, bound: f64, rival: Contestant) -> Target {
    Target { figure, limit: Limit::Times(bound, rival) }
}

const fn times_best(figure: Figure, bound: f64) -> Target {
    Target { figure, limit: Limit::TimesBest(bound) }
}

const REQUEST_FIGURES: &[Figure] = &[Figure::CpuPerRequestUs, Figure::RequestsPerS, Figure::BusyPercent];
const REQUEST_TARGETS: &[Target] = &[
    times(Figure::CpuPerRequestUs, 0.85, Contestant::Nginx),
    times(Figure::CpuPerRequestUs, 0.75, Contestant::Haproxy),
    Target { figure: Figure::CpuPerRequestUs, limit: Limit::TimesFloor(1.25) },
];
const LATENCY_FIGURES: &[Figure] =
    &[Figure::AddedP50Us, Figure::AddedP99Us, Figure::AddedP999Us, Figure::RequestsPerS];
const LATENCY_TARGETS: &[Target] =
    &[times_best(Figure::AddedP50Us, 1.0), times_best(Figure::AddedP999Us, 0.8)];
const SSE_FIGURES: &[Figure] = &[
    Figure::CpuPerEventUs,
    Figure::AddedEventP50Us,
    Figure::AddedEventP99Us,
    Figure::AddedEventP999Us,
    Figure::AddedTtftP50Us,
    Figure::AddedTtftP99Us,
    Figure::MergedEvents,
];
const SSE_TARGETS: &[Target] = &[
    times_best(Figure::CpuPerEventUs, 0.8),
    times_best(Figure::AddedEventP999Us, 1.0),
    Target { figure: Figure::MergedEvents, limit: Limit::Value(0.0) },
];
const BODY_FIGURES: &[Figure] = &[Figure::BodyGbPerCpuS, Figure::RequestsPerS, Figure::BusyPercent];
const BODY_TARGETS: &[Target] = &[times_best(Figure::BodyGbPerCpuS, 1.0)];

/// What one stream may hold in our data plane as it is configured here: `stream_bytes_max` in its `/status`.
pub const STREAM_BYTES_MAX: u64 = 794_752;
const READER_TARGETS: &[Target] =
    &[Target { figure: Figure::PeakResidentKib, limit: Limit::Value((STREAM_BYTES_MAX >> 10) as f64) }];

/// All cases, in the order of the table.
pub const CASES: &[Case] = &[
    Case {
        name: "get-64",
        number: 1,
        title: "small answers, 64 keep-alive connections, closed loop",
        workload: Workload::Get { connections: 64 },
        figures: REQUEST_FIGURES,
        targets: REQUEST_TARGETS,
        usual: &Contestant::ALL,
        is_quick: true,
    },
    Case {
        name: "get-512",
        number: 1,
        title: "small answers, 512 keep-alive connections, closed loop",
        workload: Workload::Get { connections: 512 },
        figures: REQUEST_FIGURES,
        targets: REQUEST_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "post-4k",
        number: 2,
        title: "prompt of 4 KiB, answer of 1 KiB, open loop at 0.8 of the slowest one's rate",
        workload: Workload::Post,
        figures: REQUEST_FIGURES,
        targets: REQUEST_TARGETS,
        usual: MAIN,
        is_quick: true,
    },
    Case {
        name: "latency-30",
        number: 3,
        title: "latency added at 0.3 of the slowest rival's knee, open loop",
        workload: Workload::Latency { share: 0.3 },
        figures: LATENCY_FIGURES,
        targets: LATENCY_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "latency-60",
        number: 3,
        title: "latency added at 0.6 of the slowest rival's knee, open loop",
        workload: Workload::Latency { share: 0.6 },
        figures: LATENCY_FIGURES,
        targets: LATENCY_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "latency-80",
        number: 3,
        title: "latency added at 0.8 of the slowest rival's knee, open loop",
        workload: Workload::Latency { share: 0.8 },
        figures: LATENCY_FIGURES,
        targets: LATENCY_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "sse-1k",
        number: 4,
        title: "1,000 streams of 20 events a second",
        workload: Workload::Sse { streams: 1000, events_per_second: 20.0 },
        figures: SSE_FIGURES,
        targets: SSE_TARGETS,
        usual: MAIN,
        is_quick: true,
    },
    Case {
        name: "sse-5k",
        number: 4,
        title: "5,000 streams of 4 events a second, which is as many as one core of load and origin can do well",
        workload: Workload::Sse { streams: 5000, events_per_second: 4.0 },
        figures: SSE_FIGURES,
        targets: SSE_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "body-64k",
        number: 9,
        title: "answers of 64 KiB, 16 connections, closed loop",
        workload: Workload::Body { size: "64KiB", connections: 16 },
        figures: BODY_FIGURES,
        targets: BODY_TARGETS,
        usual: MAIN,
        is_quick: true,
    },
    Case {
        name: "body-1m",
        number: 9,
        title: "answers of 1 MiB, 8 connections, closed loop",
        workload: Workload::Body { size: "1MiB", connections: 8 },
        figures: BODY_FIGURES,
        targets: BODY_TARGETS,
        usual: MAIN,
        is_quick: false,
    },
    Case {
        name: "churn",
        number: 10,
        title: "a new connection for each request, 64 at once, closed loop",
        workload: Workload::Churn,
        figures: &[Figure::ConnectionsPerCpuS, Figure::RequestsPerS, Figure::BusyPercent],
        targets: &[times_best(Figure::ConnectionsPerCpuS, 1.0)],
        usual: CHURNERS,
        is_quick: true,
    },
    Case {
        name: "idle-8k",
        number: 11,
        title: "8,000 connections, 5 % of them streaming, the others silent",
        workload: Workload::Idle { connections: 8000 },
        figures: &[Figure::UserBytesPerIdle, Figure::IdleCpuPercent, Figure::WakeP50Us],
        targets: &[
            Target { figure: Figure::UserBytesPerIdle, limit: Limit::Value(512.0) },
            Target { figure: Figure::IdleCpuPercent, limit: Limit::Value(0.5) },
        ],
        usual: PROXIES,
        is_quick: false,
    },
    Case {
        name: "slow-readers",
        number: 12,
        title: "100 clients that read 16 MiB at 160 KiB a second, origin at full speed",
        workload: Workload::SlowReaders,
        figures: &[Figure::PeakResidentKib, Figure::PeakWithSocketsKib],
        targets: READER_TARGETS,
        usual: PROXIES_AND_BUFFERED,
        is_quick: false,
    },
    Case {
        name: "overload",
        number: 13,
        title: "1.5 times the knee, with a quarter of a core for the proxy",
        workload: Workload::Overload,
        figures: &[Figure::GoodputPercent, Figure::RequestsPerS, Figure::BareRejections],
        targets: &[
            Target { figure: Figure::GoodputPercent, limit: Limit::Value(95.0) },
            Target { figure: Figure::BareRejections, limit: Limit::Value(0.0) },
        ],
        usual: MAIN,
        is_quick: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_target_has_its_figure() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(CASES[..index].iter().all(|before| before.name != case.name), "{}", case.name);
            assert!(case.figures[0].better().is_some(), "{}: its own figure is not judged", case.name);
            for target in case.targets {
                assert!(case.figures.contains(&target.figure), "{}: {target:?}", case.name);
            }
        }
    }

    #[test]
    fn figures_over_direct_have_a_direct_run() {
        for case in CASES {
            let is_over_direct = case.figures.iter().any(|figure| figure.is_over_direct());
            assert_eq!(is_over_direct, case.workload.needs_direct(), "{}", case.name);
        }
    }

    #[test]
    fn every_case_has_us_and_two_rivals() {
        for case in CASES {
            assert!(case.usual.starts_with(PROXIES), "{}", case.name);
            assert!(case.contestants(&[], true).starts_with(PROXIES), "{}", case.name);
            assert_eq!(case.contestants(&[FLOOR], true), [FLOOR]);
            assert!(!case.contestants(&[], false).contains(&Contestant::MillraceBefore), "{}", case.name);
        }
    }
}
