//! `GET /metrics`: the master and its fleet, in one scrape of Prometheus.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Desk;
use crate::service::call::Call;
use crate::service::refusal::Refusal;

/// The media type of the text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::new().routes(routes!(scrape))
}

/// The master's metrics, each node's, and what every data plane reports with the labels `node`, `region` and `role`.
/// Prometheus logs in with an API key as its bearer token.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics.scrape",
    tag = "metrics",
    security(("token" = ["viewer"])),
    responses((status = 200, description = "Prometheus' text format, 0.0.4", body = String, content_type = "text/plain"))
)]
async fn scrape(State(desk): State<Desk>, call: Call) -> Result<Response, Refusal> {
    let pieces = desk.ask(move |services| services.scrape(call.at_ms)).await?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], Body::new(Pieces(Box::new(pieces)))).into_response())
}

/// A text in pieces, each made when the one before is sent: a large fleet's is a hundred megabytes.
struct Pieces(Box<dyn Iterator<Item = String> + Send>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }
}
