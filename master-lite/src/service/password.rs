//! Passwords: how they are hashed (argon2id), and what one has to be.

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use super::refusal::Refusal;
use super::secret;
use crate::keys;

/// Shorter ones are guessed (NIST SP 800-63B asks for 8 with a second factor, 15 without; 12 is between).
pub(crate) const PASSWORD_CHARS_MIN: usize = 12;
/// Longer ones only cost time.
pub(crate) const PASSWORD_BYTES_MAX: usize = 256;

/// What a hash costs: 7 MiB, gone over five times. Of the settings that OWASP's Password Storage Cheat Sheet calls equally
/// strong it is the one of the least memory: the master has none to spare for a login.
const COST: (u32, u32, u32) = (7 * 1024, 5, 1);

/// Checks the rules of a new password.
///
/// # Errors
/// The rule that is broken.
pub(crate) fn check(field: &str, password: &str) -> Result<(), Refusal> {
    if password.chars().count() < PASSWORD_CHARS_MIN {
        let message = format!("the password is to have at least {PASSWORD_CHARS_MIN} characters");
        return Err(Refusal::invalid(field, "too_short", message));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        let message = format!("the password may have at most {PASSWORD_BYTES_MAX} bytes");
        return Err(Refusal::invalid(field, "too_long", message));
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
    make(password).map_err(|error| Refusal::internal(&error))
}

fn make(password: &str) -> argon2::password_hash::Result<String> {
    let (algorithm, version, (memory_kib, passes, lanes)) = (Algorithm::Argon2id, Version::V0x13, COST);
    let params = Params::new(memory_kib, passes, lanes, None)?;
    let salt = Salt::new(&keys::random::<16>())?;
    let hash = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: ParamsString::try_from(&params)?,
        hash: Some(derive(password, &salt, &Argon2::new(algorithm, version, params))?),
        salt: Some(salt),
    };
    Ok(hash.to_string())
}

/// Blocks of 1 KiB for which there is room whenever a hash is made: more than any hash needs.
///
/// What is larger than 32 MiB goes back to the kernel when it is freed. What is smaller, glibc keeps after the first time
/// (mallopt(3), M_MMAP_THRESHOLD), for each thread that ever hashed. Room that is not touched costs nothing.
const ROOM_BLOCKS: usize = 33 * 1024;

fn derive(password: &str, salt: &Salt, argon2: &Argon2<'_>) -> argon2::password_hash::Result<Output> {
    let blocks = argon2.params().block_count();
    let mut memory = Vec::with_capacity(ROOM_BLOCKS.max(blocks));
    memory.resize(blocks, Block::new());
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut output, memory)?;
    Ok(Output::new(&output)?)
}

/// Whether the password is the hash's. Without a hash (there is no such user) it takes the same time, and it is not.
pub(crate) fn is_password_of(password: &str, hash: Option<&str>) -> bool {
    let hash_or_nobody = hash.unwrap_or(NOBODY);
    is_of(password, hash_or_nobody).unwrap_or(false) && hash.is_some()
}

/// Whatever costs the hash was made with.
fn is_of(password: &str, hash: &str) -> Option<bool> {
    let parsed = PasswordHash::new(hash).ok()?;
    let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).ok()?;
    let version = Version::try_from(parsed.version?).ok()?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&parsed).ok()?);
    // The comparison takes the same time wherever they differ.
    Some(derive(password, parsed.salt.as_ref()?, &argon2).ok()? == parsed.hash?)
}

/// A hash with the same cost as every other. Whoever knows its password gains nothing.
const NOBODY: &str =
    "$argon2id$v=19$m=7168,t=5,p=1$bm9ib2R5IGhlcmUhISE$4Z3bCqDOkB1o8jVNeqmT3xxgrZ2Uz9c5cVRh0M5Jv8Y";

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
    fn a_hash_is_what_every_other_program_makes_of_it() {
        use argon2::password_hash::{PasswordHasher, PasswordVerifier};
        let others = Argon2::default().hash_password(b"correct horse battery").unwrap().to_string();
        assert!(is_password_of("correct horse battery", Some(&others)));
        assert!(!is_password_of("correct horse batterz", Some(&others)));
        let kept = PasswordHash::new(&hash("correct horse battery").unwrap()).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse battery", &kept).is_ok());
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
        assert!(check("password", &"x".repeat(PASSWORD_CHARS_MIN - 1)).is_err());
        assert!(check("password", &"x".repeat(PASSWORD_CHARS_MIN)).is_ok());
        assert!(check("password", &"x".repeat(PASSWORD_BYTES_MAX + 1)).is_err());
    }
}
