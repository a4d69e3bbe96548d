//! `/webhooks`: who is told of alerts. What is sent, how it is signed and tried again stands in the description of
//! `webhooks.create`.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfId;
use crate::service::alerts::rule::Severity;
use crate::service::call::{Call, rfc3339};
use crate::service::notify::Standing;
use crate::service::notify::webhooks::{Webhook as Stored, WebhookWish};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(find, change, remove))
        .routes(routes!(test))
}

/// A webhook, and how it goes with it.
#[derive(Serialize, ToSchema)]
struct Webhook {
    id: String,
    url: String,
    description: String,
    /// Alerts that are less bad are not sent.
    severity: Severity,
    enabled: bool,
    #[schema(format = DateTime)]
    created_at: String,
    /// Messages delivered since the master's start.
    delivered: u64,
    /// Messages given up since the master's start.
    failed: u64,
    /// Messages that were not queued because too many waited.
    dropped: u64,
    /// Messages that wait.
    waiting: u64,
    #[schema(format = DateTime)]
    delivered_at: Option<String>,
    /// Why the last try failed; null after a success.
    error: Option<String>,
}

/// A new webhook with its secret, which is shown once.
#[derive(Serialize, ToSchema)]
struct NewWebhook {
    #[serde(flatten)]
    webhook: Webhook,
    /// `whsec_` and base64: signs what is sent.
    secret: String,
}

/// What a webhook is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WebhookBody {
    /// Of https or http, without a user name. It has to lead to the public internet, or to a network that the
    /// master's config allows.
    #[schema(min_length = 8, max_length = 2048)]
    url: String,
    #[serde(default)]
    #[schema(max_length = 1024)]
    description: String,
    /// Alerts that are less bad are not sent; all are unless given.
    #[serde(default = "all")]
    severity: Severity,
    #[serde(default = "yes")]
    enabled: bool,
}

fn all() -> Severity {
    Severity::Info
}

fn yes() -> bool {
    true
}

impl From<WebhookBody> for WebhookWish {
    fn from(body: WebhookBody) -> Self {
        let WebhookBody { url, description, severity, enabled } = body;
        Self { url, description, severity, enabled }
    }
}

/// All webhooks. A URL may be a secret: viewers do not see them.
#[utoipa::path(
    get,
    path = "/webhooks",
    operation_id = "webhooks.list",
    tag = "webhooks",
    security(("token" = ["operator"])),
    params(Pages),
    responses((status = 200, description = "A page of webhooks", body = Answer<Vec<Webhook>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<Webhook>> {
    let paging = pages.paging()?;
    let page = desk
        .ask(move |services| {
            let page = services.notify.list(paging)?;
            Ok(page.map(|(id, stored)| render(services.notify.standing(&id), id, stored)))
        })
        .await?;
    Ok(Answer::page(page))
}

/// Make a webhook. Alerts are sent to it as Standard Webhooks: a POST of JSON with the headers `webhook-id`,
/// `webhook-timestamp` and `webhook-signature` (HMAC-SHA256), in their order, tried again for half an hour.
#[utoipa::path(
    post,
    path = "/webhooks",
    operation_id = "webhooks.create",
    tag = "webhooks",
    security(("token" = ["admin"])),
    request_body = WebhookBody,
    responses((status = 201, description = "The new webhook, with its secret", body = Answer<NewWebhook>))
)]
async fn create(State(desk): State<Desk>, call: Call, Body(body): Body<WebhookBody>) -> Outcome<NewWebhook> {
    let (id, stored) = desk.ask(move |services| services.notify.create(&call, body.into())).await?;
    let secret = stored.secret.reveal().to_owned();
    Ok(Answer::created(NewWebhook { webhook: render(Standing::default(), id, stored), secret }))
}

/// One webhook.
#[utoipa::path(
    get,
    path = "/webhooks/{id}",
    operation_id = "webhooks.read",
    tag = "webhooks",
    security(("token" = ["operator"])),
    params(OfId),
    responses((status = 200, description = "The webhook", body = Answer<Webhook>))
)]
async fn find(State(desk): State<Desk>, Names(id): Names<String>) -> Outcome<Webhook> {
    let found = desk
        .ask(move |services| {
            let stored = services.notify.find(&id)?;
            Ok(render(services.notify.standing(&id), id, stored))
        })
        .await?;
    Ok(Answer::ok(found))
}

/// Change a webhook: the whole of it but its secret.
#[utoipa::path(
    put,
    path = "/webhooks/{id}",
    operation_id = "webhooks.change",
    tag = "webhooks",
    security(("token" = ["admin"])),
    params(OfId),
    request_body = WebhookBody,
    responses((status = 200, description = "The webhook as it is now", body = Answer<Webhook>))
)]
async fn change(
    State(desk): State<Desk>,
    call: Call,
    Names(id): Names<String>,
    Body(body): Body<WebhookBody>,
) -> Outcome<Webhook> {
    let changed = desk
        .ask(move |services| {
            let stored = services.notify.change(&call, &id, body.into())?;
            Ok(render(services.notify.standing(&id), id, stored))
        })
        .await?;
    Ok(Answer::ok(changed))
}

/// Remove a webhook, and what waits for it.
#[utoipa::path(
    delete,
    path = "/webhooks/{id}",
    operation_id = "webhooks.delete",
    tag = "webhooks",
    security(("token" = ["admin"])),
    params(OfId),
    responses((status = 200, description = "It is removed", body = Answer<Removed>))
)]
async fn remove(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Removed> {
    let removed = id.clone();
    desk.ask(move |services| services.notify.remove(&call, &id)).await?;
    Ok(Answer::ok(Removed { removed }))
}

/// Send a message of the type `webhook.test`, to an enabled webhook or not.
#[utoipa::path(
    post,
    path = "/webhooks/{id}/test",
    operation_id = "webhooks.test",
    tag = "webhooks",
    security(("token" = ["admin"])),
    params(OfId),
    responses((status = 200, description = "It is queued; the webhook tells how it went", body = Answer<Webhook>))
)]
async fn test(State(desk): State<Desk>, call: Call, Names(id): Names<String>) -> Outcome<Webhook> {
    let tested = desk
        .ask(move |services| {
            services.notify.test(&call, &id)?;
            let stored = services.notify.find(&id)?;
            Ok(render(services.notify.standing(&id), id, stored))
        })
        .await?;
    Ok(Answer::ok(tested))
}

fn render(standing: Standing, id: String, stored: Stored) -> Webhook {
    Webhook {
        id,
        url: stored.url,
        description: stored.description,
        severity: stored.severity,
        enabled: stored.enabled,
        created_at: rfc3339(stored.created_at_ms),
        delivered: standing.delivered,
        failed: standing.failed,
        dropped: standing.dropped,
        waiting: standing.waiting as u64,
        delivered_at: standing.delivered_at_ms.map(rfc3339),
        error: standing.error,
    }
}
