//! A published config as the agent holds it: checked once, when it comes in. Not the machine that applies it.

use std::sync::Arc;

use proto::config::TEXT_BYTES_MAX;
use proto::fleet::limits::{CONFIG_PROBLEMS_MAX, MESSAGE_TEXT_BYTES_MAX, VERSION_BYTES_MAX, clipped};
use proto::fleet::{CommandId, ConfigDigest};
use proto::v1;

/// A config with its name. The text has the digest: nothing else can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    revision: u64,
    version: String,
    digest: ConfigDigest,
    text: Arc<str>,
}

/// Why a config is not taken, for good.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Of what kind the reason is.
    pub reason: v1::ConfigRefusal,
    /// For people.
    pub message: String,
    /// Where the text is wrong, as far as that is known.
    pub problems: Vec<v1::ConfigProblem>,
}

impl Refusal {
    /// Without places.
    pub fn new(reason: v1::ConfigRefusal, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), problems: Vec::new() }
    }

    /// As it is sent, within the limits.
    pub(super) fn nack(mut self, config: v1::ConfigRef) -> v1::ConfigNack {
        self.problems.truncate(CONFIG_PROBLEMS_MAX);
        v1::ConfigNack {
            config: Some(config),
            reason: self.reason.into(),
            message: clipped(&self.message, MESSAGE_TEXT_BYTES_MAX).to_owned(),
            problems: self.problems,
        }
    }
}

impl Published {
    /// A config of this name.
    pub fn new(revision: u64, version: &str, text: &str) -> Self {
        let digest = ConfigDigest::of(text.as_bytes());
        Self { revision, version: version.to_owned(), digest, text: text.into() }
    }

    /// What a master offers, if it is what it says.
    ///
    /// # Errors
    /// It is malformed, or has another checksum. Whether it is a valid config is not looked at.
    pub fn offered(offer: &v1::ConfigOffer) -> Result<Self, Refusal> {
        let malformed = |message| Refusal::new(v1::ConfigRefusal::Malformed, message);
        let config = offer.config.as_ref().ok_or_else(|| malformed("the offer has no name".to_owned()))?;
        if config.revision == 0 {
            return Err(malformed("the offer has no revision".to_owned()));
        }
        if config.version.len() > VERSION_BYTES_MAX {
            return Err(malformed(format!("the version's name is longer than {VERSION_BYTES_MAX} bytes")));
        }
        if offer.text.len() > TEXT_BYTES_MAX {
            return Err(malformed(format!("the config is longer than {TEXT_BYTES_MAX} bytes")));
        }
        let digest = ConfigDigest::of(&offer.text);
        if ConfigDigest::from_bytes(&config.sha256) != Some(digest) {
            let message = format!("the text that came has the checksum {digest}, which is not the offer's");
            return Err(Refusal::new(v1::ConfigRefusal::Checksum, message));
        }
        let text =
            std::str::from_utf8(&offer.text).map_err(|_| malformed("the text is not UTF-8".to_owned()))?;
        Ok(Self { revision: config.revision, version: config.version.clone(), digest, text: text.into() })
    }

    /// Counts the publishes of a master.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The config's own name.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Of the text.
    pub fn digest(&self) -> ConfigDigest {
        self.digest
    }

    /// The TOML text.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// As it is sent.
    pub fn to_ref(&self) -> v1::ConfigRef {
        v1::ConfigRef {
            revision: self.revision,
            version: self.version.clone(),
            sha256: self.digest.as_bytes().to_vec().into(),
        }
    }
}

/// A config that is on its way to the data plane.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) config: Published,
    pub(super) purpose: Purpose,
    /// How often the data plane ended or was exchanged while this was being verified.
    pub(super) crashes: u32,
    /// Commands that are done when this is.
    pub(super) reloads: Vec<CommandId>,
}

/// Why a config is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The master wants it; it came at this time.
    Offer(super::Time),
    /// It is the last good one, and the data plane serves something else.
    Repair,
    /// The data plane has it since before the agent began: it is not put again, but has to be verified.
    Adopt,
}

impl Job {
    pub(super) fn new(config: Published, purpose: Purpose) -> Self {
        Self { config, purpose, crashes: 0, reloads: Vec::new() }
    }

    pub(super) fn is_offer(&self) -> bool {
        matches!(self.purpose, Purpose::Offer(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(revision: u64, text: &[u8]) -> v1::ConfigOffer {
        let sha256 = ConfigDigest::of(text).as_bytes().to_vec().into();
        let config = v1::ConfigRef { revision, version: "v".to_owned(), sha256 };
        v1::ConfigOffer { config: Some(config), text: text.to_vec().into() }
    }

    fn reason(offer: &v1::ConfigOffer) -> v1::ConfigRefusal {
        Published::offered(offer).unwrap_err().reason
    }

    #[test]
    fn takes_what_has_its_checksum_and_nothing_else() {
        let good = offer(3, b"a = 1");
        let taken = Published::offered(&good).unwrap();
        assert_eq!((taken.to_ref(), &**taken.text()), (good.config.clone().unwrap(), "a = 1"));

        let mut changed = good.clone();
        changed.text = b"a = 2".to_vec().into();
        assert_eq!(reason(&changed), v1::ConfigRefusal::Checksum);
        let mut short = good.clone();
        short.config.as_mut().unwrap().sha256 = vec![0; 31].into();
        assert_eq!(reason(&short), v1::ConfigRefusal::Checksum);
    }

    #[test]
    fn refuses_what_is_malformed() {
        let longest_name = "v".repeat(VERSION_BYTES_MAX);
        let mut long_name = offer(1, b"");
        long_name.config.as_mut().unwrap().version = format!("{longest_name}v");
        let nameless = v1::ConfigOffer { config: None, text: Vec::new().into() };
        let too_long = offer(1, &vec![b'#'; TEXT_BYTES_MAX + 1]);
        for malformed in [offer(0, b""), offer(1, b"\xff"), long_name.clone(), nameless, too_long] {
            assert_eq!(reason(&malformed), v1::ConfigRefusal::Malformed);
        }
        long_name.config.as_mut().unwrap().version = longest_name;
        assert!(Published::offered(&long_name).is_ok());
        assert!(Published::offered(&offer(1, &vec![b'#'; TEXT_BYTES_MAX])).is_ok());
    }

    #[test]
    fn a_nack_stays_within_the_limits() {
        let problem = v1::ConfigProblem::default();
        let refusal = Refusal {
            reason: v1::ConfigRefusal::Invalid,
            message: "ß".repeat(MESSAGE_TEXT_BYTES_MAX),
            problems: vec![problem; CONFIG_PROBLEMS_MAX + 1],
        };
        let nack = refusal.nack(v1::ConfigRef::default());
        assert_eq!(nack.problems.len(), CONFIG_PROBLEMS_MAX);
        assert!(nack.message.len() <= MESSAGE_TEXT_BYTES_MAX);
    }
}
