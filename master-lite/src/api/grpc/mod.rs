//! The agents' API, `proto/v1/agent.proto`: enrolment, and one long session for each agent.

mod enrol;
mod incoming;
mod session;

#[cfg(test)]
pub(crate) use session::registration;

use std::future::Future;
use std::sync::Arc;

use proto::fleet::limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX};
use proto::v1::agent_server::{Agent, AgentServer};
use proto::v1::{AgentMessage, EnrollRequest, EnrollResponse, MasterMessage};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use incoming::Peer;

use crate::service::Services;
use crate::service::call::{Actor, Call, now_ms};
use crate::service::refusal::{Kind, Refusal};
use crate::tls::Terms;

/// Sessions of one connection: an agent has one, and while it changes networks two.
const STREAMS_MAX: u32 = 8;

/// Serves agents until `ended`, then says goodbye to each.
///
/// # Errors
/// The server fails as a whole, which no agent can make it do.
pub(crate) async fn serve(
    services: Arc<Services>,
    listener: TcpListener,
    tls: Option<Terms>,
    ended: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX);
    let goodbye = Arc::clone(&services);
    let ended = async move {
        ended.await;
        goodbye.sessions.end_all();
    };
    let agent = AgentServer::new(AgentApi { services }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = incoming::accept(listener, tls);
    server.add_service(agent).serve_with_incoming_shutdown(incoming, ended).await?;
    Ok(())
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
    let address = peer_of(request).map(|peer| peer.address.ip());
    Call { actor, address, ..Call::system(now_ms()) }
}

/// The other end of the request's connection; there always is one but in tests.
fn peer_of<T>(request: &Request<T>) -> Option<&Peer> {
    request.extensions().get()
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
