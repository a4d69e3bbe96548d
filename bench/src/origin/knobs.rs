//! The knobs of one request: how long, how fast and how wrongly it is answered. A knob comes from a
//! header (`X-Mock-Stall-Before: 2s`) or from the query (`?stall_before=2s`), under one name.
//! Nothing here acts: `exchange`, `stream` and `endpoint` do what the knobs say.

use std::time::Duration;

use super::framing::BadFraming;
use super::request::Request;

/// Largest count of tokens whose rendering is kept in memory at once (a completion without streaming).
pub(crate) const TOKENS_WHOLE_MAX: u64 = 1_000_000;

/// Every name that [`Knobs::set`] knows.
pub const NAMES: &[&str] = &[
    "ttft",
    "tokens_per_second",
    "tokens",
    "token_size",
    "stall_before",
    "stall_at",
    "stall",
    "status",
    "retry_after",
    "error_event",
    "empty_stream",
    "cut_at",
    "rst_at",
    "slow_drain",
    "close_after",
    "early_response",
    "bad_framing",
    "split",
    "split_gap",
    "conn_close",
    "chunk",
    "chunked",
    "close",
    "bytes_per_second",
    "raw",
    "sha256",
    "pattern",
    "hold",
];

/// How one request is to be answered. The default is a well-behaved origin: 16 tokens at 100 a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// From the response's head to the first token.
    pub ttft: Duration,
    /// Tokens (or events) a second; 0 means as fast as the client takes them.
    pub tokens_per_second: f64,
    /// How many tokens (or events) there are.
    pub tokens: u64,
    /// Bytes of each token's text; of the whole event on `/sse`. Without it: words, or 120-byte events.
    pub token_size: Option<usize>,
    /// Wait before the first byte of the head.
    pub stall_before: Duration,
    /// Stall when this many tokens are sent …
    pub stall_at: Option<u64>,
    /// … for this long; without it until the client goes away.
    pub stall: Option<Duration>,
    /// Answer with this status and an error body in the shape of the API.
    pub status: Option<u16>,
    /// Seconds of `Retry-After` beside `status`; without it 1 with 429 and 503, none with others.
    pub retry_after: Option<u64>,
    /// Send an error event after this many tokens, and end the stream there.
    pub error_event: Option<u64>,
    /// 200, the head of a stream, and a clean end without one event.
    pub empty_stream: bool,
    /// Close (FIN) after this many bytes of the body, without its end.
    pub cut_at: Option<u64>,
    /// The same with a TCP reset.
    pub rst_at: Option<u64>,
    /// Read the request body at this many bytes a second.
    pub slow_drain: Option<u64>,
    /// Answer, wait this long, close without having said `Connection: close`.
    pub close_after: Option<Duration>,
    /// Answer before the request body is read.
    pub early_response: EarlyResponse,
    /// Answer with this malformed message.
    pub bad_framing: Option<BadFraming>,
    /// Write everything in pieces of this many bytes.
    pub split: Option<usize>,
    /// Wait between those pieces.
    pub split_gap: Duration,
    /// Say `Connection: close`, and do it.
    pub conn_close: bool,
    /// Bytes of each piece of `/bytes/{n}`.
    pub chunk: Option<usize>,
    /// `/bytes/{n}`: chunked instead of sized.
    pub chunked: bool,
    /// `/bytes/{n}`: delimited by the end of the connection.
    pub close: bool,
    /// `/bytes/{n}`: pace of the body.
    pub bytes_per_second: Option<u64>,
    /// `/echo`: stream the body back as it arrives.
    pub raw: bool,
    /// `/upload`: hash the body.
    pub sha256: bool,
    /// `/upload`: compare the body with the content of `/bytes/{n}`.
    pub pattern: bool,
    /// Keep back tokens until there are this many, and write them together: the mistake that a buffering proxy makes.
    pub hold: Option<u64>,
}

/// When a request body is read, in relation to its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyResponse {
    /// Body first.
    #[default]
    Off,
    /// Response first, then the body is read and thrown away, so that the connection can be kept.
    Drain,
    /// Response first, then the connection is closed with the body unread.
    Close,
}

/// A knob whose value does not parse, or a name that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnobError {
    /// Only for headers, defaults and process-wide faults: a query may carry names of its own.
    #[error("no knob is called '{name}'; there are: {}", NAMES.join(", "))]
    Unknown {
        /// As it was written, without `X-Mock-`.
        name: String,
    },
    /// The value is not of the knob's type.
    #[error("'{value}' is not a value of knob '{name}': write {expected}")]
    Invalid {
        /// The knob.
        name: String,
        /// What was written.
        value: String,
        /// What could have been written.
        expected: &'static str,
    },
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            tokens_per_second: 100.0,
            tokens: 16,
            token_size: None,
            stall_before: Duration::ZERO,
            stall_at: None,
            stall: None,
            status: None,
            retry_after: None,
            error_event: None,
            empty_stream: false,
            cut_at: None,
            rst_at: None,
            slow_drain: None,
            close_after: None,
            early_response: EarlyResponse::Off,
            bad_framing: None,
            split: None,
            split_gap: Duration::ZERO,
            conn_close: false,
            chunk: None,
            chunked: false,
            close: false,
            bytes_per_second: None,
            raw: false,
            sha256: false,
            pattern: false,
            hold: None,
        }
    }
}

impl Knobs {
    /// Sets one knob by its name.
    ///
    /// # Errors
    /// [`KnobError::Unknown`] if there is no such knob, [`KnobError::Invalid`] if the value does not parse.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), KnobError> {
        let knob = Written { name, value };
        match name {
            "ttft" => self.ttft = knob.duration()?,
            "tokens_per_second" => self.tokens_per_second = knob.rate()?,
            "tokens" => self.tokens = knob.count()?,
            "token_size" => self.token_size = Some(knob.size_within(1, 1 << 20)?),
            "stall_before" => self.stall_before = knob.duration()?,
            "stall_at" => self.stall_at = Some(knob.count()?),
            "stall" => self.stall = Some(knob.duration()?),
            "status" => self.status = Some(knob.status()?),
            "retry_after" => self.retry_after = Some(knob.count()?),
            "error_event" => self.error_event = Some(knob.count()?),
            "empty_stream" => self.empty_stream = knob.flag()?,
            "cut_at" => self.cut_at = Some(knob.size()?),
            "rst_at" => self.rst_at = Some(knob.size()?),
            "slow_drain" => self.slow_drain = Some(knob.size()?.max(1)),
            "close_after" => self.close_after = Some(knob.duration_or_now()?),
            "early_response" => self.early_response = knob.early_response()?,
            "bad_framing" => self.bad_framing = Some(knob.bad_framing()?),
            "split" => self.split = Some(knob.size_within(1, 1 << 30)?),
            "split_gap" => self.split_gap = knob.duration()?,
            "conn_close" => self.conn_close = knob.flag()?,
            "chunk" => self.chunk = Some(knob.size_within(1, 1 << 20)?),
            "chunked" => self.chunked = knob.flag()?,
            "close" => self.close = knob.flag()?,
            "bytes_per_second" => self.bytes_per_second = Some(knob.size()?.max(1)),
            "raw" => self.raw = knob.flag()?,
            "sha256" => self.sha256 = knob.flag()?,
            "pattern" => self.pattern = knob.flag()?,
            "hold" => self.hold = Some(knob.count()?.max(1)),
            _ => return Err(KnobError::Unknown { name: name.to_owned() }),
        }
        Ok(())
    }

    /// Lays the request's query and then its headers over these knobs. A name in the query that is no
    /// knob is left alone: `/echo?user=7` must work.
    ///
    /// # Errors
    /// As [`Knobs::set`].
    pub(crate) fn apply(&mut self, request: &Request) -> Result<(), KnobError> {
        for (name, value) in pairs(request.query()) {
            match self.set(name, value) {
                Ok(()) | Err(KnobError::Unknown { .. }) => {}
                Err(invalid @ KnobError::Invalid { .. }) => return Err(invalid),
            }
        }
        for (name, value) in request.knob_fields() {
            self.set(&name, &value)?;
        }
        Ok(())
    }

    /// When token `index` is due after the first one.
    pub(crate) fn token_offset(&self, index: u64) -> Duration {
        if self.tokens_per_second <= 0.0 {
            return Duration::ZERO;
        }
        // Beyond 2^53 tokens a double is no longer exact; a stream of that length does not exist.
        Duration::try_from_secs_f64(index as f64 / self.tokens_per_second).unwrap_or(Duration::MAX)
    }
}

/// `a=1&b` as `("a", "1"), ("b", "")`. Values are not percent-decoded: no knob's value needs it.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Parses `250ms`, `2s`, `1.5s`, `80us`, `1m`; a bare number is milliseconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "us" => 1e-6,
        "" | "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit_seconds).ok()
}

/// Parses `17`, `64KiB`, `10MiB`, `1GiB`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A knob as it was written, on its way to a value.
struct Written<'a> {
    name: &'a str,
    value: &'a str,
}

impl Written<'_> {
    fn duration(&self) -> Result<Duration, KnobError> {
        parse_duration(self.value).ok_or_else(|| self.invalid("a duration such as 250ms, 2s or 1m"))
    }

    fn duration_or_now(&self) -> Result<Duration, KnobError> {
        if matches!(self.value, "" | "true") { Ok(Duration::ZERO) } else { self.duration() }
    }

    fn rate(&self) -> Result<f64, KnobError> {
        let rate = self.value.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
        rate.ok_or_else(|| self.invalid("a number of tokens a second, 0 for no pace"))
    }

    fn count(&self) -> Result<u64, KnobError> {
        self.value.parse().map_err(|_| self.invalid("a whole number"))
    }

    fn size(&self) -> Result<u64, KnobError> {
        parse_size(self.value).ok_or_else(|| self.invalid("a size such as 100, 64KiB or 1MiB"))
    }

    fn size_within(&self, low: usize, high: usize) -> Result<usize, KnobError> {
        let size = usize::try_from(self.size()?).ok().filter(|size| (low..=high).contains(size));
        size.ok_or_else(|| self.invalid("a size of at least 1 byte and at most 1 MiB (1 GiB for split)"))
    }

    fn status(&self) -> Result<u16, KnobError> {
        let status = self.value.parse().ok().filter(|status| (200..=599).contains(status));
        status.ok_or_else(|| self.invalid("a final status from 200 to 599"))
    }

    fn flag(&self) -> Result<bool, KnobError> {
        match self.value {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(self.invalid("1 or 0")),
        }
    }

    fn early_response(&self) -> Result<EarlyResponse, KnobError> {
        match self.value {
            "close" => Ok(EarlyResponse::Close),
            "drain" => Ok(EarlyResponse::Drain),
            _ => Ok(if self.flag()? { EarlyResponse::Drain } else { EarlyResponse::Off }),
        }
    }

    fn bad_framing(&self) -> Result<BadFraming, KnobError> {
        BadFraming::named(self.value).ok_or_else(|| self.invalid(BadFraming::EXPECTED))
    }

    fn invalid(&self, expected: &'static str) -> KnobError {
        KnobError::Invalid { name: self.name.to_owned(), value: self.value.to_owned(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_their_unit_and_default_to_milliseconds() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("250"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("80us"), Some(Duration::from_micros(80)));
        for wrong in ["", "s", "-1s", "2 s", "1d", "1e400s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_whole_and_do_not_overflow() {
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        for wrong in ["", "KiB", "1KB", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_listed_name_is_known() {
        for name in NAMES {
            let refused = Knobs::default().set(name, "?");
            assert!(matches!(refused, Err(KnobError::Invalid { .. })), "{name}: {refused:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_what_exists() {
        let error = Knobs::default().set("stal_at", "1").unwrap_err().to_string();
        assert!(error.contains("'stal_at'") && error.contains("stall_at"), "{error}");
    }

    #[test]
    fn tokens_follow_an_absolute_schedule() {
        let mut knobs = Knobs { tokens_per_second: 20.0, ..Knobs::default() };
        assert_eq!(knobs.token_offset(1000), Duration::from_secs(50));
        knobs.tokens_per_second = 0.0;
        assert_eq!(knobs.token_offset(1000), Duration::ZERO);
    }
}
