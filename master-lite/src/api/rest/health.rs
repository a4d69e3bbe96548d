//! Whether the master works: for load balancers, monitors and people in a hurry. No login.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(health))
}

/// How the master is.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`: the store answers, and takes changes.
    status: String,
    /// Of the program.
    version: String,
}

/// Whether the master works, found out by asking its store.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health.read",
    tag = "health",
    security(()),
    responses(
        (status = 200, description = "It works", body = Answer<Health>),
        (status = 503, description = "Its store takes no changes, and `message` says why; everything can still be read", body = Answer<Health>)
    )
)]
async fn health(State(desk): State<Desk>) -> Outcome<Health> {
    desk.ask(|services| services.look()).await?;
    Ok(Answer::ok(Health { status: "ok".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }))
}
