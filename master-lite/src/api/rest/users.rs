//! `/users`: people who may log in. For admins.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::{Answer, Outcome};
use super::extract::{Body, Names, Pages, Query};
use super::paths::OfUser;
use crate::service::call::{Call, Role, rfc3339};
use crate::service::refusal::Refusal;
use crate::service::users::{Belongings, UserChange, UserRecord};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(find, change, remove))
}

/// A user.
#[derive(Serialize, ToSchema)]
struct User {
    username: String,
    role: Role,
    /// As RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
    /// Of the last change of role or password.
    #[schema(format = DateTime)]
    changed_at: String,
}

/// A user to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewUser {
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    username: String,
    role: Role,
    /// At least 12 characters.
    #[schema(min_length = 12, max_length = 256)]
    password: String,
}

/// What is to be changed; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangedUser {
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    #[schema(min_length = 12, max_length = 256)]
    password: Option<String>,
}

/// A user who is gone, and what went, too.
#[derive(Serialize, ToSchema)]
struct RemovedUser {
    /// The user's name.
    removed: String,
    /// Ids of the API keys that are void now.
    api_keys: Vec<String>,
    /// Ids of the join tokens that are void now.
    join_tokens: Vec<String>,
}

/// All users.
#[utoipa::path(
    get,
    path = "/users",
    operation_id = "users.list",
    tag = "users",
    security(("token" = ["admin"])),
    params(Pages),
    responses((status = 200, description = "A page of users", body = Answer<Vec<User>>))
)]
async fn list(State(desk): State<Desk>, Query(pages): Query<Pages>) -> Outcome<Vec<User>> {
    let paging = pages.paging()?;
    let page = desk.ask(move |services| services.users.list(paging)).await?;
    Ok(Answer::page(page.map(|(name, record)| render(name, &record))))
}

/// Make a user.
#[utoipa::path(
    post,
    path = "/users",
    operation_id = "users.create",
    tag = "users",
    security(("token" = ["admin"])),
    request_body = NewUser,
    responses((status = 201, description = "The new user", body = Answer<User>))
)]
async fn create(
    State(desk): State<Desk>,
    call: Call,
    Body(new): Body<NewUser>,
) -> Result<Answer<User>, Refusal> {
    let name = new.username.clone();
    let record = desk
        .ask_hashing(move |services| services.users.create(&call, &new.username, new.role, &new.password))
        .await?;
    Ok(Answer::created(render(name, &record)))
}

/// One user.
#[utoipa::path(
    get,
    path = "/users/{username}",
    operation_id = "users.read",
    tag = "users",
    security(("token" = ["admin"])),
    params(OfUser),
    responses((status = 200, description = "The user", body = Answer<User>))
)]
async fn find(State(desk): State<Desk>, Names(name): Names<String>) -> Outcome<User> {
    let asked = name.clone();
    let record = desk.ask(move |services| services.users.find(&asked)).await?;
    Ok(Answer::ok(render(name, &record)))
}

/// Change a user's role or password; the user has to log in again.
#[utoipa::path(
    put,
    path = "/users/{username}",
    operation_id = "users.change",
    tag = "users",
    security(("token" = ["admin"])),
    params(OfUser),
    request_body = ChangedUser,
    responses((status = 200, description = "The user as it is now", body = Answer<User>))
)]
async fn change(
    State(desk): State<Desk>,
    call: Call,
    Names(name): Names<String>,
    Body(changed): Body<ChangedUser>,
) -> Outcome<User> {
    let change = UserChange { role: changed.role, password: changed.password };
    let asked = name.clone();
    let record = desk.ask_hashing(move |services| services.users.change(&call, &asked, &change)).await?;
    Ok(Answer::ok(render(name, &record)))
}

/// Remove a user with all that belongs to that person: logins, API keys and join tokens.
#[utoipa::path(
    delete,
    path = "/users/{username}",
    operation_id = "users.delete",
    tag = "users",
    security(("token" = ["admin"])),
    params(OfUser),
    responses((status = 200, description = "The user is gone", body = Answer<RemovedUser>))
)]
async fn remove(State(desk): State<Desk>, call: Call, Names(name): Names<String>) -> Outcome<RemovedUser> {
    let removed = name.clone();
    let Belongings { api_keys, join_tokens } =
        desk.ask(move |services| services.users.remove(&call, &name)).await?;
    Ok(Answer::ok(RemovedUser { removed, api_keys, join_tokens }))
}

fn render(username: String, record: &UserRecord) -> User {
    User {
        username,
        role: record.role,
        created_at: rfc3339(record.created_at_ms),
        changed_at: rfc3339(record.changed_at_ms),
    }
}
