//! `/api-keys`: what programs log in with. For admins. A key itself is in the answer to its making, and nowhere else.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::guard;
use super::paths::OfId;
use crate::service::api_keys::{self, NewApiKey};
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
    /// What the key may at most do now: its person may have become less. Null: its person is no user any more, and the
    /// key is void.
    role_now: Option<Role>,
    /// Empty: everything that the role may.
    scopes: Vec<String>,
    created_by: String,
    /// The user that the key belongs to, and ends with.
    owner: Option<String>,
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
    Ok(Answer::page(page.map(render)))
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
    let known = guard::scopes(&desk.document.demands);
    let (made, key) = desk.ask(move |services| services.api_keys.create(&call, &new, &known)).await?;
    Ok(Answer::created(CreatedApiKey { key, api_key: render(made) }))
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
    Ok(Answer::ok(render(desk.ask(move |services| services.api_keys.find(&id)).await?)))
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

fn render(key: api_keys::ApiKey) -> ApiKey {
    let record = key.record;
    ApiKey {
        id: key.id,
        name: record.name,
        role: record.role,
        role_now: key.role_now,
        scopes: record.scopes,
        created_by: record.created_by,
        owner: record.owner.map(|owner| owner.user),
        created_at: rfc3339(record.created_at_ms),
        expires_at: rfc3339(record.expires_at_ms),
    }
}
