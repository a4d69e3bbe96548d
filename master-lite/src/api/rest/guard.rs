//! In front of every route, and of what is none: who asks, whether they may, and a note in the audit log of what was
//! refused.
//!
//! What a route demands is read from the API's own document. A route that is not in it, or that demands nothing by name,
//! is closed.

use std::collections::{BTreeSet, HashMap};

use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;

use super::Desk;
use super::trace::{ClientAddress, Trace};
use crate::service::api_keys::{Access, Scope};
use crate::service::audit::Audit;
use crate::service::auth::Identity;
use crate::service::call::{Actor, Call, Role, now_ms};
use crate::service::refusal::{Kind, Refusal};

/// What a route demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// At least this role; none: it is open to everybody.
    role: Option<Role>,
    /// What the audit log calls it: the operation's id, such as `users.create`.
    action: String,
    /// What an API key's scope has to name: the first part of the path below `/api/v1`.
    resource: String,
    /// And what it has to allow.
    access: Access,
}

/// The demands of all routes, by method and path.
pub(super) type Demands = HashMap<(Method, String), Demand>;

/// Reads the demands out of the document.
///
/// # Panics
/// An operation has no id, or its `security` is neither `()` nor one role: a mistake in the program that the first test
/// finds.
pub(super) fn demands(document: &OpenApi) -> Demands {
    let mut demands = Demands::new();
    for (path, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let demand = demand_of(path, &method, operation);
            demands.insert((method, path.clone()), demand);
        }
    }
    demands
}

/// The scopes that lead anywhere: those of the routes that demand a role.
pub(super) fn scopes(demands: &Demands) -> Vec<Scope> {
    let demanding = demands.values().filter(|demand| demand.role.is_some());
    let scope = |demand: &Demand| Scope { resource: demand.resource.clone(), access: demand.access };
    let scopes: BTreeSet<Scope> = demanding.map(scope).collect();
    scopes.into_iter().collect()
}

fn demand_of(path: &str, method: &Method, operation: &Operation) -> Demand {
    let action = operation.operation_id.clone().unwrap_or_else(|| panic!("{path} has no operation id"));
    let json = serde_json::to_value(&operation.security).unwrap_or_default();
    let named = json[0]["token"][0].as_str();
    let role = Role::ALL.into_iter().find(|role| Some(role.name()) == named);
    let is_open = json[0].as_object().is_some_and(serde_json::Map::is_empty);
    assert!(role.is_some() || is_open, "{path} does not say who may use it");
    let (resource, access) = resource_of(path, method);
    Demand { role, action, resource, access }
}

/// What the audit log calls what is no route.
const UNKNOWN: &str = "unknown";

/// The layer.
pub(super) async fn guard(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let mut call = anonymous(&parts);
    let is_change = !matches!(parts.method, Method::GET | Method::HEAD);
    let target = parts.uri.path().to_owned();
    let demand = demand(&desk, &parts);
    let is_known = demand.is_some();
    let demand = demand.unwrap_or_else(|| unknown(&parts));
    let admitted = admit(&desk, &parts.headers, &mut call, &demand).await;
    let response = if !is_known && parts.extensions.get::<MatchedPath>().is_some() {
        method_not_allowed(&desk, &parts)
    } else if let (true, Err(refusal)) = (is_known, admitted) {
        refusal.into_response()
    } else {
        // To the handler, or where it is said that there is none.
        parts.extensions.insert(call.clone());
        next.run(Request::from_parts(parts, body)).await
    };
    if let Some(refusal) = response.extensions().get::<Refusal>() {
        if is_change && is_known {
            note(&desk, call, demand.action, target, refusal.clone(), Audit::note_refused).await;
        } else if is_change || call.actor != Actor::Anonymous || is_trespass(refusal) {
            note(&desk, call, demand.action, target, refusal.clone(), Audit::note_repeated).await;
        }
    }
    response
}

/// What would be demanded where there is nothing: enough to know who was looking for it.
fn unknown(parts: &Parts) -> Demand {
    let (resource, access) = resource_of(parts.uri.path(), &parts.method);
    Demand { role: Some(Role::Viewer), action: UNKNOWN.to_owned(), resource, access }
}

/// What of an API key's scope a request is about.
fn resource_of(path: &str, method: &Method) -> (String, Access) {
    let path = path.strip_prefix("/api/v1").unwrap_or(path).trim_start_matches('/');
    let resource = path.split('/').next().unwrap_or_default().to_owned();
    (resource, if matches!(*method, Method::GET | Method::HEAD) { Access::Read } else { Access::Write })
}

/// Whether somebody showed a credential that is none, or one that does not reach so far. Who shows none at all has only
/// not logged in yet.
fn is_trespass(refusal: &Refusal) -> bool {
    let is_missing = refusal.details.iter().any(|detail| detail.code == "missing");
    matches!(refusal.kind, Kind::Unauthenticated | Kind::Forbidden) && !is_missing
}

fn anonymous(parts: &Parts) -> Call {
    Call {
        actor: Actor::Anonymous,
        role: None,
        login: None,
        address: parts.extensions.get::<ClientAddress>().map(|address| address.0),
        request_id: Trace::current().request_id,
        at_ms: now_ms(),
    }
}

fn demand(desk: &Desk, parts: &Parts) -> Option<Demand> {
    let path = parts.extensions.get::<MatchedPath>()?.as_str().to_owned();
    // axum answers HEAD where there is a GET.
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    desk.document.demands.get(&(method, path)).cloned()
}

/// The paths that are there are the document's: what is missing is the method.
fn method_not_allowed(desk: &Desk, parts: &Parts) -> Response {
    let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let known = desk.document.demands.keys().filter(|(_, other)| other == path);
    let mut allowed: Vec<&str> = known.map(|(method, _)| method.as_str()).collect();
    allowed.sort_unstable();
    let message = "this path does not know this method";
    let refusal = Refusal::of(Kind::MethodNotAllowed, "method", "not_allowed", message);
    ([(header::ALLOW, allowed.join(", "))], refusal).into_response()
}

/// Finds out who asks, and whether they may.
async fn admit(desk: &Desk, headers: &HeaderMap, call: &mut Call, demand: &Demand) -> Result<(), Refusal> {
    let Some(wanted) = demand.role else { return Ok(()) };
    let credential = credential(headers)?;
    let (by, resource, access) = (call.clone(), demand.resource.clone(), demand.access);
    let Identity { actor, role, login } =
        desk.ask(move |services| services.identify(&by, &credential, &resource, access)).await?;
    call.actor = actor;
    call.login = login;
    call.role = Some(role);
    if role < wanted {
        let message = format!("this needs the role {}, yours is {}", wanted.name(), role.name());
        return Err(Refusal::of(Kind::Forbidden, "authorization", "role", message));
    }
    Ok(())
}

/// The credential in `Authorization: Bearer` or `X-API-Key`.
fn credential(headers: &HeaderMap) -> Result<String, Refusal> {
    let missing = |message: &str| Refusal::of(Kind::Unauthenticated, "authorization", "missing", message);
    let bearer = headers.get(header::AUTHORIZATION).map(|value| {
        let (scheme, credential) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(credential.trim())
    });
    let key = headers.get("x-api-key").map(|value| value.to_str().ok());
    match bearer.or(key) {
        Some(Some(credential)) if !credential.is_empty() => Ok(credential.to_owned()),
        Some(_) => {
            Err(missing("the header is to be `Authorization: Bearer`, with a login token or an API key"))
        }
        None => Err(missing("log in first: `Authorization: Bearer`, with a login token or an API key")),
    }
}

async fn note(
    desk: &Desk,
    call: Call,
    action: String,
    target: String,
    refusal: Refusal,
    how: fn(&Audit, &Call, &str, &str, &str),
) {
    let fields: Vec<&str> = refusal.details.iter().map(|detail| detail.field.as_str()).collect();
    let why = format!("{} ({})", refusal.message, fields.join(", "));
    let noted = desk.ask(move |services| {
        how(&services.audit, &call, &action, &target, &why);
        Ok(())
    });
    // It has logged its own failure.
    let _ = noted.await;
}
