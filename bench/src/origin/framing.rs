//! Responses that no strict client may accept, byte for byte, for testing how a proxy reads its origin.
//! They are written as they stand here: nothing in this file is ever built by the ordinary response code.

/// A malformed response, chosen by the knob `bad_framing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFraming {
    /// Closes without a byte.
    NoHead,
    /// Closes in the middle of the head.
    HeadCut,
    /// A head that does not end within 1 MiB.
    HeadHuge,
    /// The status line names another protocol.
    Protocol,
    /// A status that is not three digits.
    StatusCode,
    /// White space between field name and colon (RFC 9112, section 5.1).
    SpaceBeforeColon,
    /// A folded field (RFC 9112, section 5.2).
    ObsFold,
    /// NUL in a field value (RFC 9110, section 5.5).
    Nul,
    /// A bare CR in a field value (RFC 9112, section 2.2).
    BareCr,
    /// Content-Length and Transfer-Encoding together (RFC 9112, section 6.1).
    ClTe,
    /// Two Content-Length fields that differ (RFC 9112, section 6.3).
    ClCl,
    /// Content-Length with a sign (RFC 9110, section 8.6).
    ClSign,
    /// A transfer coding before `chunked` that nobody knows (RFC 9112, section 6.1).
    TeUnknown,
    /// Transfer-Encoding in an HTTP/1.0 response (RFC 9112, section 6.1).
    TeHttp10,
    /// A chunk size that is no number (RFC 9112, section 7.1).
    ChunkSize,
    /// A chunk size that overflows 64 bits.
    ChunkOverflow,
    /// Chunk data that runs on after its size.
    ChunkEnd,
    /// Content-Length larger than the body, then a close.
    BodyShort,
    /// A second response behind the body that nobody asked for; the connection stays open.
    BodyLong,
    /// A body after 204 (RFC 9110, section 15.3.5); the connection stays open.
    BodyOn204,
}

/// The filler of [`BadFraming::HeadHuge`].
const HEAD_HUGE_LEN: usize = 1 << 20;

impl BadFraming {
    /// Every variant with the name by which it is asked for.
    pub const ALL: [(&'static str, Self); 20] = [
        ("no_head", Self::NoHead),
        ("head_cut", Self::HeadCut),
        ("head_huge", Self::HeadHuge),
        ("protocol", Self::Protocol),
        ("status_code", Self::StatusCode),
        ("space_before_colon", Self::SpaceBeforeColon),
        ("obs_fold", Self::ObsFold),
        ("nul", Self::Nul),
        ("bare_cr", Self::BareCr),
        ("cl_te", Self::ClTe),
        ("cl_cl", Self::ClCl),
        ("cl_sign", Self::ClSign),
        ("te_unknown", Self::TeUnknown),
        ("te_http10", Self::TeHttp10),
        ("chunk_size", Self::ChunkSize),
        ("chunk_overflow", Self::ChunkOverflow),
        ("chunk_end", Self::ChunkEnd),
        ("body_short", Self::BodyShort),
        ("body_long", Self::BodyLong),
        ("body_on_204", Self::BodyOn204),
    ];

    /// What the error for a wrong name says.
    pub(crate) const EXPECTED: &'static str = "one of no_head, head_cut, head_huge, protocol, status_code, \
         space_before_colon, obs_fold, nul, bare_cr, cl_te, cl_cl, cl_sign, te_unknown, te_http10, chunk_size, \
         chunk_overflow, chunk_end, body_short, body_long, body_on_204";

    /// The variant of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, variant)| *variant)
    }

    /// The bytes that are sent.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let text: &[u8] = match self {
            Self::NoHead => b"",
            Self::HeadCut => b"HTTP/1.1 200 OK\r\nContent-Type: text/pl",
            Self::HeadHuge => return head_huge(),
            Self::Protocol => b"HTTQ/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            Self::StatusCode => b"HTTP/1.1 2x0 OK\r\nContent-Length: 5\r\n\r\nhello",
            Self::SpaceBeforeColon => b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
            Self::ObsFold => b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
            Self::Nul => b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 5\r\n\r\nhello",
            Self::BareCr => b"HTTP/1.1 200 OK\r\nX-Cr: a\rb\r\nContent-Length: 5\r\n\r\nhello",
            Self::ClTe => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            Self::ClCl => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            Self::ClSign => b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            Self::TeUnknown => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: shrink, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            Self::TeHttp10 => b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Self::ChunkSize => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5z\r\nhello\r\n0\r\n\r\n",
            Self::ChunkOverflow => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"
            }
            Self::ChunkEnd => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!\r\n0\r\n\r\n",
            Self::BodyShort => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
            Self::BodyLong => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
            }
            Self::BodyOn204 => b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        };
        text.to_vec()
    }

    /// Whether the connection is kept after it, because the danger lies in its next use.
    pub(crate) fn keeps_connection(self) -> bool {
        matches!(self, Self::BodyLong | Self::BodyOn204)
    }
}

fn head_huge() -> Vec<u8> {
    let mut head = b"HTTP/1.1 200 OK\r\nX-Huge: ".to_vec();
    head.resize(head.len() + HEAD_HUGE_LEN, b'a');
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_one_name_and_the_error_lists_it() {
        for (name, variant) in BadFraming::ALL {
            assert_eq!(BadFraming::named(name), Some(variant));
            assert!(BadFraming::EXPECTED.contains(name), "{name}");
        }
        assert_eq!(BadFraming::named("nothing"), None);
    }
}
