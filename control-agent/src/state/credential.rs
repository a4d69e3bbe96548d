//! Another credential in the place of the one that is used, when the master wants that. At no moment is there none that
//! the master knows: the new one is kept beside the old one until the master has taken it.
//!
//! ```text
//! Idle ──wanted──▶ Making ──made──▶ Offered ──taken──▶ Keeping ──kept──▶ Idle
//!   ▲                │ no disk         │ session ends      │ no disk
//!   └────────────────┴─────────────────┴───────────────────┘   the master wants one again, later
//! ```
//! An agent that dies on the way has one that is good: before `Keeping` the old one, and after it both are, until the
//! master hears of the new one.

use proto::v1::{CredentialChange, CredentialStep};

use super::Action;

/// SHA-256 of a credential's text.
pub type Sha256 = [u8; 32];

/// See the module.
#[derive(Debug, Default)]
pub(super) enum Rotation {
    #[default]
    Idle,
    Making,
    Offered(Sha256),
    Keeping(Sha256),
}

impl Rotation {
    /// A session has begun: what was offered in the one before is forgotten.
    pub(super) fn handle_welcome(&mut self) {
        if matches!(self, Self::Offered(_)) {
            *self = Self::Idle;
        }
    }

    /// The master wants another credential.
    pub(super) fn handle_wanted(&mut self) -> Option<Action> {
        match self {
            // Asked again, the master has not heard of the one that was offered.
            Self::Idle | Self::Offered(_) => {
                *self = Self::Making;
                Some(Action::MakeCredential)
            }
            Self::Making | Self::Keeping(_) => None,
        }
    }

    /// `MakeCredential` is done; gives what the master is to be told.
    pub(super) fn handle_made(&mut self, made: Result<Sha256, String>) -> Option<CredentialChange> {
        if !matches!(self, Self::Making) {
            return None;
        }
        let made = made.ok();
        *self = made.map_or(Self::Idle, Self::Offered);
        made.map(|sha256| change(sha256, CredentialStep::Made))
    }

    /// The master knows a new credential.
    pub(super) fn handle_taken(&mut self, sha256: &[u8]) -> Option<Action> {
        match self {
            Self::Offered(offered) if offered[..] == *sha256 => {
                *self = Self::Keeping(*offered);
                Some(Action::KeepCredential)
            }
            Self::Idle | Self::Making | Self::Offered(_) | Self::Keeping(_) => None,
        }
    }

    /// `KeepCredential` is done; gives what the master is to be told.
    pub(super) fn handle_kept(&mut self, kept: &Result<(), String>) -> Option<CredentialChange> {
        let Self::Keeping(sha256) = *self else { return None };
        *self = Self::Idle;
        kept.is_ok().then(|| change(sha256, CredentialStep::Kept))
    }
}

fn change(sha256: Sha256, step: CredentialStep) -> CredentialChange {
    CredentialChange { sha256: sha256.to_vec().into(), step: step.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Sha256 = [7; 32];

    fn offered() -> Rotation {
        let mut rotation = Rotation::default();
        assert!(matches!(rotation.handle_wanted(), Some(Action::MakeCredential)));
        assert_eq!(rotation.handle_made(Ok(NEW)), Some(change(NEW, CredentialStep::Made)));
        rotation
    }

    #[test]
    fn a_new_credential_is_kept_when_the_master_has_taken_it() {
        let mut rotation = offered();
        assert!(rotation.handle_taken(&[8; 32]).is_none(), "another one was taken");
        assert!(matches!(rotation.handle_taken(&NEW), Some(Action::KeepCredential)));
        assert!(rotation.handle_taken(&NEW).is_none() && rotation.handle_wanted().is_none());
        assert_eq!(rotation.handle_kept(&Ok(())), Some(change(NEW, CredentialStep::Kept)));
        assert!(matches!(rotation, Rotation::Idle));
    }

    #[test]
    fn what_was_offered_in_an_earlier_session_is_not_kept() {
        let mut rotation = offered();
        rotation.handle_welcome();
        assert!(rotation.handle_taken(&NEW).is_none());
        assert!(matches!(rotation.handle_wanted(), Some(Action::MakeCredential)));
    }

    #[test]
    fn a_disk_that_fails_leaves_the_old_one_and_can_be_tried_again() {
        let mut rotation = Rotation::default();
        rotation.handle_wanted();
        assert_eq!(rotation.handle_made(Err("full".to_owned())), None);
        assert!(rotation.handle_wanted().is_some());
        let mut rotation = offered();
        rotation.handle_taken(&NEW);
        assert_eq!(rotation.handle_kept(&Err("full".to_owned())), None);
        assert!(rotation.handle_wanted().is_some());
    }
}
