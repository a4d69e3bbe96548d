//! What a day of a whole fleet takes: five hundred busy nodes, each minute of a day and each ten seconds of its last hour,
//! with a newest report each. Time is an argument, so that the day takes seconds. The memory is that of a process of its
//! own, as the kernel counts it.

use std::process::Command;
use std::sync::Arc;

use proto::v1::{self, series::Value};

use super::report::tests::{family, series};
use histogram::Histogram;
use history::Dated;

use super::*;

/// A program that is not optimised takes minutes for a day of all of them: of fewer it holds the same, in proportion.
const NODES: usize = if cfg!(debug_assertions) { 100 } else { 500 };
/// What the limits are for.
const FLEET: usize = 500;
/// Tells the test that it is the process that is measured.
const MEASURED: &str = "MILLRACE_TEST_FULL_DAY";
/// What a master with so many sessions that have reported takes beside it, without the reports, is measured by
/// `tests/scale.rs`: 64 MiB with one heap, as the systemd unit has it.
const RESIDENT_MAX: usize = (150 - 64) * MIB;
/// What a look at all of it may take beside: its sums, and one node's block at a time.
const LOOK_MAX: usize = 6 * MIB;
/// As the data plane's histograms have them.
const BOUNDS: [f64; 24] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
/// Routes in a node's report.
const ROUTES: usize = 10;
const MIB: usize = 1 << 20;

#[test]
fn busy_nodes_with_a_day_behind_them_have_room() {
    if std::env::var_os(MEASURED).is_none() {
        let name = "service::metrics::full_day::busy_nodes_with_a_day_behind_them_have_room";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", name, "--nocapture"]).env(MEASURED, "1").env("MALLOC_ARENA_MAX", "1");
        let output = alone.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        print!("{said}");
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("of history a node"), "{said}{failed}");
        return;
    }
    let metrics = Metrics::default();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let bounds = metrics.lock().sets.shared(&BOUNDS).unwrap();
    let (minutes, tens) = (busy(&mut random, &bounds, 6_000), busy(&mut random, &bounds, 1_000));
    let before = resident();
    let ends_ms = live(&metrics, &mut random, &minutes, &tens);
    let grown = resident() - before;
    let (history, counted) = (history_bytes(&metrics), metrics.bytes());
    println!(
        "{NODES} nodes after a day: {} bytes of history a node, {} bytes of its newest report; {} MiB counted, {} MiB more \
         resident",
        history / NODES,
        (counted - history) / NODES,
        counted / MIB,
        grown / MIB,
    );
    for node in [0, NODES / 2, NODES - 1] {
        let past = |resolution| metrics.past(&name(node), resolution, 0);
        let (fine, coarse) = (past(Resolution::TenSeconds), past(Resolution::Minute));
        assert_eq!((fine.len(), coarse.len()), (360, 1_440), "the past of a busy node is cut short");
        assert_eq!(coarse[0].begin_ms, ends_ms - 24 * 3_600_000);
        let requests = |past: &[Dated]| past.iter().map(|dated| dated.point.figures.requests).sum::<u64>();
        assert_eq!(requests(&fine), requests(&coarse[1_380..]), "the same hour is another in the other ring");
    }
    let before = resident();
    let mut timeline = Timeline::default();
    (0..NODES).for_each(|node| metrics.add_past(&name(node), Resolution::Minute, 0, &mut timeline));
    let looked = resident().saturating_sub(before);
    assert!(timeline.into_points().all(|(_, totals)| totals.nodes == NODES as u64));
    assert!(looked <= LOOK_MAX, "a look at the fleet's day takes {} KiB", looked >> 10);
    let of_fleet = |bytes: usize| bytes / NODES * FLEET;
    assert!(of_fleet(history) <= HISTORY_BYTES_MAX, "{history} bytes");
    assert!(of_fleet(grown) <= RESIDENT_MAX, "{} MiB", grown / MIB);
    assert!(grown <= counted + counted / 3, "{counted} bytes are counted, {grown} are taken");
}

/// Lets a day pass, of points drawn from these; gives when it ends.
fn live(metrics: &Metrics, random: &mut Random, minutes: &[Point], tens: &[Point]) -> u64 {
    let minute = 60_000;
    {
        let mut fleet = metrics.lock();
        (0..NODES).for_each(|node| _ = fleet.node(&name(node)));
        for node in 0..NODES {
            let (node, sets, _, share) = fleet.node(&name(node));
            for at in 0..1_380 {
                node.history.add(at * minute, random.one_of(minutes), sets, share.history);
            }
            for at in 0..360 {
                let at_ms = 1_380 * minute + at * 10_000;
                node.history.add(at_ms, random.one_of(tens), sets, share.history);
            }
        }
    }
    for node in 0..NODES {
        let ends_ms = 24 * 60 * minute - 1;
        metrics.handle_report(&name(node), report(), ends_ms);
    }
    24 * 60 * minute
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn history_bytes(metrics: &Metrics) -> usize {
    metrics.lock().nodes.values().map(|node| node.history.bytes()).sum()
}

/// Points of a node that answers so many requests in each, all four distributions over several orders of magnitude.
fn busy(random: &mut Random, bounds: &histogram::Bounds, requests: u64) -> Vec<Point> {
    let mut histogram = |middle: usize, count: u64| {
        let mut counts = vec![0; BOUNDS.len() + 1];
        for (distance, share) in [(0, 300), (1, 220), (2, 120), (3, 60), (4, 20), (5, 6)] {
            for bucket in [middle.checked_sub(distance), Some(middle + distance)].into_iter().flatten() {
                if let Some(place) = counts.get_mut(bucket) {
                    *place = random.near(count * share / 1_000);
                }
            }
        }
        let sum = count as f64 * BOUNDS[middle] * (1.0 + random.share());
        Histogram::new(Arc::clone(bounds), counts, sum).unwrap()
    };
    let mut point = || {
        let times = [(14, requests), (9, 20 * requests), (13, requests), (2, requests)];
        Point { times: times.map(|(middle, count)| Some(histogram(middle, count))), ..Point::default() }
    };
    let points: Vec<Point> = (0..1_000).map(|_| point()).collect();
    let figures = |point: Point| Point { figures: figures(random, requests), ..point };
    points.into_iter().map(figures).collect()
}

fn figures(random: &mut Random, requests: u64) -> Figures {
    let samples = if requests > 1_000 { 6 } else { 1 };
    let many = samples as f32;
    Figures {
        host_samples: samples,
        cpu_busy: many * (0.5 + random.share() as f32 / 10.0),
        memory_used: many * (0.4 + random.share() as f32 / 100.0),
        load: many * (2.0 + random.share() as f32),
        host_covered_ms: 10_000 * u64::from(samples) + random.near(5),
        received_bytes: random.near(requests * 2_000),
        sent_bytes: random.near(requests * 50_000),
        samples,
        connections: u64::from(samples) * random.near(5_000),
        in_flight: u64::from(samples) * random.near(800),
        covered_ms: 10_000 * u64::from(samples) + random.near(5),
        requests: random.near(requests),
        failed: random.near(requests / 500),
        ..Figures::default()
    }
}

/// As a data plane with [`ROUTES`] routes sends it.
fn report() -> v1::Metrics {
    let route = |route: usize| format!("a-route-{route}");
    let distribution = Value::Histogram(v1::Histogram {
        bounds: BOUNDS.to_vec(),
        counts: (0..=BOUNDS.len()).map(|bucket| 1_000_000 >> bucket).collect(),
        sum: 1e6,
    });
    let of_routes = |value: &Value| -> Vec<v1::Series> {
        (0..ROUTES)
            .map(|number| series(&[("route", &route(number)), ("cluster", "llm")], value.clone()))
            .collect()
    };
    let times = point::Times::ALL
        .map(|times| family(times.metric(), v1::MetricKind::Histogram, of_routes(&distribution)));
    let counters = (0..30).map(|number| {
        let name = format!("millrace_counter_{number}_total");
        family(&name, v1::MetricKind::Counter, of_routes(&Value::Number(1e9)))
    });
    v1::Metrics { families: times.into_iter().chain(counters).collect(), ..v1::Metrics::default() }
}

/// Numbers that look like nothing in particular, the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// As far from the mean as a count of independent events is: by its square root.
    fn near(&mut self, mean: u64) -> u64 {
        let normal = (0..12).map(|_| self.share()).sum::<f64>() - 6.0;
        (mean as f64 + normal * (mean as f64).sqrt()).max(0.0) as u64
    }

    fn one_of<'a>(&mut self, points: &'a [Point]) -> &'a Point {
        let at = self.next() % points.len() as u64;
        &points[at as usize]
    }
}

/// Memory of this process, in bytes, without the pages of its program, of which there are more the longer it runs.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
