//! Hosts, paths, methods and header fields: what may stand in the config, by the rules of HTTP.
//!
//! What is refused here could never match a request, or would break the framing of one.

use std::net::Ipv6Addr;

use super::values::Refusal;
use crate::config::HostPattern;
use crate::config::read::suggest::{quote, quote_whole};

/// Longest DNS name (RFC 1035, section 2.3.4), without the dot at its end.
const DNS_NAME_MAX: usize = 253;
/// Longest label of one.
const DNS_LABEL_MAX: usize = 63;

/// A host of a route: a name, a wildcard or an IP address, without a port.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, Refusal> {
    if text == "*" {
        return Err(Refusal::new("\"*\" is no host", "leave `hosts` out to serve any host"));
    }
    if let Some(suffix) = text.strip_prefix("*.") {
        let host = host_without_port(suffix).filter(|host| dns_name(host).is_ok());
        if let Some(host) = host {
            return Err(has_port(text, &format!("*.{host}")));
        }
        return dns_name(suffix)
            .map(HostPattern::Wildcard)
            // The whole is quoted, as it was written.
            .map_err(|refusal| Refusal { message: format!("{} is no host", quote(text)), ..refusal });
    }
    if text.contains('*') {
        let message = format!("a wildcard stands for whole labels in front, not as in {}", quote(text));
        return Err(Refusal::new(message, "write \"*.example.com\""));
    }
    host(text).map(HostPattern::Exact)
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets; in lower case.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && let Ok(address) = inside.parse::<Ipv6Addr>()
    {
        return Ok(format!("[{address}]"));
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        let message = "an IPv6 address needs brackets here";
        return Err(Refusal::new(message, format!("write \"[{address}]\"")));
    }
    if text.contains("://") || text.contains('/') {
        let message = format!("{} is a URL, not a host", quote(text));
        return Err(Refusal::new(message, "write the host alone, such as \"api.example.com\""));
    }
    if let Some(name) = host_without_port(text).filter(|name| host(name).is_ok()) {
        return Err(has_port(text, name));
    }
    if text.parse::<std::net::Ipv4Addr>().is_ok() {
        return Ok(text.to_owned());
    }
    dns_name(text)
}

/// What stands before a port; none: there is no port.
fn host_without_port(text: &str) -> Option<&str> {
    let (host, port) = text.rsplit_once(':')?;
    port.bytes().all(|b| b.is_ascii_digit()).then_some(host)
}

fn has_port(text: &str, host: &str) -> Refusal {
    let message = format!("{} has a port; a host is compared without it", quote(text));
    Refusal::new(message, format!("write {}", quote_whole(host)))
}

/// A DNS name in lower case (RFC 1123, section 2.1; the underscore is in use too).
pub(super) fn dns_name(text: &str) -> Result<String, Refusal> {
    let refused = |help: &str| Err(Refusal::new(format!("{} is no host name", quote(text)), help));
    if !text.is_ascii() {
        return refused("write the name as DNS has it, in Punycode: \"xn--…\"");
    }
    if text.is_empty() || text.len() > DNS_NAME_MAX {
        return refused("a host name has 1 to 253 characters");
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= DNS_LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !text.split('.').all(is_label) {
        return refused(
            "write labels of letters, digits, `-` and `_` with dots between, such as \"api.example.com\"",
        );
    }
    let last = text.rsplit('.').next().unwrap_or(text);
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return refused("a name does not end in a number; an IPv4 address has four, each up to 255");
    }
    Ok(text.to_ascii_lowercase())
}

/// The path of a request (RFC 3986, section 3.3): begins with `/`, has no query.
pub(super) fn path(text: &str) -> Result<String, Refusal> {
    let refused = |message: &str, help: String| Err(Refusal::new(message, help));
    if text.contains("://") {
        return refused("a path is wanted, not a URL", "write the path alone, such as \"/v1/\"".to_owned());
    }
    if !text.starts_with('/') {
        return refused("a path begins with `/`", format!("write {}", quote_whole(&format!("/{text}"))));
    }
    if text.contains(['?', '#']) {
        return refused(
            "a path ends before `?` and `#`",
            "a query cannot be matched; leave it out".to_owned(),
        );
    }
    if let Some(prefix) = text.strip_suffix('*') {
        let message = "a path has no wildcards; `path` already takes everything below it";
        return refused(message, format!("write {}", quote_whole(prefix)));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        let help = "write other characters percent-encoded, such as `%20`".to_owned();
        return refused("a path has visible ASCII characters only", help);
    }
    if !has_whole_escapes(text) {
        return refused(
            "`%` needs two hexadecimal digits behind it",
            "write `%25` for `%` itself".to_owned(),
        );
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return refused("a path with `.` or `..` in it matches no request", "write it without".to_owned());
    }
    Ok(text.to_owned())
}

fn has_whole_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

/// A method (RFC 9110, section 9.1): a token, case-sensitive, in capitals by custom.
pub(super) fn method(text: &str) -> Result<String, Refusal> {
    if !is_token(text) {
        return Err(Refusal::new(format!("{} is no method", quote(text)), "write one such as \"GET\""));
    }
    let capitals = text.to_ascii_uppercase();
    if capitals == "CONNECT" {
        let message = "CONNECT asks for a tunnel, which an HTTP route does not give";
        return Err(Refusal::new(message, "take it out; a route without any `methods` serves all of them"));
    }
    if text != capitals {
        let message = format!("methods are written in capitals, not as {}", quote(text));
        return Err(Refusal::new(message, format!("write \"{capitals}\"")));
    }
    Ok(capitals)
}

/// The name of a header (RFC 9110, section 5.1), as written.
pub(super) fn header_name(text: &str) -> Result<String, Refusal> {
    if text.starts_with(':') {
        let message = format!("{} is a pseudo-header of HTTP/2, not a header", quote(text));
        return Err(Refusal::new(message, "match on `hosts`, `path` or `methods`"));
    }
    if !is_token(text) {
        let message = format!("{} is no header name", quote(text));
        return Err(Refusal::new(message, "write letters, digits and `-`, such as \"X-Edge\""));
    }
    Ok(text.to_owned())
}

/// The value of a header (RFC 9110, section 5.5). The message does not quote it: it may be a secret.
pub(super) fn header_value(text: &str) -> Result<String, Refusal> {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        let message = "a header value has no CR, LF, NUL or other control characters";
        return Err(Refusal::new(message, "write it on one line"));
    }
    if text.trim_matches([' ', '\t']) != text {
        let message = "a header value neither begins nor ends with white space";
        return Err(Refusal::new(message, "take the white space away: it would not be sent"));
    }
    Ok(text.to_owned())
}

/// A header whose edits are refused, and why.
pub(super) fn refused_edit(name: &str) -> Option<Refusal> {
    let lower = name.to_ascii_lowercase();
    let (why, help) = match lower.as_str() {
        "host" => ("it says which origin is meant", "set `host_header` of the cluster"),
        "content-length" | "transfer-encoding" => (
            "it says where a body ends: a wrong one lets requests be smuggled",
            "take it out; Millrace sends the right one",
        ),
        // RFC 9110, section 7.6.1: these are for one connection and never forwarded.
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "upgrade" => {
            ("it belongs to one connection, which Millrace manages", "take it out")
        }
        _ => return None,
    };
    Some(Refusal::new(format!("the header {name} cannot be edited: {why}"), help))
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_hosts_in_any_case_and_keeps_them_in_lower_case() {
        assert_eq!(host_pattern("API.Example.com"), Ok(HostPattern::Exact("api.example.com".into())));
        assert_eq!(host_pattern("*.Example.com"), Ok(HostPattern::Wildcard("example.com".into())));
        assert_eq!(host("127.0.0.1").unwrap(), "127.0.0.1");
        assert_eq!(host("[::0:1]").unwrap(), "[::1]");
        assert_eq!(host("my_service").unwrap(), "my_service");
    }

    #[test]
    fn refuses_hosts_that_no_request_can_have() {
        let long_label = "a".repeat(64);
        let long_name = "a.".repeat(126) + "aa";
        for text in [
            "",
            "*",
            "*.",
            "*.*.com",
            "*.a.com:80",
            "a*.com",
            "a..b",
            ".a",
            "a.",
            "-a.com",
            "a-.com",
            "a b",
            "ü.de",
            "::1",
            "[::1",
            "a:80",
            "http://a",
            "a/b",
            "256.1.1.1",
            "1.2.3",
            &long_label,
            &long_name,
        ] {
            assert!(host_pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quotes_a_bad_host_as_it_was_written() {
        for text in ["*.*.com", "*.a b", "*.", "a b", "*.a.com:80", "a:80"] {
            let message = host_pattern(text).unwrap_err().message;
            assert!(message.contains(&quote(text)), "{message}");
        }
        let help = |text| host_pattern(text).unwrap_err().help.unwrap();
        assert_eq!(help("*.a.com:80"), "write \"*.a.com\"");
        assert!(!help(":80").contains("\"\""), "{}", help(":80"));
    }

    #[test]
    fn refuses_paths_that_no_request_can_have() {
        for text in ["/", "/v1/", "/a%20b", "/~x/(y)"] {
            assert!(path(text).is_ok(), "{text}");
        }
        for text in
            ["", "v1", "/v1?x", "/v1#x", "/v1/*", "/a b", "/ü", "/%", "/%2", "/%zz", "/a/../b", "/./", "/\0"]
        {
            assert!(path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_header_values_that_would_split_a_head() {
        for text in ["", "a b", "a\tb", "grün"] {
            assert!(header_value(text).is_ok(), "{text}");
        }
        for text in ["a\r\nb", "a\nb", "a\rb", "a\0b", "\u{7f}", "\u{85}", " a", "a ", "a\t"] {
            assert!(header_value(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn refuses_edits_of_framing_and_of_the_connection_in_any_case() {
        for name in
            ["Host", "content-length", "TRANSFER-ENCODING", "Connection", "TE", "Upgrade", "Keep-Alive"]
        {
            assert!(refused_edit(name).is_some(), "{name}");
        }
        assert!(refused_edit("X-Edge").is_none());
    }
}
