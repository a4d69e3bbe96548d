//! `Session`: the one stream of an enrolled agent, from its `Register` to whoever ends it.
//!
//! ```text
//!   credential known → Register in time → Welcome → loop { agent's message | wanted config | command | silence | end }
//! ```
//! What a message comes to is decided by its `Dialogue`. Each session is a task of its own. It waits for its own agent
//! only: what is sent to an agent that does not read waits so long, and then the session ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::fleet::limits::{self, OFFLINE_AFTER_HEARTBEATS, REGISTER_TIMEOUT};
use proto::fleet::{BEARER, NodeCredential, capability};
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{AgentMessage, CredentialChange, Goodbye, GoodbyeReason, MasterMessage, Register, Role};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{ask, call_of, peer_of};
use crate::keys;
use crate::service::admission::{Changed, Confirmed, NEWCOMER_WAITS_MS, Registration};
use crate::service::call::{Actor, Call, now_ms};
use crate::service::convergence::NodeConfigRecord;
use crate::service::dialogue::{self, Dialogue, Heard, Over};
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
    /// Who opened it, from where.
    call: Call,
    node: String,
    /// Which start of the agent it is.
    instance: Bytes,
    ticket: Ticket,
    outbox: Outbox,
    dialogue: Dialogue,
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
    /// The agent said what no agent says: the field, and what is wrong.
    Rubbish(String),
    /// The store made it impossible to go on.
    Failed(Status),
}

impl From<Over> for End {
    fn from(over: Over) -> Self {
        match over {
            Over::Left => Self::Left,
            Over::Rubbish(why) => Self::Rubbish(why),
        }
    }
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
    let register = match first(inbound).await {
        Ok(register) => register,
        Err(status) => {
            if is_rubbish(&status) {
                let node = claim.credential.map_or(String::new(), |credential| credential.node().to_string());
                let call = Call { at_ms: now_ms(), ..call };
                note_rubbish(&services, call, node, status.message().to_owned()).await;
            }
            return Err(status);
        }
    };
    let (at_ms, node) = (now_ms(), register.node_id.clone());
    let call = Call { at_ms, ..call };
    let (by, registration) = (call.clone(), registration(&register, at_ms));
    let admitted = ask(&services, move |services| services.register(&by, &claim, &registration)).await?;
    let call = Call { actor: Actor::Node(node.clone()), ..call };
    let ticket = services.sessions.open(&node, call.address, at_ms);
    let (outbox, dialogue) = (outbox.clone(), Dialogue::begin(&register, admitted));
    let instance = register.instance_id.clone();
    let mut session = Session { services, call, node, instance, ticket, outbox, dialogue };
    let begun = session.welcome(register, at_ms).await;
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
    async fn welcome(&mut self, register: Register, at_ms: u64) -> Result<(), End> {
        let (instance, ids) = (register.instance_id.clone(), register.command_ids.clone());
        self.services.sessions.hear(&self.node, &Said::Register(register), at_ms);
        let session_id: String = keys::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let heartbeat = self.services.sessions.heartbeat();
        self.tell(Told::Welcome(dialogue::welcome(session_id, heartbeat, at_ms))).await?;
        self.note_config(self.dialogue.config(at_ms)).await?;
        let ids = &ids[..ids.len().min(limits::COMMAND_RESULTS_KEPT_MAX)];
        let node = &self.node;
        self.services.sessions.tell(|listener| listener.handle_connected(node, &instance, ids, at_ms));
        let id = self.node.clone();
        ask(&self.services, move |services| services.publishes.tell(&id)).await.map_err(End::Failed)
    }

    async fn run(&mut self, mut inbound: Streaming<AgentMessage>) -> End {
        let patience = self.services.sessions.heartbeat() * OFFLINE_AFTER_HEARTBEATS;
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
        let Some(wanted) = self.ticket.wanted.borrow_and_update().clone() else { return Ok(()) };
        let Some(offer) = self.dialogue.offer(&wanted) else { return Ok(()) };
        tracing::debug!(node = self.node, version = wanted.version, revision = wanted.revision, "offered");
        self.tell(Told::ConfigOffer(offer)).await
    }

    async fn handle(&mut self, said: Result<Option<AgentMessage>, Status>) -> Result<(), End> {
        let said = match said {
            Ok(Some(AgentMessage { kind: Some(kind) })) => kind,
            Ok(Some(AgentMessage { kind: None })) => {
                tracing::debug!(node = self.node, "a message of an unknown kind is ignored");
                return Ok(());
            }
            Ok(None) => return Err(End::Broken),
            Err(status) if is_rubbish(&status) => return Err(End::Rubbish(status.message().to_owned())),
            Err(status) => {
                tracing::debug!(node = self.node, %status, "the stream broke");
                return Err(End::Broken);
            }
        };
        let at_ms = now_ms();
        self.services.sessions.hear(&self.node, &said, at_ms);
        let Heard { answer, config, said, is_first } = self.dialogue.handle(said, at_ms)?;
        if let Some(answer) = answer {
            self.tell(answer).await?;
        }
        if is_first {
            self.confirm(at_ms).await?;
        }
        if let Some(Said::CredentialChange(change)) = &said {
            self.change_credential(change.clone(), at_ms).await?;
        }
        if let Some(wanted) = self.dialogue.poll_credential(at_ms) {
            self.tell(wanted).await?;
        }
        if let Some(Said::ConfigNack(nack)) = &said {
            let (version, reason) = (nack.config.as_ref().map(|config| &config.version), &nack.message);
            tracing::warn!(node = self.node, version, reason, "refused a config");
        }
        if let Some(config) = config {
            self.note_config(config).await?;
        }
        if let Some(said) = said {
            self.services.sessions.tell(|listener| listener.handle_message(&self.node, &said, at_ms));
        }
        Ok(())
    }

    /// The agent lives: whether it is the only one with its credential.
    async fn confirm(&mut self, at_ms: u64) -> Result<(), End> {
        let (call, node) = (Call { at_ms, ..self.call.clone() }, self.node.clone());
        let instance = self.instance.clone();
        let asked =
            ask(&self.services, move |services| services.nodes.confirm(&call, &node, &instance)).await;
        match asked.map_err(End::Failed)? {
            Confirmed::Known => {}
            Confirmed::Newcomer => self.dialogue.delay_credential(at_ms + NEWCOMER_WAITS_MS),
            Confirmed::Copied => self.dialogue.hurry_credential(),
        }
        Ok(())
    }

    async fn change_credential(&mut self, change: CredentialChange, at_ms: u64) -> Result<(), End> {
        let node = self.node.clone();
        let changed = ask(&self.services, move |services| services.change_credential(&node, &change, at_ms));
        match changed.await.map_err(End::Failed)? {
            Changed::Taken(answer) => self.tell(answer).await?,
            Changed::Kept(change_at_ms) => self.dialogue.set_credential_change(change_at_ms),
            Changed::Nothing => {}
        }
        Ok(())
    }

    async fn note_config(&self, said: NodeConfigRecord) -> Result<(), End> {
        let node = self.node.clone();
        ask(&self.services, move |services| services.publishes.note(&node, &said)).await.map_err(End::Failed)
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
            End::Rubbish(why) => {
                tracing::warn!(node = self.node, why, "an agent is not understood");
                let _ = self.outbox.try_send(Err(Status::invalid_argument(why.clone())));
                let call = Call { at_ms, ..self.call.clone() };
                note_rubbish(&self.services, call, self.node.clone(), why).await;
                "it was not understood"
            }
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
        Ok(Ok(Some(AgentMessage { kind: Some(Said::Register(register)) }))) => {
            dialogue::check(&register).map_err(|why| match register.protocol_revision {
                0 => Status::failed_precondition(why),
                _ => Status::invalid_argument(why),
            })?;
            Ok(register)
        }
        Ok(Ok(_)) => Err(Status::invalid_argument("register: it comes first")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("register: it did not come in time")),
    }
}

/// Whether a message could not be read, or was none that belongs there: no network does that.
fn is_rubbish(status: &Status) -> bool {
    use Code::{FailedPrecondition, Internal, InvalidArgument, OutOfRange};
    matches!(status.code(), OutOfRange | Internal | InvalidArgument | FailedPrecondition)
}

/// Notes in the audit log what an agent said that no agent says.
async fn note_rubbish(services: &Arc<Services>, call: Call, node: String, why: String) {
    let noted = ask(services, move |services| {
        services.audit.note_repeated(&call, "nodes.session", &node, &why);
        Ok(())
    });
    // It has logged its own failure.
    let _ = noted.await;
}

/// What a registration says, for the rules.
pub(crate) fn registration(register: &Register, at_ms: u64) -> Registration {
    Registration {
        node: register.node_id.clone(),
        instance_id: register.instance_id.to_vec(),
        role: (register.role != i32::from(Role::Unspecified)).then(|| register.role().into()),
        region: register.region.clone(),
        can_change: register.capabilities.iter().any(|known| known == capability::CREDENTIAL_CHANGE),
        about: about(register),
        at_ms,
    }
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
