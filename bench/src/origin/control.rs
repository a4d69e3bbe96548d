//! `/_origin/…`: what the origin saw, and what is wrong with it from now on. No fault and no knob
//! reaches these paths, and they are not counted.

use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;

use super::exchange::{Ended, Exchange};
use super::fault::{Fault, SETTLE_STEP, SETTLE_TIME};
use super::knobs::pairs;
use super::response::Head;
use super::route::Route;
use super::stats;

/// Largest body of a control request.
const BODY_MAX: usize = 4 << 10;

/// Connections that are listed unless `limit` says otherwise.
const CONNECTIONS_SHOWN: usize = 1000;

pub(crate) async fn answer(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let body = exchange.read_body_whole(BODY_MAX).await?;
    if !exchange.route.takes(exchange.request.method()) {
        return exchange.respond_error(405, "This path does not take this method.").await;
    }
    let shared = Arc::clone(&exchange.connection.worker.shared);
    let query = exchange.request.query();
    let answer = if exchange.route == Route::Stats {
        match argument(query, "id") {
            Some(id) => json!({ "id": id, "requests": stats::request_count(&shared.ledgers, id) }),
            None => json!(shared.stats()),
        }
    } else if exchange.route == Route::Connections {
        let limit =
            argument(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(CONNECTIONS_SHOWN);
        json!({ "connections": stats::connections(&shared.ledgers, limit) })
    } else if exchange.route == Route::Reset {
        shared.reset();
        json!({ "reset": true })
    } else if exchange.request.method() == "DELETE" {
        shared.faults.clear();
        settle(exchange).await?;
        json!({ "fault": null })
    } else {
        let written = String::from_utf8_lossy(&body);
        let written = if query.is_empty() { written.trim() } else { query };
        match written.parse::<Fault>() {
            Ok(fault) => shared.faults.inject(fault),
            Err(wrong) => return exchange.respond_error(400, &wrong.to_string()).await,
        }
        settle(exchange).await?;
        json!({ "fault": written })
    };
    exchange.respond(Head::json(200), answer.to_string().as_bytes()).await
}

/// Answers only when the listeners have followed, so that the client's next connection meets the fault.
async fn settle(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let shared = Arc::clone(&exchange.connection.worker.shared);
    let deadline = Instant::now() + SETTLE_TIME;
    while !shared.faults.is_settled() && Instant::now() < deadline {
        exchange.pause(SETTLE_STEP).await?;
    }
    Ok(())
}

fn argument<'a>(query: &'a str, wanted: &str) -> Option<&'a str> {
    pairs(query).find(|(name, _)| *name == wanted).map(|(_, value)| value)
}
