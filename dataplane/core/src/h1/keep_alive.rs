//! `Keep-Alive`: how long an origin lets a connection be idle, by its own word (RFC 2068, section 19.7.1; the parameters as in
//! draft-thomson-hybi-http-timeout-03). Not whether it may stay open at all: that is `Connection`'s to say.
//!
//! An origin that closes a connection in the moment in which a request is on its way there loses the request, and whoever
//! sent a POST cannot know whether it was seen. So a connection is used no longer than its origin says, less a margin.

use super::field::list;

/// So much earlier than the origin says, an idle connection is given up: its clock began when the last byte left it, and the
/// next request has to be there before the end. The longest way around the world and back, and a busy origin.
pub const MARGIN_MS: u32 = 500;

/// Longer numbers bound nothing: a billion seconds are thirty years.
const DIGITS_MAX: usize = 9;

/// What the `Keep-Alive` fields of one head say together: of what is said twice, the smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds after which an idle connection is closed.
    timeout_s: Option<u32>,
    /// Requests that may still come on this connection.
    requests_left: Option<u32>,
}

impl KeepAlive {
    /// Takes one field into account. A parameter that is not understood to the letter is left out.
    pub fn add(&mut self, value: &[u8]) {
        for parameter in list(value) {
            let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else { continue };
            let (name, number) = (&parameter[..equals], number(&parameter[equals + 1..]));
            let said = match name.len() {
                7 if name.eq_ignore_ascii_case(b"timeout") => &mut self.timeout_s,
                3 if name.eq_ignore_ascii_case(b"max") => &mut self.requests_left,
                _ => continue,
            };
            *said = number.map(|number| said.map_or(number, |before| before.min(number))).or(*said);
        }
    }

    /// How long the connection may be kept idle for another request, in milliseconds; 0: not at all. [`u32::MAX`]: the origin
    /// says nothing.
    pub fn idle_ms_max(&self) -> u32 {
        if self.requests_left == Some(0) {
            return 0;
        }
        self.timeout_s.map_or(u32::MAX, |seconds| seconds.saturating_mul(1000).saturating_sub(MARGIN_MS))
    }
}

/// `1*DIGIT`.
fn number(text: &[u8]) -> Option<u32> {
    let is_number = !text.is_empty() && text.len() <= DIGITS_MAX && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| text.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}
