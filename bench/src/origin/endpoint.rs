//! What each path answers, apart from the model APIs (`openai`, `anthropic`), the token streams
//! (`stream`) and the origin's own controls (`control`). Faults that replace the answer come first.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::exchange::{Ended, Exchange, after};
use super::knobs::parse_size;
use super::request::BodyLength;
use super::response::{Framing, Head};
use super::route::Route;
use super::{anthropic, control, openai, sse};
use crate::pattern;

/// Largest `/bytes/{n}`.
const BYTES_MAX: u64 = 1 << 30;

/// Piece of `/bytes/{n}` unless the knob `chunk` says otherwise.
const BYTES_CHUNK: usize = 64 << 10;

/// Largest body that `/echo` shows in its answer; longer ones are only counted.
const ECHO_SHOWN_MAX: usize = 16 << 10;

/// Answers the request, with whatever its knobs say.
pub(crate) async fn answer(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    if exchange.route.is_control() {
        return dispatch(exchange).await;
    }
    if let Err(wrong) = exchange.turn_knobs() {
        exchange.read_body_first().await?;
        return exchange.respond_error(400, &wrong.to_string()).await;
    }
    if let Some(variant) = exchange.knobs.bad_framing {
        exchange.read_body_first().await?;
        return exchange.respond_badly(variant).await;
    }
    if let Some(status) = exchange.knobs.status {
        exchange.read_body_first().await?;
        return exchange.respond_error(status, "The origin was asked to fail with this status.").await;
    }
    if !exchange.route.takes(exchange.request.method()) {
        exchange.read_body_first().await?;
        return exchange.respond_error(405, "This path does not take this method.").await;
    }
    dispatch(exchange).await
}

async fn dispatch(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    if !exchange.route.reads_its_body() {
        exchange.read_body_first().await?;
    }
    match exchange.route {
        Route::Hello => exchange.respond(text(200), b"hello\n").await,
        Route::Chat => openai::chat(exchange).await,
        Route::Messages => anthropic::messages(exchange).await,
        Route::Embeddings => openai::embeddings(exchange).await,
        Route::Models => openai::models(exchange).await,
        Route::Sse => sse::events(exchange).await,
        Route::Echo => echo(exchange).await,
        Route::Upload => upload(exchange).await,
        Route::Bytes => bytes(exchange).await,
        Route::Status => status(exchange).await,
        Route::Health => exchange.respond(Head::json(200), br#"{"status":"ok"}"#).await,
        Route::Trailers => trailers(exchange).await,
        Route::EarlyHints => early_hints(exchange).await,
        Route::Unknown => exchange.respond_error(404, "There is nothing at this path.").await,
        Route::Stats | Route::Reset | Route::Connections | Route::Fault => control::answer(exchange).await,
    }
}

fn text(status: u16) -> Head {
    Head::new(status).field("Content-Type", "text/plain")
}

/// What arrived, as JSON; or with `raw` the body itself, piece by piece, while it arrives.
async fn echo(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    if exchange.knobs.raw {
        return echo_raw(exchange).await;
    }
    let mut shown = Vec::new();
    let mut digest = Sha256::new();
    while let Some(piece) = exchange.next_piece().await? {
        digest.update(&piece);
        if shown.len() + piece.len() <= ECHO_SHOWN_MAX {
            shown.extend_from_slice(&piece);
        }
    }
    let request = exchange.request;
    let received = exchange.body.received;
    let body = (received == shown.len() as u64).then(|| String::from_utf8_lossy(&shown).into_owned());
    let answer = json!({
        "method": request.method(),
        "target": request.target(),
        "path": request.path(),
        "query": request.query(),
        "version": format!("HTTP/1.{}", request.minor_version),
        "headers": request.fields().collect::<Vec<_>>(),
        "body": body,
        "body_bytes": received,
        "body_sha256": hex(&digest.finalize()),
        "body_chunked": request.body == BodyLength::Chunked,
        "trailers": exchange.body.trailers,
    });
    exchange.respond(Head::json(200), answer.to_string().as_bytes()).await
}

async fn echo_raw(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let content_type =
        exchange.request.field("content-type").unwrap_or(Cow::Borrowed("application/octet-stream"));
    let framing = match exchange.request.body {
        BodyLength::Empty => Framing::Sized(0),
        BodyLength::Sized(length) => Framing::Sized(length),
        BodyLength::Chunked => Framing::Chunked,
    };
    // The client may hold its body back until it has seen the 100.
    exchange.send_continue().await?;
    exchange.start(Head::new(200).field("Content-Type", content_type), framing).await?;
    while let Some(piece) = exchange.next_piece().await? {
        exchange.write(&piece).await?;
    }
    exchange.finish().await
}

async fn upload(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    if exchange.knobs.pattern {
        return upload_of_pattern(exchange).await;
    }
    if !exchange.knobs.sha256 {
        exchange.read_body_first().await?;
        let answer = json!({ "bytes": exchange.body.received });
        return exchange.respond(Head::json(200), answer.to_string().as_bytes()).await;
    }
    let mut digest = Sha256::new();
    while let Some(piece) = exchange.next_piece().await? {
        digest.update(&piece);
    }
    let answer = json!({ "bytes": exchange.body.received, "sha256": hex(&digest.finalize()) });
    exchange.respond(Head::json(200), answer.to_string().as_bytes()).await
}

/// Compares the body with what `/bytes/{n}` would send: as good a check as a hash, at the price of a comparison.
async fn upload_of_pattern(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let (mut at, mut intact) = (0, true);
    while let Some(piece) = exchange.next_piece().await? {
        intact &= pattern::matches(at, &piece);
        at += piece.len() as u64;
    }
    let answer = json!({ "bytes": exchange.body.received, "pattern": intact });
    exchange.respond(Head::json(200), answer.to_string().as_bytes()).await
}

async fn bytes(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let wanted = exchange.request.path().strip_prefix("/bytes/").and_then(parse_size);
    let Some(total) = wanted.filter(|total| *total <= BYTES_MAX) else {
        return exchange
            .respond_error(400, "Write /bytes/{n} with n from 0 to 1GiB, such as 65536 or 64KiB.")
            .await;
    };
    let head = Head::new(200).field("Content-Type", "application/octet-stream");
    let knobs = exchange.knobs;
    let framing = match (knobs.chunked, knobs.close) {
        (true, _) => Framing::Chunked,
        (false, true) => Framing::UntilClose,
        (false, false) => Framing::Sized(total),
    };
    let chunk = knobs.chunk.unwrap_or(BYTES_CHUNK);
    if matches!(framing, Framing::Sized(_)) && total <= chunk as u64 && knobs.bytes_per_second.is_none() {
        return exchange.respond(head, pattern::piece(0, total, chunk)).await;
    }
    exchange.start(head, framing).await?;
    let started = Instant::now();
    let mut sent = 0;
    while sent < total && !exchange.request.is_head() {
        if let Some(rate) = knobs.bytes_per_second {
            let due = Duration::try_from_secs_f64(sent as f64 / rate as f64).unwrap_or(Duration::MAX);
            exchange.pause_until(after(started, due)).await?;
        }
        let piece = pattern::piece(sent, total, chunk);
        exchange.write(piece).await?;
        sent += piece.len() as u64;
    }
    exchange.finish().await
}

async fn status(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let code = exchange.request.path().strip_prefix("/status/").and_then(|code| code.parse::<u16>().ok());
    match code {
        Some(code @ (204 | 205 | 304)) => exchange.respond(Head::new(code), b"").await,
        Some(code @ 300..400) => exchange.respond(text(code).field("Location", "/"), b"moved\n").await,
        Some(code @ 200..300) => exchange.respond(text(code), b"status\n").await,
        Some(code @ 400..600) => exchange.respond_error(code, "The origin was asked for this status.").await,
        _ => exchange.respond_error(400, "Write /status/{code} with a final status from 200 to 599.").await,
    }
}

async fn trailers(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let parts: [&[u8]; 2] = [b"hello ", b"trailers\n"];
    let body = parts.concat();
    exchange.start(text(200).field("Trailer", "X-Bytes, X-Sha256"), Framing::Chunked).await?;
    for part in parts {
        exchange.write(part).await?;
    }
    let sum = hex(&Sha256::digest(&body));
    exchange.finish_with_trailers(&format!("X-Bytes: {}\r\nX-Sha256: {sum}\r\n", body.len())).await
}

async fn early_hints(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    exchange.interim("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload; as=style\r\n\r\n").await?;
    exchange.respond(text(200), b"hello\n").await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
