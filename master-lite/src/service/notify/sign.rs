//! How a webhook knows that it is us: the signature of Standard Webhooks 1.0
//! (<https://github.com/standard-webhooks/standard-webhooks>), which libraries in most languages verify.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::keys;

/// What stands before a secret's base64.
const SECRET_PREFIX: &str = "whsec_";

/// A key that both sides know. It has to be kept as it is: a hash cannot sign.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// A new random one.
    pub(crate) fn random() -> Self {
        Self(format!("{SECRET_PREFIX}{}", STANDARD.encode(keys::random::<{ keys::KEY_BYTES }>())))
    }

    /// The text, to be shown once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// The value of `webhook-signature`: HMAC-SHA256 over the id, the time and the body, with a dot between.
    pub(crate) fn sign(&self, id: &str, at_s: u64, body: &str) -> String {
        let key = STANDARD.decode(self.0.trim_start_matches(SECRET_PREFIX)).unwrap_or_default();
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else {
            unreachable!("HMAC takes keys of any length");
        };
        mac.update(format!("{id}.{at_s}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("whsec_…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_standards_own_example() {
        let secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_random_and_not_in_logs() {
        let secret = Secret::random();
        assert_ne!(secret, Secret::random());
        assert!(!format!("{secret:?}").contains(&secret.reveal()[6..]));
        assert_eq!(STANDARD.decode(&secret.reveal()[6..]).unwrap().len(), keys::KEY_BYTES);
    }
}
