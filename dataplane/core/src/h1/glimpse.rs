//! What can still be told of a request head that was refused or never came to its end, for the log alone. Not a parser:
//! nothing is routed, answered or forwarded by what it says.
//!
//! A part is there only if it can be told without guessing; the others are none.

use super::field::{is_token, trim};
use super::request_head::first_line;
use super::target::Host;
use crate::request::Method;

/// Longest path that is told of: of a target that is refused for its length the beginning is enough.
pub const PATH_BYTES_MAX: usize = 1024;

/// Longest method that is taken for one.
const METHOD_BYTES_MAX: usize = 32;

/// Parts of a request head that is not whole, or not in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glimpse<'b> {
    /// The method, if a space ends it.
    pub method: Option<Method>,
    /// The path without its query, as far as it came; at most [`PATH_BYTES_MAX`].
    pub path: Option<&'b str>,
    /// `Host` as it was written, if there is one and no other.
    pub host: Option<&'b str>,
}

impl<'b> Glimpse<'b> {
    /// Looks at the head that `buf` begins with.
    pub fn of(buf: &'b [u8]) -> Self {
        let head = buf.trim_ascii_start();
        let line = first_line(head);
        let Some(end) = line.iter().position(|byte| *byte == b' ') else {
            return Self::default();
        };
        let (method, target) = (&line[..end], &line[end + 1..]);
        if !is_token(method) {
            return Self::default();
        }
        let is_short = method.len() <= METHOD_BYTES_MAX;
        Self {
            method: str::from_utf8(method).ok().filter(|_| is_short).map(Method::from_token),
            path: path_of(target),
            host: host_of(&head[line.len()..]),
        }
    }
}

/// The path that a target begins with, in its origin form or behind the authority of its absolute form.
fn path_of(target: &[u8]) -> Option<&str> {
    let path = match target {
        [b'/', ..] => target,
        _ => {
            let scheme = target.windows(3).position(|bytes| bytes == b"://")?;
            let rest = &target[scheme + 3..];
            let is_web =
                [&b"http"[..], b"https"].iter().any(|web| target[..scheme].eq_ignore_ascii_case(web));
            let path = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b' '))?;
            if !is_web || rest[path] != b'/' {
                return None;
            }
            &rest[path..]
        }
    };
    let is_of_path = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    let end = path.iter().take(PATH_BYTES_MAX).take_while(|byte| is_of_path(byte)).count();
    str::from_utf8(&path[..end]).ok()
}

/// The value of the only `Host` among these lines, each of which has come to its end.
fn host_of(lines: &[u8]) -> Option<&str> {
    let mut hosts = lines
        .split_inclusive(|byte| *byte == b'\n')
        .skip(1)
        .take_while(|line| !trim_end(line).is_empty())
        .filter_map(|line| line.strip_suffix(b"\n"))
        .filter(|line| line.len() > 5 && line[..5].eq_ignore_ascii_case(b"host:"));
    let (first, second) = (hosts.next()?, hosts.next());
    let host = Host::parse(trim(trim_end(&first[5..])))?;
    second.is_none().then_some(host.raw)
}

fn trim_end(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(head: &str) -> (Option<&'static str>, Option<&str>, Option<&str>) {
        let Glimpse { method, path, host } = Glimpse::of(head.as_bytes());
        (method.map(Method::as_str), path, host)
    }

    #[test]
    fn tells_what_came_of_a_head_that_was_cut() {
        assert_eq!(of(""), (None, None, None));
        assert_eq!(of("GE"), (None, None, None));
        assert_eq!(of("GET "), (Some("GET"), None, None));
        assert_eq!(of("GET /v1/ch"), (Some("GET"), Some("/v1/ch"), None));
        assert_eq!(of("\r\nPOST /a HTTP/1.1\r\nHost: a.exam"), (Some("POST"), Some("/a"), None));
        assert_eq!(of("PUT /a HTTP/1.1\r\nX: y\r\nhost:  a:8 \r\n"), (Some("PUT"), Some("/a"), Some("a:8")));
    }

    #[test]
    fn tells_where_a_request_with_too_long_a_method_went() {
        let head = format!("{} /a HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(METHOD_BYTES_MAX + 1));
        let Glimpse { method, path, host } = Glimpse::of(head.as_bytes());
        assert_eq!((method, path, host), (None, Some("/a"), Some("a")));
    }

    #[test]
    fn tells_what_can_be_told_of_a_malformed_head() {
        assert_eq!(of("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"), (Some("GET"), Some("/a"), Some("a")));
        assert_eq!(of("G\u{1}T / HTTP/1.1\r\nHost: a\r\n\r\n"), (None, None, None));
        assert_eq!(of("GET / HTTP/1.1\nHost: a\n\n"), (Some("GET"), Some("/"), Some("a")));
        let two = of("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        assert_eq!(two, (Some("GET"), Some("/"), None), "of two hosts neither is the host");
        assert_eq!(
            of("GET / HTTP/1.1\r\n\r\nHost: a\r\n"),
            (Some("GET"), Some("/"), None),
            "a body has no host"
        );
        assert_eq!(of("GET / HTTP/1.1\r\nHost: a b\r\n\r\n").2, None);
    }

    #[test]
    fn tells_no_query_and_no_password() {
        assert_eq!(of("GET /a?key=secret HTTP/1.1\r\n").1, Some("/a"));
        assert_eq!(of("GET /a#secret HTTP/1.1\r\n").1, Some("/a"));
        assert_eq!(of("GET http://me:secret@h/a?b HTTP/1.1\r\n").1, Some("/a"));
        assert_eq!(of("GET http://h?secret/x HTTP/1.1\r\n").1, None);
        assert_eq!(of("GET ftp://h/a HTTP/1.1\r\n").1, None);
    }

    #[test]
    fn tells_of_a_long_target_no_more_than_its_beginning() {
        let long = format!("GET /{}", "a".repeat(5 * PATH_BYTES_MAX));
        assert_eq!(of(&long).1.map(str::len), Some(PATH_BYTES_MAX));
        let method = "M".repeat(METHOD_BYTES_MAX + 1);
        assert_eq!(of(&format!("{method} / HTTP/1.1\r\n")).0, None);
    }
}
