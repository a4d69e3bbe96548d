//! What a help advises is tried: whoever follows it must come to a config that is better than the refused one, and never
//! to clear text where TLS was asked for, nor to an admin API that is open to everyone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in its helpers")]

use std::fs;
use std::path::Path;

use proto::config::{Config, ConfigError, ConfigErrors};

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let env = |name: &str| (name == "REGION").then(|| "hk".to_owned());
    Config::parse(text, &env, "test-host")
}

fn refused_samples() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/refused");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let toml = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    toml.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// Every text that the help of an error leads to; none where the help only says what is the matter.
fn followed(text: &str, error: &ConfigError) -> Vec<String> {
    let Some(help) = &error.help else { return Vec::new() };
    let with = |span: std::ops::Range<usize>, new: &str| {
        format!("{}{new}{}", &text[..span.start], &text[span.end..])
    };
    if let Some((_, lines)) = help.split_once("write at least:\n") {
        return vec![format!("{text}\n{}\n", lines.replace('…', "llm"))];
    }
    let Some(advice) =
        ["write ", "did you mean "].iter().find_map(|verb| help.split_once(verb)).map(|(_, rest)| rest)
    else {
        return Vec::new();
    };
    let written = &text[error.span.clone()];
    if let Some(code) = advice.strip_prefix('`').and_then(|rest| rest.split('`').next()) {
        return match code.contains(" = ") {
            // A key that is missing goes below the header of its table.
            true if written.starts_with('[') && !code.contains('…') => {
                vec![with(error.span.clone(), &format!("{written}\n{code}"))]
            }
            true => Vec::new(),
            // A key that is misspelt.
            false if error.message.starts_with("unknown key") => vec![with(error.span.clone(), code)],
            false => Vec::new(),
        };
    }
    // Only a whole value can be replaced.
    let is_value =
        written.starts_with(['"', '\'']) || written.parse::<f64>().is_ok() || written.parse::<bool>().is_ok();
    if !is_value || advice.contains('…') {
        return Vec::new();
    }
    if advice.starts_with(|c: char| c.is_ascii_digit() || c == '[') || advice.starts_with("true") {
        return vec![with(error.span.clone(), advice.split(" for ").next().unwrap())];
    }
    let quoted = advice.split('"').skip(1).step_by(2);
    quoted.map(|value| with(error.span.clone(), &format!("\"{value}\""))).collect()
}

/// The error at the place of `error`, if there is one; what an example has in common with another value is none.
fn still_wrong(result: &Result<Config, ConfigErrors>, error: &ConfigError) -> Option<ConfigError> {
    let errors = result.as_ref().err()?.as_slice();
    let is_chance =
        |message: &str| ["clashes", "already taken", "twice"].iter().any(|word| message.contains(word));
    errors.iter().find(|other| other.path == error.path && !is_chance(&other.message)).cloned()
}

fn assert_leads_to_something_better(name: &str, text: &str, error: &ConfigError, steps: usize) -> usize {
    let mut tried = 0;
    for better in followed(text, error) {
        tried += 1;
        let result = parse(&better);
        if let Ok(config) = &result {
            let worse = ["clear text", "other hosts"];
            let warnings = config.warnings();
            let warning = warnings.iter().find(|warning| worse.iter().any(|word| warning.contains(word)));
            assert!(warning.is_none(), "{name}: {warning:?} after {error:?}");
        }
        let Some(next) = still_wrong(&result, error) else { continue };
        assert_ne!(next.message, error.message, "{name}: {error:?} is the same after\n{better}");
        assert!(steps > 0, "{name}: {error:?} leads to {next:?}");
        assert!(next.help.is_some(), "{name}: {error:?} leads to {next:?}, which says no more");
        assert_leads_to_something_better(name, &better, &next, steps - 1);
    }
    tried
}

#[test]
fn no_help_leads_into_a_worse_state() {
    let mut tried = 0;
    for (name, text) in refused_samples() {
        for error in parse(&text).unwrap_err().as_slice() {
            tried += assert_leads_to_something_better(&name, &text, error, 2);
        }
    }
    assert!(tried > 100, "only {tried} pieces of advice were followed");
}

/// A good config with `listener`, `route`, `cluster` and `endpoint` as further keys of these.
fn with_keys(listener: &str, route: &str, cluster: &str, address: &str) -> String {
    format!(
        "[[listeners]]\nname = \"http\"\nbind = \"127.0.0.1:0\"\n{listener}\n[[routes]]\nname = \"all\"\n\
         cluster = \"llm\"\n{route}\n[[clusters]]\nname = \"llm\"\nendpoints = [{{ address = \"{address}\" }}]\n{cluster}\n"
    )
}

const ADDRESS: &str = "10.0.0.1:8000";

/// Every way to ask for TLS.
fn asking_for_tls() -> Vec<String> {
    let mut texts = Vec::new();
    for word in ["https", "HTTPS", "tls", "ssl", "wss", "grpcs", "https2", "htps", "httpss", "tls1.3"] {
        texts.push(with_keys(&format!("protocol = \"{word}\""), "", "", ADDRESS));
        texts.push(with_keys("", "", &format!("protocol = \"{word}\""), ADDRESS));
        texts.push(with_keys("", "", &format!("health = {{ kind = \"{word}\" }}"), ADDRESS));
        texts.push(with_keys("", "", "", &format!("{word}://api.example.com")));
        texts.push(with_keys("", "", "", &format!("{word}://api.example.com:443/v1")));
    }
    for key in ["tls", "ssl", "tsl", "certificates"] {
        texts.push(with_keys(&format!("{key} = {{}}"), "", "", ADDRESS));
        texts.push(with_keys("", &format!("{key} = true"), "", ADDRESS));
        texts.push(with_keys("", "", &format!("{key} = {{}}"), ADDRESS));
    }
    texts
}

#[test]
fn no_help_leads_from_tls_to_clear_text() {
    assert!(parse(&with_keys("", "", "", ADDRESS)).is_ok());
    for text in asking_for_tls() {
        for error in parse(&text).unwrap_err().as_slice() {
            let help = error.help.clone().unwrap_or_default();
            assert!(!help.starts_with("take"), "{text}\n{help}");
            for better in followed(&text, error) {
                assert!(parse(&better).is_err(), "{help} leads to\n{better}");
            }
        }
    }
}

#[test]
fn what_is_planned_is_answered_as_planned() {
    let mut texts = Vec::new();
    let protocols = [
        "https",
        "h2",
        "h2c",
        "http2",
        "HTTP/2",
        "http3",
        "h3",
        "quic",
        "tls",
        "tls_passthrough",
        "grpc",
        "grpcs",
        "ws",
        "wss",
        "websocket",
        "tcp",
        "udp",
        "tunnel",
    ];
    for word in protocols {
        texts.push(with_keys(&format!("protocol = \"{word}\""), "", "", ADDRESS));
        if word != "tls_passthrough" {
            texts.push(with_keys("", "", &format!("protocol = \"{word}\""), ADDRESS));
        }
        if !word.contains(['_', '/']) {
            texts.push(with_keys("", "", "", &format!("{word}://llm.internal:8000")));
        }
    }
    for policy in ["random", "ip_hash", "consistent_hash", "p2c", "node_score"] {
        texts.push(with_keys("", "", &format!("policy = \"{policy}\""), ADDRESS));
    }
    for key in ["http2", "http3", "tls", "proxy_protocol", "trusted", "cluster", "allow", "deny"] {
        texts.push(with_keys(&format!("{key} = true"), "", "", ADDRESS));
    }
    for key in ["upgrade", "rate", "sse", "allow", "deny", "timeouts.first_token", "tls"] {
        texts.push(with_keys("", &format!("{key} = true"), "", ADDRESS));
    }
    let of_clusters = [
        "tls",
        "proxy_protocol",
        "hash_key",
        "affinity",
        "outlier",
        "breaker",
        "slow_start",
        "failover",
        "tunnel",
        "http2",
    ];
    for key in of_clusters {
        texts.push(with_keys("", "", &format!("{key} = true"), ADDRESS));
    }
    for text in texts {
        let errors = parse(&text).unwrap_err();
        let messages: Vec<_> = errors.as_slice().iter().map(|error| &error.message).collect();
        assert!(messages.iter().any(|message| message.contains("planned")), "{text}\n{messages:?}");
    }
}
