//! What every HTTP version calls a request: its method, its version, how long its body is. Not its bytes: those are
//! in `h1` (and in `h2` and `h3` later), which turn them into these.

/// A request method (RFC 9110, section 9.3, and PATCH of RFC 5789). Methods are case-sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// CONNECT
    Connect,
    /// OPTIONS
    Options,
    /// TRACE
    Trace,
    /// PATCH
    Patch,
    /// Any other token; its text is in the head.
    Other,
}

impl Method {
    /// The method that a token names.
    pub fn from_token(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    /// The name, for logs and labels; `OTHER` stands for every unknown one, so that labels stay few.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other => "OTHER",
        }
    }

    /// Whether the client asks for nothing to change (RFC 9110, section 9.2.1).
    pub fn is_safe(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace => true,
            Self::Post | Self::Put | Self::Delete | Self::Connect | Self::Patch | Self::Other => false,
        }
    }

    /// Whether sending it twice means the same as once (RFC 9110, section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || self == Self::Put || self == Self::Delete
    }
}

/// The HTTP version of a client or of an origin on an HTTP/1 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl Version {
    /// The version number alone, as `Via` names it (RFC 9110, section 7.6.3).
    pub fn number(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        }
    }
}

/// How the end of a request body is known (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyLength {
    /// No body: neither `Content-Length` nor `Transfer-Encoding`.
    None,
    /// `Content-Length`, which may be 0.
    Sized(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl BodyLength {
    /// Whether body bytes (or at least chunk framing) follow the head.
    pub fn has_body(self) -> bool {
        match self {
            Self::None | Self::Sized(0) => false,
            Self::Sized(_) | Self::Chunked => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_methods_keep_their_names_and_case_counts() {
        for name in ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"] {
            assert_eq!(Method::from_token(name).as_str(), name);
        }
        assert_eq!(Method::from_token("get"), Method::Other);
        assert_eq!(Method::from_token("PROPFIND"), Method::Other);
    }

    #[test]
    fn only_repeatable_methods_are_idempotent() {
        assert!(Method::Get.is_idempotent() && Method::Get.is_safe());
        assert!(Method::Put.is_idempotent() && !Method::Put.is_safe());
        assert!(!Method::Post.is_idempotent());
        assert!(!Method::Patch.is_idempotent());
        assert!(!Method::Other.is_idempotent());
    }
}
