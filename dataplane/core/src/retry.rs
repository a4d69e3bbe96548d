//! Whether a failed try is followed by another one. A request is never doubled: it is sent again only if no byte of
//! it can have reached an origin's application, or if doing it twice does no harm.
//!
//! It decides on one failure at a time. Which endpoint is next is `balance`'s choice, and whether the failure is of a
//! kind where another try may help is [`crate::error::Fault::retry`].

/// What is known when a try has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryState {
    /// The try that failed; the first is 1.
    pub attempt: u32,
    /// Tries in all that the route allows.
    pub attempts_max: u32,
    /// How far it had come.
    pub phase: Phase,
    /// Whether the method is idempotent, see [`crate::request::Method::is_idempotent`].
    pub is_idempotent: bool,
    /// What became of the request body.
    pub body: Body,
    /// Whether the route lets other methods be sent again too.
    pub unsafe_methods: bool,
}

/// How far a try had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Dialling: there was no connection to send anything on.
    Connecting,
    /// A pooled connection was found closed, and nothing had been written to it.
    ReusedBeforeByte,
    /// A pooled connection was closed or reset after the request, or a part of it, was written, and before anything
    /// came back: most likely it was closed while the request was on its way.
    ReusedAfterByte,
    /// Something was written to a connection, and nothing has come back.
    SentBeforeResponse,
    /// A byte of the response has been received.
    ResponseStarted,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 5] = [
        Phase::Connecting,
        Phase::ReusedBeforeByte,
        Phase::ReusedAfterByte,
        Phase::SentBeforeResponse,
        Phase::ResponseStarted,
    ];
}

/// What became of the request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// The request has none.
    None,
    /// All of it that was taken from the client is still there, if any was taken at all.
    Kept,
    /// Some of what was taken from the client is gone: too long to keep, or streamed through.
    Lost,
}

impl Body {
    /// All of them.
    pub const ALL: [Body; 3] = [Body::None, Body::Kept, Body::Lost];
}

/// What follows a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same endpoint on a fresh connection: only the pooled connection was bad. It does not count as a try, and
    /// cannot go on for ever, since a fresh connection is not a pooled one.
    SameOnFreshConnection,
    /// Another endpoint, if one is left.
    OtherEndpoint,
    /// None: the fault goes to the client.
    GiveUp(GiveUp),
}

/// Why there is no other try; the log says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The client has, or might have, the beginning of a response.
    ResponseStarted,
    /// The body cannot be sent again.
    BodyLost,
    /// An origin may have acted on the request, and acting twice may do harm.
    NotIdempotent,
    /// There were as many tries as the route allows.
    AttemptsSpent,
}

impl GiveUp {
    /// The label in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            GiveUp::ResponseStarted => "response_started",
            GiveUp::BodyLost => "body_lost",
            GiveUp::NotIdempotent => "not_idempotent",
            GiveUp::AttemptsSpent => "attempts_spent",
        }
    }
}

/// What follows a failed try.
pub fn decide(state: &RetryState) -> Retry {
    let may_repeat = state.is_idempotent || state.unsafe_methods;
    match (state.phase, state.body) {
        (Phase::ResponseStarted, _) => Retry::GiveUp(GiveUp::ResponseStarted),
        (_, Body::Lost) => Retry::GiveUp(GiveUp::BodyLost),
        (Phase::ReusedBeforeByte, _) => Retry::SameOnFreshConnection,
        // RFC 9110, section 9.2.2: only idempotent requests are repeated when a connection fails in mid-exchange.
        (Phase::ReusedAfterByte | Phase::SentBeforeResponse, _) if !may_repeat => {
            Retry::GiveUp(GiveUp::NotIdempotent)
        }
        (Phase::ReusedAfterByte, _) => Retry::SameOnFreshConnection,
        (Phase::Connecting | Phase::SentBeforeResponse, _) if state.attempt >= state.attempts_max => {
            Retry::GiveUp(GiveUp::AttemptsSpent)
        }
        (Phase::Connecting | Phase::SentBeforeResponse, _) => Retry::OtherEndpoint,
    }
}
