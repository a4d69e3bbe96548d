//! `Session`: the one stream of an enrolled agent, from its `Register` to whoever ends it.
//!
//! ```text
//!   credential known → Register in time → Welcome → loop { agent's message | wanted config | command | silence | end }
//! ```
//! Each session is a task of its own. It waits for its own agent only: what is sent to an agent that does not read waits
//! so long, and then the session ends.

use std::sync::Arc;
use std::time::Duration;

use proto::fleet::limits::{self, OFFLINE_AFTER_HEARTBEATS, REGISTER_TIMEOUT};
use proto::fleet::{BEARER, NodeCredential, PROTOCOL_REVISION, Pieces, capability};
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{
    AgentMessage, ConfigState, Goodbye, GoodbyeReason, Heartbeat, HeartbeatAck, Intervals, MasterMessage,
    Register, Welcome,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::{ask, call_of, peer_of};
use crate::keys;
use crate::service::call::{Actor, Call, now_ms};
use crate::service::convergence::NodeConfigRecord;
use crate::service::nodes::About;
use crate::service::refusal::{Kind, Refusal};
use crate::service::sessions::Ticket;
use crate::service::{Claim, Services};

/// Messages between the session's task and the connection: what waits longer waits in the session's queue.
const OUTBOX_MESSAGES: usize = 4;

/// An agent that takes no message for so long is too slow: a config of the longest kind takes a slow line seconds.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

type Outbox = mpsc::Sender<Result<MasterMessage, Status>>;

/// A session that has begun.
struct Session {
    services: Arc<Services>,
    node: String,
    ticket: Ticket,
    outbox: Outbox,
    /// What the node says of its configs, kept to piece acks and nacks into it.
    config: ConfigState,
    /// What has come of a report.
    pieces: Pieces,
}

/// Why a session ends.
enum End {
    /// The agent said goodbye.
    Left,
    /// The stream broke, or the agent closed it.
    Broken,
    /// Nothing was heard for three heartbeats.
    Silent,
    /// The agent does not read.
    Slow,
    /// We end it.
    Told(GoodbyeReason),
    /// The agent, or the store, made it impossible to go on.
    Failed(Status),
}

/// Opens a session: checks the credential or the client certificate, and waits for `Register` in a task, so that the
/// answer's headers are sent.
pub(super) async fn open(
    services: Arc<Services>,
    request: Request<Streaming<AgentMessage>>,
) -> Result<Response<ReceiverStream<Result<MasterMessage, Status>>>, Status> {
    let call = call_of(&request, Actor::Anonymous);
    let certificate = peer_of(&request).and_then(|peer| peer.certificate.clone());
    let (credential, by) = (credential(request.metadata()), call.clone());
    let claim = ask(&services, move |services| {
        let claim = credential.map(|credential| Claim { credential, certificate });
        services.admit(&by, claim.as_ref(), None)?;
        claim
    })
    .await?;
    let (outbox, answers) = mpsc::channel(OUTBOX_MESSAGES);
    tokio::spawn(hold(services, claim, call, request.into_inner(), outbox));
    Ok(Response::new(ReceiverStream::new(answers)))
}

async fn hold(
    services: Arc<Services>,
    claim: Claim,
    call: Call,
    mut inbound: Streaming<AgentMessage>,
    outbox: Outbox,
) {
    let address = call.address;
    let begun = begin(services, claim, call, &mut inbound, &outbox).await;
    let mut session = match begun {
        Ok(session) => session,
        Err(status) => {
            tracing::info!(?address, %status, "no session");
            // Nobody listens any more where it fails.
            let _ = outbox.try_send(Err(status));
            return;
        }
    };
    tracing::info!(node = session.node, ?address, "an agent is connected");
    let end = session.run(inbound).await;
    session.finish(end).await;
}

async fn begin(
    services: Arc<Services>,
    claim: Claim,
    call: Call,
    inbound: &mut Streaming<AgentMessage>,
    outbox: &Outbox,
) -> Result<Session, Status> {
    let register = first(inbound).await?;
    check(&register)?;
    let (at_ms, address) = (now_ms(), call.address);
    let call = Call { at_ms, ..call };
    let about = about(&register);
    let (role, region, node) = (register.role().into(), register.region.clone(), register.node_id.clone());
    let id = node.clone();
    ask(&services, move |services| {
        services.admit(&call, Ok(&claim), Some(&id))?;
        let certificate = claim.certificate.map(|certificate| certificate.kept());
        services.nodes.note(&id, role, &region, &about, certificate, at_ms)
    })
    .await?;
    let ticket = services.sessions.open(&node, address, at_ms);
    let mut session = Session {
        services,
        node,
        ticket,
        outbox: outbox.clone(),
        config: register.config.clone().unwrap_or_default(),
        pieces: Pieces::default(),
    };
    let begun = session.welcome(&register, at_ms).await;
    match begun {
        Ok(()) => Ok(session),
        Err(end) => {
            let status = Status::unavailable("the session could not begin");
            session.finish(end).await;
            Err(status)
        }
    }
}

impl Session {
    async fn welcome(&mut self, register: &Register, at_ms: u64) -> Result<(), End> {
        self.hear(at_ms, |live| live.dataplane.clone_from(&register.dataplane));
        let interval_ms = u64::try_from(self.heartbeat().as_millis()).unwrap_or(u64::MAX);
        let session_id: String = keys::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let welcome = Welcome {
            protocol_revision: PROTOCOL_REVISION,
            session_id,
            master_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: vec![capability::METRICS_PIECES.to_owned()],
            intervals: Some(Intervals {
                heartbeat_interval_ms: interval_ms,
                metrics_interval_ms: interval_ms,
            }),
            server_time_unix_ms: at_ms,
        };
        self.tell(Told::Welcome(welcome)).await?;
        self.note_config(at_ms).await?;
        let (node, instance) = (&self.node, &register.instance_id);
        let ids: Vec<String> =
            register.command_ids.iter().take(limits::COMMAND_RESULTS_KEPT_MAX).cloned().collect();
        self.services.sessions.tell(|listener| listener.handle_connected(node, instance, &ids, at_ms));
        let id = self.node.clone();
        ask(&self.services, move |services| services.publishes.tell(&id)).await.map_err(End::Failed)
    }

    async fn run(&mut self, mut inbound: Streaming<AgentMessage>) -> End {
        let patience = self.heartbeat() * OFFLINE_AFTER_HEARTBEATS;
        let mut silent_at = Instant::now() + patience;
        loop {
            let step = tokio::select! {
                // Being told to end comes before everything that may be waiting.
                biased;
                _ = self.ticket.end.changed() => {
                    let reason = self.ticket.end.borrow_and_update().unwrap_or(GoodbyeReason::Stopping);
                    Err(End::Told(reason))
                }
                said = inbound.message() => {
                    silent_at = Instant::now() + patience;
                    self.handle(said).await
                }
                Ok(()) = self.ticket.wanted.changed() => self.offer().await,
                Some(message) = self.ticket.queue.recv() => self.send(message).await,
                () = sleep_until(silent_at) => Err(End::Silent),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Sends what the node should have, unless it has it, or has refused it.
    async fn offer(&mut self) -> Result<(), End> {
        let Some(offer) = self.ticket.wanted.borrow_and_update().clone() else { return Ok(()) };
        let applied = self.config.applied.as_ref();
        let has_it = applied
            .is_some_and(|config| config.revision == offer.revision && config.sha256 == offer.sha256[..]);
        let refused = self.config.refused.as_ref().and_then(|nack| nack.config.as_ref());
        if has_it || refused.is_some_and(|config| config.revision == offer.revision) {
            return Ok(());
        }
        tracing::debug!(node = self.node, version = offer.version, revision = offer.revision, "offered");
        self.tell(Told::ConfigOffer(offer.message())).await
    }

    async fn handle(&mut self, said: Result<Option<AgentMessage>, Status>) -> Result<(), End> {
        let mut said = match said {
            Ok(Some(AgentMessage { kind: Some(kind) })) => kind,
            Ok(Some(AgentMessage { kind: None })) => {
                tracing::debug!(node = self.node, "a message of an unknown kind is ignored");
                return Ok(());
            }
            Ok(None) => return Err(End::Broken),
            Err(status) => {
                tracing::debug!(node = self.node, %status, "the stream broke");
                return Err(End::Broken);
            }
        };
        let at_ms = now_ms();
        self.hear(at_ms, |_| {});
        if let Said::MetricsPiece(piece) = &said {
            let joined = self.pieces.add(piece).map_err(|error| {
                End::Failed(Status::invalid_argument(format!("metrics_piece.data: {error}")))
            })?;
            let Some(report) = joined else { return Ok(()) };
            said = Said::Metrics(report);
        }
        self.note(&said, at_ms).await?;
        self.services.sessions.tell(|listener| listener.handle_message(&self.node, &said, at_ms));
        Ok(())
    }

    /// Takes what is this task's to know; the rest is for the listeners.
    async fn note(&mut self, said: &Said, at_ms: u64) -> Result<(), End> {
        match said {
            Said::Register(_) => {
                let message = "register: it comes once, and first";
                return Err(End::Failed(Status::invalid_argument(message)));
            }
            Said::Heartbeat(heartbeat) => return self.handle_heartbeat(heartbeat, at_ms).await,
            Said::ConfigAck(ack) => {
                self.config.applied.clone_from(&ack.config);
                self.config.generation = ack.generation;
                self.config.pending = None;
                self.config.refused = None;
                self.config.drifted = false;
            }
            Said::ConfigNack(nack) => {
                let config = nack.config.clone().unwrap_or_default();
                tracing::warn!(
                    node = self.node,
                    version = config.version,
                    reason = nack.message,
                    "refused a config"
                );
                self.config.refused = Some(nack.clone());
                self.config.pending = None;
            }
            Said::ConfigDeferred(deferred) => {
                self.config.pending.clone_from(&deferred.config);
                self.config.pending_reason.clone_from(&deferred.reason);
            }
            Said::Leaving(_) => return Err(End::Left),
            // Pieces have become reports before.
            Said::Metrics(_) | Said::MetricsPiece(_) | Said::CommandOutput(_) | Said::CommandResult(_) => {
                return Ok(());
            }
        }
        self.note_config(at_ms).await
    }

    async fn handle_heartbeat(&mut self, heartbeat: &Heartbeat, at_ms: u64) -> Result<(), End> {
        let problems = heartbeat.problems.iter().take(limits::PROBLEMS_MAX);
        let problems =
            problems.map(|problem| limits::clipped(problem, limits::MESSAGE_TEXT_BYTES_MAX).to_owned());
        let problems: Vec<String> = problems.collect();
        self.hear(at_ms, |live| {
            live.problems = problems;
            live.host.clone_from(&heartbeat.host);
            live.dataplane.clone_from(&heartbeat.dataplane);
            live.round_trip_us = heartbeat.round_trip_us;
        });
        self.tell(Told::HeartbeatAck(HeartbeatAck { sequence: heartbeat.sequence })).await?;
        if let Some(config) = &heartbeat.config {
            self.config.clone_from(config);
            self.note_config(at_ms).await?;
        }
        Ok(())
    }

    async fn note_config(&self, at_ms: u64) -> Result<(), End> {
        let (said, node) = (NodeConfigRecord::of(&self.config, at_ms), self.node.clone());
        ask(&self.services, move |services| services.publishes.note(&node, &said)).await.map_err(End::Failed)
    }

    fn hear(&self, at_ms: u64, change: impl FnOnce(&mut crate::service::sessions::Live)) {
        self.services.sessions.hear(&self.node, at_ms, change);
    }

    fn heartbeat(&self) -> Duration {
        self.services.sessions.heartbeat()
    }

    async fn tell(&self, told: Told) -> Result<(), End> {
        self.send(MasterMessage { kind: Some(told) }).await
    }

    async fn send(&self, message: MasterMessage) -> Result<(), End> {
        match timeout(SEND_TIMEOUT, self.outbox.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Broken),
            Err(_) => Err(End::Slow),
        }
    }

    /// Says goodbye where there is somebody to hear it, and tells everybody that the session is over.
    async fn finish(&self, end: End) {
        let at_ms = now_ms();
        let has_left = matches!(end, End::Left);
        let why = match end {
            End::Left => "the agent said goodbye",
            End::Broken => "the stream broke",
            End::Silent => "nothing was heard for three heartbeats",
            End::Slow => self.say_goodbye(GoodbyeReason::TooSlow),
            End::Told(reason) => self.say_goodbye(reason),
            End::Failed(status) => {
                let _ = self.outbox.try_send(Err(status));
                "it failed"
            }
        };
        tracing::info!(node = self.node, why, "an agent's session is over");
        if !self.services.sessions.close(&self.node, &self.ticket, has_left) {
            return;
        }
        self.services.sessions.tell(|listener| listener.handle_disconnected(&self.node, at_ms));
        let id = self.node.clone();
        // What is lost if it fails is when the node was seen last.
        let _ = ask(&self.services, move |services| services.nodes.note_seen(&id, at_ms)).await;
    }

    fn say_goodbye(&self, reason: GoodbyeReason) -> &'static str {
        let goodbye = Goodbye { reason: reason.into(), retry_after_ms: 0 };
        // An agent that does not read misses it.
        let _ = self.outbox.try_send(Ok(MasterMessage { kind: Some(Told::Goodbye(goodbye)) }));
        reason.as_str_name()
    }
}

/// The credential in the request, if there is one.
fn credential(metadata: &MetadataMap) -> Result<Option<NodeCredential>, Refusal> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let text = value.to_str().ok().and_then(|text| text.strip_prefix(BEARER));
    let credential = text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        let message = "is to be `Bearer` and the node's credential";
        Refusal::of(Kind::Unauthenticated, "authorization", "malformed", message)
    })?;
    Ok(Some(credential))
}

async fn first(inbound: &mut Streaming<AgentMessage>) -> Result<Register, Status> {
    match timeout(REGISTER_TIMEOUT, inbound.message()).await {
        Ok(Ok(Some(AgentMessage { kind: Some(Said::Register(register)) }))) => Ok(register),
        Ok(Ok(_)) => Err(Status::invalid_argument("register: it comes first")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("register: it did not come in time")),
    }
}

fn check(register: &Register) -> Result<(), Status> {
    if register.protocol_revision < 1 {
        return Err(Status::failed_precondition("protocol_revision: there is no common one"));
    }
    if register.capabilities.len() > limits::CAPABILITIES_MAX {
        return Err(Status::invalid_argument("capabilities: there are too many"));
    }
    Ok(())
}

fn about(register: &Register) -> About {
    let clipped = |text: &str| limits::clipped(text, limits::LABEL_BYTES_MAX).to_owned();
    let host = register.host.clone().unwrap_or_default();
    let dataplane = register.dataplane.clone().unwrap_or_default();
    About {
        hostname: clipped(&host.hostname),
        kernel_version: clipped(&host.kernel_version),
        architecture: clipped(&host.architecture),
        cpus: host.cpus,
        memory_bytes: host.memory_bytes,
        agent_version: clipped(&register.agent_version),
        dataplane_version: clipped(&dataplane.version),
        capabilities: register.capabilities.iter().map(|name| clipped(name)).collect(),
    }
}
