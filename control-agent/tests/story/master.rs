//! A master for stories: a real tonic server that enrols, welcomes, offers and notes, and can be killed and started again
//! at its address with what it knew.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::fleet::limits::METRICS_PIECE_BYTES_MAX;
use proto::fleet::{BEARER, ConfigDigest, NodeCredential, Pieces, Verifier, capability};
use proto::v1::agent_server::{Agent, AgentServer};
use proto::v1::{self, agent_message, master_message};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::edge::{LOOK_EVERY, PATIENCE};

/// Good for one enrolment.
pub(crate) const TOKEN: &str = "mrj1.t1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Much shorter than an operator's, so that stories are short.
const HEARTBEAT_MS: u64 = 200;

/// What a master knows, over its restarts.
#[derive(Default)]
pub(crate) struct Knowledge {
    pub(crate) enrolled: BTreeMap<String, Verifier>,
    pub(crate) used_tokens: BTreeMap<String, Verifier>,
    pub(crate) enrolments: u64,
    pub(crate) registers: Vec<v1::Register>,
    pub(crate) heartbeats: Vec<v1::Heartbeat>,
    pub(crate) metrics: Vec<v1::Metrics>,
    /// Of the agents that have registered, in that order.
    pub(crate) certificates: Vec<Option<Vec<u8>>>,
    /// Of reports that came in pieces.
    pub(crate) pieces_count: usize,
    pieces: Pieces,
    /// Knows no more than the protocol's first revision.
    pub(crate) is_old: bool,
    pub(crate) acks: Vec<v1::ConfigAck>,
    pub(crate) nacks: Vec<v1::ConfigNack>,
    pub(crate) deferred: Vec<v1::ConfigDeferred>,
    pub(crate) output: BTreeMap<String, Vec<u8>>,
    pub(crate) results: BTreeMap<String, v1::CommandResult>,
    pub(crate) leavings: Vec<v1::LeavingReason>,
    /// What agents have made, and what they have kept.
    pub(crate) next_credentials: Vec<Verifier>,
    pub(crate) kept_credentials: Vec<Verifier>,
    /// The next enrolment is refused for its credential; those that were.
    pub(crate) refuses_once: bool,
    pub(crate) refused_credentials: Vec<Verifier>,
    /// A new credential is not taken: the answer is lost.
    pub(crate) takes_no_credential: bool,
    /// What agents are told; 0: [`HEARTBEAT_MS`].
    pub(crate) heartbeat_ms: u64,
    desired: Option<v1::ConfigOffer>,
    revisions: u64,
    session: Option<mpsc::Sender<Result<v1::MasterMessage, Status>>>,
}

#[derive(Clone)]
struct Service {
    knowledge: Arc<Mutex<Knowledge>>,
    takes_certificates: bool,
}

/// Certificates for a master that knows its agents by theirs.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) ca: String,
    pub(crate) server: (String, String),
}

pub(crate) struct Master {
    pub(crate) addr: SocketAddr,
    knowledge: Arc<Mutex<Knowledge>>,
    runtime: Option<Runtime>,
    tls: Option<Tls>,
}

impl Master {
    pub(crate) fn start() -> Self {
        Self::start_with(None)
    }

    pub(crate) fn start_with(tls: Option<Tls>) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut master = Self { addr, knowledge: Arc::default(), runtime: None, tls };
        master.restart();
        master
    }

    /// At the same address, with the same knowledge.
    pub(crate) fn restart(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => return listener,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        self.addr = listener.local_addr().unwrap();
        let service =
            Service { knowledge: Arc::clone(&self.knowledge), takes_certificates: self.tls.is_some() };
        let mut server = Server::builder();
        if let Some(Tls { ca, server: (certificate, key) }) = &self.tls {
            let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            server = server.tls_config(tls.client_ca_root(Certificate::from_pem(ca))).unwrap();
        }
        let serving = server.add_service(AgentServer::new(service));
        runtime.spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        self.runtime = Some(runtime);
    }

    /// As kill -9: every connection is reset, nothing is said.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
        // Also where this master has found a mistake, and the story ends with it.
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner).session = None;
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    pub(crate) fn knowledge(&self) -> MutexGuard<'_, Knowledge> {
        self.knowledge.lock().unwrap()
    }

    /// Waits until the master knows this, and returns it.
    #[track_caller]
    pub(crate) fn await_some<T>(&self, what: &str, look: impl Fn(&Knowledge) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(&self.knowledge()) {
                return found;
            }
            assert!(Instant::now() < deadline, "the master does not come to know: {what}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[track_caller]
    pub(crate) fn await_registers(&self, count: usize) -> v1::Register {
        self.await_some("a registration", |known| known.registers.get(count - 1).cloned())
    }

    /// A config is wanted from now on.
    pub(crate) fn publish(&self, text: &str) -> u64 {
        let sha256 = ConfigDigest::of(text.as_bytes()).as_bytes().to_vec();
        self.publish_as(text, sha256)
    }

    pub(crate) fn publish_as(&self, text: &str, sha256: Vec<u8>) -> u64 {
        let mut known = self.knowledge();
        known.revisions += 1;
        let revision = known.revisions;
        let config = v1::ConfigRef { revision, version: format!("v{revision}"), sha256: sha256.into() };
        known.desired = Some(v1::ConfigOffer { config: Some(config), text: text.as_bytes().to_vec().into() });
        known.offer();
        revision
    }

    pub(crate) fn offer_again(&self) {
        self.knowledge().offer();
    }

    #[track_caller]
    pub(crate) fn await_ack(&self, revision: u64) -> v1::ConfigAck {
        self.await_some(&format!("the ack of {revision}"), |known| {
            known.acks.iter().find(|ack| ack.config.as_ref().unwrap().revision == revision).cloned()
        })
    }

    #[track_caller]
    pub(crate) fn await_nack(&self, revision: u64) -> v1::ConfigNack {
        self.await_some(&format!("the nack of {revision}"), |known| {
            known.nacks.iter().find(|nack| nack.config.as_ref().unwrap().revision == revision).cloned()
        })
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn command(&self, id: &str, kind: v1::CommandKind) -> (v1::CommandResult, String) {
        self.begin_command(id, kind, 10_000);
        self.await_result(id)
    }

    pub(crate) fn begin_command(&self, id: &str, kind: v1::CommandKind, deadline_ms: u64) {
        let command = v1::Command { command_id: id.to_owned(), kind: kind.into(), deadline_ms, log_lines: 5 };
        self.knowledge().say(master_message::Kind::Command(command));
    }

    pub(crate) fn cancel_command(&self, id: &str) {
        let cancel = v1::CommandCancel { command_id: id.to_owned() };
        self.knowledge().say(master_message::Kind::CommandCancel(cancel));
    }

    #[track_caller]
    pub(crate) fn await_result(&self, id: &str) -> (v1::CommandResult, String) {
        let result = self.await_some("a result", |known| known.results.get(id).cloned());
        let output = self.knowledge().output.get(id).cloned().unwrap_or_default();
        (result, String::from_utf8(output).unwrap())
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Knowledge {
    fn say(&self, kind: master_message::Kind) {
        if let Some(session) = &self.session {
            // Full or gone: the stories look at what comes of it.
            let _ = session.try_send(Ok(v1::MasterMessage { kind: Some(kind) }));
        }
    }

    fn offer(&self) {
        if let Some(offer) = &self.desired {
            self.say(master_message::Kind::ConfigOffer(offer.clone()));
        }
    }

    fn hear(&mut self, kind: agent_message::Kind) {
        match kind {
            agent_message::Kind::Register(_) => panic!("registered twice"),
            agent_message::Kind::Heartbeat(heartbeat) => {
                let sequence = heartbeat.sequence;
                self.heartbeats.push(heartbeat);
                self.say(master_message::Kind::HeartbeatAck(v1::HeartbeatAck { sequence }));
            }
            agent_message::Kind::Metrics(metrics) => self.metrics.push(metrics),
            agent_message::Kind::MetricsPiece(piece) => {
                assert!(piece.data.len() <= METRICS_PIECE_BYTES_MAX, "a piece is too long");
                self.pieces_count += 1;
                self.metrics.extend(self.pieces.add(&piece).unwrap());
            }
            agent_message::Kind::ConfigAck(ack) => self.acks.push(ack),
            agent_message::Kind::ConfigNack(nack) => self.nacks.push(nack),
            agent_message::Kind::ConfigDeferred(deferred) => self.deferred.push(deferred),
            agent_message::Kind::CommandOutput(output) => {
                self.output.entry(output.command_id).or_default().extend_from_slice(&output.data);
            }
            agent_message::Kind::CommandResult(result) => {
                self.results.insert(result.command_id.clone(), result);
            }
            agent_message::Kind::CredentialChange(change) => self.change_credential(&change),
            agent_message::Kind::Leaving(leaving) => self.leavings.push(leaving.reason()),
        }
    }
}

impl Knowledge {
    /// The agent is to make another credential.
    pub(crate) fn want_credential(&self) {
        self.say(master_message::Kind::CredentialWanted(v1::CredentialWanted {}));
    }

    fn change_credential(&mut self, change: &v1::CredentialChange) {
        let verifier = Verifier::from_bytes(&change.sha256).unwrap();
        match change.step() {
            v1::CredentialStep::Made => {
                self.next_credentials.push(verifier);
                if !self.takes_no_credential {
                    let taken = v1::CredentialTaken { sha256: change.sha256.clone() };
                    self.say(master_message::Kind::CredentialTaken(taken));
                }
            }
            v1::CredentialStep::Kept => self.kept_credentials.push(verifier),
            v1::CredentialStep::Unspecified => panic!("a step that is none"),
        }
    }

    fn knows(&self, credential: &NodeCredential) -> bool {
        let verifier = credential.verifier();
        self.enrolled.get(credential.node().as_str()) == Some(&verifier)
            || self.next_credentials.contains(&verifier)
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let has_certificate = self.takes_certificates && request.peer_certs().is_some();
        let request = request.into_inner();
        let verifier = Verifier::from_bytes(&request.credential_sha256)
            .ok_or_else(|| Status::invalid_argument("credential_sha256: not 32 bytes"))?;
        let mut known = self.knowledge.lock().unwrap();
        known.enrolments += 1;
        if std::mem::take(&mut known.refuses_once) {
            known.refused_credentials.push(verifier);
            return Err(Status::permission_denied("credential_sha256: this credential was used before"));
        }
        let is_free = *known.used_tokens.entry(request.join_token.clone()).or_insert(verifier) == verifier;
        if !has_certificate && (request.join_token != TOKEN || !is_free) {
            return Err(Status::unauthenticated("join_token: not known, or used"));
        }
        known.enrolled.insert(request.node_id.clone(), verifier);
        Ok(Response::new(v1::EnrollResponse { node_id: request.node_id, master_version: "story".to_owned() }))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::MasterMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let certificate = request.peer_certs().and_then(|chain| Some(chain.first()?.to_vec()));
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let credential = bearer.and_then(|value| value.strip_prefix(BEARER)).unwrap_or_default();
        let credential: NodeCredential =
            credential.parse().map_err(|_| Status::unauthenticated("no credential"))?;
        if !self.knowledge.lock().unwrap().knows(&credential) {
            return Err(Status::unauthenticated("not enrolled"));
        }
        let mut messages = request.into_inner();
        let (to_agent, said) = mpsc::channel(64);
        let knowledge = Arc::clone(&self.knowledge);
        tokio::spawn(async move {
            let mut is_registered = false;
            while let Ok(Some(message)) = messages.message().await {
                let mut known = knowledge.lock().unwrap();
                let kind = message.kind.unwrap();
                if let (agent_message::Kind::Register(register), false) = (&kind, is_registered) {
                    is_registered = true;
                    known.certificates.push(certificate.clone());
                    // What has come of a report ends with its session.
                    known.pieces = Pieces::default();
                    known.register(register.clone(), &to_agent);
                } else {
                    known.hear(kind);
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

impl Knowledge {
    fn register(
        &mut self,
        register: v1::Register,
        to_agent: &mpsc::Sender<Result<v1::MasterMessage, Status>>,
    ) {
        self.session = Some(to_agent.clone());
        let interval_ms = if self.heartbeat_ms == 0 { HEARTBEAT_MS } else { self.heartbeat_ms };
        let intervals =
            v1::Intervals { heartbeat_interval_ms: interval_ms, metrics_interval_ms: interval_ms };
        self.say(master_message::Kind::Welcome(v1::Welcome {
            protocol_revision: 1,
            session_id: self.registers.len().to_string(),
            intervals: Some(intervals),
            capabilities: if self.is_old { Vec::new() } else { vec![capability::METRICS_PIECES.to_owned()] },
            ..v1::Welcome::default()
        }));
        let applied = register.config.as_ref().and_then(|config| config.applied.clone());
        if self.desired.as_ref().and_then(|desired| desired.config.clone()) != applied {
            self.offer();
        }
        self.registers.push(register);
    }
}

/// Certificates of an authority and of a master on 127.0.0.1, and how to get one for an agent, with its key.
pub(crate) fn certificates() -> (Tls, impl Fn(&str) -> (String, String)) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let issue = move |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (certificate.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    (Tls { ca, server: issue("127.0.0.1") }, issue)
}

/// A wire between an agent and its master that can be cut without anybody being told.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    is_cut: Arc<std::sync::atomic::AtomicBool>,
    _runtime: Runtime,
}

impl Relay {
    pub(crate) fn to(master: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let addr = listener.local_addr().unwrap();
        let is_cut = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        runtime.spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                let cut = Arc::clone(&cut);
                tokio::spawn(async move {
                    let Ok(master) = tokio::net::TcpStream::connect(master).await else { return };
                    let (agent_in, agent_out) = agent.into_split();
                    let (master_in, master_out) = master.into_split();
                    tokio::join!(
                        pass(agent_in, master_out, Arc::clone(&cut)),
                        pass(master_in, agent_out, cut)
                    );
                });
            }
        });
        Self { addr, is_cut, _runtime: runtime }
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, std::sync::atomic::Ordering::SeqCst);
    }
}

/// What comes while the wire is cut is lost, and so is the connection: it stays open and silent.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_cut: Arc<std::sync::atomic::AtomicBool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut piece = vec![0; 16 * 1024];
    let mut is_lost = false;
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        is_lost |= is_cut.load(std::sync::atomic::Ordering::SeqCst);
        if !is_lost && to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
    if is_lost {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}
