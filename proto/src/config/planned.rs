//! What is planned and not there yet: words, URL schemes and keys that are known to come, with what to do until then.
//!
//! Each is refused with a message that says so. No help here may lead into a worse state than the error: where TLS, a
//! restriction or a limit was asked for, it says what is lost without, and never just to leave it out.

/// Words of one meaning that a key will take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlannedWord {
    /// In lower case, with `_` for `-`.
    pub(crate) words: &'static [&'static str],
    /// What is planned; empty where the word says it.
    pub(crate) what: &'static str,
    /// What to do until then; empty: write another word.
    pub(crate) help: &'static str,
}

/// A key that is known to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlannedKey {
    /// The last names of the tables it is looked for in; none: everywhere.
    pub(crate) tables: &'static [&'static str],
    pub(crate) key: &'static str,
    /// What it will be.
    pub(crate) what: &'static str,
    /// What to do until then.
    pub(crate) help: &'static str,
}

impl PlannedWord {
    /// Capitals, spaces around and `-` for `_` make no other word.
    pub(crate) fn find(list: &'static [Self], written: &str) -> Option<&'static Self> {
        let word = written.trim().to_lowercase().replace('-', "_");
        let named = list.iter().find(|planned| planned.words.contains(&word.as_str()));
        // What names TLS in whatever way wants nothing in clear text.
        let wants_tls = || ["tls", "ssl", "https"].iter().any(|name| word.contains(name));
        named.or_else(|| list.iter().find(|planned| planned.what == TLS).filter(|_| wants_tls()))
    }
}

impl PlannedKey {
    /// The key in the table of that name.
    pub(crate) fn find(list: &'static [Self], table: &str, key: &str) -> Option<&'static Self> {
        list.iter().find(|planned| planned.key == key && planned.is_of(table))
    }

    /// Whether it is looked for in the table of that name.
    pub(crate) fn is_of(&self, table: &str) -> bool {
        self.tables.is_empty() || self.tables.contains(&table)
    }
}

const TLS: &str = "TLS";

/// What a listener will speak.
pub(crate) const LISTENER_PROTOCOLS: &[PlannedWord] = &[
    PlannedWord {
        words: &["https", "tls", "ssl", "wss", "grpcs"],
        what: TLS,
        help: "a program in front of Millrace has to end TLS until then: what a listener speaks is clear text",
    },
    PlannedWord {
        words: &["tls_passthrough"],
        what: "passing TLS through",
        help: "such connections cannot be taken yet: a program beside Millrace has to pass them on",
    },
    PlannedWord {
        words: &["http2", "h2", "h2c", "http/2"],
        what: "HTTP/2",
        help: "only HTTP/1.1 (`http`) can be served yet",
    },
    PlannedWord {
        words: &["http3", "h3", "http/3", "quic"],
        what: "HTTP/3",
        help: "it needs TLS, which is not there yet either: a program in front of Millrace has to speak it",
    },
    PlannedWord { words: &["grpc"], what: "gRPC", help: "such clients cannot be served yet" },
    PlannedWord { words: &["ws", "websocket"], what: "WebSocket", help: "such clients cannot be served yet" },
    PlannedWord { words: &["tcp"], what: "plain TCP", help: "only HTTP/1.1 (`http`) can be served yet" },
    PlannedWord { words: &["udp", "dtls"], what: "UDP", help: "only HTTP/1.1 (`http`) can be served yet" },
    PlannedWord {
        words: &["tunnel"],
        what: "tunnels between nodes",
        help: "nodes reach each other over plain HTTP until then",
    },
];

/// What will be spoken to endpoints; the schemes of their URLs too.
pub(crate) const CLUSTER_PROTOCOLS: &[PlannedWord] = &[
    PlannedWord {
        words: &["https", "tls", "ssl", "wss", "grpcs"],
        what: TLS,
        help: "such an endpoint cannot be used yet: a program beside Millrace has to speak TLS to it, and that \
               program's address is the endpoint's until then",
    },
    PlannedWord {
        words: &["http2", "h2", "h2c", "http/2"],
        what: "HTTP/2 to endpoints",
        help: "only HTTP/1.1 (`http1`) can be spoken to an endpoint yet",
    },
    PlannedWord {
        words: &["http3", "h3", "http/3", "quic"],
        what: "HTTP/3 to endpoints",
        help: "it needs TLS, which is not there yet either: such an endpoint cannot be used yet",
    },
    PlannedWord { words: &["grpc"], what: "gRPC", help: "such an endpoint cannot be used yet" },
    PlannedWord {
        words: &["ws", "websocket"],
        what: "WebSocket",
        help: "such an endpoint cannot be used yet",
    },
    PlannedWord {
        words: &["tcp"],
        what: "plain TCP to endpoints",
        help: "only HTTP/1.1 (`http1`) can be spoken to an endpoint yet",
    },
    PlannedWord {
        words: &["udp", "dtls"],
        what: "UDP to endpoints",
        help: "only HTTP/1.1 (`http1`) can be spoken to an endpoint yet",
    },
    PlannedWord {
        words: &["tunnel"],
        what: "tunnels between nodes",
        help: "nodes reach each other over plain HTTP until then",
    },
];

/// How an endpoint will be picked.
pub(crate) const POLICIES: &[PlannedWord] = &[PlannedWord {
    words: &["random", "ip_hash", "consistent_hash", "p2c", "node_score"],
    what: "",
    help: "",
}];

/// How endpoints will be probed.
pub(crate) const HEALTH_KINDS: &[PlannedWord] = &[
    PlannedWord {
        words: &["https", "tls", "ssl", "grpcs"],
        what: TLS,
        help: "a probe is clear text; such an endpoint cannot be used yet",
    },
    PlannedWord {
        words: &["grpc", "http2", "h2", "h2c"],
        what: "",
        help: "write \"tcp\" for a mere connection",
    },
];

const CLEAR_LISTENER: &str =
    "without it a listener is clear text: a program in front of Millrace has to end TLS until then";
const CLEAR_ENDPOINT: &str =
    "without it the endpoints are spoken to in clear text: such an endpoint cannot be used yet";
const OPEN_TO_ALL: &str = "without it every address is served: restrict them with a firewall, or bind to an address that only they reach";

const fn of(
    tables: &'static [&'static str],
    key: &'static str,
    what: &'static str,
    help: &'static str,
) -> PlannedKey {
    PlannedKey { tables, key, what, help }
}

/// Keys of the data plane's config. The first that fits counts, so those for everywhere come last: they are told of
/// wherever else they are written.
pub(crate) const KEYS: &[PlannedKey] = &[
    of(&["listeners"], "tls", "TLS on listeners", CLEAR_LISTENER),
    of(&["listeners"], "http2", "HTTP/2 on listeners", "take `http2` out: clients are spoken to in HTTP/1.1"),
    of(&["listeners"], "http3", "HTTP/3", "take `http3` out: clients are spoken to in HTTP/1.1"),
    of(
        &["listeners"],
        "proxy_protocol",
        "the PROXY protocol",
        "take `proxy_protocol` out, here and at the sender: a connection that begins with it is refused",
    ),
    of(&["listeners"], "cluster", "listeners that lead to one cluster", "write a route that leads there"),
    of(&["clusters", "endpoints"], "tls", "TLS to endpoints", CLEAR_ENDPOINT),
    of(
        &["clusters"],
        "proxy_protocol",
        "the PROXY protocol",
        "take `proxy_protocol` out, here and at the origin",
    ),
    of(&["clusters"], "tunnel", "tunnels between nodes", "nodes reach each other over plain HTTP until then"),
    of(&["clusters"], "hash_key", "hashing policies", "take `hash_key` out, and write another `policy`"),
    of(
        &[],
        "tls",
        TLS,
        "neither listeners nor endpoints have it yet: a program beside Millrace has to speak TLS",
    ),
    of(
        &[],
        "ssl",
        TLS,
        "neither listeners nor endpoints have it yet: a program beside Millrace has to speak TLS",
    ),
    of(&[], "certificates", TLS, CLEAR_LISTENER),
    of(&[], "http2", "HTTP/2", "take `http2` out: HTTP/1.1 is spoken"),
    of(&[], "http3", "HTTP/3", "take `http3` out: HTTP/1.1 is spoken"),
    of(&[], "proxy_protocol", "the PROXY protocol", "take `proxy_protocol` out, here and at the other side"),
    of(&[], "trusted", "addresses whose forwarded headers are believed", "take `trusted` out"),
    of(&[], "allow", "lists of addresses that are served", OPEN_TO_ALL),
    of(&[], "deny", "lists of addresses that are not served", OPEN_TO_ALL),
    of(&[], "upgrade", "WebSocket and other upgrades", "take `upgrade` out: no upgrade passes yet"),
    of(
        &[],
        "rate",
        "rate limits",
        "without it nothing limits how many requests a client sends: a program in front of Millrace has to",
    ),
    of(&[], "sse", "rules for event streams", "take `sse` out: streams pass as they are"),
    of(
        &[],
        "first_token",
        "a deadline for the first token",
        "take it out: `first_byte` is the deadline there is",
    ),
    of(&[], "affinity", "session affinity", "take `affinity` out if any endpoint may answer any request"),
    of(&[], "outlier", "outlier ejection", "take `outlier` out: a `health` check finds endpoints that fail"),
    of(&[], "breaker", "circuit breakers", "take `breaker` out: a `health` check finds endpoints that fail"),
    of(&[], "slow_start", "slow start", "take `slow_start` out: a new endpoint gets its whole share at once"),
    of(
        &[],
        "failover",
        "failover to other clusters",
        "take `failover` out: 503 is answered where no endpoint is left",
    ),
    of(&[], "hash_key", "hashing policies", "take `hash_key` out"),
    of(&[], "tunnel", "tunnels between nodes", "nodes reach each other over plain HTTP until then"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_words_however_they_are_written() {
        let what = |written| PlannedWord::find(LISTENER_PROTOCOLS, written).map(|planned| planned.what);
        for written in ["https", "HTTPS", " tls ", "http+tls", "tls1.3", "SSL"] {
            assert_eq!(what(written), Some(TLS), "{written}");
        }
        assert_eq!(what("TLS-passthrough"), Some("passing TLS through"));
        assert_eq!(what("HTTP/2"), Some("HTTP/2"));
        assert_eq!(what("http"), None);
    }

    #[test]
    fn finds_keys_by_their_table_and_then_anywhere() {
        let what = |table, key| PlannedKey::find(KEYS, table, key).map(|planned| planned.what);
        assert_eq!(what("listeners", "tls"), Some("TLS on listeners"));
        assert_eq!(what("endpoints", "tls"), Some("TLS to endpoints"));
        assert_eq!(what("admin", "tls"), Some(TLS));
        assert_eq!(what("listeners", "cluster"), Some("listeners that lead to one cluster"));
        assert_eq!(what("limits", "cluster"), None);
    }
}
