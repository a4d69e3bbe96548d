//! The record of a load run as text for people, and the line that shows how far a run is.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

use crate::record::{Failure, LoadRecord, Mode, Percentiles};

use super::engine::Standing;

/// The record as a short text.
pub(crate) fn text(record: &LoadRecord) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(record, &mut text);
    text
}

/// One line, as long as the run lasts.
pub(crate) fn progress(now: Standing, elapsed_ns: u64, total_ns: u64) -> String {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let mut line = format!(
        "{:.1}/{:.0} s  {} done, {} under way, {} waiting",
        seconds(elapsed_ns),
        seconds(total_ns),
        now.completed,
        now.under_way,
        now.waiting
    );
    for (count, what) in [(now.events, "events"), (now.rejected, "rejected"), (now.failed, "FAILED")] {
        if count > 0 {
            let _ = write!(line, ", {count} {what}");
        }
    }
    line
}

fn write_text(record: &LoadRecord, text: &mut String) -> fmt::Result {
    let asked = &record.asked;
    let pace = match (asked.mode, asked.rate) {
        (Mode::Open, Some(rate)) => format!("open loop, {rate:.0}/s asked"),
        (Mode::Open | Mode::Closed, _) => "closed loop".to_owned(),
    };
    writeln!(
        text,
        "{} {}: {pace}, {} connections, {} process(es), {:.1} s",
        asked.scenario, asked.target, asked.connections, asked.processes, record.duration_s
    )?;
    let requests = &record.requests;
    writeln!(
        text,
        "requests   {} intended, {} sent ({:.0}/s), {} completed ({:.0}/s), {} rejected, {} failed, {} unsent",
        requests.intended,
        requests.sent,
        record.rate_sent,
        requests.completed,
        record.rate_completed,
        requests.rejected,
        requests.failed,
        requests.unsent
    )?;
    header(text)?;
    row(text, "latency", record.latency_us)?;
    row(text, "service", record.service_us)?;
    row(text, "rejected", record.rejected_us)?;
    row(text, "connect", record.opened.connect_us)?;
    if let Some(sse) = &record.sse {
        row(text, "ttft", sse.ttft_us)?;
        row(text, "gap", sse.gap_us)?;
        row(text, "delay", sse.delay_us)?;
        row(text, "lateness", sse.lateness_us)?;
        writeln!(
            text,
            "events     {} in order, {} in one read with another, {} of them merged",
            sse.events, sse.same_read, sse.merged
        )?;
    }
    row(text, "lag", record.generator.lag_us)?;
    writeln!(
        text,
        "generator  {:.3} CPU s, {:.3} s waiting for a CPU, busy {:.0} %",
        record.generator.cpu_s,
        record.generator.wait_s,
        record.generator.busy_max * 100.0
    )?;
    for process in &record.watched {
        let (name, pid, cpu_s) = (&process.name, process.pid, process.cpu_s);
        writeln!(
            text,
            "watched    {name} ({pid}): {cpu_s:.3} CPU s, {} KiB resident",
            process.rss_bytes >> 10
        )?;
    }
    figure(text, "µs of watched CPU per request", record.watched_us_per_request())?;
    figure(text, "µs of watched CPU per event", record.watched_us_per_event())?;
    faults(text, &record.failures, &record.failure_examples, &record.invalid_because)
}

/// What is wrong with a run.
pub(crate) fn faults(
    text: &mut String,
    failures: &BTreeMap<Failure, u64>,
    examples: &[String],
    invalid_because: &[String],
) -> fmt::Result {
    for (reason, count) in failures {
        writeln!(text, "FAILED     {count} × {reason:?}")?;
    }
    for example in examples {
        writeln!(text, "           {example}")?;
    }
    for reason in invalid_because {
        writeln!(text, "INVALID    {reason}")?;
    }
    Ok(())
}

fn figure(text: &mut String, what: &str, value: Option<f64>) -> fmt::Result {
    value.map_or(Ok(()), |value| writeln!(text, "           {value:.2} {what}"))
}

/// What stands above the histograms.
pub(crate) fn header(text: &mut String) -> fmt::Result {
    writeln!(text, "           p50        p90        p99        p99.9      max        (µs)")
}

/// One histogram.
pub(crate) fn row(text: &mut String, name: impl Display, values: Option<Percentiles>) -> fmt::Result {
    let Some(Percentiles { p50, p90, p99, p999, max, .. }) = values else { return Ok(()) };
    writeln!(text, "{name:<10} {p50:<10.1} {p90:<10.1} {p99:<10.1} {p999:<10.1} {max:<10.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_run_says_how_far_it_is_and_only_what_there_is() {
        let begun = Standing { completed: 12, rejected: 0, failed: 0, events: 0, under_way: 3, waiting: 1 };
        let line = |standing| progress(standing, 1_260_000_000, 10_000_000_000);
        assert_eq!(line(begun), "1.3/10 s  12 done, 3 under way, 1 waiting");
        let worse = Standing { events: 40, rejected: 2, failed: 5, ..begun };
        let rest = ", 40 events, 2 rejected, 5 FAILED";
        assert_eq!(line(worse), format!("1.3/10 s  12 done, 3 under way, 1 waiting{rest}"));
    }
}
