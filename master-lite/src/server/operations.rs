//! What the master does by itself, in three loops that end with the process: alerts are judged, commands are driven to
//! their ends, webhooks are told. What is done in each stands in `service`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::service::Services;
use crate::service::call::now_ms;
use crate::service::notify::{TRIES_AT_ONCE_MAX, Verdict};
use crate::service::refusal::Refusal;

/// Commands are looked at this often even if no agent says anything: deadlines pass.
const DRIVE_EVERY: Duration = Duration::from_millis(500);

/// Runs all three until the process is to end.
pub(super) async fn run(services: Arc<Services>, judge_every: Duration, ended: watch::Receiver<bool>) {
    let judging = judge(Arc::clone(&services), judge_every, ended.clone());
    let driving = drive(Arc::clone(&services), ended.clone());
    tokio::join!(judging, driving, deliver(services, ended));
}

async fn judge(services: Arc<Services>, every: Duration, mut ended: watch::Receiver<bool>) {
    while tokio::time::timeout(every, ended.wait_for(|ended| *ended)).await.is_err() {
        block("judging alerts", &services, |services| services.judge(now_ms())).await;
    }
}

async fn drive(services: Arc<Services>, mut ended: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = services.commands.wait() => {}
            () = tokio::time::sleep(DRIVE_EVERY) => {}
        }
        block("driving commands", &services, |services| services.drive_commands(now_ms())).await;
    }
}

/// Tries that are under way when the process ends are cut off: the receiver knows a message that comes twice by its id.
async fn deliver(services: Arc<Services>, mut ended: watch::Receiver<bool>) {
    let courier = services.notify.courier();
    let mut tries: JoinSet<()> = JoinSet::new();
    loop {
        while tries.len() < TRIES_AT_ONCE_MAX {
            let next =
                block("reading webhooks", &services, |services| Ok(services.notify.poll(now_ms()))).await;
            let Some(Some((webhook, delivery))) = next else { break };
            let (services, courier) = (Arc::clone(&services), courier.clone());
            tries.spawn(async move {
                let verdict: Verdict = courier.deliver(&webhook, &delivery, now_ms() / 1_000).await;
                services.notify.handle_verdict(&delivery.webhook, verdict, now_ms());
            });
        }
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = services.notify.wait(now_ms()), if tries.len() < TRIES_AT_ONCE_MAX => {}
            Some(_) = tries.join_next() => {}
        }
    }
}

/// Runs a service's function where it may block; none, and a line in the log, where it fails.
async fn block<T: Send + 'static>(
    what: &'static str,
    services: &Arc<Services>,
    ask: impl FnOnce(&Services) -> Result<T, Refusal> + Send + 'static,
) -> Option<T> {
    let services = Arc::clone(services);
    match tokio::task::spawn_blocking(move || ask(&services)).await {
        Ok(Ok(value)) => Some(value),
        // What failed has said why.
        Ok(Err(refusal)) => {
            tracing::error!(why = refusal.message, "{what} failed");
            None
        }
        Err(error) => {
            tracing::error!(%error, "{what} failed");
            None
        }
    }
}
