//! The data plane's admin API as a client, over its Unix socket: one connection for each call, each with a deadline.
//! What an answer means for a config is said here; what is to be done about it is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use proto::v1::{ConfigProblem, ConfigRefusal, DataplaneInfo};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::state::{PutOutcome, Refusal};

/// A data plane answers within milliseconds; one that is stopped in a debugger does not.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// A config may have names to look up.
const APPLY_WITHIN: Duration = Duration::from_secs(30);
/// The longest answer is a config or the metrics of many routes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The admin API at one socket.
#[derive(Clone, Debug)]
pub struct Dataplane {
    socket: PathBuf,
}

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nothing was asked: nobody listens.
    Away(String),
    /// It was asked, and did not answer.
    Broken(String),
}

impl NoAnswer {
    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Self::Away(message) | Self::Broken(message) => message,
        }
    }
}

/// The part of `/status` that the agent reads.
#[derive(Deserialize)]
struct Status {
    version: String,
    pid: u32,
    ready: bool,
    draining: bool,
    generation: u64,
    connections: u64,
    streams: u64,
    clusters: Vec<ClusterStatus>,
    memory: MemoryStatus,
}

#[derive(Deserialize)]
struct ClusterStatus {
    endpoints: Vec<EndpointStatus>,
}

#[derive(Deserialize)]
struct EndpointStatus {
    healthy: bool,
}

#[derive(Deserialize)]
struct MemoryStatus {
    connections_max: u64,
}

#[derive(Deserialize)]
struct Applied {
    generation: u64,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    path: String,
    line: u32,
    column: u32,
    message: String,
    help: Option<String>,
}

impl Dataplane {
    /// The one that listens, or will, at this path.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// What `/status` says of it; none: it does not answer, or not as this agent understands.
    pub async fn observe(&self) -> Option<DataplaneInfo> {
        let answer = self.call(Method::GET, "/status", Bytes::new(), CALL_WITHIN).await.ok()?;
        let status: Status = serde_json::from_slice(&answer.body).ok()?;
        let endpoints = || status.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(DataplaneInfo {
            answering: true,
            endpoints_healthy: count(endpoints().filter(|endpoint| endpoint.healthy).count()),
            endpoints: count(endpoints().count()),
            version: status.version,
            pid: status.pid,
            ready: status.ready,
            draining: status.draining,
            generation: status.generation,
            connections: status.connections,
            streams: status.streams,
            connections_max: status.memory.connections_max,
        })
    }

    /// What stands under this path, as text; none: there is no such answer.
    pub async fn read(&self, path: &'static str) -> Option<String> {
        let answer = self.call(Method::GET, path, Bytes::new(), CALL_WITHIN).await.ok()?;
        let text = answer.status.is_success().then(|| String::from_utf8(answer.body.into()).ok());
        text.flatten()
    }

    /// Gives it a config.
    pub async fn put_config(&self, text: &str) -> PutOutcome {
        let body = Bytes::copy_from_slice(text.as_bytes());
        match self.call(Method::PUT, "/config", body, APPLY_WITHIN).await {
            Ok(answer) => outcome(&answer),
            Err(NoAnswer::Away(message)) => PutOutcome::Later(message),
            Err(NoAnswer::Broken(message)) => PutOutcome::Broken(message),
        }
    }

    /// Any call of the API.
    ///
    /// # Errors
    /// There is no answer in time.
    pub async fn ask(&self, method: Method, path: &'static str) -> Result<Answer, NoAnswer> {
        self.call(method, path, Bytes::new(), CALL_WITHIN).await
    }

    async fn call(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        let place = self.socket.display();
        let away = |error: &dyn std::fmt::Display| NoAnswer::Away(format!("{place}: {error}"));
        let broken = |error: &dyn std::fmt::Display| NoAnswer::Broken(format!("{place}: {error}"));
        let stream = match timeout(CALL_WITHIN, UnixStream::connect(&self.socket)).await {
            Ok(stream) => stream.map_err(|error| away(&error))?,
            Err(_) => return Err(away(&"nobody takes the connection")),
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| away(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "dataplane")
            // By this the data plane knows whose config it is, and says so in `/status`.
            .header(header::USER_AGENT, concat!("millrace-agent/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| away(&error))?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| broken(&error))?.to_bytes();
            Ok(Answer { status, body })
        };
        let asked = timeout(within, asked);
        tokio::pin!(connection, asked);
        // The connection has to be driven for the answer to come; its own end says nothing that the answer does not.
        tokio::select! {
            biased;
            answer = &mut asked => return answer.unwrap_or_else(|_| Err(broken(&"no answer in time"))),
            _ = &mut connection => {}
        }
        asked.await.unwrap_or_else(|_| Err(broken(&"no answer in time")))
    }
}

/// What came of `PUT /config`.
fn outcome(answer: &Answer) -> PutOutcome {
    let errors =
        || serde_json::from_slice::<Errors>(&answer.body).map(|body| body.errors).unwrap_or_default();
    match answer.status {
        StatusCode::OK => match serde_json::from_slice::<Applied>(&answer.body) {
            Ok(Applied { generation }) => PutOutcome::Applied { generation },
            Err(error) => PutOutcome::Broken(format!("the answer is not understood: {error}")),
        },
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
            PutOutcome::Refused(refusal(errors(), ConfigRefusal::Unusable))
        }
        status => {
            let message = errors().into_iter().next().map(|error| error.message);
            PutOutcome::Later(message.unwrap_or_else(|| format!("the data plane answers {status}")))
        }
    }
}

fn refusal(errors: Vec<ErrorEntry>, reason: ConfigRefusal) -> Refusal {
    let problems: Vec<ConfigProblem> = errors
        .into_iter()
        .map(|ErrorEntry { path, line, column, message, help }| ConfigProblem {
            path,
            line,
            column,
            message,
            help: help.unwrap_or_default(),
        })
        .collect();
    let first = problems.first();
    let message = first.map_or_else(
        || "the data plane refuses it".to_owned(),
        |first| format!("{}:{}: {}", first.line, first.column, first.message),
    );
    Refusal { reason, message, problems }
}
