//! `/commands`, and the four that can be given to one node by its own path: tasks with a result for each node.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};
use super::extract::{Body, Names, Pages, Query};
use super::paths::{OfNode, OfTask};
use super::span::Span;
use crate::service::call::{Call, rfc3339};
use crate::service::commands::TaskView;
use crate::service::commands::command::{Command, TargetType, Wish};
use crate::service::commands::record::{TaskProgress, TaskRecord, TaskState};
use crate::service::commands::task::{Run, RunState};
use crate::service::page::Paging;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(find))
        .routes(routes!(cancel))
        .routes(routes!(restart))
        .routes(routes!(reload))
        .routes(routes!(drain))
        .routes(routes!(undrain))
}

/// A command that was given.
#[derive(Serialize, ToSchema)]
struct Task {
    task_id: String,
    command: Command,
    target_type: TargetType,
    target_ids: Vec<String>,
    state: TaskState,
    progress: TaskProgress,
    /// Who gave it.
    created_by: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// How long it may take on each node.
    timeout: Span,
    #[schema(format = DateTime)]
    cancelled_at: Option<String>,
    /// When its last node ended.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
}

/// A command that was given, with a page of its nodes' results.
#[derive(Serialize, ToSchema)]
struct TaskWithResults {
    #[serde(flatten)]
    task: Task,
    /// By node.
    results: Vec<NodeResult>,
}

/// How far one node is.
#[derive(Serialize, ToSchema)]
struct NodeResult {
    node: String,
    state: RunState,
    /// For people.
    message: String,
    exit_code: Option<i32>,
    /// By the agent's clock.
    took_ms: Option<u64>,
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// The end of what it wrote, growing while it runs.
    stdout: String,
    /// The end of what it wrote about what went wrong.
    stderr: String,
    /// Bytes of its output that are not kept.
    output_bytes_left_out: u64,
    /// Pieces of its output that did not arrive.
    output_pieces_lost: u64,
}

/// A command to be given.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewTask {
    command: Command,
    target_type: TargetType,
    /// Nodes, regions or roles (`edge`, `core`); left out for all nodes.
    #[serde(default)]
    #[schema(max_items = 1000)]
    target_ids: Vec<String>,
    /// From `100ms` to `10m`; as the command needs unless given.
    #[serde(default)]
    timeout: Option<Span>,
    /// Of the command `logs`: how many lines, 200 unless given.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 5000)]
    lines: Option<u32>,
}

/// Commands that were given, the newest first.
#[utoipa::path(
    get,
    path = "/commands",
    operation_id = "commands.list",
    tag = "commands",
    security(("token" = ["viewer"])),
    params(Pages),
    responses((status = 200, description = "A page of tasks", body = Answer<Vec<Task>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<Task>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.commands.list(paging)).await?;
    Ok(Answer::page(page.map(|(id, record)| render(id, record))))
}

/// Give a command to nodes. Those that are offline are said so at once, and do not get it later.
#[utoipa::path(
    post,
    path = "/commands",
    operation_id = "commands.create",
    tag = "commands",
    security(("token" = ["operator"])),
    request_body = NewTask,
    responses((status = 201, description = "The task", body = Answer<TaskWithResults>))
)]
async fn create(State(desk): State<Desk>, call: Call, Body(new): Body<NewTask>) -> Outcome<TaskWithResults> {
    let NewTask { command, target_type, target_ids, timeout, lines } = new;
    let timeout_ms = timeout.map(|timeout| timeout.ms);
    begin(desk, call, Wish { command, target_type, target_ids, timeout_ms, lines }).await
}

/// One task, with its progress and a page of its nodes' results (`progress.total` is how many there are). Output is there
/// while a node is still at it.
#[utoipa::path(
    get,
    path = "/commands/{task_id}",
    operation_id = "commands.read",
    tag = "commands",
    security(("token" = ["viewer"])),
    params(OfTask, Pages),
    responses((status = 200, description = "The task", body = Answer<TaskWithResults>))
)]
async fn find(
    State(desk): State<Desk>,
    Names(id): Names<String>,
    Query(pages): Query<Pages>,
) -> Outcome<TaskWithResults> {
    let paging = pages.paging()?;
    let view = desk.ask(move |services| services.commands.find(&id, paging)).await?;
    Ok(Answer::ok(render_view(view)))
}

/// End a task: agents that are at it are told so, and have a few seconds to say how far they came.
#[utoipa::path(
    post,
    path = "/commands/{task_id}/cancel",
    operation_id = "commands.cancel",
    tag = "commands",
    security(("token" = ["operator"])),
    params(OfTask),
    responses((status = 200, description = "The task", body = Answer<TaskWithResults>))
)]
async fn cancel(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<TaskWithResults> {
    let view = desk
        .ask(move |services| {
            services.commands.cancel(&call, &id)?;
            services.commands.find(&id, Paging::of(None, None)?)
        })
        .await?;
    Ok(Answer::ok(render_view(view)))
}

/// Restart a node's data plane.
#[utoipa::path(
    post,
    path = "/nodes/{id}/restart",
    operation_id = "nodes.restart",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 201, description = "The task", body = Answer<TaskWithResults>))
)]
async fn restart(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<TaskWithResults> {
    begin_on(desk, call, Command::Restart, &id).await
}

/// Let a node's data plane read its config again.
#[utoipa::path(
    post,
    path = "/nodes/{id}/reload",
    operation_id = "nodes.reload",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 201, description = "The task", body = Answer<TaskWithResults>))
)]
async fn reload(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<TaskWithResults> {
    begin_on(desk, call, Command::Reload, &id).await
}

/// Let a node take no new connections.
#[utoipa::path(
    post,
    path = "/nodes/{id}/drain",
    operation_id = "nodes.drain",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 201, description = "The task", body = Answer<TaskWithResults>))
)]
async fn drain(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<TaskWithResults> {
    begin_on(desk, call, Command::Drain, &id).await
}

/// Let a node take connections again.
#[utoipa::path(
    post,
    path = "/nodes/{id}/undrain",
    operation_id = "nodes.undrain",
    tag = "nodes",
    security(("token" = ["operator"])),
    params(OfNode),
    responses((status = 201, description = "The task", body = Answer<TaskWithResults>))
)]
async fn undrain(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<TaskWithResults> {
    begin_on(desk, call, Command::Undrain, &id).await
}

async fn begin_on(desk: Desk, call: Call, command: Command, node: &str) -> Outcome<TaskWithResults> {
    let node = node.to_owned();
    let at_ms = call.at_ms;
    // A node that is not there is named as the path has it, not as a target.
    let found = desk.ask(move |services| services.nodes.find(&node, at_ms)).await?;
    begin(desk, call, Wish::for_node(command, &found.id)).await
}

async fn begin(desk: Desk, call: Call, wish: Wish) -> Outcome<TaskWithResults> {
    let view = desk.ask(move |services| services.commands.begin(&call, &services.nodes, &wish)).await?;
    Ok(Answer::created(render_view(view)))
}

fn render_view(view: TaskView) -> TaskWithResults {
    let results = view.runs.items.into_iter().map(|(node, run)| render_run(node, run)).collect();
    TaskWithResults { task: render(view.id, view.record), results }
}

fn render(task_id: String, record: TaskRecord) -> Task {
    Task {
        task_id,
        command: record.command,
        target_type: record.target_type,
        target_ids: record.target_ids,
        state: record.state,
        progress: record.progress,
        created_by: record.by,
        created_at: rfc3339(record.created_at_ms),
        timeout: Span { ms: record.timeout_ms },
        cancelled_at: record.cancelled_at_ms.map(rfc3339),
        ended_at: record.ended_at_ms.map(rfc3339),
    }
}

fn render_run(node: String, run: Run) -> NodeResult {
    NodeResult {
        node,
        state: run.state,
        message: run.message,
        exit_code: run.exit_code,
        took_ms: run.took_ms,
        ended_at: run.ended_ms.map(rfc3339),
        stdout: run.output.stdout,
        stderr: run.output.stderr,
        output_bytes_left_out: run.output.left_out_bytes,
        output_pieces_lost: run.output.lost_pieces,
    }
}
