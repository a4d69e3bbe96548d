//! `/api-keys`: what programs log in with. For admins. A key itself is in the answer to its making, and nowhere else.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfId;
use crate::service::api_keys::{ApiKeyRecord, NewApiKey};
use crate::service::call::{Call, Role, rfc3339};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(find, remove))
}

/// A key, without the key itself.
#[derive(Serialize, ToSchema)]
struct ApiKey {
    id: String,
    name: String,
    role: Role,
    /// Empty: everything that the role may.
    scopes: Vec<String>,
    created_by: String,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
    /// As RFC 3339; void from then on.
    #[schema(format = DateTime)]
    expires_at: String,
}

/// A key that was just made.
#[derive(Serialize, ToSchema)]
struct CreatedApiKey {
    /// The key itself. It is shown this once.
    key: String,
    api_key: ApiKey,
}

/// All keys.
#[utoipa::path(
    get,
    path = "/api-keys",
    operation_id = "api_keys.list",
    tag = "api-keys",
    security(("token" = ["admin"])),
    params(Pages),
    responses((status = 200, description = "A page of keys", body = Answer<Vec<ApiKey>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<ApiKey>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.api_keys.list(paging)).await?;
    Ok(Answer::page(page.map(|(id, record)| render(id, record))))
}

/// Make a key.
#[utoipa::path(
    post,
    path = "/api-keys",
    operation_id = "api_keys.create",
    tag = "api-keys",
    security(("token" = ["admin"])),
    request_body = NewApiKey,
    responses((status = 201, description = "The key, this once", body = Answer<CreatedApiKey>))
)]
async fn create(State(desk): State<Desk>, call: Call, Body(new): Body<NewApiKey>) -> Outcome<CreatedApiKey> {
    let (id, record, key) = desk.ask(move |services| services.api_keys.create(&call, &new)).await?;
    Ok(Answer::created(CreatedApiKey { key, api_key: render(id, record) }))
}

/// One key.
#[utoipa::path(
    get,
    path = "/api-keys/{id}",
    operation_id = "api_keys.read",
    tag = "api-keys",
    security(("token" = ["admin"])),
    params(OfId),
    responses((status = 200, description = "The key", body = Answer<ApiKey>))
)]
async fn find(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<ApiKey> {
    let asked = id.clone();
    let record = desk.ask(move |services| services.api_keys.find(&asked)).await?;
    Ok(Answer::ok(render(id, record)))
}

/// Revoke a key.
#[utoipa::path(
    delete,
    path = "/api-keys/{id}",
    operation_id = "api_keys.delete",
    tag = "api-keys",
    security(("token" = ["admin"])),
    params(OfId),
    responses((status = 200, description = "The key is void", body = Answer<Removed>))
)]
async fn remove(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.api_keys.remove(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

fn render(id: String, record: ApiKeyRecord) -> ApiKey {
    ApiKey {
        id,
        name: record.name,
        role: record.role,
        scopes: record.scopes,
        created_by: record.created_by,
        created_at: rfc3339(record.created_at_ms),
        expires_at: rfc3339(record.expires_at_ms),
    }
}
