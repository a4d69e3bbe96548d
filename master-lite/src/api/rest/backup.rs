//! `/backup`: a consistent copy of the store of a running master. For admins: it holds everything but the signing key.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use crate::service::call::Call;
use crate::service::refusal::Refusal;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(backup))
}

/// A copy of the store, to be kept somewhere else and put back with `millrace-master restore`.
#[utoipa::path(
    get,
    path = "/backup",
    operation_id = "backup.read",
    tag = "backup",
    security(("token" = ["admin"])),
    responses((status = 200, description = "The copy", content_type = "application/octet-stream", body = Vec<u8>))
)]
async fn backup(State(desk): State<Desk>, call: Call) -> Result<Response, Refusal> {
    let copy = desk.ask(move |services| services.copy(&call)).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"millrace-master.redb\""),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(copy)))).into_response())
}
