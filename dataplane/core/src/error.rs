//! Faults: how an exchange can end badly, who is to blame, and what the client, the log and the metrics say of it.
//!
//! The machines of the core have small errors of their own. At the edge of an exchange each becomes a [`FaultKind`];
//! everything that is said about it is a function here, each a `match` that the compiler keeps complete.

use std::borrow::Cow;

use proto::config::LogLevel;

/// Who has to change something for this not to happen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Blame {
    /// The client.
    Client,
    /// The origin, or the way to it.
    Upstream,
    /// This node: its config, its limits, its state.
    Proxy,
}

impl Blame {
    /// All of them, in the order of their numbers.
    pub const ALL: [Blame; 3] = [Blame::Client, Blame::Upstream, Blame::Proxy];

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Blame::Client => "client",
            Blame::Upstream => "upstream",
            Blame::Proxy => "proxy",
        }
    }
}

/// A bad end of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Who is to blame.
    pub blame: Blame,
    /// What happened.
    pub kind: FaultKind,
    /// Whether another try could end better; whether one is safe, `retry` decides.
    pub retry: bool,
    /// What exactly it was, in one word for the logs, where there is more to say than `kind` does: such as `duplicate_length`.
    pub detail: Option<&'static str>,
}

impl Fault {
    /// The fault of this kind, for this reason.
    pub fn because(kind: FaultKind, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..Self::from(kind) }
    }
}

impl From<FaultKind> for Fault {
    fn from(kind: FaultKind) -> Self {
        Fault { blame: kind.blame(), kind, retry: kind.may_retry(), detail: None }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.blame.as_str(), self.kind)
    }
}

impl std::error::Error for Fault {}

/// What is known of a fault beyond its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The rule that the request broke: the client is told, too.
    Rule(&'static str),
    /// What of this node stood in the way, such as a limit by its key in the config: for the operator alone.
    Node(&'static str),
}

impl Detail {
    /// For the logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Detail::Rule(text) | Detail::Node(text) => text,
        }
    }

    /// What the client may know of it.
    pub fn for_client(self) -> Option<&'static str> {
        match self {
            Detail::Rule(text) => Some(text),
            Detail::Node(_) => None,
        }
    }
}

/// Everything that can end an exchange badly. A deadline that passed has its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// The request breaks the framing rules, or may be read in two ways.
    MalformedRequest,
    /// More bytes or fields in the request head than allowed.
    RequestHeadTooLarge,
    /// The request line alone is longer than allowed.
    UriTooLong,
    /// The request body is larger than the route takes.
    BodyTooLarge,
    /// An HTTP version that is not spoken here.
    UnsupportedVersion,
    /// A method that is not forwarded: CONNECT, or one longer than any that is known.
    UnsupportedMethod,
    /// A transfer coding other than chunked.
    UnsupportedTransferCoding,
    /// An `Expect` other than `100-continue`.
    ExpectationFailed,
    /// The request head was not there in time.
    RequestHeadTimeout,
    /// The client went silent in the middle of the request body.
    RequestBodyTimeout,
    /// The client took none of the bytes that waited for it.
    SendTimeout,
    /// No next request came on an idle connection: an end, not an error.
    KeepAliveTimeout,
    /// The client went away.
    ClientGone,
    /// The client asks more often than it may.
    TooManyRequests,
    /// No route matches the request.
    NoRoute,
    /// No endpoint of the cluster is available.
    NoEndpoint,
    /// The node has as many connections or requests, or as much memory in use, as it may.
    Overloaded,
    /// The process, or its host, has no file descriptor left for what the client wants.
    OutOfFiles,
    /// The node is stopping and takes no more requests.
    Draining,
    /// The node stopped before the exchange came to its end.
    DrainTimeout,
    /// A bug in this program.
    Internal,
    /// The origin refused the connection.
    ConnectRefused,
    /// The connection to the origin failed for another reason.
    ConnectFailed,
    /// The connection to the origin was not there in time.
    ConnectTimeout,
    /// The response did not begin in time.
    FirstByteTimeout,
    /// The origin went silent in the middle of the response.
    IdleTimeout,
    /// The exchange as a whole took too long.
    TotalTimeout,
    /// The origin closed the connection before the response head was complete.
    UpstreamClosedEarly,
    /// The origin reset the connection.
    UpstreamReset,
    /// The response breaks the framing rules.
    UpstreamMalformed,
    /// More bytes or fields in the response head than allowed.
    UpstreamHeadTooLarge,
    /// The origin closed the connection in the middle of the response body.
    UpstreamTruncated,
}

impl FaultKind {
    /// All of them, in the order of their numbers (`kind as usize`).
    pub const ALL: [FaultKind; 32] = [
        FaultKind::MalformedRequest,
        FaultKind::RequestHeadTooLarge,
        FaultKind::UriTooLong,
        FaultKind::BodyTooLarge,
        FaultKind::UnsupportedVersion,
        FaultKind::UnsupportedMethod,
        FaultKind::UnsupportedTransferCoding,
        FaultKind::ExpectationFailed,
        FaultKind::RequestHeadTimeout,
        FaultKind::RequestBodyTimeout,
        FaultKind::SendTimeout,
        FaultKind::KeepAliveTimeout,
        FaultKind::ClientGone,
        FaultKind::TooManyRequests,
        FaultKind::NoRoute,
        FaultKind::NoEndpoint,
        FaultKind::Overloaded,
        FaultKind::OutOfFiles,
        FaultKind::Draining,
        FaultKind::DrainTimeout,
        FaultKind::Internal,
        FaultKind::ConnectRefused,
        FaultKind::ConnectFailed,
        FaultKind::ConnectTimeout,
        FaultKind::FirstByteTimeout,
        FaultKind::IdleTimeout,
        FaultKind::TotalTimeout,
        FaultKind::UpstreamClosedEarly,
        FaultKind::UpstreamReset,
        FaultKind::UpstreamMalformed,
        FaultKind::UpstreamHeadTooLarge,
        FaultKind::UpstreamTruncated,
    ];

    /// The label in metrics and logs, and the `code` in the error that the client gets.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultKind::MalformedRequest => "malformed_request",
            FaultKind::RequestHeadTooLarge => "request_head_too_large",
            FaultKind::UriTooLong => "uri_too_long",
            FaultKind::BodyTooLarge => "body_too_large",
            FaultKind::UnsupportedVersion => "unsupported_version",
            FaultKind::UnsupportedMethod => "unsupported_method",
            FaultKind::UnsupportedTransferCoding => "unsupported_transfer_coding",
            FaultKind::ExpectationFailed => "expectation_failed",
            FaultKind::RequestHeadTimeout => "request_head_timeout",
            FaultKind::RequestBodyTimeout => "request_body_timeout",
            FaultKind::SendTimeout => "send_timeout",
            FaultKind::KeepAliveTimeout => "keep_alive_timeout",
            FaultKind::ClientGone => "client_gone",
            FaultKind::TooManyRequests => "too_many_requests",
            FaultKind::NoRoute => "no_route",
            FaultKind::NoEndpoint => "no_endpoint",
            FaultKind::Overloaded => "overloaded",
            FaultKind::OutOfFiles => "out_of_files",
            FaultKind::Draining => "draining",
            FaultKind::DrainTimeout => "drain_timeout",
            FaultKind::Internal => "internal",
            FaultKind::ConnectRefused => "connect_refused",
            FaultKind::ConnectFailed => "connect_failed",
            FaultKind::ConnectTimeout => "connect_timeout",
            FaultKind::FirstByteTimeout => "first_byte_timeout",
            FaultKind::IdleTimeout => "idle_timeout",
            FaultKind::TotalTimeout => "total_timeout",
            FaultKind::UpstreamClosedEarly => "upstream_closed_early",
            FaultKind::UpstreamReset => "upstream_reset",
            FaultKind::UpstreamMalformed => "upstream_malformed",
            FaultKind::UpstreamHeadTooLarge => "upstream_head_too_large",
            FaultKind::UpstreamTruncated => "upstream_truncated",
        }
    }

    /// Who is to blame.
    pub fn blame(self) -> Blame {
        match self {
            FaultKind::MalformedRequest
            | FaultKind::RequestHeadTooLarge
            | FaultKind::UriTooLong
            | FaultKind::BodyTooLarge
            | FaultKind::UnsupportedVersion
            | FaultKind::UnsupportedMethod
            | FaultKind::UnsupportedTransferCoding
            | FaultKind::ExpectationFailed
            | FaultKind::RequestHeadTimeout
            | FaultKind::RequestBodyTimeout
            | FaultKind::SendTimeout
            | FaultKind::KeepAliveTimeout
            | FaultKind::ClientGone
            | FaultKind::TooManyRequests
            | FaultKind::NoRoute => Blame::Client,
            FaultKind::ConnectRefused
            | FaultKind::ConnectFailed
            | FaultKind::ConnectTimeout
            | FaultKind::FirstByteTimeout
            | FaultKind::IdleTimeout
            | FaultKind::UpstreamClosedEarly
            | FaultKind::UpstreamReset
            | FaultKind::UpstreamMalformed
            | FaultKind::UpstreamHeadTooLarge
            | FaultKind::UpstreamTruncated
            // Nobody is up that could answer: the node only says so.
            | FaultKind::NoEndpoint => Blame::Upstream,
            // The total is this node's own rule; the origin may have been answering all along.
            FaultKind::TotalTimeout
            | FaultKind::Overloaded
            | FaultKind::OutOfFiles
            | FaultKind::Draining
            | FaultKind::DrainTimeout
            | FaultKind::Internal => Blame::Proxy,
        }
    }

    /// The status that answers the client, as long as no response has begun. None: nothing is sent, the connection
    /// is closed (or the stream reset).
    pub fn status(self) -> Option<u16> {
        match self {
            FaultKind::MalformedRequest => Some(400),
            FaultKind::NoRoute => Some(404),
            FaultKind::RequestHeadTimeout | FaultKind::RequestBodyTimeout => Some(408),
            FaultKind::BodyTooLarge => Some(413),
            FaultKind::UriTooLong => Some(414),
            FaultKind::ExpectationFailed => Some(417),
            FaultKind::TooManyRequests => Some(429),
            FaultKind::RequestHeadTooLarge => Some(431),
            FaultKind::Internal => Some(500),
            // RFC 9110, section 15.6.2; RFC 9112, section 6.1 asks for it where a transfer coding is not understood.
            FaultKind::UnsupportedMethod | FaultKind::UnsupportedTransferCoding => Some(501),
            FaultKind::ConnectRefused
            | FaultKind::ConnectFailed
            | FaultKind::UpstreamClosedEarly
            | FaultKind::UpstreamReset
            | FaultKind::UpstreamMalformed
            | FaultKind::UpstreamHeadTooLarge
            | FaultKind::UpstreamTruncated => Some(502),
            FaultKind::NoEndpoint
            | FaultKind::Overloaded
            | FaultKind::OutOfFiles
            | FaultKind::Draining
            | FaultKind::DrainTimeout => Some(503),
            FaultKind::ConnectTimeout
            | FaultKind::FirstByteTimeout
            | FaultKind::IdleTimeout
            | FaultKind::TotalTimeout => Some(504),
            FaultKind::UnsupportedVersion => Some(505),
            // The client does not listen, or asked for nothing.
            FaultKind::ClientGone | FaultKind::SendTimeout | FaultKind::KeepAliveTimeout => None,
        }
    }

    /// The status in the access log where no response was sent: nginx's 499 for a client that went away.
    pub fn log_status(self) -> u16 {
        self.status().unwrap_or(499)
    }

    /// The `type` in the error that the client gets, in the words that OpenAI's SDKs know.
    pub fn error_type(self) -> &'static str {
        match (self.blame(), self) {
            (_, FaultKind::TooManyRequests) => "rate_limit_error",
            (Blame::Client, _) => "invalid_request_error",
            (Blame::Upstream, _) => "upstream_error",
            (Blame::Proxy, _) => "server_error",
        }
    }

    /// A sentence for the person who reads the error. It says nothing of addresses or names inside.
    pub fn message(self) -> &'static str {
        match self {
            FaultKind::MalformedRequest => "The request is not valid HTTP.",
            FaultKind::RequestHeadTooLarge => "The request headers are larger than this server allows.",
            FaultKind::UriTooLong => "The request URI is longer than this server allows.",
            FaultKind::BodyTooLarge => "The request body is larger than this route allows.",
            FaultKind::UnsupportedVersion => "This HTTP version is not supported.",
            FaultKind::UnsupportedMethod => "This method is not supported.",
            FaultKind::UnsupportedTransferCoding => "The only transfer coding supported is chunked.",
            FaultKind::ExpectationFailed => "The only expectation supported is 100-continue.",
            FaultKind::RequestHeadTimeout => "The request headers did not arrive in time.",
            FaultKind::RequestBodyTimeout => "The request body did not arrive in time.",
            FaultKind::SendTimeout => "The client did not read the response in time.",
            FaultKind::KeepAliveTimeout => "No further request came on this connection.",
            FaultKind::ClientGone => "The client closed the connection.",
            FaultKind::TooManyRequests => "Too many requests; slow down and try again.",
            FaultKind::NoRoute => "No route matches this host, path and method.",
            FaultKind::NoEndpoint => "No server is available for this route; try again shortly.",
            FaultKind::Overloaded => "The server is overloaded; try again shortly.",
            FaultKind::OutOfFiles => "The server has as many connections open as it may; try again shortly.",
            FaultKind::Draining => "The server is shutting down; try again.",
            FaultKind::DrainTimeout => "The server shut down before the response was complete.",
            FaultKind::Internal => "Something went wrong inside the proxy.",
            FaultKind::ConnectRefused => "The upstream server refused the connection.",
            FaultKind::ConnectFailed => "The upstream server could not be reached.",
            FaultKind::ConnectTimeout => "The connection to the upstream server timed out.",
            FaultKind::FirstByteTimeout => "The upstream server did not begin to respond in time.",
            FaultKind::IdleTimeout => "The upstream server stopped in the middle of its response.",
            FaultKind::TotalTimeout => "The request took longer than this route allows.",
            FaultKind::UpstreamClosedEarly => "The upstream server closed the connection without a response.",
            FaultKind::UpstreamReset => "The upstream server reset the connection.",
            FaultKind::UpstreamMalformed => "The upstream server sent a response that is not valid HTTP.",
            FaultKind::UpstreamHeadTooLarge => {
                "The upstream server sent response headers that are too large."
            }
            FaultKind::UpstreamTruncated => "The upstream server closed the connection in mid-response.",
        }
    }

    /// The sentence of [`FaultKind::message`], with what is known beyond it in brackets.
    pub fn explain(self, detail: Option<&str>) -> Cow<'static, str> {
        match detail {
            Some(detail) => Cow::Owned(format!("{} ({detail})", self.message())),
            None => Cow::Borrowed(self.message()),
        }
    }

    /// Seconds for `Retry-After` (RFC 9110, section 10.2.3), where waiting helps.
    pub fn retry_after_s(self) -> Option<u32> {
        matches!(self.status(), Some(429 | 503)).then_some(RETRY_AFTER_S)
    }

    /// Whether another try could end better.
    pub fn may_retry(self) -> bool {
        match self.blame() {
            Blame::Client | Blame::Proxy => false,
            // The origin said something, and would say it again; or the response has begun; or no one is left.
            Blame::Upstream => !matches!(
                self,
                FaultKind::UpstreamMalformed
                    | FaultKind::UpstreamHeadTooLarge
                    | FaultKind::UpstreamTruncated
                    | FaultKind::IdleTimeout
                    | FaultKind::NoEndpoint
            ),
        }
    }

    /// How loud the log is about it. What clients can cause at any rate is not for the default level.
    pub fn log_level(self) -> LogLevel {
        match (self.blame(), self) {
            (_, FaultKind::Internal) => LogLevel::Error,
            (Blame::Upstream, _) => LogLevel::Info,
            (Blame::Client | Blame::Proxy, _) => LogLevel::Debug,
        }
    }
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Overload is gone within seconds or not at all, and SDKs back off by themselves from there.
const RETRY_AFTER_S: u32 = 1;
