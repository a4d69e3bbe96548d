//! `[[routes]]`: which request goes to which cluster, with which deadlines, retries and header edits.

use std::fmt;
use std::time::Duration;

/// One route. Of all routes that match a request the most specific one is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Unique among routes.
    pub name: String,
    /// Names of the listeners it serves; all HTTP listeners where the file names none. Never empty.
    pub listeners: Vec<String>,
    /// Hosts it serves; empty means any.
    pub hosts: Vec<HostPattern>,
    /// Paths it serves.
    pub path: PathMatch,
    /// Methods it serves, upper case; empty means any.
    pub methods: Vec<String>,
    /// Request headers that must all be there (`match_headers`).
    pub match_headers: Vec<HeaderMatch>,
    /// Name of the cluster that answers; it exists.
    pub cluster: String,
    /// Deadlines of an exchange.
    pub timeouts: Timeouts,
    /// When another endpoint may be tried.
    pub retries: Retries,
    /// Header edits on the way to the origin and back.
    pub headers: HeaderRules,
    /// Largest request body in bytes, answered with 413 above it; none: any size.
    pub request_body_max: Option<u64>,
}

/// A host as written in `hosts`, lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `api.example.com`
    Exact(String),
    /// `*.example.com`, kept as `example.com`: any number of labels (at least one) in front of it.
    Wildcard(String),
}

/// As written in the config.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// A path as written in `path` or `path_exact`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The path itself, or anything below it at a segment boundary: `/v1/` and `/v1` match `/v1` and `/v1/x`,
    /// not `/v10`. `/` matches everything (the default).
    Prefix(String),
    /// Nothing but this path.
    Exact(String),
}

/// One condition on a request header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    /// The exact value; none: the header must merely be there.
    pub value: Option<String>,
}

/// Deadlines of one exchange; each has its own name in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// From dialling to the established connection.
    pub connect: Duration,
    /// From the last request byte sent to the first byte of the response head.
    pub first_byte: Duration,
    /// Longest silence of the origin between two reads of a response that has begun.
    pub idle: Duration,
    /// The whole exchange; none unless given, since it would cut long streams.
    pub total: Option<Duration>,
}

/// When another endpoint may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Retries {
    /// Tries in all, the first included; 1 means no retry.
    pub attempts: u32,
    /// Request body bytes kept for a retry; a longer body is not retried once it was sent.
    pub body_bytes_max: u64,
    /// Whether a request that is not idempotent may be sent again although an origin may have seen it.
    pub unsafe_methods: bool,
}

/// Header edits on the way to the origin and back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderRules {
    /// Applied to the request before it is sent to the origin.
    pub request: HeaderEdits,
    /// Applied to the response before it is sent to the client.
    pub response: HeaderEdits,
}

/// Edits of one head; removed first, then set (replaces), then added (beside what is there).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderEdits {
    /// Name and value; names as written, valid tokens; values without CR, LF or NUL.
    pub set: Vec<(String, String)>,
    /// Name and value.
    pub add: Vec<(String, String)>,
    /// Names.
    pub remove: Vec<String>,
}
