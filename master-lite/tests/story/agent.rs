//! An agent as the master sees one, without a data plane: it enrols, opens a session, says what the test wants, and
//! answers offers by a rule. What the real agent does beyond that is the agent's own tests' concern.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use proto::fleet::{NodeCredential, SECRET_BYTES, capability};
use proto::v1::agent_client::AgentClient;
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{
    AgentMessage, ConfigAck, ConfigNack, ConfigRefusal, ConfigState, DataplaneInfo, EnrollRequest, Heartbeat,
    Metrics, MetricsPiece, Register, Role, Welcome,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// What an agent does with an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It says that it serves it.
    Apply,
    /// It says that the data plane does not take it.
    Refuse,
    /// It says nothing.
    Keep,
    /// It does not even take it from the connection.
    Deaf,
}

/// A node with its credential, connected or not.
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) region: String,
    pub(crate) role: Role,
    /// Tells one start of the agent from another.
    pub(crate) instance: u8,
    /// Beyond the protocol's first revision.
    pub(crate) capabilities: Vec<String>,
    credential: NodeCredential,
    tls: Option<ClientTlsConfig>,
    runtime: Arc<Runtime>,
    state: Arc<Mutex<ConfigState>>,
}

/// An open session of an agent.
pub(crate) struct Session {
    said: mpsc::Sender<AgentMessage>,
    told: Arc<Mutex<Vec<Told>>>,
    ended: Arc<Mutex<Option<Status>>>,
    runtime: Arc<Runtime>,
}

/// One runtime for all agents of a test.
pub(crate) fn runtime() -> Arc<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    Arc::new(runtime)
}

impl Agent {
    /// An edge in no region that is not enrolled yet.
    pub(crate) fn new(runtime: &Arc<Runtime>, node: &str) -> Self {
        let seed: Vec<u8> = node.bytes().cycle().take(SECRET_BYTES).collect();
        let credential = NodeCredential::new(node.parse().unwrap(), seed.try_into().unwrap());
        Self {
            node: node.to_owned(),
            region: String::new(),
            role: Role::Edge,
            instance: 1,
            capabilities: Vec::new(),
            credential,
            tls: None,
            runtime: Arc::clone(runtime),
            state: Arc::default(),
        }
    }

    /// The same in a region.
    pub(crate) fn in_region(mut self, region: &str) -> Self {
        self.region = region.to_owned();
        self
    }

    /// The same over TLS, with a certificate and key of its own where it has them.
    pub(crate) fn over_tls(mut self, ca: &str, own: Option<&(String, String)>) -> Self {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        self.tls = Some(match own {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        });
        self
    }

    /// The same with another credential, as an agent that has lost the one it had.
    pub(crate) fn with_secret(mut self, byte: u8) -> Self {
        self.credential = NodeCredential::new(self.node.parse().unwrap(), [byte; SECRET_BYTES]);
        self
    }

    /// The same as another start of the same agent, or of another one with a copy of its state folder.
    pub(crate) fn with_instance(mut self, instance: u8) -> Self {
        self.instance = instance;
        self
    }

    /// The same as one that can replace its credential.
    pub(crate) fn with_changes(mut self) -> Self {
        self.capabilities = vec![capability::CREDENTIAL_CHANGE.to_owned()];
        self
    }

    /// Of its credential.
    pub(crate) fn verifier(&self) -> Vec<u8> {
        self.credential.verifier().as_bytes().to_vec()
    }

    /// Exchanges a join token.
    pub(crate) fn enrol(&self, grpc: SocketAddr, join_token: &str) -> Result<(), Status> {
        self.enrol_as(grpc, join_token, |_| {})
    }

    /// The same with something else in the request.
    pub(crate) fn enrol_as(
        &self,
        grpc: SocketAddr,
        join_token: &str,
        change: impl FnOnce(&mut EnrollRequest),
    ) -> Result<(), Status> {
        let mut request = EnrollRequest {
            join_token: join_token.to_owned(),
            node_id: self.node.clone(),
            credential_sha256: self.credential.verifier().as_bytes().to_vec().into(),
            role: self.role.into(),
            region: self.region.clone(),
            hostname: "host".to_owned(),
            agent_version: "0.1.0".to_owned(),
        };
        change(&mut request);
        self.runtime.block_on(async {
            let mut client = AgentClient::new(self.dial(grpc).await?);
            client.enroll(request).await.map(drop)
        })
    }

    /// Opens a session and waits for its welcome.
    pub(crate) fn connect(&self, grpc: SocketAddr, answer: Answer) -> Result<Session, Status> {
        self.connect_as(grpc, answer, &self.credential.reveal(), &self.node)
    }

    /// The same without a credential, as one whose certificate says who it is.
    pub(crate) fn connect_by_certificate(&self, grpc: SocketAddr) -> Result<Session, Status> {
        self.open(grpc, Answer::Apply, None, &self.node)
    }

    /// The same with any credential, as any node.
    pub(crate) fn connect_as(
        &self,
        grpc: SocketAddr,
        answer: Answer,
        credential: &str,
        node: &str,
    ) -> Result<Session, Status> {
        self.open(grpc, answer, Some(&format!("Bearer {credential}")), node)
    }

    fn open(
        &self,
        grpc: SocketAddr,
        answer: Answer,
        authorization: Option<&str>,
        node: &str,
    ) -> Result<Session, Status> {
        let (said, outgoing) = mpsc::channel(64);
        let register = self.register(node);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let (told, ended) = (Arc::<Mutex<Vec<Told>>>::default(), Arc::<Mutex<Option<Status>>>::default());
        self.runtime.block_on(async {
            let mut client = AgentClient::new(self.dial(grpc).await?).max_decoding_message_size(8 << 20);
            said.send(message(Said::Register(register))).await.unwrap();
            let mut incoming = client.session(request).await?.into_inner();
            match incoming.message().await? {
                Some(first) => told.lock().unwrap().extend(first.kind),
                None => return Err(Status::unavailable("the stream ended")),
            }
            let (all, end, answers, state) =
                (Arc::clone(&told), Arc::clone(&ended), said.clone(), Arc::clone(&self.state));
            tokio::spawn(async move {
                if answer == Answer::Deaf {
                    // Until the runtime ends.
                    std::future::pending::<()>().await;
                }
                let why = loop {
                    let told = match incoming.message().await {
                        Ok(Some(told)) => told.kind.unwrap(),
                        Ok(None) => break Status::ok("closed"),
                        Err(status) => break status,
                    };
                    let reply = reply(&told, answer, &state);
                    all.lock().unwrap().push(told);
                    if let Some(reply) = reply {
                        let _ = answers.send(message(reply)).await;
                    }
                };
                *end.lock().unwrap() = Some(why);
            });
            Ok(())
        })?;
        Ok(Session { said, told, ended, runtime: Arc::clone(&self.runtime) })
    }

    async fn dial(&self, grpc: SocketAddr) -> Result<Channel, Status> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{grpc}")).unwrap();
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).unwrap();
        }
        endpoint.connect().await.map_err(|error| Status::unavailable(format!("{error:?}")))
    }

    fn register(&self, node: &str) -> Register {
        Register {
            protocol_revision: 1,
            node_id: node.to_owned(),
            instance_id: vec![self.instance; 16].into(),
            role: self.role.into(),
            region: self.region.clone(),
            capabilities: self.capabilities.clone(),
            agent_version: "0.1.0".to_owned(),
            config: Some(self.state.lock().unwrap().clone()),
            dataplane: Some(healthy()),
            ..Register::default()
        }
    }

    /// The revision that it has applied; 0: none.
    pub(crate) fn applied(&self) -> u64 {
        self.state.lock().unwrap().applied.as_ref().map_or(0, |config| config.revision)
    }
}

impl Session {
    /// Says something.
    pub(crate) fn say(&self, said: Said) {
        self.runtime.block_on(self.said.send(message(said))).unwrap();
    }

    /// Reports in pieces, as agents do since the master says that they may.
    pub(crate) fn report(&self, metrics: &Metrics) {
        self.report_encoded(&MetricsPiece::from(metrics));
    }

    /// The same, of a report that is encoded once for many agents.
    pub(crate) fn report_encoded(&self, report: &MetricsPiece) {
        let takes_pieces =
            |welcome: &Welcome| welcome.capabilities.iter().any(|known| known == capability::METRICS_PIECES);
        let told = self.told.lock().unwrap();
        assert!(told.iter().any(|told| matches!(told, Told::Welcome(welcome) if takes_pieces(welcome))));
        drop(told);
        report.clone().cut().for_each(|piece| self.say(Said::MetricsPiece(piece)));
    }

    /// Says that all is well.
    pub(crate) fn beat(&self, sequence: u64) {
        self.say(Said::Heartbeat(Heartbeat { sequence, dataplane: Some(healthy()), ..Heartbeat::default() }));
    }

    /// The names of the versions that were offered so far.
    pub(crate) fn offered(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let offers = told.iter().filter_map(|told| match told {
            Told::ConfigOffer(offer) => offer.config.as_ref().map(|config| config.version.clone()),
            Told::Welcome(_)
            | Told::HeartbeatAck(_)
            | Told::Command(_)
            | Told::CommandCancel(_)
            | Told::Goodbye(_)
            | Told::CredentialWanted(_)
            | Told::CredentialTaken(_)
            | Told::Intervals(_) => None,
        });
        offers.collect()
    }

    /// Everything that the master has said.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// How the session ended, once it has.
    pub(crate) fn ended(&self) -> Option<Status> {
        self.ended.lock().unwrap().clone()
    }
}

fn reply(told: &Told, answer: Answer, state: &Mutex<ConfigState>) -> Option<Said> {
    let Told::ConfigOffer(offer) = told else { return None };
    let mut state = state.lock().unwrap();
    match answer {
        Answer::Keep | Answer::Deaf => None,
        Answer::Apply => {
            *state = ConfigState { applied: offer.config.clone(), generation: 7, ..ConfigState::default() };
            Some(Said::ConfigAck(ConfigAck { config: offer.config.clone(), generation: 7, took_ms: 1 }))
        }
        Answer::Refuse => {
            let nack = ConfigNack {
                config: offer.config.clone(),
                reason: ConfigRefusal::Unusable.into(),
                message: "the port is taken".to_owned(),
                problems: Vec::new(),
            };
            state.refused = Some(nack.clone());
            Some(Said::ConfigNack(nack))
        }
    }
}

fn healthy() -> DataplaneInfo {
    DataplaneInfo { answering: true, ready: true, version: "0.1.0".to_owned(), ..DataplaneInfo::default() }
}

fn message(kind: Said) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}
