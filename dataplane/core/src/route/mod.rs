//! Routes: which of them answers a request. Of all that match, the one with the greatest [`Specificity`] does.
//!
//! The table is built once per snapshot and never changes. Routes are grouped by listener and host, and sorted within
//! a group, so that the first match of a lookup is the greatest one. A lookup allocates nothing, unless the path is
//! both unusual (see `route/path.rs`) and long.
//!
//! It is not: rewriting (the origin gets the path as the client sent it), nor the choice of an endpoint (`balance`).

mod header;
mod host;
mod path;

use std::cmp::Reverse;

use proto::config::{HostPattern, PathMatch, Route};

use header::HeaderPattern;
use host::HostIndex;
use path::{PathPattern, Reading};

/// What routing looks at in a request.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// The host without its port, in any case; empty where the request has none (HTTP/1.0).
    pub host: &'a [u8],
    /// The path as sent, without the query.
    pub path: &'a [u8],
    /// The method as sent: methods are case-sensitive (RFC 9110, section 9.1).
    pub method: &'a str,
    /// The value of the first field with this name, given in lower case.
    pub header: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

impl std::fmt::Debug for RequestView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestView")
            .field("host", &self.host)
            .field("path", &self.path)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// How closely a matching route describes a request; the fields are compared in this order, greatest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    host: HostSpecificity,
    path: PathSpecificity,
    header_conditions: usize,
    method_given: bool,
    /// The earlier in the file, the greater.
    order: Reverse<usize>,
}

/// Exact host > longer wildcard > shorter wildcard > any host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostSpecificity {
    Any,
    Wildcard { suffix_len: usize },
    Exact,
}

/// Exact path > longer prefix > shorter prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathSpecificity {
    Prefix { len: usize },
    Exact,
}

impl Specificity {
    /// How specific `route`, the `order`-th of the file, is where it matched by `host` (none: it serves any host).
    pub fn of(route: &Route, order: usize, host: Option<&HostPattern>) -> Self {
        let host = match host {
            None => HostSpecificity::Any,
            Some(HostPattern::Wildcard(suffix)) => HostSpecificity::Wildcard { suffix_len: suffix.len() },
            Some(HostPattern::Exact(_)) => HostSpecificity::Exact,
        };
        let path = match &route.path {
            // `/v1` and `/v1/` say the same.
            PathMatch::Prefix(prefix) => PathSpecificity::Prefix { len: prefix.trim_end_matches('/').len() },
            PathMatch::Exact(_) => PathSpecificity::Exact,
        };
        Specificity {
            host,
            path,
            header_conditions: route.match_headers.len(),
            method_given: !route.methods.is_empty(),
            order: Reverse(order),
        }
    }
}

/// All routes of a snapshot, ready for lookups.
#[derive(Debug)]
pub struct RouteTable {
    conditions: Vec<Conditions>,
    listeners: Vec<HostIndex>,
}

/// What a route asks of a request apart from listener and host.
#[derive(Debug)]
struct Conditions {
    path: PathPattern,
    methods: Vec<Box<str>>,
    headers: Vec<HeaderPattern>,
}

impl RouteTable {
    /// Builds the table. `listener_names[i]` is the listener that lookups call `i`; the routes found are indices of
    /// `routes`.
    pub fn new<S: AsRef<str>>(routes: &[Route], listener_names: &[S]) -> Self {
        let conditions = routes.iter().map(Conditions::new).collect();
        let listeners = listener_names.iter().map(|name| index_of_listener(routes, name.as_ref())).collect();
        RouteTable { conditions, listeners }
    }

    /// The index of the most specific route of `listener` that matches, if any does.
    ///
    /// A path that origins are known to read in two ways (see `route/path.rs`) gets a route only if both ways lead to the
    /// same one.
    pub fn lookup(&self, listener: usize, request: &RequestView<'_>) -> Option<usize> {
        let index = self.listeners.get(listener)?;
        if path::is_plain(request.path) {
            return self.first_match(index, request, request.path, Reading::Strict);
        }
        path::with_readings(request.path, |strict, loose| {
            let by_strict = self.first_match(index, request, strict, Reading::Strict);
            let by_loose = self.first_match(index, request, loose, Reading::Loose);
            by_strict.filter(|_| by_strict == by_loose)
        })
    }

    fn first_match(
        &self,
        index: &HostIndex,
        request: &RequestView<'_>,
        path: &[u8],
        reading: Reading,
    ) -> Option<usize> {
        index.find(request.host, |route| {
            self.conditions.get(route).is_some_and(|conditions| conditions.hold(request, path, reading))
        })
    }
}

impl Conditions {
    fn new(route: &Route) -> Self {
        Conditions {
            path: PathPattern::new(&route.path),
            methods: route.methods.iter().map(|method| method.as_str().into()).collect(),
            headers: route.match_headers.iter().map(HeaderPattern::new).collect(),
        }
    }

    fn hold(&self, request: &RequestView<'_>, path: &[u8], reading: Reading) -> bool {
        self.path.matches(path, reading)
            && (self.methods.is_empty() || self.methods.iter().any(|method| **method == *request.method))
            && self.headers.iter().all(|header| header.matches(request.header))
    }
}

/// The routes of one listener by host, most specific first within a host.
fn index_of_listener(routes: &[Route], listener: &str) -> HostIndex {
    let mut placed = Vec::new();
    for (order, route) in routes.iter().enumerate() {
        if !route.listeners.iter().any(|name| name == listener) {
            continue;
        }
        if route.hosts.is_empty() {
            placed.push((Specificity::of(route, order, None), None, order));
        }
        for host in &route.hosts {
            placed.push((Specificity::of(route, order, Some(host)), Some(host), order));
        }
    }
    placed.sort_by_key(|(specificity, ..)| Reverse(*specificity));
    HostIndex::new(placed.into_iter().map(|(_, host, order)| (host, order)))
}
