//! Alert rules: what they are, which the master has from the start, and what is no rule. They are judged elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::Reading;
use super::reading::{MASTER_ROLE, Metric, Subject};
use crate::service::name::{check_name, check_names, check_text};
use crate::service::refusal::Refusal;

/// Longest time that a rule may wait: what has been broken for a day needs no longer thought.
pub(crate) const FOR_MS_MAX: u64 = 24 * 3_600_000;

/// Labels that a rule may add: they travel with every notification.
pub(crate) const LABELS_MAX: usize = 16;

/// Names in each list of a match.
pub(crate) const MATCH_NAMES_MAX: usize = 100;

/// How the reading is compared with the threshold: the rule is broken where this holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) enum Comparison {
    /// More than.
    #[serde(rename = ">")]
    Above,
    /// As much or more.
    #[serde(rename = ">=")]
    AtLeast,
    /// Less than.
    #[serde(rename = "<")]
    Below,
    /// As much or less.
    #[serde(rename = "<=")]
    AtMost,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing.
    Info,
    /// Worth a look today.
    Warning,
    /// Worth waking someone.
    Critical,
}

impl Severity {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Which nodes a rule is for: those that every list that is not empty has an entry for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Match {
    /// `edge`, `core`, or `master` for the master's own certificates and its store.
    pub(crate) roles: Vec<String>,
    /// Regions.
    pub(crate) regions: Vec<String>,
    /// Tags; one of them will do.
    pub(crate) tags: Vec<String>,
    /// Ids of nodes.
    pub(crate) nodes: Vec<String>,
}

/// A rule, as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rule {
    /// What it is about, for people.
    pub(crate) description: String,
    /// What is looked at.
    pub(crate) metric: Metric,
    /// How it is compared.
    pub(crate) comparison: Comparison,
    /// With what, in the metric's unit.
    pub(crate) threshold: f64,
    /// For how long it has to be broken.
    pub(crate) for_ms: u64,
    /// Which nodes it is for.
    pub(crate) matching: Match,
    /// Added to its alerts.
    pub(crate) labels: BTreeMap<String, String>,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Whether it is judged at all.
    pub(crate) enabled: bool,
}

impl Rule {
    /// What the rule says to a value.
    pub(crate) fn judge(&self, value: Option<f64>) -> Reading {
        let Some(value) = value.filter(|value| value.is_finite()) else { return Reading::Missing };
        let is_broken = match self.comparison {
            Comparison::Above => value > self.threshold,
            Comparison::AtLeast => value >= self.threshold,
            Comparison::Below => value < self.threshold,
            Comparison::AtMost => value <= self.threshold,
        };
        if is_broken { Reading::Broken } else { Reading::Sound }
    }

    /// Whether the rule is for a node.
    pub(crate) fn is_for(&self, subject: &Subject) -> bool {
        let has = |wanted: &[String], value: &str| wanted.is_empty() || wanted.iter().any(|one| one == value);
        let Match { roles, regions, tags, nodes } = &self.matching;
        self.enabled
            && self.is_about(subject)
            && has(roles, &subject.role)
            && has(regions, &subject.region)
            && has(nodes, &subject.node)
            && (tags.is_empty() || tags.iter().any(|tag| subject.tags.contains(tag)))
    }

    /// Whether what is looked at is a figure of the subject's kind: a node, a certificate of the master, or its store.
    fn is_about(&self, subject: &Subject) -> bool {
        let (is_store, is_of_stores) =
            (subject.is_store_failing.is_some(), self.metric == Metric::StoreFailing);
        is_store == is_of_stores
            && (is_store || subject.role != MASTER_ROLE || self.metric == Metric::CertificateDaysLeft)
    }

    /// Holds a rule that somebody has written against the limits.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        check_text("description", &self.description)?;
        if !self.threshold.is_finite() {
            return Err(Refusal::invalid("threshold", "bad_number", "`threshold` is to be a number"));
        }
        if self.for_ms > FOR_MS_MAX {
            return Err(Refusal::invalid("for", "too_long", "`for` may be at most 24h"));
        }
        let Match { roles, regions, tags, nodes } = &self.matching;
        for (field, names) in [("roles", roles), ("regions", regions), ("tags", tags), ("nodes", nodes)] {
            check_names(&format!("match.{field}"), names, MATCH_NAMES_MAX)?;
        }
        self.check_labels()
    }

    fn check_labels(&self) -> Result<(), Refusal> {
        if self.labels.len() > LABELS_MAX {
            let message = format!("`labels` may have at most {LABELS_MAX} entries");
            return Err(Refusal::invalid("labels", "too_many", message));
        }
        for (name, value) in &self.labels {
            check_name("labels", name)?;
            check_text(&format!("labels.{name}"), value)?;
            if ["rule", "node", "role", "region", "severity"].contains(&name.as_str()) {
                let message = format!("the label `{name}` is added by the master itself");
                return Err(Refusal::invalid(&format!("labels.{name}"), "reserved", message));
            }
        }
        Ok(())
    }
}

/// The tag of nodes whose upstreams stand behind a border.
pub(crate) const CROSS_BORDER_TAG: &str = "cross-border";

const MINUTE_MS: u64 = 60_000;

/// The rules that are there from the start, by id. They can be changed and switched off, and come back when what was
/// changed is deleted.
pub(crate) fn built_in() -> BTreeMap<&'static str, Rule> {
    use Comparison::{Above, Below};
    let rule = |description: &str, metric, comparison, threshold, for_ms, severity| Rule {
        description: description.to_owned(),
        metric,
        comparison,
        threshold,
        for_ms,
        matching: Match::default(),
        labels: BTreeMap::new(),
        severity,
        enabled: true,
    };
    let cross_border = Rule {
        matching: Match { tags: vec![CROSS_BORDER_TAG.to_owned()], ..Match::default() },
        ..rule(
            "Upstreams behind a border answer slowly: P95 of the first byte, on nodes tagged cross-border.",
            Metric::UpstreamP95Ms,
            Above,
            500.0,
            MINUTE_MS,
            Severity::Warning,
        )
    };
    BTreeMap::from([
        (
            "node-cpu-high",
            rule(
                "A node's processors are busy.",
                Metric::CpuPercent,
                Above,
                80.0,
                5 * MINUTE_MS,
                Severity::Warning,
            ),
        ),
        ("cross-border-slow", cross_border),
        (
            "websocket-reconnects",
            rule(
                "WebSocket clients come back too often.",
                Metric::WebsocketReconnectPercent,
                Above,
                5.0,
                MINUTE_MS,
                Severity::Warning,
            ),
        ),
        (
            "bgp-flapping",
            rule(
                "BGP sessions go up and down.",
                Metric::BgpFlapsPerMinute,
                Above,
                10.0,
                0,
                Severity::Critical,
            ),
        ),
        (
            "node-offline",
            rule("A node missed three heartbeats.", Metric::NodeOffline, Above, 0.0, 0, Severity::Critical),
        ),
        (
            "config-refused",
            rule(
                "A node refuses the published config.",
                Metric::ConfigRefused,
                Above,
                0.0,
                0,
                Severity::Critical,
            ),
        ),
        (
            "credential-copied",
            rule(
                "Somebody else uses a node's credential: a copied state folder, or a thief. One of the two is shut out; the \
                 audit log (nodes.copied_credential, nodes.connect) tells from where they come. Delete the node and enrol \
                 it again where you are not sure which.",
                Metric::CredentialCopied,
                Above,
                0.0,
                0,
                Severity::Critical,
            ),
        ),
        (
            "store-failing",
            rule(
                "The master's disk fails or is full: nothing can be changed until it takes writes again. `/health` says why.",
                Metric::StoreFailing,
                Above,
                0.0,
                0,
                Severity::Critical,
            ),
        ),
        (
            "certificate-expiring",
            rule(
                "A certificate ends within two weeks: the master's own, or one of a node's. After it is renewed, restart the \
                 master, or reload the node's agent.",
                Metric::CertificateDaysLeft,
                Below,
                14.0,
                0,
                Severity::Warning,
            ),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> Rule {
        built_in().remove("node-cpu-high").unwrap()
    }

    #[test]
    fn a_threshold_that_is_met_exactly_breaks_only_the_inclusive_comparisons() {
        for (comparison, expected) in [
            (Comparison::Above, Reading::Sound),
            (Comparison::AtLeast, Reading::Broken),
            (Comparison::Below, Reading::Sound),
            (Comparison::AtMost, Reading::Broken),
        ] {
            let rule = Rule { comparison, ..cpu() };
            assert_eq!(rule.judge(Some(80.0)), expected, "{comparison:?}");
        }
        assert_eq!(cpu().judge(None), Reading::Missing);
        assert_eq!(cpu().judge(Some(f64::NAN)), Reading::Missing);
    }

    #[test]
    fn a_match_asks_for_one_of_each_list() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let matching = Match { regions: list(&["hk", "sg"]), tags: list(&["a", "b"]), ..Match::default() };
        let rule = Rule { matching, ..cpu() };
        let subject = |region: &str, tags: &[&str]| Subject {
            region: region.to_owned(),
            tags: list(tags),
            ..Subject::default()
        };
        assert!(rule.is_for(&subject("hk", &["b", "c"])));
        assert!(!rule.is_for(&subject("us", &["b"])));
        assert!(!rule.is_for(&subject("hk", &["c"])));
        assert!(!Rule { enabled: false, ..rule }.is_for(&subject("hk", &["b"])));
        let master = Subject { role: MASTER_ROLE.to_owned(), ..Subject::default() };
        let built_in = built_in();
        let are_for = |subject: &Subject| -> Vec<&str> {
            built_in.iter().filter(|(_, rule)| rule.is_for(subject)).map(|(id, _)| *id).collect()
        };
        let store = Subject { is_store_failing: Some(false), ..master.clone() };
        assert_eq!(
            are_for(&master),
            ["certificate-expiring"],
            "a master has no processors or configs to judge"
        );
        assert_eq!(are_for(&store), ["store-failing"]);
        assert!(!are_for(&subject("hk", &[])).contains(&"store-failing"), "a node has no store");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_field() {
        let field = |rule: Rule| rule.check().unwrap_err().details[0].field.clone();
        assert_eq!(field(Rule { for_ms: FOR_MS_MAX + 1, ..cpu() }), "for");
        assert_eq!(field(Rule { threshold: f64::INFINITY, ..cpu() }), "threshold");
        let names = vec!["a".to_owned(); MATCH_NAMES_MAX + 1];
        assert_eq!(
            field(Rule { matching: Match { nodes: names, ..Match::default() }, ..cpu() }),
            "match.nodes"
        );
        let labels = (0..=LABELS_MAX).map(|label| (format!("l{label}"), String::new())).collect();
        assert_eq!(field(Rule { labels, ..cpu() }), "labels");
        let labels = BTreeMap::from([("node".to_owned(), "liar".to_owned())]);
        assert_eq!(field(Rule { labels, ..cpu() }), "labels.node");
    }

    #[test]
    fn built_in_rules_are_rules() {
        for (id, rule) in built_in() {
            assert!(rule.check().is_ok() && check_name("id", id).is_ok(), "{id}");
        }
    }

    #[test]
    fn built_in_rules_are_those_that_operators_were_promised() {
        use Comparison::{Above, Below};
        use Severity::{Critical, Warning};
        let told: Vec<_> = built_in()
            .into_iter()
            .map(|(id, rule)| {
                (id, rule.metric, rule.comparison, rule.threshold, rule.for_ms / 1_000, rule.severity)
            })
            .collect();
        let promised = [
            ("bgp-flapping", Metric::BgpFlapsPerMinute, Above, 10.0, 0, Critical),
            ("certificate-expiring", Metric::CertificateDaysLeft, Below, 14.0, 0, Warning),
            ("config-refused", Metric::ConfigRefused, Above, 0.0, 0, Critical),
            ("credential-copied", Metric::CredentialCopied, Above, 0.0, 0, Critical),
            ("cross-border-slow", Metric::UpstreamP95Ms, Above, 500.0, 60, Warning),
            ("node-cpu-high", Metric::CpuPercent, Above, 80.0, 300, Warning),
            ("node-offline", Metric::NodeOffline, Above, 0.0, 0, Critical),
            ("store-failing", Metric::StoreFailing, Above, 0.0, 0, Critical),
            ("websocket-reconnects", Metric::WebsocketReconnectPercent, Above, 5.0, 60, Warning),
        ];
        assert_eq!(told, promised);
        let for_tags = built_in().into_iter().filter(|(_, rule)| !rule.matching.tags.is_empty());
        assert_eq!(for_tags.map(|(id, _)| id).collect::<Vec<_>>(), ["cross-border-slow"]);
    }
}
