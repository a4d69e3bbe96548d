//! The two shapes of everything that the API says: `{code,message,data,meta,trace_id}` for what was done, and
//! `{code,message,details,request_id,timestamp}` for what was not.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::trace::Trace;
use crate::service::call::{now_ms, rfc3339};
use crate::service::page::Page;
use crate::service::refusal::{Detail, Kind, Refusal};

/// What was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer<T> {
    /// The HTTP status.
    #[schema(minimum = 200, maximum = 299)]
    code: u16,
    /// `ok`, or `created`.
    message: String,
    /// What was asked for.
    data: T,
    meta: Meta,
    /// Of the trace that the request belongs to: 32 hexadecimal digits.
    trace_id: String,
}

/// More about the data.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Meta {
    /// Of a list: the page that this is, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    page: Option<u64>,
    /// Of a list: entries on a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    page_size: Option<u64>,
    /// Of a list: entries on all pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    total: Option<u64>,
}

/// What is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Removed {
    /// Its name or id.
    pub(super) removed: String,
}

/// Why something was not done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    code: u16,
    /// What is wrong, in one sentence.
    message: String,
    /// Each field that is wrong.
    details: Vec<Detail>,
    /// To be given when asking for help; also in the header `X-Request-ID`.
    request_id: String,
    /// When, as RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
}

/// What a handler gives.
pub(super) type Outcome<T> = Result<Answer<T>, Refusal>;

impl<T> Answer<T> {
    /// 200.
    pub(super) fn ok(data: T) -> Self {
        Self::new(StatusCode::OK, "ok", data, Meta::default())
    }

    /// 201.
    pub(super) fn created(data: T) -> Self {
        Self::new(StatusCode::CREATED, "created", data, Meta::default())
    }

    fn new(status: StatusCode, message: &str, data: T, meta: Meta) -> Self {
        let trace_id = Trace::current().trace_id;
        Self { code: status.as_u16(), message: message.to_owned(), data, meta, trace_id }
    }
}

impl<T> Answer<Vec<T>> {
    /// 200 with a page of a list.
    pub(super) fn page(page: Page<T>) -> Self {
        let meta = Meta {
            page: Some(page.paging.page),
            page_size: Some(page.paging.page_size),
            total: Some(page.total),
        };
        Self::new(StatusCode::OK, "ok", page.items, meta)
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code).unwrap_or(StatusCode::OK);
        // What is true of a fleet now is not a moment later, and some of it is secret.
        (status, [(header::CACHE_CONTROL, "no-store")], Json(self)).into_response()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = status_of(self.kind);
        let body = ErrorBody {
            code: status.as_u16(),
            message: self.message.clone(),
            details: self.details.clone(),
            request_id: Trace::current().request_id,
            timestamp: rfc3339(now_ms()),
        };
        let mut response = (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response();
        if let Some((name, value)) = header_of(self.kind) {
            response.headers_mut().insert(name, value);
        }
        // For the guard, which notes it in the audit log.
        response.extensions_mut().insert(self);
        response
    }
}

/// What a client is to know besides.
fn header_of(kind: Kind) -> Option<(HeaderName, HeaderValue)> {
    match kind {
        Kind::TooMany { retry_after_s } => Some((header::RETRY_AFTER, HeaderValue::from(retry_after_s))),
        Kind::Unavailable => Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
        Kind::Unauthenticated => {
            Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"millrace\"")))
        }
        Kind::Malformed
        | Kind::Forbidden
        | Kind::NotFound
        | Kind::MethodNotAllowed
        | Kind::Conflict
        | Kind::TooLarge
        | Kind::UnsupportedMedia
        | Kind::Invalid
        | Kind::Internal => None,
    }
}

fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}
