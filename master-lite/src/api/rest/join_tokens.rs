//! `/join-tokens`: what a new host's agent gets in with. A token itself is in the answer to its making, and nowhere else.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfId;
use crate::service::call::{Call, rfc3339};
use crate::service::join_tokens::{JoinTokenRecord, NewJoinToken};
use crate::service::nodes::NodeRole;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(remove))
}

/// A token, without the token itself.
#[derive(Serialize, ToSchema)]
struct JoinToken {
    id: String,
    description: String,
    /// Lets in nodes of this role only.
    role: Option<NodeRole>,
    /// Lets in nodes of this region only.
    region: Option<String>,
    /// How many nodes it lets in.
    uses_max: u32,
    /// How many it has let in.
    uses: u32,
    created_by: String,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
    /// As RFC 3339; void from then on.
    #[schema(format = DateTime)]
    expires_at: String,
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
struct CreatedJoinToken {
    /// The token itself. It is shown this once.
    token: String,
    join_token: JoinToken,
}

/// All tokens, ended ones too for a while.
#[utoipa::path(
    get,
    path = "/join-tokens",
    operation_id = "join_tokens.list",
    tag = "join-tokens",
    security(("token" = ["operator"])),
    params(Pages),
    responses((status = 200, description = "A page of tokens", body = Answer<Vec<JoinToken>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<JoinToken>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.join_tokens.list(paging)).await?;
    Ok(Answer::page(page.map(|(id, record)| render(id, record))))
}

/// Make a token.
#[utoipa::path(
    post,
    path = "/join-tokens",
    operation_id = "join_tokens.create",
    tag = "join-tokens",
    security(("token" = ["operator"])),
    request_body = NewJoinToken,
    responses((status = 201, description = "The token, this once", body = Answer<CreatedJoinToken>))
)]
async fn create(
    State(desk): State<Desk>,
    call: Call,
    Body(new): Body<NewJoinToken>,
) -> Outcome<CreatedJoinToken> {
    let (id, record, token) = desk.ask(move |services| services.join_tokens.create(&call, &new)).await?;
    Ok(Answer::created(CreatedJoinToken { token, join_token: render(id, record) }))
}

/// Revoke a token; nodes that it has let in stay.
#[utoipa::path(
    delete,
    path = "/join-tokens/{id}",
    operation_id = "join_tokens.delete",
    tag = "join-tokens",
    security(("token" = ["operator"])),
    params(OfId),
    responses((status = 200, description = "The token is void", body = Answer<Removed>))
)]
async fn remove(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.join_tokens.remove(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

fn render(id: String, record: JoinTokenRecord) -> JoinToken {
    JoinToken {
        id,
        description: record.description,
        role: record.role,
        region: record.region,
        uses_max: record.uses_max,
        uses: record.uses,
        created_by: record.created_by,
        created_at: rfc3339(record.created_at_ms),
        expires_at: rfc3339(record.expires_at_ms),
    }
}
