//! What the machine wants of the store, done beside the driver's loop: one thing after another, for a disk may be slow.

use std::io;

use proto::fleet::NodeId;
use tokio::sync::mpsc;
use tracing::warn;

use crate::state::{Event, Published};
use crate::store::Store;

/// The machine waits for each thing that it wants kept, and has at most two to be dropped meanwhile.
const STORE_WORK_MAX: usize = 8;

/// One thing to be kept or dropped; answered by its event, but for `Drop`.
pub(super) enum StoreWork {
    Save(Published),
    Promote(Published),
    Drop,
    MakeCredential(NodeId),
    KeepCredential,
}

/// Does what the machine wants of the store, beside the loop: a disk may be slow.
pub(super) fn spawn(store: Store, events: mpsc::Sender<Event>) -> mpsc::Sender<StoreWork> {
    let (work_to, mut works) = mpsc::channel::<StoreWork>(STORE_WORK_MAX);
    tokio::spawn(async move {
        while let Some(work) = works.recv().await {
            let store = store.clone();
            let event = tokio::task::spawn_blocking(move || work.carry_out(&store)).await.ok().flatten();
            if let Some(event) = event {
                let _ = events.send(event).await;
            }
        }
    });
    work_to
}

impl StoreWork {
    fn carry_out(self, store: &Store) -> Option<Event> {
        let told = |result: io::Result<()>| result.map_err(|error| error.to_string());
        match self {
            Self::Save(config) => Some(Event::Saved(told(store.save_candidate(&config)))),
            Self::Promote(config) => Some(Event::Promoted(told(store.promote(&config)))),
            Self::MakeCredential(node) => {
                let made = store.next_credential(&node).map(|made| *made.verifier().as_bytes());
                Some(Event::CredentialMade(made.map_err(|error| error.to_string())))
            }
            Self::KeepCredential => Some(Event::CredentialKept(told(store.keep_next_credential()))),
            Self::Drop => {
                if let Err(error) = store.drop_candidate() {
                    warn!(%error, "a refused config cannot be removed");
                }
                None
            }
        }
    }
}
