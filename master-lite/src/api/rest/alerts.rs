//! `/alerts` and `/alert-rules`: what is wrong in the fleet, and what counts as wrong.

use std::collections::BTreeMap;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfId;
use super::span::Span;
use crate::service::Services;
use crate::service::alerts::board::{Alert as Found, RuleState, Silence as Silenced};
use crate::service::alerts::machine::{Resolution, State as Stage};
use crate::service::alerts::reading::Metric;
use crate::service::alerts::rule::{Comparison, Match, Rule as RuleRecord, Severity};
use crate::service::alerts::{AlertFilter, KnownRule, Origin, StateName};
use crate::service::call::{Call, rfc3339};
use crate::service::page::Paging;
use crate::service::refusal::Refusal;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(find))
        .routes(routes!(silence, end_silence))
        .routes(routes!(list_rules, create_rule))
        .routes(routes!(find_rule, change_rule, remove_rule))
}

/// A rule that is broken on a node, or was.
#[derive(Serialize, ToSchema)]
struct Alert {
    /// The same for a rule and a node for ever.
    id: String,
    rule: String,
    node: String,
    role: String,
    region: String,
    severity: Severity,
    description: String,
    /// Of the rule.
    labels: BTreeMap<String, String>,
    state: StateName,
    /// The last reading, in the unit of the rule's metric.
    value: Option<f64>,
    /// Since when it is broken; null once it is resolved.
    #[schema(format = DateTime)]
    since: Option<String>,
    /// When it began to fire; null while it is pending.
    #[schema(format = DateTime)]
    fired_at: Option<String>,
    /// When it ended; null before.
    #[schema(format = DateTime)]
    resolved_at: Option<String>,
    /// `recovered`, `no_data` or `withdrawn`; null before it ended.
    resolution: Option<String>,
    /// Null where it is not silenced.
    silence: Option<Silence>,
}

/// Nobody is told of an alert for a while.
#[derive(Serialize, ToSchema)]
struct Silence {
    #[schema(format = DateTime)]
    until: String,
    comment: String,
    /// Who wanted it.
    by: String,
    #[schema(format = DateTime)]
    since: String,
}

/// A silence to begin.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSilence {
    /// At most `30d`.
    duration: Span,
    /// Why.
    #[schema(min_length = 1, max_length = 1024)]
    comment: String,
}

/// A rule.
#[derive(Serialize, ToSchema)]
struct Rule {
    id: String,
    /// What it says, as it can be sent back to change it.
    rule: RuleBody,
    /// `built_in`, `changed` (built in, and changed) or `custom`.
    origin: String,
    state: RuleState,
    /// Where the figure that it looks at comes from.
    source: String,
    /// Nodes that the rule is for; the master's own certificates count as nodes.
    nodes: u64,
    /// Those that report what it looks at: of the others it says nothing.
    nodes_reporting: u64,
}

/// What a rule says.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    /// Needed to make a rule; to change one it stands in the path, and may be left out here.
    #[serde(default)]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    id: Option<String>,
    #[serde(default)]
    #[schema(max_length = 1024)]
    description: String,
    metric: Metric,
    comparison: Comparison,
    /// In the unit of the metric.
    threshold: f64,
    /// How long it has to be broken, at most `24h`; at once unless given.
    #[serde(default = "at_once", rename = "for")]
    wait: Span,
    #[serde(default, rename = "match")]
    matching: Match,
    /// Added to its alerts.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    severity: Severity,
    #[serde(default = "yes")]
    enabled: bool,
}

fn at_once() -> Span {
    Span { ms: 0 }
}

fn yes() -> bool {
    true
}

/// Which alerts, and which page of them.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    state: Option<StateName>,
    severity: Option<Severity>,
    node: Option<String>,
    rule: Option<String>,
    #[param(minimum = 1, maximum = 1_000_000)]
    page: Option<u64>,
    #[param(minimum = 1, maximum = 200)]
    page_size: Option<u64>,
}

/// Alerts: what fires first.
#[utoipa::path(
    get,
    path = "/alerts",
    operation_id = "alerts.list",
    tag = "alerts",
    security(("token" = ["viewer"])),
    params(Wanted),
    responses((status = 200, description = "A page of alerts", body = Answer<Vec<Alert>>))
)]
async fn list(State(desk): State<Desk>, Query(wanted): Query<Wanted>) -> Outcome<Vec<Alert>> {
    let paging = Paging::of(wanted.page, wanted.page_size)?;
    let Wanted { state, severity, node, rule, .. } = wanted;
    let filter = AlertFilter { state, severity, node, rule };
    let page = desk.ask(move |services| Ok(services.alerts.list(&filter, paging))).await?;
    Ok(Answer::page(page.map(render)))
}

/// One alert.
#[utoipa::path(
    get,
    path = "/alerts/{id}",
    operation_id = "alerts.read",
    tag = "alerts",
    security(("token" = ["viewer"])),
    params(OfId),
    responses((status = 200, description = "The alert", body = Answer<Alert>))
)]
async fn find(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<Alert> {
    let found = desk.ask(move |services| services.alerts.find(&id)).await?;
    Ok(Answer::ok(render(found)))
}

/// Tell nobody of an alert for a while; it is judged and shown on.
#[utoipa::path(
    post,
    path = "/alerts/{id}/silence",
    operation_id = "alerts.silence",
    tag = "alerts",
    security(("token" = ["operator"])),
    params(OfId),
    request_body = NewSilence,
    responses((status = 200, description = "The alert", body = Answer<Alert>))
)]
async fn silence(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Body(new): Body<NewSilence>,
) -> Outcome<Alert> {
    let silenced =
        desk.ask(move |services| services.alerts.silence(&call, &id, new.duration.ms, &new.comment)).await?;
    Ok(Answer::ok(render(silenced)))
}

/// End a silence before its time.
#[utoipa::path(
    delete,
    path = "/alerts/{id}/silence",
    operation_id = "alerts.end_silence",
    tag = "alerts",
    security(("token" = ["operator"])),
    params(OfId),
    responses((status = 200, description = "The alert", body = Answer<Alert>))
)]
async fn end_silence(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Alert> {
    let ended = desk
        .ask(move |services| {
            services.alerts.end_silence(&call, &id)?;
            services.alerts.find(&id)
        })
        .await?;
    Ok(Answer::ok(render(ended)))
}

/// All alert rules, the built-in ones too.
#[utoipa::path(
    get,
    path = "/alert-rules",
    operation_id = "alert_rules.list",
    tag = "alerts",
    security(("token" = ["viewer"])),
    params(Pages),
    responses((status = 200, description = "A page of rules", body = Answer<Vec<Rule>>))
)]
async fn list_rules(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<Rule>> {
    let paging = pages.paging()?;
    let page = desk
        .ask(move |services| {
            let page = paging.cut(services.alerts.rules()?);
            Ok(page.map(|known| render_rule(services, known)))
        })
        .await?;
    Ok(Answer::page(page))
}

/// Make an alert rule.
#[utoipa::path(
    post,
    path = "/alert-rules",
    operation_id = "alert_rules.create",
    tag = "alerts",
    security(("token" = ["operator"])),
    request_body = RuleBody,
    responses((status = 201, description = "The new rule", body = Answer<Rule>))
)]
async fn create_rule(State(desk): State<Desk>, call: Call, Body(body): Body<RuleBody>) -> Outcome<Rule> {
    let rule = desk
        .ask(move |services| {
            let missing = || Refusal::invalid("id", "missing", "`id` is to name the rule");
            let id = body.id.clone().ok_or_else(missing)?;
            services.alerts.create_rule(&call, &id, &body.into())?;
            Ok(render_rule(services, services.alerts.rule(&id)?))
        })
        .await?;
    Ok(Answer::created(rule))
}

/// One alert rule.
#[utoipa::path(
    get,
    path = "/alert-rules/{id}",
    operation_id = "alert_rules.read",
    tag = "alerts",
    security(("token" = ["viewer"])),
    params(OfId),
    responses((status = 200, description = "The rule", body = Answer<Rule>))
)]
async fn find_rule(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<Rule> {
    let rule = desk.ask(move |services| Ok(render_rule(services, services.alerts.rule(&id)?))).await?;
    Ok(Answer::ok(rule))
}

/// Change an alert rule, a built-in one too: the whole of it.
#[utoipa::path(
    put,
    path = "/alert-rules/{id}",
    operation_id = "alert_rules.change",
    tag = "alerts",
    security(("token" = ["operator"])),
    params(OfId),
    request_body = RuleBody,
    responses((status = 200, description = "The rule as it is now", body = Answer<Rule>))
)]
async fn change_rule(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Body(body): Body<RuleBody>,
) -> Outcome<Rule> {
    let rule = desk
        .ask(move |services| {
            if body.id.as_ref().is_some_and(|other| *other != id) {
                return Err(Refusal::invalid("id", "other_name", "a rule cannot be given another id"));
            }
            let changed = services.alerts.change_rule(&call, &id, &body.into())?;
            Ok(render_rule(services, changed))
        })
        .await?;
    Ok(Answer::ok(rule))
}

/// Remove an alert rule. A built-in one that was changed is as it was built in again.
#[utoipa::path(
    delete,
    path = "/alert-rules/{id}",
    operation_id = "alert_rules.delete",
    tag = "alerts",
    security(("token" = ["operator"])),
    params(OfId),
    responses((status = 200, description = "It is removed", body = Answer<Removed>))
)]
async fn remove_rule(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.alerts.remove_rule(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

fn render((found, silence): (Found, Option<Silenced>)) -> Alert {
    let (since, fired, resolved) = match found.state {
        Stage::Pending { since_ms } => (Some(since_ms), None, None),
        Stage::Firing { since_ms, fired_ms, .. } => (Some(since_ms), Some(fired_ms), None),
        Stage::Resolved { fired_ms, resolved_ms, reason } => {
            (None, Some(fired_ms), Some((resolved_ms, reason)))
        }
    };
    Alert {
        id: found.id,
        rule: found.rule,
        node: found.node,
        role: found.role,
        region: found.region,
        severity: found.severity,
        description: found.description,
        labels: found.labels,
        state: found.state.into(),
        value: found.value,
        since: since.map(rfc3339),
        fired_at: fired.map(rfc3339),
        resolved_at: resolved.map(|(at_ms, _)| rfc3339(at_ms)),
        resolution: resolved.map(|(_, reason)| resolution(reason).to_owned()),
        silence: silence.map(|silence| Silence {
            until: rfc3339(silence.until_ms),
            comment: silence.comment,
            by: silence.by,
            since: rfc3339(silence.since_ms),
        }),
    }
}

fn resolution(reason: Resolution) -> &'static str {
    match reason {
        Resolution::Recovered => "recovered",
        Resolution::NoData => "no_data",
        Resolution::Withdrawn => "withdrawn",
    }
}

fn render_rule(services: &Services, known: KnownRule) -> Rule {
    let (coverage, state) = services.alerts.standing(&known);
    let origin = match known.origin {
        Origin::BuiltIn => "built_in",
        Origin::Changed => "changed",
        Origin::Custom => "custom",
    };
    let source = known.rule.metric.source();
    Rule {
        id: known.id.clone(),
        rule: RuleBody::of(known.id, known.rule),
        origin: origin.to_owned(),
        state,
        source: source.to_owned(),
        nodes: coverage.nodes,
        nodes_reporting: coverage.reporting,
    }
}

impl From<RuleBody> for RuleRecord {
    fn from(body: RuleBody) -> Self {
        let RuleBody {
            description, metric, comparison, threshold, matching, labels, severity, enabled, ..
        } = body;
        let for_ms = body.wait.ms;
        Self { description, metric, comparison, threshold, for_ms, matching, labels, severity, enabled }
    }
}

impl RuleBody {
    fn of(id: String, rule: RuleRecord) -> Self {
        let RuleRecord {
            description,
            metric,
            comparison,
            threshold,
            matching,
            labels,
            severity,
            enabled,
            ..
        } = rule;
        let (id, wait) = (Some(id), Span { ms: rule.for_ms });
        Self { id, description, metric, comparison, threshold, wait, matching, labels, severity, enabled }
    }
}
