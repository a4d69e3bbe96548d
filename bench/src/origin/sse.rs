//! `/sse`: a stream of events that carry their number and the time at which they were sent, so that a
//! load tool can check order, merging and latency without knowing a model API.

use std::io::Write as _;

use super::clock::monotonic_ns;
use super::exchange::{Ended, Exchange};
use super::stream::{self, Dialect};

/// Bytes of a whole event unless `token_size` says otherwise: about what a model's event has.
const EVENT_SIZE: usize = 120;

const TAIL: &[u8] = b"\"}\n\n";

/// The events of one stream.
#[derive(Debug)]
pub(crate) struct Events {
    size: usize,
}

/// Answers `GET` or `POST /sse`.
pub(crate) async fn events(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let dialect = Dialect::Plain(Events { size: exchange.knobs.token_size.unwrap_or(EVENT_SIZE) });
    let tokens = exchange.knobs.tokens;
    stream::send(exchange, &dialect, tokens).await
}

impl Events {
    /// `id: 7`, and data with `seq`, `ns` (`CLOCK_MONOTONIC`, read now) and a filler up to the size, behind what
    /// `event` holds already.
    pub(crate) fn token(&self, index: u64, event: &mut Vec<u8>) {
        let start = event.len();
        // Writing to a Vec cannot fail.
        let _ = write!(event, "id: {index}\ndata: {{\"seq\":{index},\"ns\":{},\"pad\":\"", monotonic_ns());
        let filled = (start + self.size).saturating_sub(TAIL.len()).max(event.len());
        event.resize(filled, b'.');
        event.extend_from_slice(TAIL);
    }

    pub(crate) fn error() -> String {
        "event: error\ndata: {\"error\":{\"message\":\"The origin was asked to fail.\",\"type\":\"server_error\"}}\n\n"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_size_its_number_and_a_time() {
        let mut event = Vec::new();
        Events { size: 120 }.token(6, &mut event);
        Events { size: 120 }.token(7, &mut event);
        assert_eq!(event.len(), 240);
        let event = event.split_off(120);
        let text = String::from_utf8(event).unwrap();
        let data = text.strip_prefix("id: 7\ndata: ").and_then(|rest| rest.strip_suffix("\n\n")).unwrap();
        let value: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(value["seq"], 7);
        assert!(value["ns"].as_u64().unwrap() > 0);
    }

    #[test]
    fn a_size_below_the_least_gives_the_least() {
        let mut event = Vec::new();
        Events { size: 1 }.token(0, &mut event);
        assert!(event.ends_with(b"\"pad\":\"\"}\n\n"));
    }
}
