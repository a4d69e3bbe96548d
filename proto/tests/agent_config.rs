//! The agent's config: what a file means, and what each mistake is answered with.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;

use proptest::prelude::*;
use proto::config::agent::{AgentConfig, JoinTokenSource};
use proto::config::{LogLevel, Role};

fn env(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "mrj1.t.secret".to_owned())
}

fn parse(text: &str) -> Result<AgentConfig, String> {
    AgentConfig::parse(text, &env, "host-1").map_err(|errors| errors.render("agent.toml", text, false))
}

/// What is said to a text, from the first line of each message.
fn refusals(text: &str) -> Vec<String> {
    let rendered = parse(text).unwrap_err();
    rendered.lines().filter_map(|line| line.strip_prefix("agent.toml:")).map(str::to_owned).collect()
}

#[test]
fn a_master_is_all_it_needs() {
    let config = parse("[master]\nurl = \"https://m:50051\"\nca = \"/ca.pem\"\n").unwrap();
    assert_eq!(
        (config.node.id.as_str(), config.node.role, config.node.region.as_str()),
        ("host-1", Role::Edge, "")
    );
    assert_eq!(config.dataplane.socket, Path::new("/run/millrace/dataplane.sock"));
    assert_eq!(config.dataplane.unit, "millrace-dataplane.service");
    assert_eq!(config.state_dir, Path::new("/var/lib/millrace-agent"));
    assert_eq!((config.log_level, config.master.join_token), (LogLevel::Info, None));
    let tls = config.master.tls.unwrap();
    assert_eq!((tls.ca.as_path(), tls.identity, tls.server_name), (Path::new("/ca.pem"), None, None));
}

#[test]
fn everything_can_be_said() {
    let config = parse(
        r#"
        [node]
        id = "hk-1"
        role = "core"
        region = "hk"
        [master]
        url = "https://master.example.com:50051"
        ca = "/etc/ca.pem"
        server_name = "master.internal"
        certificate = "/etc/agent.pem"
        key = "/etc/agent.key"
        join_token = "${TOKEN}"
        [dataplane]
        socket = "/run/dp.sock"
        unit = "edge@1.service"
        [state]
        dir = "/srv/agent"
        [log]
        level = "debug"
        "#,
    )
    .unwrap();
    assert_eq!((config.node.id.as_str(), config.node.role), ("hk-1", Role::Core));
    assert_eq!(config.master.join_token, Some(JoinTokenSource::Text("mrj1.t.secret".to_owned())));
    assert!(!format!("{config:?}").contains("secret"), "a token is not shown in logs");
    let tls = config.master.tls.unwrap();
    assert_eq!(tls.identity, Some(("/etc/agent.pem".into(), "/etc/agent.key".into())));
    assert_eq!(config.dataplane.unit, "edge@1.service");
}

#[test]
fn plain_http_has_to_be_asked_for() {
    let plain = "[master]\nurl = \"http://127.0.0.1:50051\"\n";
    let refused = refusals(plain);
    assert_eq!(
        refused,
        ["2:7: without TLS anyone on the way can read the credential and send configs".to_owned()]
    );
    assert_eq!(parse(&format!("{plain}insecure = true\n")).unwrap().master.tls, None);
    assert_eq!(
        refusals(&format!("{plain}insecure = true\nca = \"/ca.pem\"\n")),
        ["4:6: this means nothing for http://"]
    );
}

#[test]
fn names_the_place_of_every_mistake() {
    for (text, refusal) in [
        ("", "1:1: there is no master"),
        ("[master]\n", "1:1: the master has no address"),
        ("[master]\nurl = \"https://m:1\"", "1:1: nothing says whose certificates the master may show"),
        ("[master]\nurl = \"m:1\"\nca = \"/c\"", "2:7: \"m:1\" is no URL"),
        ("[master]\nurl = \"ftp://m:1\"\nca = \"/c\"", "2:7: \"ftp\" is no scheme for a master"),
        ("[master]\nurl = \"https://m\"\nca = \"/c\"", "2:7: \"m\" is no host with a port"),
        ("[master]\nurl = \"https://m:0\"\nca = \"/c\"", "2:7: \"m:0\" is no host with a port"),
        ("[master]\nurl = \"https://m:1/x\"\nca = \"/c\"", "2:7: \"m:1/x\" is no host with a port"),
        ("[master]\nurl = \"https://m:1\"\nca = \"c\"", "3:6: \"c\" is no absolute path"),
        (
            "[master]\nurl = \"https://m:1\"\nca = \"/c\"\nkey = \"/k\"",
            "4:7: a client certificate needs `certificate`, too",
        ),
        (
            "[master]\nurl = \"https://m:1\"\nca = \"/c\"\njoin_token = \"a\"\njoin_token_file = \"/b\"",
            "5:19: there are two join tokens",
        ),
        (
            "node.id = \"a/b\"\n[master]\nurl = \"https://m:1\"\nca = \"/c\"",
            "1:11: \"a/b\" is no id of a node: an id has letters, digits, `.`, `_` and `-` only",
        ),
        (
            "[master]\nurl = \"https://m:1\"\nca = \"/c\"\n[dataplane]\nunit = \"-H evil\"",
            "5:8: \"-H evil\" is no name of a service",
        ),
        ("[master]\nurl = \"https://m:1\"\nca = \"/c\"\n[dataplan]", "4:2: unknown key \"dataplan\""),
    ] {
        assert_eq!(refusals(text), [refusal.to_owned()], "{text}");
    }
}

#[test]
fn a_host_name_that_is_no_id_asks_for_one() {
    let text = "[master]\nurl = \"https://m:1\"\nca = \"/c\"\n";
    let errors = AgentConfig::parse(text, &env, "-").unwrap_err();
    assert_eq!(errors.as_slice()[0].path, "node.id");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\\PC\n]{0,200}", url in "\\PC{0,40}", unit in "\\PC{0,40}") {
        let _ = parse(&text);
        let _ = parse(&format!("[master]\nurl = '{url}'\n[dataplane]\nunit = '{unit}'\n"));
    }
}

/// A guess that is followed must not open what was to be closed.
#[test]
fn no_help_leads_away_from_tls() {
    let rendered =
        parse("[master]\nurl = \"https://m:50051\"\nca = \"/ca.pem\"\nsecure = true\n").unwrap_err();
    assert!(rendered.contains("unknown key \"secure\"") && !rendered.contains("did you mean"), "{rendered}");
    for scheme in ["grpcs", "tls", "wss", "grpc", "h2"] {
        let rendered =
            parse(&format!("[master]\nurl = \"{scheme}://m:50051\"\nca = \"/ca.pem\"\n")).unwrap_err();
        assert!(rendered.contains("help: write one such as \"https://"), "{rendered}");
        assert!(!rendered.contains("insecure"), "{rendered}");
    }
    let plain = "[master]\nurl = \"http://m:50051\"\nca = \"/ca.pem\"\n";
    for help in parse(plain).unwrap_err().lines().filter_map(|line| line.trim().strip_prefix("= help: ")) {
        assert!(help.starts_with("write https://"), "{help}");
    }
}
