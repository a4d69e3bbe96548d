//! One try to deliver one message: resolve, look at the addresses, connect to one of those and no other, send, read the
//! status. Nothing else of the answer is read, and no redirect is followed: both would let a receiver lead us elsewhere.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::address::AddressGuard;
use super::queue::{Delivery, Verdict};
use super::webhooks::{Webhook, bare};

/// Everything of one try: a receiver that needs longer should answer first and work then.
const TRY_WITHIN: Duration = Duration::from_secs(10);

/// Delivers messages.
#[derive(Clone)]
pub(crate) struct Courier {
    guard: AddressGuard,
    within: Duration,
    tls: TlsConnector,
}

/// Why a try failed.
enum Failure {
    /// It may work later.
    Passing(String),
    /// It will not.
    Final(String),
}

impl Courier {
    /// A courier that trusts the authorities of this host.
    pub(crate) fn new(guard: AddressGuard) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "this host has no certificate authorities: https webhooks will fail (ca-certificates)"
            );
        }
        Courier { guard, within: TRY_WITHIN, tls: connector(roots) }
    }

    /// Tries once. `at_s` is the time that is signed.
    pub(crate) async fn deliver(&self, webhook: &Webhook, delivery: &Delivery, at_s: u64) -> Verdict {
        let tried = tokio::time::timeout(self.within, self.send(webhook, delivery, at_s)).await;
        match tried {
            Err(_) => Verdict::Again(format!("no answer within {:?}", self.within)),
            Ok(Err(Failure::Passing(error))) => Verdict::Again(error),
            Ok(Err(Failure::Final(error))) => Verdict::Never(error),
            Ok(Ok(status)) if status.is_success() => Verdict::Delivered,
            Ok(Ok(StatusCode::GONE)) => Verdict::Never("the receiver says that it is gone (410)".to_owned()),
            Ok(Ok(status)) => Verdict::Again(format!("the receiver answered {status}")),
        }
    }

    async fn send(&self, webhook: &Webhook, delivery: &Delivery, at_s: u64) -> Result<StatusCode, Failure> {
        let uri: Uri = webhook.url.parse().map_err(|_| Failure::Final("the URL is none".to_owned()))?;
        let host = uri.host().ok_or_else(|| Failure::Final("the URL has no host".to_owned()))?;
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let request = request(&uri, webhook, delivery, at_s)?;
        let stream = self.connect(bare(host), port).await?;
        if !is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(bare(host).to_owned())
            .map_err(|_| Failure::Final(format!("{host} is no name that a certificate could have")))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| passing("TLS", &error))?;
        exchange(stream, request).await
    }

    /// Connects to an address that was looked at, not to a name that may have another one by now.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Failure> {
        let found = tokio::net::lookup_host((host, port)).await;
        let addresses: Vec<SocketAddr> =
            found.map_err(|error| passing("looking up the host", &error))?.collect();
        if let Some(refused) = addresses.iter().find(|address| !self.guard.permits(address.ip())) {
            return Err(Failure::Final(format!(
                "{host} is {}, which is not of the public internet and not in webhooks.allow",
                refused.ip()
            )));
        }
        let mut last = io::Error::other("the host has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(passing("connecting", &last))
    }
}

fn connector(roots: rustls::RootCertStore) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        match rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
            Ok(builder) => builder,
            Err(error) => unreachable!("ring has what its own default versions need: {error}"),
        };
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth()).into()
}

fn request(
    uri: &Uri,
    webhook: &Webhook,
    delivery: &Delivery,
    at_s: u64,
) -> Result<Request<Full<Bytes>>, Failure> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("millrace-master/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .header("webhook-id", &delivery.id)
        .header("webhook-timestamp", at_s)
        .header("webhook-signature", webhook.secret.sign(&delivery.id, at_s, &delivery.body))
        .body(Full::new(Bytes::from(delivery.body.clone())))
        .map_err(|error| Failure::Final(error.to_string()))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<StatusCode, Failure> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| passing("HTTP", &error))?;
    let mut response = pin!(sender.send_request(request));
    // The connection does the work, and may be over in the moment that brings the response.
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        _ = connection => response.await,
    };
    response.map(|response| response.status()).map_err(|error| passing("HTTP", &error))
}

fn passing(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Passing(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::super::sign::Secret;
    use super::*;
    use crate::service::alerts::rule::Severity;

    fn webhook(url: String) -> Webhook {
        let (description, secret) = (String::new(), Secret::random());
        Webhook { url, description, severity: Severity::Info, enabled: true, secret, created_at_ms: 0 }
    }

    async fn deliver(url: String, within: Duration) -> Verdict {
        let guard = AddressGuard::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let courier = Courier { within, ..Courier::new(guard) };
        let delivery = Delivery { id: "msg_1".into(), webhook: "w".into(), body: "{}".into(), tries: 0 };
        courier.deliver(&webhook(url), &delivery, 0).await
    }

    #[tokio::test]
    async fn a_receiver_that_says_nothing_is_given_up_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let verdict = deliver(url, Duration::from_millis(50)).await;
        assert_eq!(verdict, Verdict::Again("no answer within 50ms".to_owned()));
    }

    #[tokio::test]
    async fn a_receiver_without_a_good_certificate_is_not_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let receiver = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await.unwrap();
            hello
        });
        let verdict = deliver(url, TRY_WITHIN).await;
        assert!(matches!(&verdict, Verdict::Again(error) if error.starts_with("TLS: ")), "{verdict:?}");
        // A TLS handshake, and not the message.
        assert_eq!(receiver.await.unwrap()[..2], [0x16, 0x03]);
    }
}
