//! The REST API under `/api/v1`: a file for each resource, each handler parses, calls its service and renders.
//!
//! What a route demands of its caller stands in its own description (`security(("token" = ["operator"]))`), from which
//! both the OpenAPI document and the guard are made: there is no route without a role. To add a resource: a file here
//! with a `routes()`, a line in [`routes`], `BLESS=1` for the document, and its rows in `tests/roles.rs`.

mod alerts;
mod answer;
mod api_keys;
mod audit;
mod auth;
mod backup;
mod commands;
mod configs;
mod document;
mod extract;
mod guard;
mod health;
mod join_tokens;
mod metrics;
mod nodes;
mod page;
mod paths;
mod progress;
mod prometheus;
mod span;
mod trace;
mod users;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;

pub(crate) use trace::ClientAddress;

use crate::service::Services;
use crate::service::refusal::{Kind, Refusal};

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct Desk {
    services: Arc<Services>,
    hashing: Hashing,
    document: Arc<document::Document>,
}

/// Password hashes at once: each takes 7 MiB, and a core for some 20 ms.
const HASHES_MAX: usize = 1;

/// Who waits longer than that for a turn is told to come again: a flood of logins is not to pile up.
const HASH_TURN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Hashing(Arc<Semaphore>);

impl Desk {
    /// Runs a service's function where it may block.
    ///
    /// # Errors
    /// What the service says.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Services) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let services = Arc::clone(&self.services);
        match tokio::task::spawn_blocking(move || ask(&services)).await {
            Ok(answer) => answer,
            Err(error) => Err(Refusal::internal(&error)),
        }
    }

    /// The same for what hashes a password: one at a time, the others wait.
    async fn ask_hashing<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Services) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let busy =
            || Refusal::of(Kind::Unavailable, "password", "busy", "too many passwords are being checked");
        let turn = timeout(HASH_TURN_WITHIN, self.hashing.0.acquire()).await.map_err(|_| busy())?;
        let _turn = turn.map_err(|error| Refusal::internal(&error))?;
        self.ask(ask).await
    }
}

/// The API as a service.
pub(crate) fn router(services: Arc<Services>) -> Router {
    let (router, openapi) = routes().split_for_parts();
    let document = Arc::new(document::Document::new(openapi));
    let desk = Desk { services, hashing: Hashing(Arc::new(Semaphore::new(HASHES_MAX))), document };
    router
        .fallback(|| async {
            Refusal::of(Kind::NotFound, "path", "not_found", "there is nothing under this path")
        })
        .layer(middleware::from_fn_with_state(desk.clone(), guard::guard))
        .layer(middleware::from_fn(trace::trace))
        .with_state(desk)
}

/// Every resource.
fn routes() -> OpenApiRouter<Desk> {
    let v1 = OpenApiRouter::new()
        .merge(auth::routes())
        .merge(users::routes())
        .merge(api_keys::routes())
        .merge(audit::routes())
        .merge(nodes::routes())
        .merge(join_tokens::routes())
        .merge(configs::routes())
        .merge(commands::routes())
        .merge(metrics::routes())
        .merge(alerts::routes())
        .merge(webhooks::routes())
        .merge(backup::routes())
        .merge(document::routes());
    OpenApiRouter::with_openapi(document::head())
        .merge(health::routes())
        .merge(prometheus::routes())
        .nest("/api/v1", v1)
}
