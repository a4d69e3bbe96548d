//! The record of an idle run as text for people.

use std::fmt::{self, Write as _};

use crate::load::human::{faults, header, row};
use crate::record::IdleRecord;

/// The record as a short text.
pub(crate) fn text(record: &IdleRecord) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(record, &mut text);
    text
}

fn write_text(record: &IdleRecord, text: &mut String) -> fmt::Result {
    let IdleRecord { target, idle_connections, streams, holders, hold_s, .. } = record;
    writeln!(
        text,
        "{target}: {idle_connections} idle connections and {streams} streams from {holders} process(es), {hold_s:.1} s each"
    )?;
    for proxy in &record.proxies {
        let [before, idle, streaming] = proxy.rss_bytes.map(|bytes| bytes >> 10);
        writeln!(
            text,
            "proxy      {} ({}): {} files; {before} KiB resident before, {idle} KiB idle, {streaming} KiB streaming",
            proxy.name, proxy.pid, proxy.open_files
        )?;
    }
    writeln!(
        text,
        "memory     {:.0} B user per idle connection; kernel, both ends: {:.0} B by MemAvailable, {:.0} B by slab",
        record.user_bytes_per_idle_connection,
        record.kernel_bytes_per_idle_connection,
        record.slab_bytes_per_idle_connection
    )?;
    if let Some(bytes) = record.cgroup_bytes_per_idle_connection {
        writeln!(text, "           {bytes:.0} B in the memory cgroup per idle connection")?;
    }
    if let Some(bytes) = record.user_bytes_per_stream {
        writeln!(text, "           {bytes:.0} B user per stream")?;
    }
    writeln!(
        text,
        "CPU        {:.2} % of a core idle, {:.2} % with streams",
        record.idle_cpu_percent, record.streaming_cpu_percent
    )?;
    if let Some(us) = record.streaming_us_per_event {
        writeln!(text, "           {us:.2} µs per event")?;
    }
    header(text)?;
    row(text, "wake-up", record.wake_us)?;
    if let Some(sse) = &record.sse {
        row(text, "delay", sse.delay_us)?;
        row(text, "gap", sse.gap_us)?;
        writeln!(text, "events     {} in order, {} merged", sse.events, sse.merged)?;
    }
    if record.closed_while_idle > 0 {
        writeln!(text, "FAILED     {} idle connections were closed", record.closed_while_idle)?;
    }
    faults(text, &record.failures, &record.failure_examples, &record.invalid_because)
}
