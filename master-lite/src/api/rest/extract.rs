//! What handlers are given of a request: a body, a query, a name from the path, the call's circumstances. Each refuses
//! what it cannot take, and names the field.

use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::service::call::Call;
use crate::service::page::Paging;
use crate::service::refusal::{Kind, Refusal};

/// Longest body of most requests: a thousand names of nodes.
pub(super) const BODY_BYTES_MAX: usize = 256 * 1024;

/// Longest body that carries a config: the longest one in base64, with its line breaks as JSON has them, and the rest.
pub(super) const CONFIG_BODY_BYTES_MAX: usize = 2 * proto::config::TEXT_BYTES_MAX + BODY_BYTES_MAX;

/// How long a body may take: the longest one over a line of a few megabits.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// A JSON body; unknown fields are refused by its type.
pub(super) struct Body<T, const BYTES_MAX: usize = BODY_BYTES_MAX>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned, const BYTES_MAX: usize> FromRequest<S> for Body<T, BYTES_MAX> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        check_is_json(request.headers())?;
        parse(&read(request, BYTES_MAX).await?).map(Self)
    }
}

/// The query; unknown fields are refused by its type.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let fields = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(fields)
            .map(Self)
            .map_err(|error| malformed("query", &error.path().to_string(), &error.inner().to_string()))
    }
}

/// Which page of a list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Pages {
    /// Counted from 1.
    #[param(minimum = 1, maximum = 1_000_000)]
    page: Option<u64>,
    /// Entries on a page; 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    page_size: Option<u64>,
}

impl Pages {
    /// The page that is meant.
    ///
    /// # Errors
    /// A number out of its range.
    pub(super) fn paging(&self) -> Result<Paging, Refusal> {
        Paging::of(self.page, self.page_size)
    }
}

/// A JSON body that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let headers = request.headers().clone();
        let bytes = read(request, BODY_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_is_json(&headers)?;
        if bytes.trim_ascii() == b"null" {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

/// The names in the path, decoded. Whether they are good names is for the service to say.
pub(super) struct Names<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Names<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(names) = Path::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::of(Kind::Malformed, "path", "bad_path", "the path cannot be read"))?;
        Ok(Self(names))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Call {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        // The guard puts it there, and is in front of every route.
        let call = parts.extensions.get::<Self>().cloned();
        call.ok_or_else(|| Refusal::internal(&"a request came past the guard"))
    }
}

/// Reads a body that has at most so many bytes.
///
/// # Errors
/// It has more, or ended early.
pub(super) async fn read(request: Request, bytes_max: usize) -> Result<Bytes, Refusal> {
    let whole = timeout(BODY_WITHIN, to_bytes(request.into_body(), bytes_max));
    let whole = whole.await.map_err(|_| {
        let message = format!("the body did not come within {} s", BODY_WITHIN.as_secs());
        Refusal::of(Kind::Malformed, "body", "too_slow", message)
    })?;
    whole.map_err(|_| {
        let message = format!("the body is longer than {bytes_max} bytes, or was not sent to its end");
        Refusal::of(Kind::TooLarge, "body", "too_large", message)
    })
}

/// Reads an object: serde would take a list of a type's fields for it, too.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(malformed("body", ".", "it is to be an object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| malformed("body", &error.path().to_string(), &error.inner().to_string()))?;
    json.end().map_err(|error| malformed("body", ".", &error.to_string()))?;
    Ok(value)
}

fn check_is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the body is to be JSON, with `Content-Type: application/json`";
    Err(Refusal::of(Kind::UnsupportedMedia, "content-type", "not_json", message))
}

/// What cannot be read, with the field that the parser stopped at; where the parser names one in its message (an unknown
/// or a missing one), that one.
fn malformed(whole: &str, path: &str, message: &str) -> Refusal {
    let named = ["unknown field `", "missing field `", "duplicate field `"].into_iter().find_map(|prefix| {
        let (_, rest) = message.split_once(prefix)?;
        rest.split_once('`').map(|(name, _)| name)
    });
    let parent = if path == "." { "" } else { path };
    let field = match named {
        // serde has the unknown field in its path already.
        Some(name) if parent == name || parent.ends_with(&format!(".{name}")) => parent.to_owned(),
        Some(name) if parent.is_empty() => name.to_owned(),
        Some(name) => format!("{parent}.{name}"),
        None if parent.is_empty() => whole.to_owned(),
        None => parent.to_owned(),
    };
    let code = match message.split(' ').next() {
        Some("unknown") => "unknown_field",
        Some("missing") => "missing_field",
        Some("duplicate") => "duplicate_field",
        Some(_) | None => "malformed",
    };
    Refusal::of(Kind::Malformed, &field, code, format!("the {whole} cannot be read: {message}"))
}
