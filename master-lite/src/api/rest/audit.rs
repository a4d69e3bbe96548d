//! `/audit`: who changed what, and who was refused. For admins; nothing here changes it.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};
use super::extract::Query;
use crate::service::audit::AuditFilter;
use crate::service::call::rfc3339;
use crate::service::page::Paging;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(list))
}

/// One change, or one that was refused.
#[derive(Serialize, ToSchema)]
struct AuditEntry {
    /// Only grows.
    number: u64,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    at: String,
    /// A user's name, an API key's id, a node's id, a uid on the master's host, or `system`.
    actor: String,
    /// `user`, `api_key`, `node`, `host`, `system` or `anonymous`.
    actor_kind: String,
    /// From where, if it came over the network.
    address: Option<String>,
    /// Such as `users.create`.
    action: String,
    /// What it was done to; of what was refused, the path.
    target: String,
    /// `done` or `refused`.
    outcome: String,
    detail: String,
    /// Of the request.
    request_id: String,
}

/// Which entries.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Of this actor.
    actor: Option<String>,
    /// Of actions that begin so, such as `configs.`.
    action: Option<String>,
    /// To this target.
    target: Option<String>,
    /// `done` or `refused`.
    outcome: Option<String>,
    /// Counted from 1.
    #[param(minimum = 1, maximum = 1_000_000)]
    page: Option<u64>,
    /// Entries on a page; 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    page_size: Option<u64>,
}

/// The audit log, the newest entries first.
#[utoipa::path(
    get,
    path = "/audit",
    operation_id = "audit.list",
    tag = "audit",
    security(("token" = ["admin"])),
    params(Wanted),
    responses((status = 200, description = "A page of entries", body = Answer<Vec<AuditEntry>>))
)]
async fn list(State(desk): State<Desk>, Query(wanted): Query<Wanted>) -> Outcome<Vec<AuditEntry>> {
    let paging = Paging::of(wanted.page, wanted.page_size)?;
    let Wanted { actor, action, target, outcome, .. } = wanted;
    let filter = AuditFilter { actor, action, target, outcome };
    let page = desk.ask(move |services| services.audit.list(&filter, paging)).await?;
    Ok(Answer::page(page.map(|(number, record)| AuditEntry {
        number,
        at: rfc3339(record.at_ms),
        actor: record.actor,
        actor_kind: record.actor_kind,
        address: record.address,
        action: record.action,
        target: record.target,
        outcome: record.outcome,
        detail: record.detail,
        request_id: record.request_id,
    })))
}
