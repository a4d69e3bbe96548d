//! The rules of `[[routes]]`.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;
use std::time::Duration;

use super::Names;
use super::http;
use super::values::{Refusal, accept, duration, integer, optional_duration, size};
use crate::config::file;
use crate::config::file::value::{At, Section, SizeText};
use crate::config::problem::Problems;
use crate::config::read::suggest::{nearest, quote, quote_whole};
use crate::config::{
    Cluster, HeaderEdits, HeaderMatch, HeaderRules, HostPattern, Listener, PathMatch, Retries, Route,
    Timeouts,
};

/// A handshake that takes longer will not come to an end.
const CONNECT_MAX: Duration = Duration::from_mins(5);
/// The finest that timers tell apart.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
const TOTAL_MAX: Duration = Duration::from_hours(7 * 24);
/// More tries turn the failure of one cluster into an overload of it.
const ATTEMPTS_MAX: i64 = 10;
/// What one exchange may hold in memory for a retry.
const RETRY_BODY_MAX: u64 = 16 << 20;
/// More methods than are registered (RFC 9110, section 16.1).
const METHODS_MAX: usize = 64;
/// 1 PiB, which nobody uploads; any larger number is a typing error.
const REQUEST_BODY_MAX: u64 = 1 << 50;

/// Checks every route. Where a key could not be read (`is_read_whole` is false), what a route matches is not known, so
/// nothing is said about routes that match the same.
pub(super) fn routes(
    files: &[Section<file::Route>],
    listeners: &[Listener],
    clusters: &[Cluster],
    is_read_whole: bool,
    problems: &mut Problems,
) -> Vec<Route> {
    let mut names = Names::new("route");
    let known = Known {
        listeners: listeners.iter().map(|listener| listener.name.as_str()).collect(),
        clusters: clusters.iter().map(|cluster| cluster.name.as_str()).collect(),
        cluster_set: clusters.iter().map(|cluster| cluster.name.as_str()).collect(),
    };
    let errors_before = problems.len();
    let routes: Vec<Route> = files.iter().map(|file| route(file, &mut names, &known, problems)).collect();
    if is_read_whole && problems.len() == errors_before {
        refuse_equal_routes(&routes, files, problems);
    }
    routes
}

/// Names that a route may refer to.
struct Known<'a> {
    listeners: Vec<&'a str>,
    clusters: Vec<&'a str>,
    /// The same names; a large config has thousands of clusters.
    cluster_set: HashSet<&'a str>,
}

fn route(
    file: &Section<file::Route>,
    names: &mut Names,
    known: &Known<'_>,
    problems: &mut Problems,
) -> Route {
    let Section { value: file, span } = file;
    let name = names.take(&file.name, span, problems);
    Route {
        name,
        listeners: route_listeners(file, known, problems),
        hosts: each(&file.hosts, "host", http::host_pattern, problems),
        path: path(file, problems),
        methods: methods(file, problems),
        match_headers: match_headers(file, problems),
        cluster: route_cluster(file, span, known, problems),
        timeouts: timeouts(&file.timeouts.value, problems),
        retries: retries(&file.retries.value, problems),
        headers: HeaderRules {
            request: header_edits(&file.headers.value.request.value, problems),
            response: header_edits(&file.headers.value.response.value, problems),
        },
        request_body_max: request_body_max(&file.request_body, problems),
    }
}

fn route_listeners(file: &file::Route, known: &Known<'_>, problems: &mut Problems) -> Vec<String> {
    let Some(written) = &file.listeners else {
        return known.listeners.iter().map(|name| (*name).to_owned()).collect();
    };
    if written.value.is_empty() {
        let help = "leave `listeners` out to serve all of them";
        problems.wrong(&written.span, "a route without listeners serves nothing", help);
    }
    for At { value: name, span } in &written.value {
        // Where there are none at all, that is the mistake.
        if !known.listeners.is_empty() && !known.listeners.contains(&name.as_str()) {
            problems.unknown_name(
                span,
                "listeners",
                unknown("listener", name),
                one_of(name, &known.listeners, problems),
            );
        }
    }
    each(&file.listeners, "listener", |name| Ok(name.to_owned()), problems)
}

fn route_cluster(
    file: &file::Route,
    route: &Range<usize>,
    known: &Known<'_>,
    problems: &mut Problems,
) -> String {
    let Some(At { value: name, span }) = &file.cluster else {
        let help = match known.clusters.first() {
            Some(cluster) => format!("write `cluster = \"{cluster}\"`"),
            None => "write `cluster = \"…\"`".to_owned(),
        };
        problems.missing(route, "cluster", "this route has no cluster", help);
        return String::new();
    };
    if !known.clusters.is_empty() && !known.cluster_set.contains(name.as_str()) {
        let help = one_of(name, &known.clusters, problems);
        problems.unknown_name(span, "clusters", unknown("cluster", name), help);
    }
    name.clone()
}

fn unknown(what: &str, name: &str) -> String {
    format!("there is no {what} with the name {}", quote(name))
}

/// The name that was probably meant, or some that could be.
fn one_of(name: &str, known: &[&str], problems: &Problems) -> Option<String> {
    const SHOWN_MAX: usize = 8;
    // The distance to every name is too much work where thousands are wrong.
    if problems.is_full() {
        return None;
    }
    let known: Vec<&str> = known.iter().copied().filter(|name| !name.is_empty()).collect();
    if let Some(meant) = nearest(name, known.iter().copied()) {
        return Some(format!("did you mean \"{meant}\"?"));
    }
    let shown: Vec<String> = known.iter().take(SHOWN_MAX).map(|name| quote(name)).collect();
    let more = if known.len() > SHOWN_MAX { ", …" } else { "" };
    (!shown.is_empty()).then(|| format!("write one of: {}{more}", shown.join(", ")))
}

/// A list whose elements are checked one by one; an element that is there twice is a mistake.
fn each<T: Clone + Eq + Hash>(
    field: &Option<At<Vec<At<String>>>>,
    what: &str,
    check: impl Fn(&str) -> Result<T, Refusal>,
    problems: &mut Problems,
) -> Vec<T> {
    let written = field.as_ref().map_or(&[][..], |list| &list.value);
    let mut seen = HashSet::new();
    let mut values = Vec::new();
    for At { value: text, span } in written {
        let Some(value) = accept(check(text), span, problems) else { continue };
        if !seen.insert(value.clone()) {
            problems.wrong(span, format!("the {what} {} is in this list twice", quote(text)), "take one out");
        }
        values.push(value);
    }
    values
}

fn path(file: &file::Route, problems: &mut Problems) -> PathMatch {
    if let (Some(_), Some(exact)) = (&file.path, &file.path_exact) {
        let message = "a route has either `path` or `path_exact`";
        problems.wrong(&exact.span, message, "take one out, or write a second route");
    }
    if let Some(text) = &file.path_exact {
        // To write it without the `*` would match one path instead of all below it.
        if text.value.starts_with('/') && text.value.ends_with('*') {
            let prefix = quote_whole(text.value.trim_end_matches('*'));
            let message = "a path has no wildcards, and `path_exact` matches no other path";
            problems.wrong(&text.span, message, format!("write `path = {prefix}` for everything below it"));
            return PathMatch::Exact(String::new());
        }
        return PathMatch::Exact(accept(http::path(&text.value), &text.span, problems).unwrap_or_default());
    }
    let prefix = file.path.as_ref().and_then(|text| accept(http::path(&text.value), &text.span, problems));
    PathMatch::Prefix(prefix.unwrap_or_else(|| "/".to_owned()))
}

fn methods(file: &file::Route, problems: &mut Problems) -> Vec<String> {
    if let Some(list) = &file.methods
        && list.value.len() > METHODS_MAX
    {
        let help = "leave `methods` out to serve every method";
        problems.wrong(&list.span, format!("there are more than {METHODS_MAX} methods"), help);
        return Vec::new();
    }
    each(&file.methods, "method", http::method, problems)
}

fn match_headers(file: &file::Route, problems: &mut Problems) -> Vec<HeaderMatch> {
    let mut matches: Vec<HeaderMatch> = Vec::new();
    for Section { value: condition, span } in file.match_headers.as_deref().unwrap_or_default() {
        let Some(name) = &condition.name else {
            problems.missing(span, "name", "this condition names no header", "write `name = \"…\"`");
            continue;
        };
        let value = condition.value.as_ref();
        let checked = HeaderMatch {
            name: accept(http::header_name(&name.value), &name.span, problems)
                .unwrap_or_default()
                .to_ascii_lowercase(),
            value: value.and_then(|text| accept(http::header_value(&text.value), &text.span, problems)),
        };
        if matches.contains(&checked) {
            problems.wrong(span, "this condition is in the list twice", "take one out");
        }
        matches.push(checked);
    }
    matches
}

fn timeouts(file: &file::Timeouts, problems: &mut Problems) -> Timeouts {
    let default = Timeouts::default();
    let range = TIMEOUT_MIN..=TIMEOUT_MAX;
    Timeouts {
        connect: duration(&file.connect, TIMEOUT_MIN..=CONNECT_MAX, default.connect, problems),
        first_byte: duration(&file.first_byte, range.clone(), default.first_byte, problems),
        idle: duration(&file.idle, range, default.idle, problems),
        total: optional_duration(&file.total, TIMEOUT_MIN..=TOTAL_MAX, problems),
    }
}

fn retries(file: &file::Retries, problems: &mut Problems) -> Retries {
    let default = Retries::default();
    Retries {
        attempts: attempts(&file.attempts, default.attempts, problems),
        body_bytes_max: size(&file.body, 0..=RETRY_BODY_MAX, problems).unwrap_or(default.body_bytes_max),
        unsafe_methods: file.unsafe_methods.as_ref().map_or(default.unsafe_methods, |field| field.value),
    }
}

/// To leave out a 0 would retry, which is what was not wanted.
fn attempts(field: &Option<At<i64>>, default: u32, problems: &mut Problems) -> u32 {
    if let Some(At { value: 0, span }) = field {
        problems.wrong(span, "0 is out of range", "write 1 for one try and no retry");
        return default;
    }
    integer(field, 1..=ATTEMPTS_MAX, default, problems)
}

/// To leave out a limit that is out of range would let any size pass.
fn request_body_max(field: &Option<At<SizeText>>, problems: &mut Problems) -> Option<u64> {
    let bytes = size(field, 0..=REQUEST_BODY_MAX, problems)?;
    if bytes == 0 {
        let span = &field.as_ref()?.span;
        let help =
            "write \"1B\" for nearly none, or the `methods` that have no body; left out, any size passes";
        problems.wrong(span, "0 is out of range", help);
    }
    Some(bytes)
}

fn header_edits(file: &file::HeaderEdits, problems: &mut Problems) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let mut set_names = HashSet::new();
    for (name, value) in &file.set.0 {
        if !set_names.insert(name.value.to_ascii_lowercase()) {
            let message = format!("the header {} is set twice", quote(&name.value));
            problems.wrong(
                &name.span,
                message,
                "names of headers differ by more than capitals; take one out",
            );
        }
        let value = accept(http::header_value(&value.value), &value.span, problems);
        edits.set.extend(edited_name(name, problems).zip(value));
    }
    for (name, values) in &file.add.0 {
        let name = edited_name(name, problems);
        for text in values.each() {
            let value = accept(http::header_value(text.value), &text.span, problems);
            edits.add.extend(name.clone().zip(value));
        }
    }
    edits.remove = file.remove.iter().filter_map(|name| edited_name(name, problems)).collect();
    edits
}

fn edited_name(name: &At<String>, problems: &mut Problems) -> Option<String> {
    let checked = http::header_name(&name.value);
    let allowed = checked.and_then(|checked| match http::refused_edit(&checked) {
        Some(refusal) => Err(refusal),
        None => Ok(checked),
    });
    accept(allowed, &name.span, problems)
}

/// Two routes that match the very same requests on one listener: which one is taken would be chance.
fn refuse_equal_routes(routes: &[Route], files: &[Section<file::Route>], problems: &mut Problems) {
    let mut groups: HashMap<PathAndHeaders<'_>, usize> = HashMap::new();
    let mut holders: HashMap<Conditions<'_>, Vec<usize>> = HashMap::new();
    for (index, route) in routes.iter().enumerate() {
        let next = groups.len();
        let group = *groups.entry(path_and_headers(route)).or_insert(next);
        let rival = conditions(route, group).find_map(|conditions| {
            let held = holders.entry(conditions).or_default();
            let rival = held.iter().copied().find(|rival| share_listener(&routes[*rival], route));
            held.push(index);
            rival.zip(Some(conditions.1))
        });
        if let Some((rival, host)) = rival {
            let (name, rival) = (quote(&route.name), quote(&routes[rival].name));
            let host = host.map(|host| format!(" for {host}")).unwrap_or_default();
            let message = format!("the routes {rival} and {name} match the same requests{host}");
            let help = "give one of them other hosts, paths, methods, headers or listeners";
            problems.wrong(&files[index].span, message, help);
        }
    }
}

/// Whether the path is exact, the path, and the header conditions in order.
type PathAndHeaders<'a> = (bool, &'a str, Vec<(&'a str, Option<&'a str>)>);

/// The number of the path and headers, a host and a method; none stands for any.
type Conditions<'a> = (usize, Option<&'a HostPattern>, Option<&'a String>);

fn path_and_headers(route: &Route) -> PathAndHeaders<'_> {
    let (is_exact, path) = match &route.path {
        PathMatch::Exact(path) => (true, path.as_str()),
        // `/v1` and `/v1/` match the same paths.
        PathMatch::Prefix(path) => (false, path.strip_suffix('/').unwrap_or(path)),
    };
    let headers = route.match_headers.iter();
    let mut headers: Vec<_> = headers.map(|header| (header.name.as_str(), header.value.as_deref())).collect();
    headers.sort_unstable();
    (is_exact, path, headers)
}

/// One for each host and method of the route.
fn conditions(route: &Route, group: usize) -> impl Iterator<Item = Conditions<'_>> {
    let hosts = each_or_any(&route.hosts);
    hosts.flat_map(move |host| each_or_any(&route.methods).map(move |method| (group, host, method)))
}

fn each_or_any<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    let any = list.is_empty().then_some(None);
    list.iter().map(Some).chain(any)
}

fn share_listener(a: &Route, b: &Route) -> bool {
    a.listeners.iter().any(|name| b.listeners.contains(name))
}
