//! Passwords: how they are hashed (argon2id with its authors' defaults, 19 MiB each), and what one has to be.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};

use super::refusal::Refusal;
use super::secret;

/// Shorter ones are guessed (NIST SP 800-63B asks for 8 with a second factor, 15 without; 12 is between).
pub(crate) const PASSWORD_CHARS_MIN: usize = 12;
/// Longer ones only cost time.
pub(crate) const PASSWORD_BYTES_MAX: usize = 256;

/// Checks the rules of a new password.
///
/// # Errors
/// The rule that is broken.
pub(crate) fn check(password: &str) -> Result<(), Refusal> {
    if password.chars().count() < PASSWORD_CHARS_MIN {
        let message = format!("the password is to have at least {PASSWORD_CHARS_MIN} characters");
        return Err(Refusal::invalid("password", "too_short", message));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        let message = format!("the password may have at most {PASSWORD_BYTES_MAX} bytes");
        return Err(Refusal::invalid("password", "too_long", message));
    }
    Ok(())
}

/// A password that nobody can guess.
pub(crate) fn random() -> String {
    secret::new_secret()[..24].to_owned()
}

/// What is kept of a password.
///
/// # Errors
/// The hash cannot be made, which the memory may be the reason of.
pub(crate) fn hash(password: &str) -> Result<String, Refusal> {
    let hash =
        Argon2::default().hash_password(password.as_bytes()).map_err(|error| Refusal::internal(&error))?;
    Ok(hash.to_string())
}

/// Whether the password is the hash's. Without a hash (there is no such user) it takes the same time, and it is not.
pub(crate) fn is_password_of(password: &str, hash: Option<&str>) -> bool {
    let hash_or_nobody = hash.unwrap_or(NOBODY);
    let Ok(parsed) = PasswordHash::new(hash_or_nobody) else { return false };
    Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok() && hash.is_some()
}

/// A hash with the same cost as every other. Whoever knows its password gains nothing.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhlcmUhISE$4Z3bCqDOkB1o8jVNeqmT3xxgrZ2Uz9c5cVRh0M5Jv8Y";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_by_its_hash_alone() {
        let kept = hash("correct horse battery").unwrap();
        assert!(!kept.contains("correct"));
        assert!(is_password_of("correct horse battery", Some(&kept)));
        assert!(!is_password_of("correct horse batterz", Some(&kept)));
        assert!(!is_password_of("correct horse battery", None));
    }

    #[test]
    fn a_missing_user_costs_the_same_hash() {
        let nobody = PasswordHash::new(NOBODY).unwrap();
        let somebody = hash("correct horse battery").unwrap();
        let somebody = PasswordHash::new(&somebody).unwrap();
        assert_eq!(nobody.params, somebody.params);
        assert_eq!(nobody.algorithm, somebody.algorithm);
    }

    #[test]
    fn the_lengths_have_bounds() {
        assert!(check(&"x".repeat(PASSWORD_CHARS_MIN - 1)).is_err());
        assert!(check(&"x".repeat(PASSWORD_CHARS_MIN)).is_ok());
        assert!(check(&"x".repeat(PASSWORD_BYTES_MAX + 1)).is_err());
    }
}
