//! The routes of one listener by host: exact names, then wildcards from the longest suffix down, then any host.
//!
//! Hosts are compared in lower case, without the dot that may end an absolute name (RFC 1034, section 3.1), in a
//! buffer on the stack. It does not split off ports, and knows nothing of paths.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use proto::config::HostPattern;

/// No DNS name is longer (RFC 1035, section 2.3.4): such a host is served only by routes for any host.
const HOST_LEN_MAX: usize = 255;

/// Up to this many names a scan is cheaper than a hash.
const SCAN_MAX: usize = 8;

/// Indices of routes, most specific first.
type Candidates = Vec<usize>;

#[derive(Debug)]
pub(super) struct HostIndex {
    exact: NameMap,
    /// Keyed by the suffix behind `*.`.
    wildcard: NameMap,
    /// The longest suffix of `wildcard`: longer ones need no look.
    suffix_len_max: usize,
    any: Candidates,
}

impl HostIndex {
    /// `routes` are (host pattern or any, route), most specific first.
    pub(super) fn new<'a>(routes: impl Iterator<Item = (Option<&'a HostPattern>, usize)>) -> Self {
        let (mut exact, mut wildcard, mut any) = (HashMap::default(), HashMap::default(), Vec::new());
        for (pattern, route) in routes {
            match pattern {
                None => any.push(route),
                Some(HostPattern::Exact(name)) => candidates_of(&mut exact, name).push(route),
                Some(HostPattern::Wildcard(suffix)) => candidates_of(&mut wildcard, suffix).push(route),
            }
        }
        let suffix_len_max = wildcard.keys().map(|suffix| suffix.len()).max().unwrap_or(0);
        HostIndex { exact: NameMap::new(exact), wildcard: NameMap::new(wildcard), suffix_len_max, any }
    }

    /// The first candidate for `host` that is `accepted`.
    pub(super) fn find(&self, host: &[u8], accepted: impl Fn(usize) -> bool) -> Option<usize> {
        let named = || {
            if self.exact.is_empty() && self.wildcard.is_empty() {
                return None;
            }
            let mut buffer = [0; HOST_LEN_MAX];
            self.find_named(lower_case(host, &mut buffer)?, &accepted)
        };
        named().or_else(|| first(&self.any, &accepted))
    }

    fn find_named(&self, host: &[u8], accepted: &impl Fn(usize) -> bool) -> Option<usize> {
        let exact = self.exact.find(host).and_then(|candidates| first(candidates, accepted));
        if exact.is_some() || self.wildcard.is_empty() {
            return exact;
        }
        // The label in front of the suffix must not be empty, so a dot that begins the host does not count.
        let dots = memchr::memchr_iter(b'.', host).filter(|dot| *dot > 0);
        let suffixes = dots.map(|dot| &host[dot + 1..]).filter(|suffix| suffix.len() <= self.suffix_len_max);
        suffixes
            .filter_map(|suffix| self.wildcard.find(suffix))
            .find_map(|candidates| first(candidates, accepted))
    }
}

fn first(candidates: &[usize], accepted: &impl Fn(usize) -> bool) -> Option<usize> {
    candidates.iter().copied().find(|route| accepted(*route))
}

fn candidates_of<'a>(names: &'a mut Names, name: &str) -> &'a mut Candidates {
    names.entry(without_last_dot(name.as_bytes()).to_ascii_lowercase().into()).or_default()
}

fn without_last_dot(host: &[u8]) -> &[u8] {
    host.strip_suffix(b".").unwrap_or(host)
}

/// None where the host is too long to be a name.
fn lower_case<'a>(host: &[u8], buffer: &'a mut [u8; HOST_LEN_MAX]) -> Option<&'a [u8]> {
    let host = without_last_dot(host);
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host);
    lower.make_ascii_lowercase();
    Some(lower)
}

type Names = HashMap<Box<[u8]>, Candidates, BuildHasherDefault<Fnv1a>>;

/// Names to candidates: a scan while there are few, a hash map above that.
#[derive(Debug)]
enum NameMap {
    Few(Vec<(Box<[u8]>, Candidates)>),
    Many(Names),
}

impl NameMap {
    fn new(names: Names) -> Self {
        if names.len() <= SCAN_MAX { NameMap::Few(names.into_iter().collect()) } else { NameMap::Many(names) }
    }

    fn is_empty(&self) -> bool {
        matches!(self, NameMap::Few(names) if names.is_empty())
    }

    fn find(&self, name: &[u8]) -> Option<&[usize]> {
        match self {
            NameMap::Few(names) => {
                names.iter().find(|(key, _)| **key == *name).map(|(_, candidates)| candidates.as_slice())
            }
            NameMap::Many(names) => names.get(name).map(Vec::as_slice),
        }
    }
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>), 64 bits. Keys come from the config alone, clients only look
/// up, so no one can flood the map and a keyed hash would buy nothing.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
