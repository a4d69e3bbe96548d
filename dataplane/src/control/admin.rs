//! The admin API: HTTP for operators, Prometheus and the agent, on TCP and on a Unix socket.
//!
//! It reads the node and sends wishes to the control loop, which answers when they are done. It has no login: the TCP
//! address is this host's by default, and the Unix socket is its user's.

mod patience;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use proto::config::{Admin, SocketAccess, TEXT_BYTES_MAX};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::apply::{self, Outcome};
use super::log;
use super::node::Node;
use super::refusal::{Cause, Refusal};
use super::source::Source;
use super::status;
use super::surroundings;
use crate::metrics;
use crate::sys::unix::{self, FileId};
use patience::Patient;

/// What the control loop is asked for over the API.
#[derive(Debug)]
pub(crate) enum Wish {
    /// Apply a config.
    Apply {
        /// Its text.
        text: String,
        /// Whoever put it.
        source: Source,
        /// What came of it.
        reply: oneshot::Sender<Result<Outcome, Refusal>>,
    },
    /// Take no new connections from now on; the process stays.
    Drain {
        /// When it has begun.
        reply: oneshot::Sender<()>,
    },
    /// Take connections again.
    Undrain {
        /// What came of it.
        reply: oneshot::Sender<Result<Outcome, Refusal>>,
    },
}

/// Wishes that may wait for the control loop.
pub(crate) const WISHES_MAX: usize = 16;

/// How long the control loop may take to answer: several configs may be applied before, each of which takes seconds at
/// most.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long the body of a request may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// What requests to the API are answered with.
#[derive(Clone)]
struct Desk {
    node: Arc<Node>,
    wishes: mpsc::Sender<Wish>,
}

/// The API as a service.
pub(crate) fn router(node: Arc<Node>, wishes: mpsc::Sender<Wish>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/config", get(config).put(put_config))
        .route("/config/check", post(check_config))
        .route("/drain", post(drain))
        .route("/undrain", post(undrain))
        .route("/log", get(log_level).put(put_log_level))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing under this path") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not know this method")
        })
        .layer(middleware::from_fn(refuse_browsers))
        .with_state(Desk { node, wishes })
}

/// A page in a browser on this host can send a simple request here, and the API has no login. Browsers say who they ask
/// for in `Origin` (RFC 6454, section 7), tools do not.
async fn refuse_browsers(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_read && request.headers().contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "requests of web pages are not taken");
    }
    next.run(request).await
}

async fn metrics(State(desk): State<Desk>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], desk.node.metrics()).into_response()
}

async fn readyz(State(desk): State<Desk>) -> Response {
    match desk.node.unready() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why.message())).into_response(),
    }
}

async fn status(State(desk): State<Desk>) -> Response {
    Json(status::of(&desk.node)).into_response()
}

async fn config(State(desk): State<Desk>) -> Response {
    match desk.node.applied() {
        Some(applied) => {
            ([(header::CONTENT_TYPE, "application/toml")], applied.text.to_string()).into_response()
        }
        None => refuse(StatusCode::SERVICE_UNAVAILABLE, "no config is applied yet"),
    }
}

async fn put_config(State(desk): State<Desk>, headers: HeaderMap, body: Body) -> Response {
    let source = Source::of_put(headers.get(header::USER_AGENT).and_then(|name| name.to_str().ok()));
    let text = match text_of(body).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    match ask(&desk, |reply| Wish::Apply { text, source, reply }).await {
        Ok(outcome) => answer(outcome),
        Err(refused) => refused,
    }
}

/// What came of a config that was to be served.
fn answer(outcome: Result<Outcome, Refusal>) -> Response {
    match outcome {
        Ok(outcome) => Json(outcome).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

async fn check_config(body: Body) -> Response {
    let text = match text_of(body).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    match apply::read(&text) {
        Ok(config) => {
            let warnings = surroundings::warnings_in_time(&Arc::new(config)).await;
            Json(json!({ "warnings": warnings })).into_response()
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn drain(State(desk): State<Desk>) -> Response {
    match ask(&desk, |reply| Wish::Drain { reply }).await {
        Ok(()) => {
            let figures = json!({ "draining": true, "streams": desk.node.streams() });
            (StatusCode::ACCEPTED, Json(figures)).into_response()
        }
        Err(refused) => refused,
    }
}

async fn undrain(State(desk): State<Desk>) -> Response {
    match ask(&desk, |reply| Wish::Undrain { reply }).await {
        Ok(outcome) => answer(outcome),
        Err(refused) => refused,
    }
}

/// The body of `PUT /log`, and of its answer.
#[derive(Deserialize)]
struct LogRequest {
    level: String,
}

async fn log_level(State(desk): State<Desk>) -> Response {
    Json(json!({ "level": desk.node.log.level().name() })).into_response()
}

async fn put_log_level(State(desk): State<Desk>, body: Body) -> Response {
    let text = match text_of(body).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    let wanted = serde_json::from_str(&text).ok().and_then(|LogRequest { level }| log::level_of(&level));
    let Some(level) = wanted else {
        let names: Vec<&str> = log::LEVELS.iter().map(|level| level.name()).collect();
        let message = format!("the body is to be {{\"level\":\"LEVEL\"}}, with one of {}", names.join(", "));
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, &message);
    };
    desk.node.log.set(level);
    log_level(State(desk)).await
}

/// Sends a wish to the control loop and waits for its answer. Errors: what to answer when the loop has ended, or has no
/// time.
async fn ask<T>(desk: &Desk, wish: impl FnOnce(oneshot::Sender<T>) -> Wish) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    let asking = async {
        desk.wishes.send(wish(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ANSWER_WITHIN, asking).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "the process is ending")),
        Err(_) => {
            let message = "other requests take too long: this one may still be done, see GET /status";
            Err(refuse(StatusCode::GATEWAY_TIMEOUT, message))
        }
    }
}

async fn text_of(body: Body) -> Result<String, Response> {
    let reading = tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, TEXT_BYTES_MAX));
    let read = reading.await.map_err(|_| {
        let message = format!("the body did not come within {} s", BODY_WITHIN.as_secs());
        refuse(StatusCode::REQUEST_TIMEOUT, &message)
    })?;
    let bytes = read.map_err(|_| {
        let message = format!("the body is longer than {TEXT_BYTES_MAX} bytes, or was not sent to its end");
        refuse(StatusCode::PAYLOAD_TOO_LARGE, &message)
    })?;
    proto::config::decode(bytes.into()).map_err(|errors| refused(&errors.into()))
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.cause() {
        Cause::Invalid | Cause::Address | Cause::AccessLog => StatusCode::UNPROCESSABLE_ENTITY,
        Cause::Busy => StatusCode::CONFLICT,
    };
    (status, Json(refusal)).into_response()
}

/// The shape of every refusal of this API.
fn refuse(status: StatusCode, message: &str) -> Response {
    let error = json!({ "path": "", "line": 1, "column": 1, "message": message, "help": null });
    let is_busy = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
    let code = if is_busy { Cause::Busy.code() } else { "request_invalid" };
    let may_pass = is_busy || status == StatusCode::REQUEST_TIMEOUT;
    (status, Json(json!({ "errors": [error], "code": code, "retry": may_pass }))).into_response()
}

/// The sockets that the API listens on.
#[derive(Debug, Default)]
pub(crate) struct AdminSockets {
    /// On `admin.listen`.
    pub(crate) tcp: Option<(SocketAddr, OwnedFd)>,
    /// On `admin.socket`.
    pub(crate) unix: Option<AdminUnix>,
}

/// The socket on `admin.socket`.
#[derive(Debug)]
pub(crate) struct AdminUnix {
    /// As configured.
    pub(crate) path: PathBuf,
    /// It listens.
    pub(crate) socket: OwnedFd,
    /// Its file, as it was made when the socket was bound.
    pub(crate) file: Option<FileId>,
    /// Another process bound it, which may still listen there.
    pub(crate) is_inherited: bool,
}

/// An admin address that cannot be bound.
#[derive(Debug)]
pub(crate) struct AdminFailure {
    /// `admin.listen` or `admin.socket`.
    pub(crate) key: &'static str,
    /// The address.
    pub(crate) address: proto::config::Bind,
    /// What the kernel says.
    pub(crate) error: io::Error,
}

impl AdminFailure {
    /// The same as a refusal of the config that wanted it.
    pub(crate) fn refusal(&self, text: &str) -> Refusal {
        let AdminFailure { key, address, error } = self;
        let value = address.to_string();
        let value = value.strip_prefix("unix:").unwrap_or(&value);
        let message = format!("the admin API cannot be bound to {value}: {error}");
        let help = surroundings::bind_help(address, error);
        Refusal::at(Cause::Address, text, (*key).to_owned(), value, message, &help)
    }
}

impl AdminSockets {
    /// Binds what the config wants; sockets that the previous process had at the same addresses are used.
    ///
    /// # Errors
    /// The address that cannot be bound.
    pub(crate) fn bind(config: &Admin, inherited: AdminSockets) -> Result<Self, AdminFailure> {
        let tcp = config.listen.map(|address| match inherited.tcp {
            Some((of, socket)) if of == address => Ok((address, socket)),
            Some(_) | None => bind_tcp(address).map(|socket| (address, socket)).map_err(|error| {
                AdminFailure { key: "admin.listen", address: proto::config::Bind::Tcp(address), error }
            }),
        });
        let unix = config.socket.as_ref().map(|path| {
            bind_unix(path, &config.access, inherited.unix).map_err(|error| AdminFailure {
                key: "admin.socket",
                address: proto::config::Bind::Unix(path.clone()),
                error,
            })
        });
        Ok(AdminSockets { tcp: tcp.transpose()?, unix: unix.transpose()? })
    }

    /// Gives the Unix socket's file the rights that the config says now. Its path changes at the next start only.
    pub(crate) fn follow(&self, config: &Admin) {
        let Some(AdminUnix { path, file: Some(file), .. }) = &self.unix else { return };
        if config.socket.as_ref() == Some(path)
            && let Err(error) = unix::set_access(path, *file, &config.access)
        {
            warn!(path = %path.display(), %error, "the admin socket keeps its old permissions");
        }
    }

    /// Serves on all of them in tasks of their own, until `end` says so or its sender is gone; requests that are being
    /// answered then are answered to the end.
    ///
    /// # Errors
    /// A socket cannot be watched.
    pub(crate) fn serve(&self, router: &Router, end: &watch::Receiver<bool>) -> io::Result<()> {
        if let Some((_, socket)) = &self.tcp {
            let socket = std::net::TcpListener::from(socket.try_clone()?);
            let serving =
                axum::serve(Patient::new(tokio::net::TcpListener::from_std(socket)?), router.clone());
            tokio::spawn(serving.with_graceful_shutdown(ended(end.clone())).into_future());
        }
        if let Some(AdminUnix { socket, .. }) = &self.unix {
            let socket = std::os::unix::net::UnixListener::from(socket.try_clone()?);
            let serving =
                axum::serve(Patient::new(tokio::net::UnixListener::from_std(socket)?), router.clone());
            tokio::spawn(serving.with_graceful_shutdown(ended(end.clone())).into_future());
        }
        Ok(())
    }

    /// Removes the Unix socket's file, unless another process listens there now: the caller knows.
    pub(crate) fn unlink(&self) {
        if let Some(AdminUnix { path, file: Some(file), .. }) = &self.unix {
            unix::remove(path, *file);
        }
    }

    /// As [`AdminSockets::unlink`], for a socket that this process has bound itself.
    pub(crate) fn unlink_own(&self) {
        if self.unix.as_ref().is_some_and(|unix| !unix.is_inherited) {
            self.unlink();
        }
    }
}

async fn ended(mut end: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end, too.
    let _ = end.wait_for(|is_ended| *is_ended).await;
}

fn bind_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// Takes the previous process's socket where it is at this path, else binds it anew.
fn bind_unix(path: &Path, access: &SocketAccess, inherited: Option<AdminUnix>) -> io::Result<AdminUnix> {
    if let Some(inherited) = inherited.filter(|inherited| inherited.path == path) {
        unix::try_access(access)?;
        return Ok(inherited);
    }
    let (socket, file) = unix::listen(path, access, ADMIN_BACKLOG)?;
    Ok(AdminUnix { path: path.to_owned(), socket, file: Some(file), is_inherited: false })
}

/// A handful of operators and scrapers.
const ADMIN_BACKLOG: i32 = 64;

#[cfg(test)]
mod tests;
