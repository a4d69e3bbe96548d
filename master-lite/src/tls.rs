//! TLS of both listeners: its files, its terms, and what is to be thought of a client's certificate.
//!
//! An operator's client that shows a bad certificate fails in the handshake. An agent is let through it and judged
//! afterwards (as nginx does), so that its log, and our audit log, say what is wrong instead of "handshake failure".
//! Until then nothing is believed of it but that it has the key of what it showed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::certificate::Certificate;
use crate::config::{ClientCertificates, Clients, Tls};
use crate::service::call::rfc3339;
use crate::service::client_certificates::ClientCertificate;

/// When a client's certificate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// In the handshake, which fails.
    AtOnce,
    /// By whoever asks [`Terms::judge`].
    Later,
}

/// What a listener needs for its handshakes.
#[derive(Clone)]
pub(crate) struct Terms {
    /// For the handshake.
    pub(crate) config: Arc<ServerConfig>,
    /// What our own certificate says.
    pub(crate) own: Certificate,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Terms {
    /// Reads the files; `alpn` is the protocol that is spoken.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be.
    pub(crate) fn read(tls: &Tls, alpn: &[u8], judged: Judged) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let verifier = tls.clients.as_ref().map(|clients| verifier(clients, provider)).transpose()?;
        let builder = match (&verifier, judged) {
            (None, _) => builder.with_no_client_auth(),
            (Some(verifier), Judged::AtOnce) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            (Some(verifier), Judged::Later) => {
                builder.with_client_cert_verifier(Arc::new(Lenient(Arc::clone(verifier))))
            }
        };
        let shown = tls.key.display();
        let key = fs::read(&tls.key).with_context(|| format!("cannot read {shown}"))?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .with_context(|| format!("there is no private key in {shown}"))?;
        let chain = certificates(&tls.cert)?;
        let own = chain.first().and_then(|own| Certificate::read(own));
        let own = own.with_context(|| format!("the certificate in {} cannot be read", tls.cert.display()))?;
        let mut config = builder
            .with_single_cert(chain, key)
            .with_context(|| format!("{} and {shown} do not belong together", tls.cert.display()))?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Self { config: Arc::new(config), own, verifier })
    }

    /// What is to be thought of the chain that a client showed; none where it showed nothing, or nothing was asked for.
    pub(crate) fn judge(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<ClientCertificate> {
        let (verifier, (own, above)) = (self.verifier.as_ref()?, chain?.split_first()?);
        let certificate = Certificate::read(own);
        let verified = verifier.verify_client_cert(own, above, UnixTime::now());
        let flaw = match (&certificate, verified) {
            (None, _) => Some("it cannot be read".to_owned()),
            (Some(certificate), Err(error)) => Some(flaw(&error, certificate)),
            (Some(_), Ok(_)) => None,
        };
        Some(ClientCertificate { certificate: certificate.unwrap_or_default(), flaw })
    }
}

/// What is wrong with a certificate, for people.
fn flaw(error: &Error, certificate: &Certificate) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let Error::InvalidCertificate(error) = error else { return error.to_string() };
    if matches!(error, Expired | ExpiredContext { .. }) {
        format!("it has expired (it was good until {})", rfc3339(certificate.not_after_ms))
    } else if matches!(error, NotValidYet | NotValidYetContext { .. }) {
        format!("it is not valid yet (it is from {} on)", rfc3339(certificate.not_before_ms))
    } else if matches!(error, UnknownIssuer | BadSignature) {
        "it is not signed by an authority of this master (grpc.tls.client_ca)".to_owned()
    } else {
        error.to_string()
    }
}

fn verifier(
    clients: &Clients,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let (mut roots, path) = (RootCertStore::empty(), clients.ca.as_path());
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} is no authority", path.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match clients.certificates {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    Ok(builder.build()?)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let pem = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{shown} is no PEM"))?;
    anyhow::ensure!(!found.is_empty(), "there is no certificate in {shown}");
    Ok(found)
}

/// Takes whatever is shown, and nothing too; that the client has its key is still proved.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
