//! `/auth`: logging in and out, another token, who one is; and one's own password.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome, Removed};
use super::extract::Body;
use crate::service::auth::Login;
use crate::service::call::{Call, Role, rfc3339};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new()
        .routes(routes!(log_in))
        .routes(routes!(refresh))
        .routes(routes!(log_out))
        .routes(routes!(me))
        .routes(routes!(change_password))
}

/// A name and its password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    /// The user's name.
    username: String,
    /// The user's password.
    password: String,
}

/// The password that is, and the one that is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    old_password: String,
    /// At least 12 characters.
    #[schema(min_length = 12, max_length = 256)]
    new_password: String,
}

/// A token, to be sent as `Authorization: Bearer`.
#[derive(Serialize, ToSchema)]
struct TokenView {
    token: String,
    /// `Bearer`
    token_type: String,
    /// When the token ends, as RFC 3339.
    #[schema(format = DateTime)]
    expires_at: String,
    username: String,
    role: Role,
}

/// Who somebody is.
#[derive(Serialize, ToSchema)]
struct Identity {
    /// The user's name, or the key's id.
    name: String,
    role: Role,
}

/// Log in; the token is good for 24 hours.
#[utoipa::path(
    post,
    path = "/auth/login",
    operation_id = "auth.login",
    tag = "auth",
    security(()),
    request_body = Credentials,
    responses((status = 200, description = "Logged in", body = Answer<TokenView>))
)]
async fn log_in(State(desk): State<Desk>, call: Call, Body(who): Body<Credentials>) -> Outcome<TokenView> {
    let login =
        desk.ask_hashing(move |services| services.auth.log_in(&call, &who.username, &who.password)).await?;
    Ok(Answer::ok(render(login)))
}

/// Another token in exchange for one that is still good, which ends. Shown again, it ends the login, the new token too:
/// somebody has a copy.
#[utoipa::path(
    post,
    path = "/auth/refresh",
    operation_id = "auth.refresh",
    tag = "auth",
    security(("token" = ["viewer"])),
    responses((status = 200, description = "The new token; the old one is void", body = Answer<TokenView>))
)]
async fn refresh(State(desk): State<Desk>, call: Call) -> Outcome<TokenView> {
    let login = desk.ask(move |services| services.auth.refresh(&call)).await?;
    Ok(Answer::ok(render(login)))
}

/// Log out: the token is void.
#[utoipa::path(
    post,
    path = "/auth/logout",
    operation_id = "auth.logout",
    tag = "auth",
    security(("token" = ["viewer"])),
    responses((status = 200, description = "The login has ended", body = Answer<Removed>))
)]
async fn log_out(State(desk): State<Desk>, call: Call) -> Outcome<Removed> {
    let removed = call.actor.name().to_owned();
    desk.ask(move |services| services.auth.log_out(&call)).await?;
    Ok(Answer::ok(Removed { removed }))
}

/// Change the caller's own password. Their other logins end, this one stays; their API keys stay, too.
#[utoipa::path(
    put,
    path = "/users/me/password",
    operation_id = "users.change_password",
    tag = "users",
    security(("token" = ["viewer"])),
    request_body = NewPassword,
    responses((status = 200, description = "The caller, whose password is another now", body = Answer<Identity>))
)]
async fn change_password(
    State(desk): State<Desk>,
    call: Call,
    Body(new): Body<NewPassword>,
) -> Outcome<Identity> {
    let by = call.clone();
    desk.ask_hashing(move |services| {
        services.auth.change_password(&by, &new.old_password, &new.new_password)
    })
    .await?;
    me(call).await
}

/// Who the caller is.
#[utoipa::path(
    get,
    path = "/auth/me",
    operation_id = "auth.me",
    tag = "auth",
    security(("token" = ["viewer"])),
    responses((status = 200, description = "The caller", body = Answer<Identity>))
)]
async fn me(call: Call) -> Outcome<Identity> {
    let role = call.role.unwrap_or(Role::Viewer);
    Ok(Answer::ok(Identity { name: call.actor.name().to_owned(), role }))
}

fn render(login: Login) -> TokenView {
    TokenView {
        token: login.token,
        token_type: "Bearer".to_owned(),
        expires_at: rfc3339(login.expires_at_ms),
        username: login.username,
        role: login.role,
    }
}
