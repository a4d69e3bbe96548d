//! What the origin costs: 1,000 streams of 20 events a second must leave most of a core to whoever is
//! measured against it. Ignored by default, because a measurement needs a release build and a quiet
//! machine: `cargo test --release -p bench --test origin_load -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bench::origin::{Origin, OriginOptions, monotonic_ns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const STREAMS: u64 = 1000;
const EVENTS_PER_SECOND: u64 = 20;
const EVENTS_PER_STREAM: u64 = 200;

/// Share of one core that the origin may use.
const CORE_SHARE_MAX: f64 = 0.5;

/// What one stream's reader saw.
#[derive(Default)]
struct Seen {
    events: u64,
    /// Events that shared a read with another one of their stream.
    merged: u64,
    delays_ns: Vec<u64>,
}

#[test]
#[ignore = "a measurement: it needs a release build and a quiet machine"]
fn serves_20000_events_a_second_under_half_a_core() {
    let origin = Origin::start(OriginOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (before, started) = (origin_cpu_ns(), Instant::now());
    let seen = runtime.block_on(read_all(origin.addr()));
    let (used, elapsed) = (origin_cpu_ns() - before, started.elapsed());

    let events: u64 = seen.iter().map(|seen| seen.events).sum();
    let merged: u64 = seen.iter().map(|seen| seen.merged).sum();
    let mut delays: Vec<u64> = seen.into_iter().flat_map(|seen| seen.delays_ns).collect();
    delays.sort_unstable();
    let percentile = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize] / 1000;
    let share = used as f64 / elapsed.as_nanos() as f64;
    println!(
        "{:.0} events/s, {:.1} % of a core, {:.2} µs per event; delivery p50 {} µs, p99 {} µs, p99.9 {} µs; merged {merged}",
        events as f64 / elapsed.as_secs_f64(),
        share * 100.0,
        used as f64 / events as f64 / 1000.0,
        percentile(0.5),
        percentile(0.99),
        percentile(0.999),
    );
    assert_eq!(events, STREAMS * EVENTS_PER_STREAM);
    let seconds = Duration::from_secs(EVENTS_PER_STREAM / EVENTS_PER_SECOND);
    assert!(elapsed < seconds + Duration::from_secs(2), "the pace was not held: {elapsed:?}");
    assert!(share < CORE_SHARE_MAX, "{share:.2} of a core");
}

/// The streams begin evenly spread over one interval, as those of many users do.
async fn read_all(address: SocketAddr) -> Vec<Seen> {
    let interval = Duration::from_secs(1) / EVENTS_PER_SECOND as u32;
    let readers: Vec<_> = (0..STREAMS)
        .map(|index| {
            let delay = interval * index as u32 / STREAMS as u32;
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                read_stream(address).await
            })
        })
        .collect();
    let mut all = Vec::new();
    for reader in readers {
        all.push(reader.await.unwrap());
    }
    all
}

async fn read_stream(address: SocketAddr) -> Seen {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /sse?tokens={EVENTS_PER_STREAM}&tokens_per_second={EVENTS_PER_SECOND} HTTP/1.1\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Seen::default();
    let mut buffer = vec![0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            return seen;
        }
        seen.note(std::str::from_utf8(&buffer[..count]).unwrap(), monotonic_ns());
    }
}

impl Seen {
    /// Every event is one write and smaller than a segment, so it is never torn on loopback.
    fn note(&mut self, text: &str, now: u64) {
        let mut in_this_read = 0;
        for event in text.split("data: ").skip(1) {
            let value = |name: &str| -> u64 {
                let from = event.find(name).unwrap() + name.len();
                event[from..].split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
            };
            assert_eq!(value("\"seq\":"), self.events, "out of order");
            self.delays_ns.push(now.saturating_sub(value("\"ns\":")));
            self.events += 1;
            in_this_read += 1;
        }
        self.merged += if in_this_read > 1 { in_this_read } else { 0 };
    }
}

/// CPU time of the origin's threads, from the scheduler's own account.
fn origin_cpu_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    tasks
        .map(|task| task.unwrap().path())
        .filter(|task| read(task.join("comm")).starts_with("origin-"))
        .map(|task| {
            read(task.join("schedstat")).split(' ').next().unwrap_or_default().parse::<u64>().unwrap_or(0)
        })
        .sum()
}
