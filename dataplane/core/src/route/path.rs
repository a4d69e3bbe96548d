//! Paths of routes, and the ways in which an origin may read the path of a request.
//!
//! The origin gets the path exactly as the client sent it. `/public/..%2Fadmin` is then a file in `/public` for one
//! origin and `/admin` for another, so neither the raw bytes nor one normal form are safe to route by. A path is
//! *plain* if it has no `%`, no empty segment and no segment that begins with a dot; all origins read it alike, and it
//! is matched as it is. Any other path is read in both ways known from the field:
//!
//! - **strict** (RFC 3986, section 6.2.2): escapes are decoded except for `%2F` and `%25`, which stay data; then dot
//!   segments are removed; empty segments count.
//! - **loose** (as nginx does): all escapes are decoded once, `%2F` is a separator, empty segments are dropped, and
//!   dot segments are removed.
//!
//! It has a route only if both readings lead to the same one. So `/v1/models/org%2Fmodel` is served by a `/v1/` route,
//! while `/public/..%2Fadmin` gets 404 where `/public/` and `/admin` are different routes. An escape that is not two
//! hex digits is taken literally. Path parameters (`;x=y`) and backslashes have no meaning here.

use proto::config::PathMatch;

/// How a path is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// `%2F` is data, empty segments count.
    Strict,
    /// `%2F` is a separator, empty segments do not count.
    Loose,
}

/// A path of a route, in both readings.
#[derive(Debug)]
pub(super) struct PathPattern {
    is_exact: bool,
    strict: Box<[u8]>,
    loose: Box<[u8]>,
}

impl PathPattern {
    pub(super) fn new(path: &PathMatch) -> Self {
        let (is_exact, text) = match path {
            PathMatch::Exact(text) => (true, text.as_str()),
            PathMatch::Prefix(text) => (false, text.as_str()),
        };
        let form = |reading| {
            let mut form = vec![0; text.len()];
            let len = read(text.as_bytes(), reading, &mut form);
            form.truncate(len);
            // A prefix is kept without the slash that ends it, since it matches with and without.
            while !is_exact && form.last() == Some(&b'/') {
                form.pop();
            }
            form.into_boxed_slice()
        };
        PathPattern { is_exact, strict: form(Reading::Strict), loose: form(Reading::Loose) }
    }

    /// `path` is in the given reading.
    pub(super) fn matches(&self, path: &[u8], reading: Reading) -> bool {
        let pattern = match reading {
            Reading::Strict => &*self.strict,
            Reading::Loose => &*self.loose,
        };
        if self.is_exact {
            return path == pattern;
        }
        // The empty prefix is `/`: it takes every path, `*` of `OPTIONS *` too.
        pattern.is_empty()
            || path.strip_prefix(pattern).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }
}

/// Whether every origin reads this path alike: its readings are the path itself.
pub(super) fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for byte in path {
        if *byte == b'%' || (previous == b'/' && matches!(byte, b'/' | b'.')) {
            return false;
        }
        previous = *byte;
    }
    path.first() != Some(&b'.')
}

/// Paths up to this length are read in a buffer on the stack.
const INLINE_LEN_MAX: usize = 512;

/// Calls `then` with the strict and the loose reading of `path`.
pub(super) fn with_readings<R>(path: &[u8], then: impl FnOnce(&[u8], &[u8]) -> R) -> R {
    // A reading is never longer than the path.
    let run = |strict: &mut [u8], loose: &mut [u8]| {
        let strict_len = read(path, Reading::Strict, strict);
        let loose_len = read(path, Reading::Loose, loose);
        then(&strict[..strict_len], &loose[..loose_len])
    };
    if path.len() <= INLINE_LEN_MAX {
        run(&mut [0; INLINE_LEN_MAX], &mut [0; INLINE_LEN_MAX])
    } else {
        run(&mut vec![0; path.len()], &mut vec![0; path.len()])
    }
}

/// Writes the reading of `path` into `out`, which is at least as long, and returns its length.
fn read(path: &[u8], reading: Reading, out: &mut [u8]) -> usize {
    let mut writer = Writer { out, len: 0, segment_start: 0 };
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match (*byte, reading) {
            (b'/', _) => writer.separator(reading),
            (b'%', _) => match (escaped(tail), reading) {
                (None, _) => writer.push(b'%'),
                (Some(kept @ (b'/' | b'%')), Reading::Strict) => {
                    writer.extend(if kept == b'/' { b"%2F" } else { b"%25" });
                    rest = &tail[2..];
                }
                (Some(decoded), _) => {
                    if decoded == b'/' {
                        writer.separator(reading)
                    } else {
                        writer.push(decoded)
                    }
                    rest = &tail[2..];
                }
            },
            (byte, _) => writer.push(byte),
        }
    }
    writer.end_segment();
    writer.len
}

/// The byte that two hex digits stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// What was read so far; the last segment begins at `segment_start`.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
    segment_start: usize,
}

impl Writer<'_> {
    fn push(&mut self, byte: u8) {
        self.out[self.len] = byte;
        self.len += 1;
    }

    fn extend(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(*byte);
        }
    }

    fn separator(&mut self, reading: Reading) {
        let dropped = self.end_segment();
        let is_empty_segment = self.len > 0 && self.segment_start == self.len;
        if dropped || (reading == Reading::Loose && is_empty_segment) {
            return;
        }
        self.push(b'/');
        self.segment_start = self.len;
    }

    /// Takes a dot segment back (RFC 3986, section 5.2.4), `..` with the segment before it; true if it was one.
    fn end_segment(&mut self) -> bool {
        let keep = match &self.out[self.segment_start..self.len] {
            b"." => self.segment_start,
            b".." => {
                let parent = &self.out[..self.segment_start.saturating_sub(1)];
                let root = usize::from(parent.is_empty() && self.segment_start > 0);
                parent.iter().rposition(|byte| *byte == b'/').map_or(root, |at| at + 1)
            }
            _ => return false,
        };
        self.len = keep;
        self.segment_start = keep;
        true
    }
}
