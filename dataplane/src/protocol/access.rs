//! From an ended exchange to a record of the access log.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::error::FaultKind;

use super::exchange::{Exchange, Notes};
use crate::metrics::access::AccessRecord;

/// Hands the record of `exchange` to the log's writer. Only called while the log is on: it allocates and reads the clock.
pub(super) fn write(exchange: &Exchange, notes: &Notes, status: Option<u16>, fault: Option<FaultKind>) {
    let Some(log) = &exchange.view.live.access else { return };
    let tally = &exchange.tally;
    let since_begin = |stamp| exchange.context.nanoseconds(tally.began.get(), stamp);
    let duration_ns = since_begin(exchange.context.stamp());
    let began = SystemTime::now() - Duration::from_nanos(duration_ns);
    let ttft = Some(tally.first_body_byte.get()).filter(|stamp| *stamp != 0);
    let text = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    log.push(AccessRecord {
        began_unix_ms: began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        request_id: exchange.id.as_str().into(),
        client: notes.client,
        listener: exchange.ingress.name().into(),
        method: Some(exchange.method),
        host: text(&notes.host),
        path: text(&notes.path),
        route: Some(Arc::clone(&exchange.route().entry)),
        endpoint: text(&exchange.last_endpoint()),
        status,
        ttft_ns: ttft.map(since_begin),
        largest_gap_ns: tally.largest_gap_ns.get(),
        chunks: tally.chunks.get(),
        bytes_in: tally.bytes_in.get(),
        bytes_out: tally.bytes_out.get(),
        duration_ns,
        fault,
    });
}
