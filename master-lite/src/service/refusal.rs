//! Why something was not done: the one error of all services, with what the client is told and what only the log hears.

use crate::store::StoreError;

/// A wish that was refused, or could not be fulfilled.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// Whose fault, and what may be done about it.
    pub(crate) kind: Kind,
    /// For the client, one sentence without a full stop.
    pub(crate) message: String,
    /// Each field that is wrong.
    pub(crate) details: Vec<Detail>,
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Detail {
    /// The field's name in the body, the query, the path or the headers, such as `nodes[2]`.
    pub(crate) field: String,
    /// A word for programs, such as `unknown_field`.
    pub(crate) code: String,
    /// A sentence for people.
    pub(crate) message: String,
}

/// Kinds of refusals; each is one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Cannot be understood: 400.
    Malformed,
    /// Nobody knows who asks: 401.
    Unauthenticated,
    /// Known, but not allowed: 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// Does not fit what is there: 409.
    Conflict,
    /// 413.
    TooLarge,
    /// 415.
    UnsupportedMedia,
    /// Understood, but against the rules: 422.
    Invalid,
    /// 429.
    TooMany {
        /// When it may be tried again.
        retry_after_s: u64,
    },
    /// Our fault: 500.
    Internal,
    /// Not now: 503.
    Unavailable,
}

impl Refusal {
    /// A refusal because of one field.
    pub(crate) fn of(kind: Kind, field: &str, code: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let detail = Detail { field: field.to_owned(), code: code.to_owned(), message: message.clone() };
        Self { kind, message, details: vec![detail] }
    }

    /// A value that is against a rule: 422.
    pub(crate) fn invalid(field: &str, code: &str, message: impl Into<String>) -> Self {
        Self::of(Kind::Invalid, field, code, message)
    }

    /// Something that is not there: 404.
    pub(crate) fn not_found(field: &str, what: &str, name: &str) -> Self {
        Self::of(Kind::NotFound, field, "not_found", format!("there is no {what} `{name}`"))
    }

    /// Something that is in the way: 409.
    pub(crate) fn conflict(field: &str, code: &str, message: impl Into<String>) -> Self {
        Self::of(Kind::Conflict, field, code, message)
    }

    /// There may be no more of these: 409.
    pub(crate) fn limit(field: &str, what: &str, limit: u64) -> Self {
        Self::of(Kind::Conflict, field, "limit", format!("there may be at most {limit} {what}"))
    }

    /// Our fault: the client hears nothing of the cause, the log all of it.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!("{cause}");
        Self {
            kind: Kind::Internal,
            message: "the master failed; its log says why".into(),
            details: Vec::new(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if let StoreError::Failing(why) = &error {
            // Whoever asks can do nothing about it, but can come again; the store has logged it.
            let message = format!("the store takes no changes at present: {why}");
            return Self { kind: Kind::Unavailable, message, details: Vec::new() };
        }
        Self::internal(&error)
    }
}
