//! `/metrics/…`: what nodes do and did, one by one and together.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};
use super::extract::{Names, Query};
use super::paths::OfNode;
use super::span::Span;
use crate::service::call::{Call, rfc3339};
use crate::service::fleet_metrics::{Overview, Window};
use crate::service::metrics::history::Resolution;
use crate::service::metrics::point::Times;
use crate::service::metrics::totals::{Durations, Totals};
use crate::service::nodes::NodeRole;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(of_node)).routes(routes!(aggregate))
}

/// How fine a history is.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
enum Step {
    /// Of ten seconds, for an hour.
    #[default]
    #[serde(rename = "10s")]
    TenSeconds,
    /// Of a minute, for a day.
    #[serde(rename = "1m")]
    Minute,
}

impl From<Step> for Resolution {
    fn from(step: Step) -> Self {
        match step {
            Step::TenSeconds => Resolution::TenSeconds,
            Step::Minute => Resolution::Minute,
        }
    }
}

/// Which past is wanted.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Past {
    /// `10s` (kept for an hour) or `1m` (kept for a day).
    #[serde(default)]
    #[param(inline)]
    step: Step,
    /// How far back, such as `15m`; all that is kept unless given.
    #[param(value_type = Option<Span>)]
    since: Option<Span>,
}

/// Which nodes' past is wanted.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PastOf {
    /// Nodes in this region; all unless given.
    region: Option<String>,
    /// Nodes of this role; all unless given.
    role: Option<NodeRole>,
    /// `10s` (kept for an hour) or `1m` (kept for a day).
    #[serde(default)]
    #[param(inline)]
    step: Step,
    /// How far back, such as `15m`; all that is kept unless given.
    #[param(value_type = Option<Span>)]
    since: Option<Span>,
}

/// What one node does and did.
#[derive(Serialize, ToSchema)]
struct NodeMetrics {
    node: String,
    region: String,
    role: NodeRole,
    /// The last minute; null where nothing was reported.
    now: Option<Figures>,
    /// Length of a point of the history.
    step: Span,
    /// Oldest first; where nothing was reported there is no point.
    history: Vec<PointInTime>,
}

/// What many nodes do and did together.
#[derive(Serialize, ToSchema)]
struct Aggregate {
    /// Nodes that are meant, whether they report or not.
    nodes: u64,
    /// The last minute; null where nothing was reported.
    now: Option<Figures>,
    /// The last minute of each region.
    regions: Vec<Region>,
    /// Length of a point of the history.
    step: Span,
    /// Oldest first; where nothing was reported there is no point.
    history: Vec<PointInTime>,
}

/// What the nodes of one region do together.
#[derive(Serialize, ToSchema)]
struct Region {
    region: String,
    /// Nodes that are meant, whether they report or not.
    nodes: u64,
    now: Option<Figures>,
}

/// Figures of one stretch of time.
#[derive(Serialize, ToSchema)]
struct PointInTime {
    /// When it began.
    #[schema(format = DateTime)]
    at: String,
    #[serde(flatten)]
    figures: Figures,
}

/// What was done in a stretch of time. Of many nodes: counts and rates are sums, shares are means of all reports, and
/// percentiles are of all durations together. Null: nobody reported it.
#[derive(Serialize, ToSchema)]
struct Figures {
    /// Nodes that reported.
    nodes_reporting: u64,
    cpu_percent: Option<f64>,
    memory_percent: Option<f64>,
    load_average: Option<f64>,
    received_bytes_per_s: Option<f64>,
    sent_bytes_per_s: Option<f64>,
    connections: Option<f64>,
    requests_in_flight: Option<f64>,
    requests_per_s: Option<f64>,
    /// Requests that ended badly through an upstream or the proxy.
    error_percent: Option<f64>,
    /// What clients waited for the first byte.
    first_byte: Option<DurationsMs>,
    /// Silences inside streams.
    chunk_gap: Option<DurationsMs>,
    /// What upstreams took to the first byte.
    upstream: Option<DurationsMs>,
    /// What the proxy added.
    proxy: Option<DurationsMs>,
}

/// A distribution of durations, in milliseconds.
#[derive(Serialize, ToSchema)]
struct DurationsMs {
    count: u64,
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// What a node does and did.
#[utoipa::path(
    get,
    path = "/metrics/nodes/{id}",
    operation_id = "metrics.node",
    tag = "metrics",
    security(("token" = ["viewer"])),
    params(OfNode, Past),
    responses((status = 200, description = "The node's figures", body = Answer<NodeMetrics>))
)]
async fn of_node(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Query(past): Query<Past>,
) -> Outcome<NodeMetrics> {
    let resolution = Resolution::from(past.step);
    let window = window(resolution, past.since, call.at_ms);
    let (node, overview) = desk
        .ask(move |services| {
            let node = services.nodes.find(&id, call.at_ms)?;
            let overview = services.overview(std::slice::from_ref(&node), window);
            Ok((node, overview))
        })
        .await?;
    Ok(Answer::ok(NodeMetrics {
        node: node.id,
        region: node.record.region,
        role: node.record.role,
        now: overview.now.as_ref().map(figures),
        step: Span { ms: resolution.step_ms() },
        history: history(overview),
    }))
}

/// What many nodes do and did together, by region.
#[utoipa::path(
    get,
    path = "/metrics/aggregate",
    operation_id = "metrics.aggregate",
    tag = "metrics",
    security(("token" = ["viewer"])),
    params(PastOf),
    responses((status = 200, description = "The figures of all nodes that are meant", body = Answer<Aggregate>))
)]
async fn aggregate(State(desk): State<Desk>, call: Call, Query(past): Query<PastOf>) -> Outcome<Aggregate> {
    let resolution = Resolution::from(past.step);
    let window = window(resolution, past.since, call.at_ms);
    let overview = desk.ask(move |services| services.aggregate(past.region, past.role, window)).await?;
    let regions = overview.regions.iter().map(|(region, (nodes, now))| Region {
        region: region.clone(),
        nodes: *nodes,
        now: now.as_ref().map(figures),
    });
    Ok(Answer::ok(Aggregate {
        nodes: overview.nodes,
        now: overview.now.as_ref().map(figures),
        regions: regions.collect(),
        step: Span { ms: resolution.step_ms() },
        history: history(overview),
    }))
}

fn window(resolution: Resolution, since: Option<Span>, now_ms: u64) -> Window {
    let from_ms = since.map_or(0, |since| now_ms.saturating_sub(since.ms));
    Window { resolution, from_ms, now_ms }
}

fn history(overview: Overview) -> Vec<PointInTime> {
    let points = overview.history.into_points();
    points
        .map(|(begin_ms, totals)| PointInTime { at: rfc3339(begin_ms), figures: figures(&totals) })
        .collect()
}

fn figures(totals: &Totals) -> Figures {
    let sums = &totals.sum().figures;
    let durations = |times| totals.durations(times).map(durations_ms);
    Figures {
        nodes_reporting: totals.nodes,
        cpu_percent: sums.cpu_percent(),
        memory_percent: sums.memory_percent(),
        load_average: sums.load_average(),
        received_bytes_per_s: totals.received_bytes_per_s,
        sent_bytes_per_s: totals.sent_bytes_per_s,
        connections: totals.connections,
        requests_in_flight: totals.requests_in_flight,
        requests_per_s: totals.requests_per_s,
        error_percent: sums.error_percent(),
        first_byte: durations(Times::FirstByte),
        chunk_gap: durations(Times::ChunkGap),
        upstream: durations(Times::Upstream),
        proxy: durations(Times::Proxy),
    }
}

fn durations_ms(durations: Durations) -> DurationsMs {
    DurationsMs {
        count: durations.count,
        mean: durations.mean_ms,
        p50: durations.p50_ms,
        p95: durations.p95_ms,
        p99: durations.p99_ms,
    }
}
