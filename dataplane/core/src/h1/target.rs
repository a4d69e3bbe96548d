//! The request target and the host (RFC 9112, section 3.2): which forms are taken and which bytes they may have. Not routing: a
//! path is neither decoded nor normalised here, it is forwarded as it came.

use std::net::Ipv6Addr;

use super::error::HeadErrorKind;
use crate::request::Method;

/// Longest host that is looked at: the longest DNS name.
const HOST_BYTES_MAX: usize = 255;

/// The form of a request target. CONNECT's authority-form is refused before it gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetForm {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`
    Absolute,
    /// `*`, for OPTIONS only
    Asterisk,
}

/// The scheme of an absolute target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// The port that is meant where none is written (RFC 9110, sections 4.2.1 and 4.2.2).
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'b> {
    /// How it was written.
    pub form: TargetForm,
    /// As it was written.
    pub raw: &'b str,
    /// The scheme and the authority of the absolute form.
    pub authority: Option<(Scheme, Host<'b>)>,
    /// Begins with `/`, or is `*`. Percent-encoding and dot segments are as the client wrote them.
    pub path: &'b str,
    /// What stands behind the first `?`, without it.
    pub query: Option<&'b str>,
}

impl<'b> Target<'b> {
    /// Reads a target that belongs to `method`.
    pub(super) fn parse(raw: &'b str, method: Method) -> Result<Self, HeadErrorKind> {
        let query_at = split_query(raw)?;
        if raw.starts_with('/') {
            let (path, query) = split_at(raw, query_at);
            return Ok(Self { form: TargetForm::Origin, raw, authority: None, path, query });
        }
        if raw == "*" && method == Method::Options {
            return Ok(Self { form: TargetForm::Asterisk, raw, authority: None, path: raw, query: None });
        }
        Self::absolute(raw, method)
    }

    /// RFC 9112, section 3.2.2: a server must take the absolute form too.
    fn absolute(raw: &'b str, method: Method) -> Result<Self, HeadErrorKind> {
        let (scheme, rest) = split_scheme(raw).ok_or(HeadErrorKind::InvalidTarget)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let authority = Host::parse(authority.as_bytes()).ok_or(HeadErrorKind::InvalidHost)?;
        let (path, query) = split_at(tail, tail.find('?'));
        let path = match path {
            // RFC 9112, section 3.2.4: an empty path is `*` for OPTIONS and `/` for all others.
            "" if method == Method::Options && query.is_none() => "*",
            "" => "/",
            path => path,
        };
        Ok(Self { form: TargetForm::Absolute, raw, authority: Some((scheme, authority)), path, query })
    }
}

/// Where the query begins. Refuses what is not visible ASCII, and a fragment: a client never sends one, and servers disagree on
/// whether it belongs to the path.
fn split_query(raw: &str) -> Result<Option<usize>, HeadErrorKind> {
    let mut query_at = None;
    for (at, byte) in raw.bytes().enumerate() {
        match byte {
            b'?' if query_at.is_none() => query_at = Some(at),
            b'#' | ..=b' ' | 0x7f.. => return Err(HeadErrorKind::InvalidTarget),
            _ => {}
        }
    }
    Ok(query_at)
}

fn split_at(text: &str, query_at: Option<usize>) -> (&str, Option<&str>) {
    match query_at {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn split_scheme(raw: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = raw.split_once("://")?;
    if scheme.eq_ignore_ascii_case("http") {
        return Some((Scheme::Http, rest));
    }
    scheme.eq_ignore_ascii_case("https").then_some((Scheme::Https, rest))
}

/// A host with an optional port, checked: letters, digits, `-._~` or an IPv6 address in brackets.
///
/// RFC 3986 also allows percent-encoding and sub-delimiters in a host. No real host has them, and each is a place where two
/// parsers part ways, so they are refused, as are user information and an empty host or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'b> {
    /// As it was written, port included.
    pub raw: &'b str,
    /// Without the port; an IPv6 address keeps its brackets. In the case the client used.
    pub name: &'b str,
    /// The port, if there is one.
    pub port: Option<u16>,
}

impl<'b> Host<'b> {
    /// Reads the value of a `Host` field or an authority. None: it is not a host that is let pass.
    pub fn parse(value: &'b [u8]) -> Option<Self> {
        let name_len = match value.first()? {
            b'[' => ipv6_len(value)?,
            _ => name_len(value)?,
        };
        let raw = str::from_utf8(value).ok()?;
        let (name, port) = raw.split_at(name_len);
        let port = match port.strip_prefix(':') {
            Some(digits) => Some(parse_port(digits)?),
            None if port.is_empty() => None,
            None => return None,
        };
        Some(Self { raw, name, port })
    }
}

impl Host<'_> {
    /// Whether both are the same authority under `scheme`: a port that is not written is the scheme's own (RFC 9110, section 4.2.3).
    pub fn is_same(&self, other: &Self, scheme: Scheme) -> bool {
        let port = |host: &Self| host.port.unwrap_or(scheme.default_port());
        self.name.eq_ignore_ascii_case(other.name) && port(self) == port(other)
    }
}

/// Length of the host name that `value` begins with; it ends at a colon or at the end.
fn name_len(value: &[u8]) -> Option<usize> {
    let end = value.iter().position(|byte| !NAME[usize::from(*byte)]).unwrap_or(value.len());
    let name = &value[..end];
    let is_cut_by_port = value.get(end).is_none_or(|byte| *byte == b':');
    let has_empty_label =
        name.first().is_none_or(|byte| *byte == b'.') || name.windows(2).any(|pair| pair == b"..");
    (is_cut_by_port && !has_empty_label && end <= HOST_BYTES_MAX).then_some(end)
}

/// Bytes of a host name that is let pass, its dots included.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'_' | b'~' | b'.');
        byte += 1;
    }
    table
};

/// Length of the bracketed IPv6 address that `value` begins with.
fn ipv6_len(value: &[u8]) -> Option<usize> {
    let end = value.iter().position(|byte| *byte == b']')?;
    let address: Ipv6Addr = str::from_utf8(&value[1..end]).ok()?.parse().ok()?;
    let _ = address;
    Some(end + 1)
}

fn parse_port(digits: &str) -> Option<u16> {
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &str) -> Option<(&str, Option<u16>)> {
        Host::parse(value.as_bytes()).map(|host| (host.name, host.port))
    }

    #[test]
    fn hosts_split_into_name_and_port() {
        assert_eq!(host("example.com"), Some(("example.com", None)));
        assert_eq!(host("Example.com:8080"), Some(("Example.com", Some(8080))));
        assert_eq!(host("10.0.0.1:80"), Some(("10.0.0.1", Some(80))));
        assert_eq!(host("[::1]:443"), Some(("[::1]", Some(443))));
        assert_eq!(host("under_score.local."), Some(("under_score.local.", None)));
    }

    #[test]
    fn doubtful_hosts_are_no_hosts() {
        for text in [
            "",
            ":80",
            "a:",
            "a:65536",
            "a:+80",
            "a:8 0",
            "a b",
            "a,b",
            "user@host",
            "a/b",
            "a..b",
            ".a",
            "a%2e",
            "a\\b",
            "[::1",
            "[::g]",
            "[]",
            "[::1]x",
            "[fe80::1%25eth0]",
            "a:80:90",
            "é.example",
            "a?b",
            "a#b",
            "'a'",
            "a\0",
        ] {
            assert_eq!(host(text), None, "{text:?}");
        }
        assert_eq!(host(&"a".repeat(256)), None);
    }

    #[test]
    fn absolute_targets_split_into_authority_path_and_query() {
        let target = Target::parse("http://h:81/a/b?c?d", Method::Get).unwrap();
        assert_eq!(target.authority.map(|(scheme, host)| (scheme, host.raw)), Some((Scheme::Http, "h:81")));
        assert_eq!((target.path, target.query), ("/a/b", Some("c?d")));
        let bare = Target::parse("HTTPS://h?x", Method::Get).unwrap();
        assert_eq!((bare.path, bare.query), ("/", Some("x")));
        let options = Target::parse("http://h", Method::Options).unwrap();
        assert_eq!((options.path, options.query), ("*", None));
    }

    #[test]
    fn a_port_that_is_not_written_is_that_of_the_scheme() {
        let is_same = |a: &str, b: &str, scheme| {
            let (a, b) = (Host::parse(a.as_bytes()).unwrap(), Host::parse(b.as_bytes()).unwrap());
            assert_eq!(a.is_same(&b, scheme), b.is_same(&a, scheme));
            a.is_same(&b, scheme)
        };
        assert!(is_same("X", "x:80", Scheme::Http) && is_same("x", "x:443", Scheme::Https));
        assert!(is_same("[::1]:80", "[::1]", Scheme::Http) && is_same("x:81", "x:81", Scheme::Http));
        assert!(!is_same("x", "x:443", Scheme::Http) && !is_same("x", "x:80", Scheme::Https));
        assert!(!is_same("x:80", "x:81", Scheme::Http) && !is_same("x", "y:80", Scheme::Http));
        assert!(!is_same("x.", "x", Scheme::Http), "another name to some resolvers");
    }

    #[test]
    fn targets_of_no_form_are_refused() {
        for text in ["*", "a", "a/b", "h:80", "ftp://h/", "http:/h", "/a#b", "/é", "//", "/\u{7f}"] {
            let refused = Target::parse(text, Method::Get).is_err();
            assert_eq!(refused, text != "//", "{text:?}");
        }
    }
}
