//! What of an X.509 certificate matters here: whose it is, and from when until when it is good. Whether it is to be
//! believed is `tls`'s to say, and whom it lets in is `service`'s.

use std::time::Duration;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The subject's common names and the alternative names that are DNS names.
    pub(crate) names: Vec<String>,
    /// From when on it is good, in milliseconds since 1970.
    pub(crate) not_before_ms: u64,
    /// Until when, likewise.
    pub(crate) not_after_ms: u64,
}

impl Certificate {
    /// Reads DER; none where it is no certificate.
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let alternative = alternative.iter().flat_map(|names| &names.value.general_names);
        let alternative = alternative
            .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None });
        let mut names: Vec<String> = common.chain(alternative).map(str::to_owned).collect();
        names.dedup();
        let validity = certificate.validity();
        Some(Self {
            names,
            not_before_ms: since_1970_ms(validity.not_before.timestamp()),
            not_after_ms: since_1970_ms(validity.not_after.timestamp()),
        })
    }
}

/// Before 1970 there were no certificates.
fn since_1970_ms(seconds: i64) -> u64 {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whose_it_is_and_when_it_ends() {
        let mut wanted = rcgen::CertificateParams::new(vec!["hk-1.example.com".to_owned()]).unwrap();
        wanted.distinguished_name.push(rcgen::DnType::CommonName, "hk-1");
        wanted.not_before = rcgen::date_time_ymd(2020, 1, 1);
        wanted.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let made = wanted.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let read = Certificate::read(made.der()).unwrap();
        assert_eq!(read.names, ["hk-1", "hk-1.example.com"]);
        assert_eq!((read.not_before_ms, read.not_after_ms), (1_577_836_800_000, 1_609_459_200_000));
        assert_eq!(Certificate::read(b"nonsense"), None);
    }
}
