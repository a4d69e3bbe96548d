//! Claims about routing, and the law that a lookup finds what checking every route would find.

use std::time::Duration;

use dataplane_core::route::{RequestView, RouteTable, Specificity};
use proptest::prelude::*;
use proto::config::{HeaderMatch, HeaderRules, HostPattern, PathMatch, Retries, Route, Timeouts};

#[test]
fn takes_exact_host_before_wildcards_before_any() {
    let table = Table::new(vec![
        route().any_host(),
        route().host("*.example.com"),
        route().host("*.eu.example.com"),
        route().host("api.eu.example.com"),
    ]);
    assert_eq!(table.by_host("api.eu.example.com"), Some(3));
    assert_eq!(table.by_host("www.eu.example.com"), Some(2));
    assert_eq!(table.by_host("www.example.com"), Some(1));
    assert_eq!(table.by_host("a.b.c.example.com"), Some(1));
    assert_eq!(table.by_host("example.com"), Some(0), "a wildcard needs a label in front");
    assert_eq!(table.by_host(".example.com"), Some(0), "and the label is not empty");
    assert_eq!(table.by_host("badexample.com"), Some(0));
    assert_eq!(table.by_host(""), Some(0));
}

#[test]
fn compares_hosts_in_any_case_and_without_the_last_dot() {
    let table = Table::new(vec![route().host("api.example.com"), route().host("*.example.org")]);
    assert_eq!(table.by_host("API.Example.COM"), Some(0));
    assert_eq!(table.by_host("api.example.com."), Some(0));
    assert_eq!(table.by_host("X.EXAMPLE.ORG."), Some(1));
    assert_eq!(table.by_host("api.example.com.."), None);
}

#[test]
fn serves_hosts_too_long_to_be_names_by_any_host_only() {
    let table = Table::new(vec![route().host("*.example.com"), route().any_host()]);
    let longest = format!("{}.example.com", "a".repeat(255 - ".example.com".len()));
    assert_eq!(table.by_host(&longest), Some(0));
    assert_eq!(table.by_host(&format!("a{longest}")), Some(1));
}

#[test]
fn falls_back_to_a_less_specific_host_when_the_path_does_not_match() {
    let table = Table::new(vec![
        route().host("api.example.com").prefix("/v1/"),
        route().host("*.example.com").prefix("/v2/"),
        route().any_host(),
    ]);
    assert_eq!(table.lookup("api.example.com", "/v1/x"), Some(0));
    assert_eq!(table.lookup("api.example.com", "/v2/x"), Some(1));
    assert_eq!(table.lookup("api.example.com", "/v3/x"), Some(2));
}

#[test]
fn matches_prefixes_at_segment_boundaries_only() {
    for prefix in ["/v1", "/v1/"] {
        let table = Table::new(vec![route().prefix(prefix)]);
        for inside in ["/v1", "/v1/", "/v1/x", "/v1/x/y"] {
            assert_eq!(table.by_path(inside), Some(0), "{prefix} takes {inside}");
        }
        for outside in ["/", "/v", "/v10", "/v1x/", "/x/v1", "/V1"] {
            assert_eq!(table.by_path(outside), None, "{prefix} does not take {outside}");
        }
    }
}

#[test]
fn root_prefix_takes_every_path() {
    let table = Table::new(vec![route()]);
    for path in ["/", "/x", "/x/y", "*", "/../..", "//", "/%2F", ""] {
        assert_eq!(table.by_path(path), Some(0), "{path}");
    }
}

#[test]
fn takes_exact_path_before_longer_prefix_before_shorter() {
    let table = Table::new(vec![route().prefix("/"), route().prefix("/v1/chat"), route().exact("/v1/chat")]);
    assert_eq!(table.by_path("/v1/chat"), Some(2));
    assert_eq!(table.by_path("/v1/chat/"), Some(1), "an exact path is exact");
    assert_eq!(table.by_path("/v1"), Some(0));
}

#[test]
fn takes_more_header_conditions_then_a_method_then_the_order_of_the_file() {
    let table = Table::new(vec![
        route(),
        route(),
        route().method("POST"),
        route().header("x-tier", Some("gold")),
        route().header("x-tier", Some("gold")).header("x-trace", None),
    ]);
    assert_eq!(table.find("GET", "", "/", &[]), Some(0));
    assert_eq!(table.find("POST", "", "/", &[]), Some(2));
    assert_eq!(table.find("post", "", "/", &[]), Some(0), "methods are case-sensitive");
    assert_eq!(table.find("POST", "", "/", &[("x-tier", "gold")]), Some(3));
    assert_eq!(table.find("POST", "", "/", &[("x-tier", "Gold")]), Some(2), "values are exact");
    assert_eq!(table.find("POST", "", "/", &[("x-tier", "gold"), ("x-trace", "")]), Some(4));
}

#[test]
fn keeps_listeners_apart() {
    let mut inner = route();
    inner.0.listeners = vec!["inner".into()];
    let mut both = route().prefix("/both");
    both.0.listeners = vec!["inner".into(), "outer".into()];
    let routes = [inner.0, both.0];
    let table = RouteTable::new(&routes, &["outer", "inner"]);
    let at = |listener, path: &str| table.lookup(listener, &view("GET", b"", path.as_bytes(), &|_| None));
    assert_eq!((at(0, "/"), at(1, "/")), (None, Some(0)));
    assert_eq!((at(0, "/both"), at(1, "/both")), (Some(1), Some(1)));
    assert_eq!(at(2, "/"), None, "an unknown listener serves nothing");
}

#[test]
fn never_reaches_a_route_that_the_origin_may_read_differently() {
    let table =
        Table::new(vec![route().prefix("/public/"), route().prefix("/admin"), route().prefix("/v1/")]);
    let cases = [
        // (path, route): what every origin agrees on …
        ("/public/../admin", Some(1)),
        ("/public/./x", Some(0)),
        ("/public/%2e%2e/admin", Some(1)),
        ("/public/%2E./admin/x", Some(1)),
        ("/public/x/../../admin", Some(1)),
        ("/public/..", None),
        ("/%61dmin", Some(1)),
        ("/../../admin", Some(1)),
        ("/public/.hidden", Some(0)),
        ("/public/...", Some(0)),
        ("/v1/models/org%2Fmodel", Some(2)),
        ("/v1//x", Some(2)),
        ("/v1/100%", Some(2)),
        ("/v1/%zz", Some(2)),
        // … and what they read in two ways.
        ("/public/..%2fadmin", None),
        ("/public/..%2Fadmin", None),
        ("/public%2f..%2fadmin", None),
        ("//admin", None),
        ("/public//../admin", None),
        ("/public%2Fx", None),
        // Decoded once, never twice.
        ("/public/%252e%252e/admin", Some(0)),
        ("/public/..%252fadmin", Some(0)),
    ];
    for (path, expected) in cases {
        assert_eq!(table.by_path(path), expected, "{path}");
    }
}

#[test]
fn reads_long_paths_as_it_reads_short_ones() {
    let table = Table::new(vec![route().prefix("/public/"), route().prefix("/admin")]);
    let filler = "x/".repeat(2_000);
    let up = "../".repeat(2_000);
    assert_eq!(table.by_path(&format!("/public/{filler}{up}../admin")), Some(1));
    assert_eq!(table.by_path(&format!("/public/{filler}{up}..%2fadmin")), None);
}

#[test]
fn matches_escaped_and_literal_forms_of_a_route_alike() {
    let table =
        Table::new(vec![route().prefix("/caf\u{e9}"), route().exact("/a%20b"), route().exact("/x%2Fy")]);
    assert_eq!(table.by_path("/caf%C3%A9/menu"), Some(0));
    assert_eq!(table.by_path("/caf%c3%a9"), Some(0));
    assert_eq!(table.by_path("/a%20b"), Some(1));
    assert_eq!(table.by_path("/x%2fy"), Some(2));
    assert_eq!(table.by_path("/x/y"), None, "an escaped slash is not a slash");
}

#[test]
fn finds_one_of_ten_thousand_hosts() {
    let routes = (0..10_000).map(|n| route().host(&format!("h{n}.example.com"))).collect();
    let table = Table::new(routes);
    for n in [0, 1, 4_999, 9_999] {
        assert_eq!(table.by_host(&format!("H{n}.example.com")), Some(n));
    }
    assert_eq!(table.by_host("h10000.example.com"), None);
}

#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    host: String,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn finds_what_checking_every_route_finds(
        routes in prop::collection::vec(any_route(), 0..24),
        requests in prop::collection::vec(any_request(), 1..24),
    ) {
        let table = Table::new(routes);
        for request in requests {
            let found = table.find(request.method, &request.host, &request.path, &request.headers);
            prop_assert_eq!(found, oracle(&table.routes, &request), "{:?}", request);
        }
    }
}

/// Checks every route in both readings of the path and takes the greatest.
fn oracle(routes: &[Route], request: &Request) -> Option<usize> {
    let strict = greatest(routes, request, true);
    let is_plain =
        !request.path.contains('%') && !request.path.contains("//") && !request.path.contains("/.");
    if is_plain || strict == greatest(routes, request, false) { strict } else { None }
}

fn greatest(routes: &[Route], request: &Request, strict: bool) -> Option<usize> {
    let path = segments(&request.path, strict);
    let matching = routes.iter().enumerate().filter(|(_, route)| {
        let path_matches = match &route.path {
            PathMatch::Exact(text) => segments(text, strict) == path,
            PathMatch::Prefix(text) => {
                let mut prefix = segments(text, strict);
                while prefix.last().is_some_and(String::is_empty) {
                    prefix.pop();
                }
                path.starts_with(&prefix)
            }
        };
        let header = |name: &str| request.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        path_matches
            && (route.methods.is_empty() || route.methods.iter().any(|m| m == request.method))
            && route.match_headers.iter().all(|condition| match (&condition.value, header(&condition.name)) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(wanted), Some(found)) => wanted == found,
            })
    });
    let ranked = matching.flat_map(|(order, route)| {
        let any = route.hosts.is_empty().then(|| Specificity::of(route, order, None));
        let named = route.hosts.iter().filter(|pattern| host_matches(pattern, &request.host));
        let named = named.map(move |pattern| Specificity::of(route, order, Some(pattern)));
        any.into_iter().chain(named).map(move |specificity| (specificity, order))
    });
    ranked.max_by_key(|(specificity, _)| *specificity).map(|(_, order)| order)
}

fn host_matches(pattern: &HostPattern, host: &str) -> bool {
    let host = host.to_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    match pattern {
        HostPattern::Exact(name) => host == name,
        HostPattern::Wildcard(suffix) => host
            .strip_suffix(suffix.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|l| !l.is_empty()),
    }
}

/// The segments of a path; strict: `%2F` is data and empty segments count.
fn segments(path: &str, strict: bool) -> Vec<String> {
    let decode = |text: &str| {
        let kept = if strict {
            text.replace("%2F", "%252F").replace("%2f", "%252F").replace("%252F", "\u{1}")
        } else {
            text.into()
        };
        kept.replace("%2F", "/")
            .replace("%2f", "/")
            .replace("%2e", ".")
            .replace("%61", "a")
            .replace('\u{1}', "%2F")
    };
    let text = decode(path);
    let all: Vec<&str> = text.strip_prefix('/').unwrap_or(&text).split('/').collect();
    let mut out: Vec<String> = Vec::new();
    for (at, segment) in all.iter().enumerate() {
        let is_last = at + 1 == all.len();
        match *segment {
            "." => {}
            ".." => drop(out.pop()),
            "" if !strict && !is_last => continue,
            other => {
                out.push(other.into());
                continue;
            }
        }
        if is_last {
            out.push(String::new());
        }
    }
    out
}

fn any_route() -> impl Strategy<Value = Builder> {
    let host = prop_oneof![
        Just(HostPattern::Exact("a.b.c".into())),
        Just(HostPattern::Exact("b.c".into())),
        Just(HostPattern::Wildcard("c".into())),
        Just(HostPattern::Wildcard("b.c".into())),
        "[a-z]{1,2}\\.c".prop_map(HostPattern::Exact),
    ];
    let path = prop_oneof![
        4 => "(/(a|b|v1|v10)){1,3}/?".prop_map(PathMatch::Prefix),
        1 => Just(PathMatch::Prefix("/".into())),
        2 => "(/(a|b|v1|v10)){0,3}/?".prop_map(|p| PathMatch::Exact(if p.is_empty() { "/".into() } else { p })),
    ];
    let method = prop_oneof![Just("GET".to_owned()), Just("POST".to_owned())];
    let condition =
        ("x-(a|b)", prop::option::of("(1|2)")).prop_map(|(name, value)| HeaderMatch { name, value });
    (
        prop::collection::vec(host, 0..3),
        path,
        prop::collection::vec(method, 0..2),
        prop::collection::vec(condition, 0..3),
    )
        .prop_map(|(hosts, path, methods, match_headers)| {
            let mut built = route();
            built.0 = Route { hosts, path, methods, match_headers, ..built.0 };
            built
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let path = prop_oneof![
        3 => "(/(a|b|v1|v10)){1,4}/?",
        3 => "((/|//|%2F|%2f)(a|b|v1|%61|\\.|\\.\\.|%2e%2e|\\.%2e|)){1,5}".prop_map(|p| format!("/{p}")),
    ];
    let header =
        prop_oneof![Just("x-a"), Just("x-b")].prop_flat_map(|n| (Just(n), prop_oneof![Just("1"), Just("2")]));
    (
        prop_oneof![Just("GET"), Just("POST"), Just("PUT")],
        "(a\\.b\\.c|A\\.B\\.C|b\\.c|x\\.c|x\\.b\\.c\\.?|[a-z]{1,2}\\.c|\\.c|)",
        path,
        prop::collection::vec(header, 0..3),
    )
        .prop_map(|(method, host, path, headers)| Request { method, host, path, headers })
}

/// A route table with the routes that it was made of, on one listener.
struct Table {
    routes: Vec<Route>,
    table: RouteTable,
}

impl Table {
    fn new(routes: Vec<Builder>) -> Self {
        let routes: Vec<Route> = routes.into_iter().map(|built| built.0).collect();
        let table = RouteTable::new(&routes, &["http"]);
        Table { routes, table }
    }

    fn find(&self, method: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> Option<usize> {
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_bytes());
        self.table.lookup(0, &view(method, host.as_bytes(), path.as_bytes(), &header))
    }

    fn lookup(&self, host: &str, path: &str) -> Option<usize> {
        self.find("GET", host, path, &[])
    }

    fn by_host(&self, host: &str) -> Option<usize> {
        self.lookup(host, "/")
    }

    fn by_path(&self, path: &str) -> Option<usize> {
        self.lookup("localhost", path)
    }
}

fn view<'a>(
    method: &'a str,
    host: &'a [u8],
    path: &'a [u8],
    header: &'a dyn Fn(&str) -> Option<&'a [u8]>,
) -> RequestView<'a> {
    RequestView { host, path, method, header }
}

#[derive(Clone, Debug)]
struct Builder(Route);

fn route() -> Builder {
    let second = Duration::from_secs(1);
    Builder(Route {
        name: "r".into(),
        listeners: vec!["http".into()],
        hosts: Vec::new(),
        path: PathMatch::Prefix("/".into()),
        methods: Vec::new(),
        match_headers: Vec::new(),
        cluster: "c".into(),
        timeouts: Timeouts { connect: second, first_byte: second, idle: second, total: None },
        retries: Retries { attempts: 1, body_bytes_max: 0, unsafe_methods: false },
        headers: HeaderRules::default(),
        request_body_max: None,
    })
}

impl Builder {
    fn any_host(mut self) -> Self {
        self.0.hosts.clear();
        self
    }

    fn host(mut self, host: &str) -> Self {
        self.0.hosts.push(match host.strip_prefix("*.") {
            Some(suffix) => HostPattern::Wildcard(suffix.into()),
            None => HostPattern::Exact(host.into()),
        });
        self
    }

    fn prefix(mut self, path: &str) -> Self {
        self.0.path = PathMatch::Prefix(path.into());
        self
    }

    fn exact(mut self, path: &str) -> Self {
        self.0.path = PathMatch::Exact(path.into());
        self
    }

    fn method(mut self, method: &str) -> Self {
        self.0.methods.push(method.into());
        self
    }

    fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.0.match_headers.push(HeaderMatch { name: name.into(), value: value.map(Into::into) });
        self
    }
}
