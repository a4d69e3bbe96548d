//! The agents' API, `proto/v1/agent.proto`: enrolment, and one long session for each agent.

mod enrol;
mod session;

use std::future::Future;
use std::sync::Arc;

use anyhow::Context as _;
use proto::fleet::limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX};
use proto::v1::agent_server::{Agent, AgentServer};
use proto::v1::{AgentMessage, EnrollRequest, EnrollResponse, MasterMessage};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::config::Tls;
use crate::service::Services;
use crate::service::call::{Actor, Call, now_ms};
use crate::service::refusal::{Kind, Refusal};

/// Sessions of one connection: an agent has one, and while it changes networks two.
const STREAMS_MAX: u32 = 8;

/// Serves agents until `ended`, then says goodbye to each.
///
/// # Errors
/// TLS is wanted and its files cannot be used.
pub(crate) async fn serve(
    services: Arc<Services>,
    listener: TcpListener,
    tls: Option<&Tls>,
    ended: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX);
    if let Some(tls) = tls {
        server = server.tls_config(tls_config(tls)?).context("TLS of the agents' API (grpc.tls)")?;
    }
    let goodbye = Arc::clone(&services);
    let ended = async move {
        ended.await;
        goodbye.sessions.end_all();
    };
    let agent = AgentServer::new(AgentApi { services }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server.add_service(agent).serve_with_incoming_shutdown(incoming, ended).await?;
    Ok(())
}

fn tls_config(tls: &Tls) -> anyhow::Result<ServerTlsConfig> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let config = ServerTlsConfig::new().identity(Identity::from_pem(read(&tls.cert)?, read(&tls.key)?));
    Ok(match &tls.client_ca {
        Some(path) => config.client_ca_root(Certificate::from_pem(read(path)?)),
        None => config,
    })
}

/// The service as generated, over ours.
struct AgentApi {
    services: Arc<Services>,
}

#[tonic::async_trait]
impl Agent for AgentApi {
    type SessionStream = ReceiverStream<Result<MasterMessage, Status>>;

    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        enrol::enrol(&self.services, request).await
    }

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        session::open(Arc::clone(&self.services), request).await
    }
}

/// Runs a service's function where it may block.
async fn ask<T: Send + 'static>(
    services: &Arc<Services>,
    ask: impl FnOnce(&Services) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Status> {
    let services = Arc::clone(services);
    let answer = tokio::task::spawn_blocking(move || ask(&services)).await;
    answer.unwrap_or_else(|error| Err(Refusal::internal(&error))).map_err(status_of)
}

/// A call over gRPC, by somebody who is to be found out.
fn call_of<T>(request: &Request<T>, actor: Actor) -> Call {
    let address = request.remote_addr().map(|address| address.ip());
    Call { actor, role: None, address, request_id: String::new(), at_ms: now_ms() }
}

/// As the protocol has it: where a field is to blame, the message begins with its name.
fn status_of(refusal: Refusal) -> Status {
    let code = match refusal.kind {
        Kind::Malformed | Kind::Invalid | Kind::TooLarge | Kind::UnsupportedMedia => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::NotFound | Kind::MethodNotAllowed => Code::NotFound,
        Kind::Conflict => match refusal.details.first() {
            Some(detail) if detail.code == "limit" => Code::ResourceExhausted,
            Some(_) | None => Code::AlreadyExists,
        },
        Kind::TooMany { .. } => Code::ResourceExhausted,
        Kind::Internal => Code::Internal,
        Kind::Unavailable => Code::Unavailable,
    };
    match refusal.details.first() {
        Some(detail) => Status::new(code, format!("{}: {}", detail.field, refusal.message)),
        None => Status::new(code, refusal.message),
    }
}
