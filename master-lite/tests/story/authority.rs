//! Authorities that sign certificates: of the master, of its agents, and of strangers.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// One authority; two of them have the same name and different keys.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as PEM.
    pub(crate) pem: String,
}

/// A certificate and its key, as PEM.
pub(crate) type Identity = (String, String);

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.distinguished_name.push(DnType::CommonName, "an authority");
        let pem = wanted.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(wanted, key), pem }
    }

    /// For this common name alone, from now (or long ago) on, for very long.
    pub(crate) fn issue(&self, common_name: &str) -> Identity {
        self.issue_as(common_name, CertificateParams::new(Vec::new()).unwrap())
    }

    /// For whoever has one of these alternative names, an address too.
    pub(crate) fn issue_for(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.issue_as("somebody", CertificateParams::new(names).unwrap())
    }

    /// Good between these years only.
    pub(crate) fn issue_between(&self, common_name: &str, from: i32, until: i32) -> Identity {
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        (wanted.not_before, wanted.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        self.issue_as(common_name, wanted)
    }

    /// For this alternative name, good from now (or long ago) on for so long.
    pub(crate) fn issue_for_only(&self, name: &str, lasts: Duration) -> Identity {
        let mut wanted = CertificateParams::new(vec![name.to_owned()]).unwrap();
        wanted.not_after = (SystemTime::now() + lasts).into();
        self.issue_as(name, wanted)
    }

    /// As it is wanted, for this common name.
    pub(crate) fn issue_as(&self, common_name: &str, mut wanted: CertificateParams) -> Identity {
        wanted.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        (wanted.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The config of a listener on 127.0.0.1 with a certificate of this authority, which also vouches for its clients.
    pub(crate) fn listener(&self, dir: &Path, more: &str) -> String {
        self.listener_as(dir, &self.issue_for(&["127.0.0.1"]), more)
    }

    /// The same with this certificate.
    pub(crate) fn listener_as(&self, dir: &Path, (certificate, key): &Identity, more: &str) -> String {
        let path = |name: &str, pem: &str| {
            let path = dir.join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let (cert, key) = (path("master.pem", certificate), path("master.key", key));
        let ca = path("ca.pem", &self.pem);
        format!("tls = {{ cert = {cert:?}, key = {key:?}, client_ca = {ca:?}{more} }}")
    }
}
