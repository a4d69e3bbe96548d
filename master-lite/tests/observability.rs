//! The files for Prometheus and Grafana: they have the shape that those programs read, and name no metric, label or state
//! that neither the master nor the data plane shows. The data plane's metrics are asked of the program itself.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proto::v1::agent_message::Kind as Said;
use proto::v1::{Heartbeat, HostMetrics};
use serde_json::Value;
use story::agent::{Agent, Answer, runtime};
use story::authority::Authority;
use story::{Master, PATIENCE, eventually};
use tempfile::TempDir;

/// Metrics with the names of their labels.
type Shown = BTreeMap<String, BTreeSet<String>>;

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("observability").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A data plane with one route to an origin that is not there.
struct DataPlane {
    child: Child,
    dir: TempDir,
}

impl DataPlane {
    fn start() -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_millrace-master")).with_file_name("millrace-dataplane");
        assert!(program.is_file(), "{} is missing: cargo build --workspace", program.display());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("edge.toml");
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\nsocket = \"{}\"\n[runtime]\nworkers = 1\n\
             [[listeners]]\nname = \"http\"\nbind = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
             [[routes]]\nname = \"all\"\npath = \"/\"\ncluster = \"c\"\n\
             [[clusters]]\nname = \"c\"\nendpoints = [{{ address = \"127.0.0.1:9\" }}]\n",
            dir.path().join("admin.sock").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(program);
        command.args(["run", "-c", config.to_str().unwrap()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, dir }
    }

    fn metrics(&self) -> String {
        let mut stream = eventually("the data plane answers", || {
            UnixStream::connect(self.dir.path().join("admin.sock")).ok()
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a master with one node shows, the data plane's own metrics among it.
fn shown() -> Shown {
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    let master =
        Master::start_over("", &authority.listener(files.path(), ""), "[alerts]\njudge_every = \"100ms\"\n");
    // Over TLS: certificates have an end, which is shown.
    let agent = Agent::new(&runtime(), "a").over_tls(&authority.pem, Some(&authority.issue("a")));
    agent.enrol(master.grpc(), &master.join_token(1)).unwrap();
    let session = agent.connect(master.grpc(), Answer::Apply).unwrap();
    let admin = master.admin();
    let rule = serde_json::json!({
        "id": "always", "metric": "cpu_percent", "comparison": ">=", "threshold": 0, "severity": "info",
    });
    assert_eq!(admin.post("/api/v1/alert-rules", &rule).status, 201);
    session.say(Said::Heartbeat(Heartbeat {
        sequence: 1,
        host: Some(HostMetrics { memory_bytes: 1, ..HostMetrics::default() }),
        ..Heartbeat::default()
    }));
    let text = eventually("an alert fires", || {
        let text = String::from_utf8(admin.get("/metrics").bytes).unwrap();
        text.contains("millrace_alert_firing{").then_some(text)
    });
    let mut shown = metrics_of(&text);
    let fleet = ["node", "region", "role"].map(str::to_owned);
    for (name, mut labels) in metrics_of(&DataPlane::start().metrics()) {
        // As the master shows what a data plane reports.
        labels.extend(fleet.clone());
        shown.entry(name).or_default().extend(labels);
    }
    shown
}

fn metrics_of(text: &str) -> Shown {
    let mut shown = Shown::new();
    for line in text.lines() {
        if let Some((name, _)) = line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' ')) {
            shown.entry(name.to_owned()).or_default();
        } else if let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = rest.split('"').step_by(2).filter_map(|piece| piece.strip_suffix('='));
            let labels = labels.map(|label| label.trim_start_matches(',').to_owned());
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let name = base.filter(|base| shown.contains_key(*base)).unwrap_or(name).to_owned();
            shown.entry(name).or_default().extend(labels);
        }
    }
    shown
}

/// Words of PromQL that are no metrics and no labels.
const WORDS: [&str; 22] = [
    "absent",
    "and",
    "bool",
    "by",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "or",
    "rate",
    "sum",
    "unless",
    "vector",
    "without",
    "on",
    "ignoring",
    "avg",
    "topk",
    "le",
    "time",
];

/// Holds that an expression has balanced brackets and names only what is shown.
fn check(expression: &str, shown: &Shown) {
    let (mut open, mut is_quoted, mut plain) = (Vec::new(), false, String::new());
    for character in expression.chars() {
        if character == '"' {
            is_quoted = !is_quoted;
        }
        if is_quoted {
            continue;
        }
        match character {
            '(' | '{' | '[' => open.push(character),
            ')' | '}' | ']' => {
                let expected =
                    [(')', '('), ('}', '{'), (']', '[')].into_iter().find(|(end, _)| *end == character);
                assert_eq!(open.pop(), expected.map(|(_, begin)| begin), "unbalanced: {expression}");
            }
            _ => {}
        }
        // A range's length is no name.
        if open.last() != Some(&'[') {
            plain.push(character);
        }
    }
    assert!(open.is_empty() && !is_quoted, "unbalanced: {expression}");
    let labels: BTreeSet<&String> = shown.values().flatten().collect();
    for name in plain.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_')) {
        let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic());
        if !is_name || WORDS.contains(&name) {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let is_metric = shown.contains_key(name) || base.is_some_and(|base| shown.contains_key(base));
        assert!(is_metric || labels.contains(&name.to_owned()), "nobody shows `{name}`: {expression}");
    }
}

/// Every value under this key, wherever it stands.
fn all<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match value.as_str() {
                Some(text) if name == key => vec![text],
                Some(_) | None => all(value, key),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(|value| all(value, key)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

#[test]
fn every_metric_that_is_named_is_shown() {
    let shown = shown();
    let rules: Value = serde_saphyr::from_str(&file("millrace-alerts.yml")).unwrap();
    let dashboard: Value = serde_json::from_str(&file("grafana-dashboard.json")).unwrap();
    let mut expressions = all(&rules, "expr");
    expressions.extend(all(&dashboard, "expr"));
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        expressions.extend(variable["query"]["query"].as_str());
    }
    assert!(expressions.len() > 40, "{}", expressions.len());
    expressions.iter().for_each(|expression| check(expression, &shown));
}

#[test]
fn the_check_sees_what_it_is_for() {
    let shown = metrics_of(
        "# TYPE m_total counter\nm_total{node=\"a\"} 1\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\n",
    );
    check("sum by (node) (rate(m_total{node=~\"x\"}[5m])) > 0 or h_bucket", &shown);
    for bad in ["rate(n_total[5m])", "m_total{region=\"x\"}", "sum(m_total", "m_total{node=\"x}"] {
        let checked = std::panic::catch_unwind(|| check(bad, &shown));
        assert!(checked.is_err(), "{bad}");
    }
}

#[test]
fn alert_rules_have_the_shape_that_prometheus_reads() {
    let rules: Value = serde_saphyr::from_str(&file("millrace-alerts.yml")).unwrap();
    let mut names = BTreeSet::new();
    for group in rules["groups"].as_array().unwrap() {
        assert!(!group["name"].as_str().unwrap().is_empty());
        for rule in group["rules"].as_array().unwrap() {
            let fields: Vec<&String> = rule.as_object().unwrap().keys().collect();
            let known = ["alert", "annotations", "expr", "for", "labels"];
            assert!(fields.iter().all(|field| known.contains(&field.as_str())), "{rule}");
            assert!(names.insert(rule["alert"].as_str().unwrap().to_owned()), "twice: {rule}");
            assert!(
                rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
                "{rule}"
            );
            let wait = rule["for"].as_str().unwrap_or("0m");
            assert!(wait.strip_suffix('m').is_some_and(|minutes| minutes.parse::<u32>().is_ok()), "{rule}");
        }
    }
    let scrape: Value = serde_saphyr::from_str(&file("prometheus.yml")).unwrap();
    assert_eq!(scrape["scrape_configs"][0]["metrics_path"], "/metrics");
    assert!(scrape["rule_files"].as_array().unwrap().contains(&"millrace-alerts.yml".into()));
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_reads() {
    let dashboard: Value = serde_json::from_str(&file("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken: Vec<[u64; 4]> = Vec::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have one id: {panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24 && h > 0, "outside of the grid: {panel}");
        let is_apart = |other: &[u64; 4]| {
            x + w <= other[0] || other[0] + other[2] <= x || y + h <= other[1] || other[1] + other[3] <= y
        };
        assert!(taken.iter().all(is_apart), "over another panel: {panel}");
        taken.push([x, y, w, h]);
        let targets = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(panel["type"] == "row" || targets > 0, "shows nothing: {panel}");
    }
    let variables: Vec<&str> = all(&dashboard["templating"], "name");
    for used in ["$source", "$region", "$node"] {
        let name = used.trim_start_matches('$');
        assert!(variables.contains(&name) && dashboard.to_string().contains(name), "{used}");
    }
    assert!(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("observability/README.md").is_file());
}
