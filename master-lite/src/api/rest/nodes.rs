//! `/nodes` and `/tags`: what the fleet consists of and how each node is. What nodes are told to do is `commands`.

use std::collections::BTreeSet;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfNode;
use super::progress::{ConfigProgress, render_progress};
use crate::service::call::{Call, now_ms, rfc3339};
use crate::service::node_state::NodeState;
use crate::service::nodes::{self, About, NodeChange, NodeFilter, NodeRole, Place};
use crate::service::page::Paging;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(find, change, remove))
        .routes(routes!(status))
        .routes(routes!(move_to))
        .routes(routes!(barred))
        .routes(routes!(unbar))
        .routes(routes!(tag, untag))
        .routes(routes!(tags))
}

/// A node.
#[derive(Serialize, ToSchema)]
struct Node {
    id: String,
    role: NodeRole,
    region: String,
    tags: BTreeSet<String>,
    description: String,
    state: NodeState,
    /// When it was heard of last, as RFC 3339.
    #[schema(format = DateTime)]
    last_seen: String,
    /// Where it was before it was moved, while its agent has not said the new place yet.
    moved_from: Option<Place>,
    /// Since when its credential is used, as RFC 3339.
    #[schema(format = DateTime)]
    credential_since: String,
    /// When somebody used a copy of its credential last, as RFC 3339; null: never.
    #[schema(format = DateTime)]
    credential_copied_at: Option<String>,
    /// When it was enrolled, as RFC 3339.
    #[schema(format = DateTime)]
    enrolled_at: String,
    /// Until when the client certificate of its agent is good, as RFC 3339; null where it has shown none.
    #[schema(format = DateTime)]
    certificate_expires_at: Option<String>,
    /// From where its agent came last; null before that, and since the master was started.
    address: Option<String>,
    about: About,
}

/// How a node is, in full.
#[derive(Serialize, ToSchema)]
struct NodeStatus {
    node: Node,
    /// Whether its agent has a session.
    connected: bool,
    /// Since when, as RFC 3339; null without one.
    #[schema(format = DateTime)]
    connected_since: Option<String>,
    /// What an operator should know; empty: all is well.
    problems: Vec<String>,
    /// Round trip of a heartbeat, in microseconds; 0: not measured yet.
    round_trip_us: u64,
    config: ConfigProgress,
    /// The host at the last heartbeat.
    host: Option<HostStatus>,
    /// The data plane at the last heartbeat.
    dataplane: Option<DataplaneStatus>,
}

/// A host at its last heartbeat.
#[derive(Serialize, ToSchema)]
struct HostStatus {
    /// Busy share of all processors, 0 to 1.
    cpu_busy_ratio: f64,
    memory_bytes: u64,
    memory_available_bytes: u64,
    load_1m: f64,
    load_5m: f64,
    load_15m: f64,
    network_received_bytes_total: u64,
    network_sent_bytes_total: u64,
}

/// A data plane at its last heartbeat.
#[derive(Serialize, ToSchema)]
struct DataplaneStatus {
    /// Whether it answered its agent.
    answering: bool,
    version: String,
    ready: bool,
    draining: bool,
    /// Its own count of the configs that it was given.
    generation: u64,
    connections: u64,
    connections_max: u64,
    streams: u64,
    endpoints_healthy: u32,
    endpoints: u32,
}

/// What may be changed of a node; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangedNode {
    /// All of them.
    #[serde(default)]
    #[schema(max_items = 32)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    #[schema(max_length = 1024)]
    description: Option<String>,
}

/// Another place for a node; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPlace {
    #[serde(default)]
    role: Option<NodeRole>,
    #[serde(default)]
    #[schema(max_length = 128)]
    region: Option<String>,
}

/// The id of a node that was deleted.
#[derive(Serialize, ToSchema)]
struct BarredNode {
    id: String,
    deleted_by: String,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    deleted_at: String,
}

/// A tag.
#[derive(Serialize, ToSchema)]
struct Tag {
    tag: String,
    /// How many nodes have it.
    nodes: u64,
}

/// Which nodes.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Of this role.
    #[param(inline)]
    role: Option<NodeRole>,
    /// In this region.
    region: Option<String>,
    /// With this tag.
    tag: Option<String>,
    /// In this state.
    #[param(inline)]
    state: Option<NodeState>,
    /// Counted from 1.
    #[param(minimum = 1, maximum = 1_000_000)]
    page: Option<u64>,
    /// Entries on a page; 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    page_size: Option<u64>,
}

/// The nodes.
#[utoipa::path(
    get,
    path = "/nodes",
    operation_id = "nodes.list",
    tag = "nodes",
    security(("token" = ["viewer"])),
    params(Wanted),
    responses((status = 200, description = "A page of nodes", body = Answer<Vec<Node>>))
)]
async fn list(State(desk): State<Desk>, Query(wanted): Query<Wanted>) -> Outcome<Vec<Node>> {
    let paging = Paging::of(wanted.page, wanted.page_size)?;
    let Wanted { role, region, tag, state, .. } = wanted;
    let filter = NodeFilter { role, region, tag, state };
    let page = desk.ask(move |services| services.nodes.list(&filter, paging, now_ms())).await?;
    Ok(Answer::page(page.map(render)))
}

/// One node.
#[utoipa::path(
    get,
    path = "/nodes/{id}",
    operation_id = "nodes.read",
    tag = "nodes",
    security(("token" = ["viewer"])),
    params(OfNode),
    responses((status = 200, description = "The node", body = Answer<Node>))
)]
async fn find(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<Node> {
    let node = desk.ask(move |services| services.nodes.find(&id, now_ms())).await?;
    Ok(Answer::ok(render(node)))
}

/// Change a node's tags or description. Its role and region are its place: see `/nodes/{id}/place`.
#[utoipa::path(
    put,
    path = "/nodes/{id}",
    operation_id = "nodes.change",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    request_body = ChangedNode,
    responses((status = 200, description = "The node as it is now", body = Answer<Node>))
)]
async fn change(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Body(changed): Body<ChangedNode>,
) -> Outcome<Node> {
    let change = NodeChange { tags: changed.tags, description: changed.description };
    let node = desk.ask(move |services| services.nodes.change(&call, &id, &change)).await?;
    Ok(Answer::ok(render(node)))
}

/// Remove a node: its credential is void, its session ends, and its id is barred until it is let in again under
/// `/barred-nodes/{id}`. The data plane serves on.
#[utoipa::path(
    delete,
    path = "/nodes/{id}",
    operation_id = "nodes.delete",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 200, description = "The node is no part of the fleet any more", body = Answer<Removed>))
)]
async fn remove(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.nodes.remove(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

/// Move a node: it gets the configs of its new place from now on. Its agent may say the old place until it has said the
/// new one; any other is refused.
#[utoipa::path(
    put,
    path = "/nodes/{id}/place",
    operation_id = "nodes.move",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    request_body = NewPlace,
    responses((status = 200, description = "The node as it is now", body = Answer<Node>))
)]
async fn move_to(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Body(place): Body<NewPlace>,
) -> Outcome<Node> {
    let moved = desk
        .ask(move |services| {
            let node = services.nodes.move_to(&call, &id, place.role, place.region.as_deref())?;
            services.publishes.tell_moved(&id)?;
            Ok(node)
        })
        .await?;
    Ok(Answer::ok(render(moved)))
}

/// Ids of nodes that were deleted, and are not let in again.
#[utoipa::path(
    get,
    path = "/barred-nodes",
    operation_id = "nodes.barred",
    tag = "nodes",
    security(("token" = ["viewer"])),
    params(Pages),
    responses((status = 200, description = "A page of ids", body = Answer<Vec<BarredNode>>))
)]
async fn barred(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<BarredNode>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.former_nodes.barred(paging)).await?;
    Ok(Answer::page(page.map(|(id, former)| BarredNode {
        id,
        deleted_by: former.deleted_by,
        deleted_at: rfc3339(former.deleted_at_ms),
    })))
}

/// Let the id of a deleted node in again: a node of this id may enrol, with a new credential.
#[utoipa::path(
    delete,
    path = "/barred-nodes/{id}",
    operation_id = "nodes.unbar",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 200, description = "The id is not barred any more", body = Answer<Removed>))
)]
async fn unbar(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.former_nodes.unbar(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

/// How a node is: its session, its host, its data plane, and how far it is with its config.
#[utoipa::path(
    get,
    path = "/nodes/{id}/status",
    operation_id = "nodes.status",
    tag = "nodes",
    security(("token" = ["viewer"])),
    params(OfNode),
    responses((status = 200, description = "The node's status", body = Answer<NodeStatus>))
)]
async fn status(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<NodeStatus> {
    let now_ms = now_ms();
    let (node, progress) = desk
        .ask(move |services| {
            Ok((services.nodes.find(&id, now_ms)?, services.publishes.progress(&id, now_ms)?))
        })
        .await?;
    let live = node.live.clone().unwrap_or_default();
    Ok(Answer::ok(NodeStatus {
        node: render(node),
        connected: live.is_connected,
        connected_since: live.is_connected.then(|| rfc3339(live.connected_at_ms)),
        problems: live.problems,
        round_trip_us: live.round_trip_us,
        config: render_progress(progress),
        host: live.host.map(render_host),
        dataplane: live.dataplane.map(render_dataplane),
    }))
}

/// Set a tag of a node.
#[utoipa::path(
    put,
    path = "/nodes/{id}/tags/{tag}",
    operation_id = "nodes.tag",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(
        OfNode,
        ("tag" = String, Path, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    ),
    responses((status = 200, description = "The node as it is now", body = Answer<Node>))
)]
async fn tag(
    State(desk): State<Desk>,
    call: Call,
    Names((id, tag)): Names<(String, String)>,
) -> Outcome<Node> {
    let node = desk.ask(move |services| services.nodes.tag(&call, &id, &tag, true)).await?;
    Ok(Answer::ok(render(node)))
}

/// Take a tag of a node away.
#[utoipa::path(
    delete,
    path = "/nodes/{id}/tags/{tag}",
    operation_id = "nodes.untag",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(
        OfNode,
        ("tag" = String, Path, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    ),
    responses((status = 200, description = "The node as it is now", body = Answer<Node>))
)]
async fn untag(
    State(desk): State<Desk>,
    call: Call,
    Names((id, tag)): Names<(String, String)>,
) -> Outcome<Node> {
    let node = desk.ask(move |services| services.nodes.tag(&call, &id, &tag, false)).await?;
    Ok(Answer::ok(render(node)))
}

/// All tags, with the number of nodes that have each.
#[utoipa::path(
    get,
    path = "/tags",
    operation_id = "tags.list",
    tag = "nodes",
    security(("token" = ["viewer"])),
    responses((status = 200, description = "The tags", body = Answer<Vec<Tag>>))
)]
async fn tags(State(desk): State<Desk>) -> Outcome<Vec<Tag>> {
    let tags = desk.ask(|services| services.nodes.tags()).await?;
    Ok(Answer::ok(tags.into_iter().map(|(tag, nodes)| Tag { tag, nodes }).collect()))
}

fn render(node: nodes::Node) -> Node {
    let address = node.live.and_then(|live| live.address);
    Node {
        id: node.id,
        role: node.record.role,
        region: node.record.region,
        tags: node.record.tags,
        description: node.record.description,
        state: node.state,
        moved_from: node.record.moved_from,
        credential_since: rfc3339(node.record.credentials.since_ms),
        credential_copied_at: Some(node.record.copied_at_ms).filter(|at_ms| *at_ms > 0).map(rfc3339),
        last_seen: rfc3339(node.seen_at_ms),
        enrolled_at: rfc3339(node.record.enrolled_at_ms),
        certificate_expires_at: node.record.certificate.map(|certificate| rfc3339(certificate.not_after_ms)),
        address: address.map(|address| address.to_string()),
        about: node.record.about,
    }
}

fn render_host(host: proto::v1::HostMetrics) -> HostStatus {
    HostStatus {
        cpu_busy_ratio: finite(host.cpu_busy_ratio),
        memory_bytes: host.memory_bytes,
        memory_available_bytes: host.memory_available_bytes,
        load_1m: finite(host.load_1m),
        load_5m: finite(host.load_5m),
        load_15m: finite(host.load_15m),
        network_received_bytes_total: host.network_received_bytes_total,
        network_sent_bytes_total: host.network_sent_bytes_total,
    }
}

/// JSON has no other numbers, and an agent may send any.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

fn render_dataplane(dataplane: proto::v1::DataplaneInfo) -> DataplaneStatus {
    DataplaneStatus {
        answering: dataplane.answering,
        version: dataplane.version,
        ready: dataplane.ready,
        draining: dataplane.draining,
        generation: dataplane.generation,
        connections: dataplane.connections,
        connections_max: dataplane.connections_max,
        streams: dataplane.streams,
        endpoints_healthy: dataplane.endpoints_healthy,
        endpoints: dataplane.endpoints,
    }
}
