//! Makes the record of what was counted, and judges it: what fails a run, and when the generator itself was the
//! bottleneck, so that the figures are its own and not those of the server.

use std::time::Duration;

use crate::record::{FORMAT, Failure, Generator, LoadRecord, Mode, Opened, Percentiles, SseRecord, Watched};

use super::plan::Plan;
use super::scenario::Scenario;
use super::tally::{Events, Tally};

/// Share of time, running or ready to run, above which a generator process had no time left. A closed loop then
/// measured the generator; in an open loop its times cannot be trusted.
pub(crate) const BUSY_MAX: f64 = 0.95;

/// The record of a run.
pub(crate) fn record(plan: &Plan, mut tally: Tally, watched: Vec<Watched>, lag_max: Duration) -> LoadRecord {
    let asked = plan.asked();
    let sending_s = asked.duration_s;
    let last_s = (tally.last_ns as f64 / 1e9 - asked.warmup_s).max(0.0);
    // A closed loop that answers at once may end a little before its time.
    let duration_s = if matches!(plan.scenario, Scenario::Sse(_)) { last_s } else { last_s.max(sending_s) };
    if !plan.overload && tally.requests.unsent > 0 {
        tally.requests.failed += tally.requests.unsent;
        tally.failures.insert(Failure::Unsent, tally.requests.unsent);
        tally.examples.push("no connection became free within --timeout".to_owned());
    }
    let lag_us = tally.lag.percentiles();
    let invalid_because = invalid_because(asked.mode, tally.busy, lag_us, lag_max);
    let requests = tally.requests;
    let per_second = |count: u64, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    LoadRecord {
        format: FORMAT,
        duration_s,
        rate_sent: per_second(requests.sent, sending_s),
        rate_completed: per_second(requests.completed, duration_s),
        requests,
        failed: requests.failed + requests.failed_in_warmup > 0
            || requests.completed + requests.rejected == 0,
        failures: tally.failures,
        failure_examples: tally.examples,
        statuses: tally.statuses,
        bytes: tally.bytes,
        opened: Opened {
            connections: tally.connections,
            again: tally.connections_again,
            closed_while_idle: tally.closed_while_idle,
            connect_us: tally.connect.percentiles(),
        },
        latency_us: tally.latency.percentiles(),
        service_us: tally.service.percentiles(),
        rejected_us: tally.rejected.percentiles(),
        sse: matches!(plan.scenario, Scenario::Sse(_)).then(|| sse_record(&tally.events)),
        generator: Generator {
            cpu_s: tally.ran_ns as f64 / 1e9,
            wait_s: tally.waited_ns as f64 / 1e9,
            busy_max: tally.busy,
            lag_us,
            saturated: tally.busy > BUSY_MAX,
        },
        watched,
        valid: invalid_because.is_empty(),
        invalid_because,
        asked,
    }
}

/// What the streams saw.
pub(crate) fn sse_record(events: &Events) -> SseRecord {
    SseRecord {
        events: events.count,
        same_read: events.same_read,
        merged: events.merged,
        ttft_us: events.ttft.percentiles(),
        gap_us: events.gap.percentiles(),
        delay_us: events.delay.percentiles(),
        lateness_us: events.lateness.percentiles(),
        origin_lateness_us: events.origin_lateness.percentiles(),
    }
}

/// Why the figures are not those of the server; empty if they are.
pub(crate) fn invalid_because(
    mode: Mode,
    busy: f64,
    lag: Option<Percentiles>,
    lag_max: Duration,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let percent = busy * 100.0;
    if busy > BUSY_MAX {
        reasons.push(match mode {
            Mode::Closed => format!(
                "a generator process ran or waited for its CPU {percent:.0} % of the time: this is the generator's own speed, use more --processes or --cpus of its own"
            ),
            Mode::Open => format!(
                "a generator process ran or waited for its CPU {percent:.0} % of the time: lower --rate, or use more --processes or --cpus of its own"
            ),
        });
    }
    let lag_max_us = lag_max.as_secs_f64() * 1e6;
    if let Some(lag) = lag.filter(|lag| lag.p99 > lag_max_us) {
        reasons.push(format!(
            "the generator turned to its requests up to {:.0} µs late (p99), more than --lag-max {lag_max_us:.0} µs, and was busy for {percent:.0} % of the time",
            lag.p99
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(p99: f64) -> Option<Percentiles> {
        Some(Percentiles { count: 1, min: 0.0, mean: 1.0, p50: 1.0, p90: 1.0, p99, p999: p99, max: p99 })
    }

    #[test]
    fn a_generator_without_time_left_or_behind_its_times_makes_a_run_invalid() {
        let bound = Duration::from_millis(5);
        let reasons = |mode, busy, lag| invalid_because(mode, busy, lag, bound).len();
        assert_eq!(reasons(Mode::Open, 0.7, lag(4999.0)), 0);
        assert_eq!(reasons(Mode::Open, 0.7, lag(5001.0)), 1);
        assert_eq!(reasons(Mode::Open, 0.96, lag(5001.0)), 2);
        assert_eq!(reasons(Mode::Closed, 0.94, None), 0);
        assert_eq!(reasons(Mode::Closed, 0.96, None), 1);
    }
}
