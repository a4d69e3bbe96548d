//! Login tokens: JWTs (RFC 7519) signed with HMAC-SHA-256 and one key of this master's. The algorithm is pinned: what
//! the token's own header says of it is compared, never followed.

use std::sync::Once;

use hmac::{Hmac, Mac};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use signature::{Error, Signer, Verifier};

use super::refusal::Refusal;
use crate::keys::KEY_BYTES;

/// A working day and the night after it.
pub(crate) const TOKEN_LIFETIME_S: u64 = 24 * 3600;

/// When a token that is issued now ends, in milliseconds since 1970.
pub(crate) fn expires_at_ms(at_ms: u64) -> u64 {
    (at_ms / 1000 + TOKEN_LIFETIME_S) * 1000
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// The user.
    pub(crate) sub: String,
    /// The login that the token is of.
    pub(crate) login: String,
    /// Which token of that login, counted from 0: see `logins`.
    pub(crate) generation: u64,
    /// Issued at, in seconds since 1970.
    pub(crate) iat: u64,
    /// Expires at, likewise.
    pub(crate) exp: u64,
}

/// Makes and reads tokens.
pub(crate) struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl Tokens {
    /// With the master's key.
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        static INSTALLED: Once = Once::new();
        // Fails only where one is installed, and nobody else in this process installs any.
        INSTALLED.call_once(|| _ = PROVIDER.install_default());
        Self { signing: EncodingKey::from_secret(key), verifying: DecodingKey::from_secret(key) }
    }

    /// A token of a user's login from now on.
    ///
    /// # Errors
    /// It cannot be signed.
    pub(crate) fn issue(
        &self,
        user: &str,
        login: &str,
        generation: u64,
        at_ms: u64,
    ) -> Result<(String, Claims), Refusal> {
        let (sub, login, iat) = (user.to_owned(), login.to_owned(), at_ms / 1000);
        let claims = Claims { sub, login, generation, iat, exp: expires_at_ms(at_ms) / 1000 };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .map_err(|error| Refusal::internal(&error))?;
        Ok((token, claims))
    }

    /// What a token says, if it is one of ours and still good.
    pub(crate) fn read(&self, token: &str, at_ms: u64) -> Option<Claims> {
        let mut rules = Validation::new(Algorithm::HS256);
        // The time is an argument here, so that the library's own clock is not asked.
        rules.validate_exp = false;
        rules.set_required_spec_claims(&["exp", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &rules).ok()?.claims;
        (at_ms / 1000 < claims.exp).then_some(claims)
    }
}

/// Only what is used. The library's own sets of algorithms bring RSA and curves, which nothing here wants.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(HmacSha256::of(*algorithm, key.family(), key.as_bytes())?)),
    verifier_factory: |algorithm, key| {
        Ok(Box::new(HmacSha256::of(*algorithm, key.family(), key.try_get_as_bytes()?)?))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// HS256 (RFC 7518, section 3.2).
struct HmacSha256(Hmac<Sha256>);

impl HmacSha256 {
    fn of(algorithm: Algorithm, family: AlgorithmFamily, key: &[u8]) -> jsonwebtoken::errors::Result<Self> {
        if algorithm != Algorithm::HS256 || family != AlgorithmFamily::Hmac {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        let mac = Hmac::new_from_slice(key).map_err(|_| ErrorKind::InvalidKeyFormat)?;
        Ok(Self(mac))
    }
}

impl Signer<Vec<u8>> for HmacSha256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.clone().chain_update(message).finalize().into_bytes().to_vec())
    }
}

impl Verifier<Vec<u8>> for HmacSha256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Error> {
        // Compares in constant time.
        self.0.clone().chain_update(message).verify_slice(signature).map_err(|_| Error::new())
    }
}

impl JwtSigner for HmacSha256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for HmacSha256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn tokens() -> Tokens {
        Tokens::new(&[7; KEY_BYTES])
    }

    #[test]
    fn a_token_is_good_until_it_expires() {
        let (token, claims) = tokens().issue("ada", "l", 3, NOW_MS).unwrap();
        assert_eq!(tokens().read(&token, NOW_MS), Some(claims));
        let end_ms = NOW_MS + 24 * 3_600_000;
        assert!(tokens().read(&token, end_ms - 1).is_some());
        assert!(tokens().read(&token, end_ms).is_none());
    }

    #[test]
    fn another_masters_token_is_none() {
        let (token, _) = Tokens::new(&[8; KEY_BYTES]).issue("ada", "l", 0, NOW_MS).unwrap();
        assert!(tokens().read(&token, NOW_MS).is_none());
    }

    #[test]
    fn the_tokens_own_word_on_its_algorithm_is_not_followed() {
        let (token, _) = tokens().issue("ada", "l", 0, NOW_MS).unwrap();
        let [_, claims, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        for header in
            [r#"{"alg":"none","typ":"JWT"}"#, r#"{"alg":"HS384","typ":"JWT"}"#, r#"{"alg":"RS256"}"#]
        {
            let header = URL_SAFE_NO_PAD.encode(header);
            for signature in [signature, ""] {
                assert!(tokens().read(&format!("{header}.{claims}.{signature}"), NOW_MS).is_none());
            }
        }
    }

    #[test]
    fn a_changed_token_is_none() {
        let (token, _) = tokens().issue("ada", "l", 0, NOW_MS).unwrap();
        let [header, claims, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let forged = URL_SAFE_NO_PAD.encode(claims.replace("ada", "eve"));
        assert!(tokens().read(&format!("{header}.{forged}.{signature}"), NOW_MS).is_none());
    }
}
