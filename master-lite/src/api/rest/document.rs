//! The API's own description: OpenAPI 3.1 made from the routes, completed with what all of them have in common, and
//! served as JSON and as a page.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use super::answer::ErrorBody;
use super::guard::{self, Demands};
use super::page;
use crate::service::refusal::Detail;

/// The document, and what is read out of it.
pub(super) struct Document {
    /// As served.
    json: String,
    /// The same for people.
    page: String,
    /// What each route demands of its caller.
    pub(super) demands: Demands,
}

impl Document {
    /// Of the routes' own descriptions.
    pub(super) fn new(routes: OpenApi) -> Self {
        let document = complete(routes);
        let json = serde_json::to_value(&document).unwrap_or_default();
        // Pretty, and with a last line break: the same bytes as in the file that is checked in.
        Self { json: format!("{json:#}\n"), page: page::render(&json), demands: guard::demands(&document) }
    }
}

/// What the document says before its routes.
pub(super) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Millrace master")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Nodes, configs, commands and users of a fleet of Millrace edges. Log in under /api/v1/auth/login and send \
             the token as `Authorization: Bearer`; API keys go the same way, or as `X-API-Key`.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()))
        .build();
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.description =
        Some("A login token, or an API key. The role after its name is the least one.".to_owned());
    let components = ComponentsBuilder::new()
        .security_scheme("token", SecurityScheme::Http(scheme))
        .schema(ErrorBody::name(), ErrorBody::schema())
        .schema(Detail::name(), Detail::schema())
        .build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// Adds to each operation the refusals that it can meet.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let has_names = path.contains('{');
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        operations.into_iter().flatten().for_each(|operation| add_refusals(operation, has_names));
    }
    document
}

/// Statuses of refusals, and what they mean everywhere.
const REFUSALS: [(&str, &str); 11] = [
    ("400", "The request cannot be read; `details` names the field."),
    ("401", "Nobody is logged in, or the credential is no longer good."),
    ("403", "The role, or the key's scope, does not reach so far."),
    ("404", "Something that is named is not there."),
    ("409", "It does not fit what is there."),
    ("413", "The body is too long."),
    ("415", "The body is not of the media type that is wanted."),
    ("422", "Readable, but against a rule; `details` names the field."),
    ("429", "Too often: wait as long as `Retry-After` says."),
    ("500", "The master failed; its log says why."),
    ("503", "Too much waits already: try again as `Retry-After` says."),
];

fn add_refusals(operation: &mut Operation, has_names: bool) {
    let has_body = operation.request_body.is_some();
    let security = serde_json::to_value(&operation.security).unwrap_or_default();
    let is_open = security[0]["token"].is_null();
    let is_change = has_body || has_names;
    for (status, description) in REFUSALS {
        let applies = match status {
            "403" => !is_open,
            "404" => has_names || has_body,
            "409" | "422" => is_change,
            "413" | "415" => has_body,
            "429" => is_open && has_body,
            _ => true,
        };
        if applies && !operation.responses.responses.contains_key(status) {
            let schema = RefOr::Ref(Ref::from_schema_name(ErrorBody::name()));
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response =
                ResponseBuilder::new().description(description).content("application/json", content).build();
            operation.responses.responses.insert(status.to_owned(), response.into());
        }
    }
}

/// The routes of the document itself.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(openapi)).routes(routes!(docs))
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "document.openapi",
    tag = "document",
    security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
async fn openapi(State(desk): State<Desk>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], desk.document.json.clone()).into_response()
}

/// This document as a page.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "document.page",
    tag = "document",
    security(()),
    responses((status = 200, description = "HTML", content_type = "text/html", body = String))
)]
async fn docs(State(desk): State<Desk>) -> Response {
    // The page has no scripts, and is to get none.
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, desk.document.page.clone()).into_response()
}
