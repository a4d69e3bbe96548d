//! The master as a client: one channel for each try, TLS as the agent's config says, and one task for each session that
//! carries messages and decides nothing.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use proto::config::agent::{JoinTokenSource, Master};
use proto::fleet::limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, REGISTER_TIMEOUT};
use proto::fleet::{BEARER, ConfigDigest, NodeCredential};
use proto::v1::agent_client::AgentClient;
use proto::v1::{AgentMessage, EnrollRequest, agent_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::state::{Event, LinkFailure, LinkFailureKind};

/// A master that takes longer to be reached is tried again.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Messages that may wait for a slow master: a minute of reports, or a quarter of a command's output.
pub const OUTBOX_MAX: usize = 64;
/// The longest file of certificates or of a key; the authorities of a whole distribution have a quarter of it.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// What the master's refusal begins with where the credential is to blame: the field's name.
const USED_CREDENTIAL: &str = "credential_sha256:";

/// Exchanges the join token.
///
/// # Errors
/// What follows from the failure.
pub async fn enroll(master: &Master, mut request: EnrollRequest) -> Result<(), LinkFailure> {
    request.join_token = join_token(master).map_err(|error| refused("the join token", &error))?;
    let mut client = AgentClient::new(connect(master).await?);
    let answer = tokio::time::timeout(REGISTER_TIMEOUT, client.enroll(request)).await;
    match answer {
        Ok(answer) => answer.map(|_| ()).map_err(|status| failure(&status)),
        Err(_) => Err(transient("the master does not answer".to_owned())),
    }
}

/// Opens a session and carries its messages until it ends, which is the last event.
pub async fn session(
    number: u64,
    master: Master,
    credential: NodeCredential,
    register: proto::v1::Register,
    outbox: mpsc::Receiver<AgentMessage>,
    events: mpsc::Sender<Event>,
) {
    let failure = match open(&master, &credential, register, outbox).await {
        Ok(inbox) => carry(number, inbox, &events).await,
        Err(failure) => failure,
    };
    // Fails only where the agent ends.
    let _ = events.send(Event::Disconnected { session: number, failure }).await;
}

async fn open(
    master: &Master,
    credential: &NodeCredential,
    register: proto::v1::Register,
    outbox: mpsc::Receiver<AgentMessage>,
) -> Result<tonic::Streaming<proto::v1::MasterMessage>, LinkFailure> {
    let mut client = AgentClient::new(connect(master).await?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let first = AgentMessage { kind: Some(agent_message::Kind::Register(register)) };
    let messages = stream::iter([first]).chain(ReceiverStream::new(outbox));
    let mut request = Request::new(messages.flat_map(|message| stream::iter(in_pieces(message))));
    let bearer = format!("{BEARER}{}", credential.reveal());
    let mut bearer: MetadataValue<_> =
        bearer.parse().map_err(|error| transient(format!("the credential cannot be sent: {error}")))?;
    bearer.set_sensitive(true);
    request.metadata_mut().insert("authorization", bearer);
    client.session(request).await.map(tonic::Response::into_inner).map_err(|status| failure(&status))
}

/// A long report in short messages.
fn in_pieces(message: AgentMessage) -> impl Iterator<Item = AgentMessage> {
    let (pieces, other) = match message.kind {
        Some(agent_message::Kind::MetricsPiece(piece)) => (Some(piece.cut()), None),
        kind => (None, Some(AgentMessage { kind })),
    };
    let pieces = pieces.into_iter().flatten().map(agent_message::Kind::MetricsPiece);
    pieces.map(|kind| AgentMessage { kind: Some(kind) }).chain(other)
}

async fn carry(
    session: u64,
    mut inbox: tonic::Streaming<proto::v1::MasterMessage>,
    events: &mpsc::Sender<Event>,
) -> LinkFailure {
    loop {
        match inbox.message().await {
            Ok(Some(message)) => {
                if events.send(Event::Received { session, message }).await.is_err() {
                    return transient("the agent ends".to_owned());
                }
            }
            Ok(None) => return transient("the master has ended the session".to_owned()),
            Err(status) => return failure(&status),
        }
    }
}

async fn connect(master: &Master) -> Result<Channel, LinkFailure> {
    let endpoint = endpoint(master).map_err(|error| refused("[master]", &error))?;
    endpoint.connect().await.map_err(|error| transient(with_causes(&error)))
}

fn endpoint(master: &Master) -> io::Result<Endpoint> {
    let endpoint = Endpoint::from_shared(master.url.clone()).map_err(io::Error::other)?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let Some(tls) = &master.tls else { return Ok(endpoint) };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_pem(&tls.ca)?));
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read_pem(certificate)?, read_pem(key)?));
    }
    endpoint.tls_config(config).map_err(|error| io::Error::other(with_causes(&error)))
}

/// What the files that a channel is made with have in them now; one that cannot be read counts as empty.
pub fn files_digest(master: &Master) -> ConfigDigest {
    let tls = master.tls.iter();
    let paths = tls.flat_map(|tls| {
        let own = tls.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        std::iter::once(&tls.ca).chain(own)
    });
    let files: Vec<Vec<u8>> = paths.map(|path| read_pem(path).unwrap_or_default()).collect();
    ConfigDigest::of(&files.concat())
}

/// Read anew for each try: certificates are renewed below a running agent.
fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    let named = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(named)?.len();
    if length > PEM_BYTES_MAX {
        return Err(named(io::Error::other("too long for certificates or a key")));
    }
    std::fs::read(path).map_err(named)
}

/// Empty where a client certificate speaks for the agent.
fn join_token(master: &Master) -> io::Result<String> {
    match &master.join_token {
        None => Ok(String::new()),
        Some(JoinTokenSource::Text(token)) => Ok(token.clone()),
        Some(JoinTokenSource::File(path)) => {
            let token = std::fs::read_to_string(path)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
            Ok(token.trim().to_owned())
        }
    }
}

fn failure(status: &Status) -> LinkFailure {
    let kind = match status.code() {
        Code::PermissionDenied if status.message().starts_with(USED_CREDENTIAL) => {
            LinkFailureKind::UsedCredential
        }
        Code::Unauthenticated => LinkFailureKind::Unauthenticated,
        Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::Unimplemented => LinkFailureKind::Refused,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => LinkFailureKind::Transient,
    };
    LinkFailure { kind, message: format!("{}: {}", status.code(), status.message()) }
}

fn transient(message: String) -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Transient, message }
}

fn refused(what: &str, error: &io::Error) -> LinkFailure {
    LinkFailure { kind: LinkFailureKind::Refused, message: format!("{what}: {error}") }
}

/// What a transport says of itself is "transport error"; the reason stands below it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
