//! Why a head was refused: one name for each class of malformed head, the label under which it is counted, the status that
//! answers it. Not faults of bodies (those are in `body`), nor of exchanges.

use std::error::Error;
use std::fmt;

use crate::error::{Fault, FaultKind};

/// What is wrong with a request head or a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadErrorKind {
    /// The request line is not `method SP target SP version`.
    MalformedRequestLine,
    /// The status line is not `version SP status SP reason`.
    MalformedStatusLine,
    /// A request line without a version: HTTP/0.9.
    Http09,
    /// The preface of HTTP/2 (RFC 9113, section 3.4) on an HTTP/1 connection.
    Http2Preface,
    /// An HTTP version other than 1.0 and 1.1.
    UnsupportedVersion,
    /// More empty lines before the request line than are put up with.
    LeadingLines,
    /// A method longer than any that is known (RFC 9112, section 3).
    MethodTooLong,
    /// The request line alone is over the limit of the head.
    TargetTooLong,
    /// The head has more bytes than the limit.
    HeadTooLarge,
    /// The head has more fields than the limit.
    TooManyFields,
    /// A line that ends in LF without CR.
    BareLf,
    /// A CR that is not followed by LF.
    BareCr,
    /// A line that begins with white space: obsolete line folding, or a field before the first.
    ObsFold,
    /// White space between a field's name and its colon (RFC 9112, section 5.1).
    SpaceBeforeColon,
    /// A field name that is empty or not a token.
    InvalidFieldName,
    /// A control byte in a field value.
    InvalidFieldValue,
    /// A request target of no known form, or with bytes that no target may have.
    InvalidTarget,
    /// CONNECT: this is not a forward proxy.
    ConnectRefused,
    /// HTTP/1.1 without `Host` (RFC 9112, section 3.2).
    MissingHost,
    /// More than one `Host`.
    DuplicateHost,
    /// A `Host` or authority that is empty or no host and port.
    InvalidHost,
    /// `Host` says another authority than the absolute target.
    HostMismatch,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndEncoding,
    /// More than one `Content-Length`: in a request even if they agree.
    DuplicateLength,
    /// A `Content-Length` that is not a plain decimal number in range.
    InvalidLength,
    /// More than one `Transfer-Encoding`.
    DuplicateEncoding,
    /// A `Transfer-Encoding` that does not end in one `chunked`.
    InvalidEncoding,
    /// A known transfer coding before the final `chunked` (RFC 9112, section 6.1).
    UnsupportedEncoding,
    /// `Transfer-Encoding` in HTTP/1.0, or in a response without a body.
    EncodingNotAllowed,
    /// A body where none may be: TRACE, 1xx, 204.
    BodyNotAllowed,
    /// An expectation other than `100-continue`.
    UnsupportedExpectation,
    /// `Connection` names more fields than are looked for.
    TooManyConnectionOptions,
    /// A 101 that answers a request without `Upgrade`, or names no protocol.
    UnexpectedSwitch,
}

impl HeadErrorKind {
    /// Every kind, in order: `kind as usize` is its place, so a counter for each is an array of this length.
    pub const ALL: [Self; 33] = [
        Self::MalformedRequestLine,
        Self::MalformedStatusLine,
        Self::Http09,
        Self::Http2Preface,
        Self::UnsupportedVersion,
        Self::LeadingLines,
        Self::MethodTooLong,
        Self::TargetTooLong,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::BareLf,
        Self::BareCr,
        Self::ObsFold,
        Self::SpaceBeforeColon,
        Self::InvalidFieldName,
        Self::InvalidFieldValue,
        Self::InvalidTarget,
        Self::ConnectRefused,
        Self::MissingHost,
        Self::DuplicateHost,
        Self::InvalidHost,
        Self::HostMismatch,
        Self::LengthAndEncoding,
        Self::DuplicateLength,
        Self::InvalidLength,
        Self::DuplicateEncoding,
        Self::InvalidEncoding,
        Self::UnsupportedEncoding,
        Self::EncodingNotAllowed,
        Self::BodyNotAllowed,
        Self::UnsupportedExpectation,
        Self::TooManyConnectionOptions,
        Self::UnexpectedSwitch,
    ];

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedRequestLine => "malformed_request_line",
            Self::MalformedStatusLine => "malformed_status_line",
            Self::Http09 => "http_0_9",
            Self::Http2Preface => "http2_preface",
            Self::UnsupportedVersion => "unsupported_version",
            Self::LeadingLines => "leading_lines",
            Self::MethodTooLong => "method_too_long",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::ObsFold => "obs_fold",
            Self::SpaceBeforeColon => "space_before_colon",
            Self::InvalidFieldName => "invalid_field_name",
            Self::InvalidFieldValue => "invalid_field_value",
            Self::InvalidTarget => "invalid_target",
            Self::ConnectRefused => "connect_refused",
            Self::MissingHost => "missing_host",
            Self::DuplicateHost => "duplicate_host",
            Self::InvalidHost => "invalid_host",
            Self::HostMismatch => "host_mismatch",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::DuplicateLength => "duplicate_length",
            Self::InvalidLength => "invalid_length",
            Self::DuplicateEncoding => "duplicate_encoding",
            Self::InvalidEncoding => "invalid_encoding",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::EncodingNotAllowed => "encoding_not_allowed",
            Self::BodyNotAllowed => "body_not_allowed",
            Self::UnsupportedExpectation => "unsupported_expectation",
            Self::TooManyConnectionOptions => "too_many_connection_options",
            Self::UnexpectedSwitch => "unexpected_switch",
        }
    }

    /// The status that answers a request with this fault. (A response with it is the origin's fault: 502.)
    pub fn status(self) -> u16 {
        match self {
            Self::TargetTooLong => 414,
            Self::UnsupportedExpectation => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::MethodTooLong | Self::ConnectRefused | Self::UnsupportedEncoding => 501,
            Self::Http2Preface | Self::UnsupportedVersion => 505,
            Self::MalformedRequestLine
            | Self::MalformedStatusLine
            | Self::Http09
            | Self::LeadingLines
            | Self::BareLf
            | Self::BareCr
            | Self::ObsFold
            | Self::SpaceBeforeColon
            | Self::InvalidFieldName
            | Self::InvalidFieldValue
            | Self::InvalidTarget
            | Self::MissingHost
            | Self::DuplicateHost
            | Self::InvalidHost
            | Self::HostMismatch
            | Self::LengthAndEncoding
            | Self::DuplicateLength
            | Self::InvalidLength
            | Self::DuplicateEncoding
            | Self::InvalidEncoding
            | Self::EncodingNotAllowed
            | Self::BodyNotAllowed
            | Self::TooManyConnectionOptions
            | Self::UnexpectedSwitch => 400,
        }
    }
}

impl fmt::Display for HeadErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request head that is refused. The client is to blame; after the answer the connection is closed, since nobody knows where
/// the next request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// What is wrong.
    pub kind: HeadErrorKind,
    /// What the client is told.
    pub status: u16,
}

impl From<HeadErrorKind> for RequestError {
    fn from(kind: HeadErrorKind) -> Self {
        Self { kind, status: kind.status() }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request refused: {}", self.kind)
    }
}

impl Error for RequestError {}

/// A response head that is refused. The origin is to blame: the client is told 502 and the upstream connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseError {
    /// What is wrong.
    pub kind: HeadErrorKind,
}

impl From<HeadErrorKind> for ResponseError {
    fn from(kind: HeadErrorKind) -> Self {
        Self { kind }
    }
}

impl From<ResponseError> for Fault {
    fn from(error: ResponseError) -> Self {
        let is_too_large = matches!(error.kind, HeadErrorKind::HeadTooLarge | HeadErrorKind::TooManyFields);
        let kind = if is_too_large { FaultKind::UpstreamHeadTooLarge } else { FaultKind::UpstreamMalformed };
        Self::because(kind, error.kind.as_str())
    }
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "response refused: {}", self.kind)
    }
}

impl Error for ResponseError {}

#[cfg(test)]
mod tests {
    use super::super::body::BodyError;
    use super::*;
    use crate::error::Blame;

    #[test]
    fn all_lists_each_kind_once_in_order() {
        for (place, kind) in HeadErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }

    #[test]
    fn a_refused_response_is_the_origins_fault_and_says_why() {
        for kind in HeadErrorKind::ALL {
            let fault = Fault::from(ResponseError::from(kind));
            assert_eq!((fault.blame, fault.detail), (Blame::Upstream, Some(kind.as_str())));
            let is_too_large = fault.kind == FaultKind::UpstreamHeadTooLarge;
            assert_eq!(is_too_large, kind.status() == 431, "{kind}");
        }
        for error in BodyError::ALL {
            let fault = error.of_response();
            assert_eq!((fault.blame, fault.detail), (Blame::Upstream, Some(error.as_str())));
        }
    }

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = HeadErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), HeadErrorKind::ALL.len());
    }
}
