//! `/configs`: versions of the data planes' config, bringing them to nodes, and how far the nodes are.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};
use super::extract::{Body, CONFIG_BODY_BYTES_MAX, Names, OptionalBody, Pages, Query};
use super::paths::OfVersion;
use super::progress::{ConfigProgress, render_progress};
use crate::service::call::{Call, now_ms, rfc3339};
use crate::service::configs::{ConfigRecord, NewConfig, NodeType};
use crate::service::convergence::Progress;
use crate::service::node_state::NodeState;
use crate::service::page::Paging;
use crate::service::publishes::{Intent, PublishKind, PublishRecord, Published};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(validate))
        .routes(routes!(history))
        .routes(routes!(find))
        .routes(routes!(nodes))
        .routes(routes!(diff))
        .routes(routes!(publish))
        .routes(routes!(rollback))
}

/// A version, without its text.
#[derive(Serialize, ToSchema)]
struct Config {
    version: String,
    description: String,
    /// Of the text, in hexadecimal digits.
    sha256: String,
    /// Bytes of the text.
    bytes: u64,
    node_type: NodeType,
    /// Empty: any.
    regions: Vec<String>,
    /// Empty: any.
    nodes: Vec<String>,
    /// What is allowed but probably not meant.
    warnings: Vec<String>,
    created_by: String,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
}

/// A version with its text, and how far the nodes are that should have it.
#[derive(Serialize, ToSchema)]
struct FullConfig {
    config: Config,
    /// TOML.
    config_data: String,
    convergence: Convergence,
}

/// How many of the nodes that should have a version now are how far.
#[derive(Default, Serialize, ToSchema)]
struct Convergence {
    pending: u64,
    applied: u64,
    refused: u64,
}

/// A text to be checked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CheckedText {
    /// The data plane's config: TOML, or the same in base64.
    config_data: String,
    /// Values for `${NAME}` that stand for what the nodes have in their environments.
    #[serde(default)]
    variables: std::collections::BTreeMap<String, String>,
}

/// A good text.
#[derive(Serialize, ToSchema)]
struct Validity {
    valid: bool,
    /// What is allowed but probably not meant.
    warnings: Vec<String>,
}

/// The way from one version to another.
#[derive(Serialize, ToSchema)]
struct Diff {
    /// As `diff -u` shows it; empty: the texts are equal.
    diff: String,
}

/// How to publish.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct PublishWish {
    /// Only say what it would do.
    dry_run: bool,
    /// For the history.
    #[schema(max_length = 1024)]
    comment: String,
}

/// How to go back.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RollbackWish {
    /// The version that is undone: only nodes that should have it now are brought back. Needed where the nodes that the
    /// older version is for should have several others.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    from: Option<String>,
    /// Only say what it would do.
    dry_run: bool,
    /// For the history.
    #[schema(max_length = 1024)]
    comment: String,
}

/// The same in the query.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PublishQuery {
    /// Only say what it would do; the same as in the body.
    dry_run: Option<bool>,
}

/// A publish.
#[derive(Serialize, ToSchema)]
struct Publish {
    /// Only grows; a rollback has its own.
    revision: u64,
    version: String,
    sha256: String,
    kind: PublishKind,
    node_type: NodeType,
    regions: Vec<String>,
    nodes: Vec<String>,
    by: String,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    at: String,
    comment: String,
    /// Of a rollback: it is for those nodes only that should have had this version before.
    undoes: Option<String>,
}

/// What a publish did, or would do.
#[derive(Serialize, ToSchema)]
struct PublishReport {
    /// Whether nothing was done.
    dry_run: bool,
    publish: Publish,
    /// The nodes that it is for.
    targets: Vec<TargetNode>,
}

/// A node that a publish is for.
#[derive(Serialize, ToSchema)]
struct TargetNode {
    node: String,
    state: NodeState,
    /// The version that it serves now; empty: none of this master's.
    serves: String,
    /// Whether it would get another text.
    change: bool,
}

/// All versions, the newest first.
#[utoipa::path(
    get,
    path = "/configs",
    operation_id = "configs.list",
    tag = "configs",
    security(("token" = ["viewer"])),
    params(Pages),
    responses((status = 200, description = "A page of versions", body = Answer<Vec<Config>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<Config>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.configs.list(paging)).await?;
    Ok(Answer::page(page.map(|(version, record)| render(version, record))))
}

/// Make a version. It is checked as the data plane would, and never changes.
#[utoipa::path(
    post,
    path = "/configs",
    operation_id = "configs.create",
    tag = "configs",
    security(("token" = ["operator"])),
    request_body = NewConfig,
    responses((status = 201, description = "The new version", body = Answer<Config>))
)]
async fn create(
    State(desk): State<Desk>,
    call: Call,
    Body(new): Body<NewConfig, CONFIG_BODY_BYTES_MAX>,
) -> Outcome<Config> {
    let (version, record) = desk.ask(move |services| services.configs.create(&call, new)).await?;
    Ok(Answer::created(render(version, record)))
}

/// Check a text as the data plane would, without keeping it. A bad one is a 422 whose details have line and column.
#[utoipa::path(
    post,
    path = "/configs/validate",
    operation_id = "configs.validate",
    tag = "configs",
    security(("token" = ["viewer"])),
    request_body = CheckedText,
    responses((status = 200, description = "It is good", body = Answer<Validity>))
)]
async fn validate(
    State(desk): State<Desk>,
    Body(text): Body<CheckedText, CONFIG_BODY_BYTES_MAX>,
) -> Outcome<Validity> {
    let warnings =
        desk.ask(move |services| services.configs.validate(&text.config_data, &text.variables)).await?;
    Ok(Answer::ok(Validity { valid: true, warnings }))
}

/// Everything that was published, the newest first.
#[utoipa::path(
    get,
    path = "/configs/history",
    operation_id = "configs.history",
    tag = "configs",
    security(("token" = ["viewer"])),
    params(Pages),
    responses((status = 200, description = "A page of publishes", body = Answer<Vec<Publish>>))
)]
async fn history(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<Publish>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.publishes.history(paging)).await?;
    Ok(Answer::page(page.map(|(revision, record)| render_publish(revision, record))))
}

/// One version with its text.
#[utoipa::path(
    get,
    path = "/configs/{version}",
    operation_id = "configs.read",
    tag = "configs",
    security(("token" = ["viewer"])),
    params(OfVersion),
    responses((status = 200, description = "The version", body = Answer<FullConfig>))
)]
async fn find(State(desk): State<Desk>, Names(version): Names<String>) -> Outcome<FullConfig> {
    let asked = version.clone();
    let ((record, config_data), progress) = desk
        .ask(move |services| {
            Ok((services.configs.find(&asked)?, services.publishes.convergence(&asked, now_ms())?))
        })
        .await?;
    let mut convergence = Convergence::default();
    for node in progress {
        match node.progress {
            Progress::Pending => convergence.pending += 1,
            Progress::Applied => convergence.applied += 1,
            Progress::Refused => convergence.refused += 1,
        }
    }
    Ok(Answer::ok(FullConfig { config: render(version, record), config_data, convergence }))
}

/// How far each node is that should have this version now.
#[utoipa::path(
    get,
    path = "/configs/{version}/nodes",
    operation_id = "configs.nodes",
    tag = "configs",
    security(("token" = ["viewer"])),
    params(OfVersion, Pages),
    responses((status = 200, description = "A page of nodes", body = Answer<Vec<ConfigProgress>>))
)]
async fn nodes(
    State(desk): State<Desk>,
    Names(version): Names<String>,
    Query(pages): Query<Pages>,
) -> Outcome<Vec<ConfigProgress>> {
    let paging: Paging = pages.paging()?;
    let progress = desk.ask(move |services| services.publishes.convergence(&version, now_ms())).await?;
    Ok(Answer::page(paging.cut(progress).map(render_progress)))
}

/// The way from version `a` to version `b`, as `diff -u` shows it.
#[utoipa::path(
    get,
    path = "/configs/{a}/diff/{b}",
    operation_id = "configs.diff",
    tag = "configs",
    security(("token" = ["viewer"])),
    params(
        ("a" = String, Path, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        ("b" = String, Path, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    ),
    responses((status = 200, description = "The differences", body = Answer<Diff>))
)]
async fn diff(State(desk): State<Desk>, Names((a, b)): Names<(String, String)>) -> Outcome<Diff> {
    let diff = desk.ask(move |services| services.configs.diff(&a, &b)).await?;
    Ok(Answer::ok(Diff { diff }))
}

/// Bring a version to the nodes that it is for: at once to those that are connected, to the others when they come back.
#[utoipa::path(
    post,
    path = "/configs/{version}/publish",
    operation_id = "configs.publish",
    tag = "configs",
    security(("token" = ["operator"])),
    params(OfVersion, PublishQuery),
    request_body = Option<PublishWish>,
    responses((status = 200, description = "It is published, or (dry run) what that would do", body = Answer<PublishReport>))
)]
async fn publish(
    State(desk): State<Desk>,
    call: Call,
    Names(version): Names<String>,
    Query(query): Query<PublishQuery>,
    OptionalBody(wish): OptionalBody<PublishWish>,
) -> Outcome<PublishReport> {
    bring(desk, call, version, Intent::Publish, query, wish).await
}

/// Go back to a version that was published before: a new publish of it, checked anew, for the nodes that should have what
/// it undoes (`from`) and no others. `?dry_run=true` says which they are.
#[utoipa::path(
    post,
    path = "/configs/{version}/rollback",
    operation_id = "configs.rollback",
    tag = "configs",
    security(("token" = ["operator"])),
    params(OfVersion, PublishQuery),
    request_body = Option<RollbackWish>,
    responses((status = 200, description = "It is published, or (dry run) what that would do", body = Answer<PublishReport>))
)]
async fn rollback(
    State(desk): State<Desk>,
    call: Call,
    Names(version): Names<String>,
    Query(query): Query<PublishQuery>,
    OptionalBody(wish): OptionalBody<RollbackWish>,
) -> Outcome<PublishReport> {
    let RollbackWish { from, dry_run, comment } = wish;
    bring(desk, call, version, Intent::Rollback { from }, query, PublishWish { dry_run, comment }).await
}

async fn bring(
    desk: Desk,
    call: Call,
    version: String,
    intent: Intent,
    query: PublishQuery,
    wish: PublishWish,
) -> Outcome<PublishReport> {
    let dry_run = wish.dry_run || query.dry_run.unwrap_or(false);
    let published = desk
        .ask(move |services| services.publishes.publish(&call, &version, &intent, &wish.comment, dry_run))
        .await?;
    Ok(Answer::ok(render_report(dry_run, published)))
}

fn render(version: String, record: ConfigRecord) -> Config {
    Config {
        version,
        description: record.description,
        sha256: record.sha256,
        bytes: record.bytes,
        node_type: record.targets.node_type,
        regions: record.targets.regions,
        nodes: record.targets.nodes,
        warnings: record.warnings,
        created_by: record.created_by,
        created_at: rfc3339(record.created_at_ms),
    }
}

fn render_publish(revision: u64, record: PublishRecord) -> Publish {
    Publish {
        revision,
        version: record.version,
        sha256: record.sha256,
        kind: record.kind,
        node_type: record.targets.node_type,
        regions: record.targets.regions,
        nodes: record.targets.nodes,
        by: record.by,
        at: rfc3339(record.at_ms),
        comment: record.comment,
        undoes: record.undoes,
    }
}

fn render_report(dry_run: bool, published: Published) -> PublishReport {
    let targets = published.nodes.into_iter().map(|node| TargetNode {
        node: node.id,
        state: node.state,
        serves: node.serves,
        change: node.is_change,
    });
    PublishReport {
        dry_run,
        targets: targets.collect(),
        publish: render_publish(published.revision, published.record),
    }
}
