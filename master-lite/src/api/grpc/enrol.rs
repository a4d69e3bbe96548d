//! `Enroll`: a join token, or a client certificate, for the right to use a credential that the agent has made.

use std::sync::Arc;

use proto::fleet::limits::LABEL_BYTES_MAX;
use proto::fleet::{NodeId, limits};
use proto::v1::{EnrollRequest, EnrollResponse};
use tonic::{Request, Response, Status};

use super::{ask, call_of, peer_of};
use crate::service::Services;
use crate::service::call::Actor;
use crate::service::nodes::{About, Enrolment};

/// Answers one request.
pub(super) async fn enrol(
    services: &Arc<Services>,
    request: Request<EnrollRequest>,
) -> Result<Response<EnrollResponse>, Status> {
    let call = call_of(&request, Actor::Anonymous);
    let certificate = peer_of(&request).and_then(|peer| peer.certificate.clone());
    let request = request.into_inner();
    let node_id = request.node_id.clone();
    let wish = read(request);
    ask(services, move |services| services.enrol(&call, wish, certificate.as_deref())).await?;
    tracing::info!(node = node_id, "a node has enrolled");
    let master_version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Response::new(EnrollResponse { node_id, master_version }))
}

fn read(request: EnrollRequest) -> Result<Enrolment, (&'static str, String)> {
    let role = request.role().into();
    let id: NodeId = request.node_id.parse().map_err(|error| ("node_id", format!("node_id: {error}")))?;
    let verifier = <[u8; 32]>::try_from(request.credential_sha256.as_ref())
        .map_err(|_| ("credential_sha256", "credential_sha256 is to have 32 bytes".to_owned()))?;
    let about = About {
        hostname: limits::clipped(&request.hostname, LABEL_BYTES_MAX).to_owned(),
        agent_version: limits::clipped(&request.agent_version, LABEL_BYTES_MAX).to_owned(),
        ..About::default()
    };
    Ok(Enrolment { id, join_token: request.join_token, verifier, role, region: request.region, about })
}
