//! Request heads on their way to the origin: what is dropped, what goes through as it came, what the proxy says itself. Responses are in
//! `reply`. Nothing is allocated and names are never re-cased; most of a head is copied in one piece.
//!
//! What the origin may believe:
//!
//! - `X-Forwarded-For`: the client's address is appended to what the client sent. Only the last entry is ours.
//! - `X-Forwarded-Proto`, `X-Forwarded-Host`: what this proxy saw; the client's own are dropped, unless
//!   [`RequestEdits::trust_forwarded`] says that the client is a proxy of ours.
//! - `Forwarded`: never made, but if the client sent one an element of ours is appended, so that its last entry is ours too.
//! - `X-Request-ID`: exactly one, [`RequestEdits::request_id`].
//! - A client cannot make the proxy drop a field that the origin relies on by naming it in `Connection`
//!   (`Connection: close, X-Forwarded-For`): see `is_protected` below.

use std::fmt::Write as _;
use std::net::IpAddr;

use proto::config::HeaderEdits;

use super::field::{Field, FieldKind};
use super::request_head::RequestHead;
use super::writer::{Full, Writer};
use crate::request::{BodyLength, Version};

/// Which `Host` the origin sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostChoice<'a> {
    /// The client's, or this one if the client (HTTP/1.0) sent none.
    Keep {
        /// Must be a valid host, such as the endpoint's address.
        fallback: &'a str,
    },
    /// This one. Must be a valid host.
    Replace(&'a str),
}

/// What changes between the request as it came and as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdits<'a> {
    /// Which `Host` the origin sees. A header rule that sets `Host` comes before it.
    pub host: HostChoice<'a>,
    /// The client's address; none for a Unix socket, which adds nothing to `X-Forwarded-For`.
    pub client: Option<IpAddr>,
    /// The scheme that the client used: `http` or `https`.
    pub scheme: &'a str,
    /// Whether the client is a proxy whose `X-Forwarded-Proto` and `X-Forwarded-Host` are kept.
    pub trust_forwarded: bool,
    /// The request's id: the client's ([`RequestHead::request_id`]) or a new one.
    pub request_id: &'a [u8],
    /// The name of this proxy in `Via`: a token.
    pub via: &'a str,
    /// The route's rules.
    pub rules: &'a HeaderEdits,
    /// How the body is sent.
    pub body: BodyLength,
    /// Whether `Expect: 100-continue` is passed on. If not, the driver answers the client itself.
    pub expect_continue: bool,
    /// Whether the request is sent as an upgrade, if it is one.
    pub upgrade: bool,
    /// Whether the origin is told that the connection will not be used again.
    pub close: bool,
}

/// Writes the head that is sent to the origin. Returns how many bytes of `out` were written.
///
/// # Errors
/// `out` is too small: it takes the head's own length and what is added, which is some 300 bytes and the rules.
pub fn encode_request(
    out: &mut [u8],
    head: &RequestHead<'_>,
    edits: &RequestEdits<'_>,
) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    request_line(&mut writer, head)?;
    host_line(&mut writer, head, edits)?;
    head.fields.write_runs(|field| keeps(field, head, edits), |lines| writer.put(lines))?;
    forwarded(&mut writer, head, edits)?;
    own(&mut writer, edits.rules, b"X-Request-ID", &[edits.request_id])?;
    own(&mut writer, edits.rules, b"Via", &[head.version.number().as_bytes(), b" ", edits.via.as_bytes()])?;
    connection(&mut writer, head, edits)?;
    framing(&mut writer, edits.body)?;
    if edits.expect_continue && head.expect_continue {
        writer.put(b"Expect: 100-continue\r\n")?;
    }
    rule_lines(&mut writer, edits.rules)?;
    writer.put(b"\r\n")?;
    Ok(writer.len())
}

/// Always in origin-form and with our own version (RFC 9112, sections 3.2.1 and 2.3).
fn request_line(writer: &mut Writer<'_>, head: &RequestHead<'_>) -> Result<(), Full> {
    writer.put(head.method_text.as_bytes())?;
    writer.put(b" ")?;
    writer.put(head.target.path.as_bytes())?;
    if let Some(query) = head.target.query {
        writer.put(b"?")?;
        writer.put(query.as_bytes())?;
    }
    writer.put(b" HTTP/1.1\r\n")
}

/// First of all fields (RFC 9110, section 7.2). For an absolute target this is its authority, which is all that `Host` can have said.
fn host_line(writer: &mut Writer<'_>, head: &RequestHead<'_>, edits: &RequestEdits<'_>) -> Result<(), Full> {
    let set = edits.rules.set.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = match (set, edits.host) {
        (Some((_, value)), _) => value,
        (None, HostChoice::Replace(host)) => host,
        (None, HostChoice::Keep { fallback }) => head.host.map_or(fallback, |host| host.raw),
    };
    writer.field(b"Host", host.as_bytes())
}

/// Whether a field line goes through as it came.
fn keeps(field: &Field<'_>, head: &RequestHead<'_>, edits: &RequestEdits<'_>) -> bool {
    let by_kind = match field.kind {
        FieldKind::Other | FieldKind::Accept | FieldKind::ContentType | FieldKind::Via => true,
        FieldKind::XForwardedProto | FieldKind::XForwardedHost => edits.trust_forwarded,
        // Nothing may be announced that cannot follow (RFC 9110, section 6.6.2).
        FieldKind::Trailer => edits.body == BodyLength::Chunked,
        FieldKind::Alias
        | FieldKind::Host
        | FieldKind::ContentLength
        | FieldKind::TransferEncoding
        | FieldKind::Connection
        | FieldKind::KeepAlive
        | FieldKind::ProxyConnection
        | FieldKind::ProxyAuthorization
        | FieldKind::ProxyAuthenticate
        | FieldKind::Te
        | FieldKind::Upgrade
        | FieldKind::Http2Settings
        | FieldKind::Expect
        | FieldKind::Forwarded
        | FieldKind::XForwardedFor
        | FieldKind::XRequestId => false,
    };
    by_kind
        && !is_ruled_out(edits.rules, field.name)
        && !(head.names_fields && !is_protected(field) && head.fields.connection_names(field.name))
}

/// Fields that `Connection` cannot take away: those that say who the client is or what the message means. RFC 9110, section 7.6.1,
/// forbids naming them; who does it all the same wants the origin to miss them.
pub(super) fn is_protected(field: &Field<'_>) -> bool {
    const NAMES: [&[u8]; 10] = [
        b"authorization",
        b"cache-control",
        b"cookie",
        b"date",
        b"origin",
        b"range",
        b"set-cookie",
        b"traceparent",
        b"tracestate",
        b"x-real-ip",
    ];
    let starts_with = |prefix: &[u8]| {
        field.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    !matches!(field.kind, FieldKind::Other | FieldKind::Accept)
        || starts_with(b"x-forwarded-")
        || starts_with(b"content-")
        || NAMES.iter().any(|name| field.name.eq_ignore_ascii_case(name))
}

fn forwarded(writer: &mut Writer<'_>, head: &RequestHead<'_>, edits: &RequestEdits<'_>) -> Result<(), Full> {
    forwarded_for(writer, head, edits)?;
    if head.fields.of_kind(FieldKind::Forwarded).next().is_some() && !is_ruled_out(edits.rules, b"forwarded")
    {
        forwarded_element(writer, head, edits)?;
    }
    let has = |kind| edits.trust_forwarded && head.fields.of_kind(kind).next().is_some();
    if !has(FieldKind::XForwardedProto) {
        own(writer, edits.rules, b"X-Forwarded-Proto", &[edits.scheme.as_bytes()])?;
    }
    match head.host {
        Some(host) if !has(FieldKind::XForwardedHost) => {
            own(writer, edits.rules, b"X-Forwarded-Host", &[host.raw.as_bytes()])
        }
        Some(_) | None => Ok(()),
    }
}

/// One line with all entries: many applications read only one of several lines.
fn forwarded_for(
    writer: &mut Writer<'_>,
    head: &RequestHead<'_>,
    edits: &RequestEdits<'_>,
) -> Result<(), Full> {
    if is_ruled_out(edits.rules, b"x-forwarded-for") {
        return Ok(());
    }
    let mut separator: &[u8] = b"X-Forwarded-For: ";
    for field in head.fields.of_kind(FieldKind::XForwardedFor).filter(|field| !field.value.is_empty()) {
        writer.put(separator)?;
        writer.put(field.value)?;
        separator = b", ";
    }
    if let Some(client) = edits.client {
        writer.put(separator)?;
        address(writer, client)?;
        separator = b", ";
    }
    if separator == b", " { writer.put(b"\r\n") } else { Ok(()) }
}

/// RFC 7239, section 4. What the client sent is left out if a quote in it is open: it would swallow our element.
fn forwarded_element(
    writer: &mut Writer<'_>,
    head: &RequestHead<'_>,
    edits: &RequestEdits<'_>,
) -> Result<(), Full> {
    writer.put(b"Forwarded: ")?;
    for field in head.fields.of_kind(FieldKind::Forwarded).filter(|field| is_closed(field.value)) {
        writer.put(field.value)?;
        writer.put(b", ")?;
    }
    match edits.client {
        // An IPv6 address is put in brackets and therefore quoted (RFC 7239, section 6).
        Some(client) if client.to_canonical().is_ipv6() => {
            writer.put(b"for=\"[")?;
            address(writer, client)?;
            writer.put(b"]\"")?;
        }
        Some(client) => {
            writer.put(b"for=")?;
            address(writer, client)?;
        }
        None => writer.put(b"for=unknown")?,
    }
    if let Some(host) = head.host {
        writer.put(b";host=\"")?;
        writer.put(host.raw.as_bytes())?;
        writer.put(b"\"")?;
    }
    writer.put(b";proto=")?;
    writer.put(edits.scheme.as_bytes())?;
    writer.put(b"\r\n")
}

fn is_closed(value: &[u8]) -> bool {
    let quotes = value.iter().filter(|byte| **byte == b'"').count();
    !value.is_empty() && quotes % 2 == 0 && !value.contains(&b'\\')
}

/// An IPv4 client on a dual-stack socket is written as what it is.
fn address(writer: &mut Writer<'_>, client: IpAddr) -> Result<(), Full> {
    match client.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            writer.number(u64::from(a))?;
            for octet in [b, c, d] {
                writer.put(b".")?;
                writer.number(u64::from(octet))?;
            }
            Ok(())
        }
        IpAddr::V6(v6) => write!(writer, "{v6}").map_err(|_| Full),
    }
}

/// `Connection` and what belongs to it. Keep-alive is the default of HTTP/1.1 and not said.
fn connection(writer: &mut Writer<'_>, head: &RequestHead<'_>, edits: &RequestEdits<'_>) -> Result<(), Full> {
    if let Some(protocol) = head.upgrade.filter(|_| edits.upgrade) {
        writer.put(b"Connection: Upgrade\r\n")?;
        return writer.field(b"Upgrade", protocol.as_bytes());
    }
    match (edits.close, head.te_trailers) {
        // RFC 9110, section 10.1.4: TE is for this connection only and must be named.
        (true, true) => writer.put(b"TE: trailers\r\nConnection: close, TE\r\n"),
        (false, true) => writer.put(b"TE: trailers\r\nConnection: TE\r\n"),
        (true, false) => writer.put(b"Connection: close\r\n"),
        (false, false) => Ok(()),
    }
}

fn framing(writer: &mut Writer<'_>, body: BodyLength) -> Result<(), Full> {
    match body {
        BodyLength::None => Ok(()),
        BodyLength::Sized(length) => content_length(writer, length),
        BodyLength::Chunked => writer.put(b"Transfer-Encoding: chunked\r\n"),
    }
}

pub(super) fn content_length(writer: &mut Writer<'_>, length: u64) -> Result<(), Full> {
    writer.put(b"Content-Length: ")?;
    writer.number(length)?;
    writer.put(b"\r\n")
}

/// A line of our own, unless a rule removes it or sets it to something else.
pub(super) fn own(
    writer: &mut Writer<'_>,
    rules: &HeaderEdits,
    name: &[u8],
    value: &[&[u8]],
) -> Result<(), Full> {
    if is_ruled_out(rules, name) {
        return Ok(());
    }
    writer.put(name)?;
    writer.put(b": ")?;
    for part in value {
        writer.put(part)?;
    }
    writer.put(b"\r\n")
}

/// Whether a rule removes what stands under this name so far; `set` does before it writes its own.
pub(super) fn is_ruled_out(rules: &HeaderEdits, name: &[u8]) -> bool {
    let is_same = |other: &String| other.as_bytes().eq_ignore_ascii_case(name);
    rules.remove.iter().any(is_same) || rules.set.iter().any(|(other, _)| is_same(other))
}

/// The lines that rules set and add. Framing and hop-by-hop fields are not theirs to touch, and `Host` has its own place.
pub(super) fn rule_lines(writer: &mut Writer<'_>, rules: &HeaderEdits) -> Result<(), Full> {
    for (name, value) in rules.set.iter().chain(&rules.add) {
        let kind = FieldKind::of(name.as_bytes());
        if !kind.is_managed() && kind != FieldKind::Host {
            writer.field(name.as_bytes(), value.as_bytes())?;
        }
    }
    Ok(())
}

/// Whether a client of this version knows `Transfer-Encoding` and interim responses.
pub(super) fn is_modern(version: Version) -> bool {
    version == Version::Http11
}
