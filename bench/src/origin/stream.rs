//! Token streams: when each event is due, and the faults that act between events. What an event looks
//! like is the dialect's business.

use tokio::time::Instant;

use super::anthropic::Message;
use super::exchange::{Ended, Exchange, after};
use super::knobs::Knobs;
use super::openai::Chat;
use super::response::{Framing, Head};
use super::sse::Events;

/// The language of a stream.
#[derive(Debug)]
pub(crate) enum Dialect {
    /// OpenAI's chat completion chunks.
    Chat(Chat),
    /// Anthropic's message events.
    Messages(Message),
    /// Numbered, time-stamped events.
    Plain(Events),
}

impl Dialect {
    /// Events before the first token.
    fn prelude(&self) -> Vec<String> {
        match self {
            Self::Chat(chat) => chat.prelude(),
            Self::Messages(message) => message.prelude(),
            Self::Plain(_) => Vec::new(),
        }
    }

    fn token(&self, index: u64, event: &mut Vec<u8>) {
        match self {
            Self::Chat(chat) => chat.token(index, event),
            Self::Messages(message) => message.token(index, event),
            Self::Plain(events) => events.token(index, event),
        }
    }

    /// Events after the last token.
    fn epilogue(&self) -> Vec<String> {
        match self {
            Self::Chat(chat) => chat.epilogue(),
            Self::Messages(message) => message.epilogue(),
            Self::Plain(_) => Vec::new(),
        }
    }

    /// The event that says that the model failed, under a status of 200.
    fn error(&self) -> String {
        match self {
            Self::Chat(chat) => chat.error(),
            Self::Messages(_) => Message::error(),
            Self::Plain(_) => Events::error(),
        }
    }
}

/// Sends `tokens` tokens, each due at its own time counted from the first: a late one does not delay
/// the next, so the pace does not drift. Every event is one write, unless the knob `hold` makes one of several.
pub(crate) async fn send(exchange: &mut Exchange<'_>, dialect: &Dialect, tokens: u64) -> Result<(), Ended> {
    let head = Head::new(200)
        .field("Content-Type", "text/event-stream; charset=utf-8")
        .field("Cache-Control", "no-cache")
        .field("X-Accel-Buffering", "no");
    let head = exchange.model_head(head);
    exchange.start(head, Framing::Chunked).await?;
    if exchange.knobs.empty_stream || exchange.request.is_head() {
        return exchange.finish().await;
    }
    exchange.pause(exchange.knobs.ttft).await?;
    for event in dialect.prelude() {
        exchange.event(event.as_bytes()).await?;
    }
    if !send_tokens(exchange, dialect, tokens).await? {
        exchange.event(dialect.error().as_bytes()).await?;
        return exchange.finish().await;
    }
    for event in dialect.epilogue() {
        exchange.event(event.as_bytes()).await?;
    }
    exchange.finish().await
}

/// Whether all tokens were sent; if not, the stream is to end with an error event.
async fn send_tokens(exchange: &mut Exchange<'_>, dialect: &Dialect, tokens: u64) -> Result<bool, Ended> {
    let knobs = exchange.knobs;
    let mut first_due = Instant::now();
    let (mut events, mut held) = (Vec::new(), 0);
    for index in 0..=tokens {
        let held_enough = held >= knobs.hold.unwrap_or(1) || index == tokens;
        if held_enough || knobs.stall_at == Some(index) || knobs.error_event == Some(index) {
            exchange.events(&events, held).await?;
            events.clear();
            held = 0;
        }
        if knobs.stall_at == Some(index) {
            let stalled = Instant::now();
            stall(exchange, &knobs).await?;
            first_due += stalled.elapsed();
        }
        if knobs.error_event == Some(index) {
            return Ok(false);
        }
        if index == tokens {
            break;
        }
        exchange.pause_until(after(first_due, knobs.token_offset(index))).await?;
        dialect.token(index, &mut events);
        held += 1;
    }
    Ok(true)
}

/// For the time that was asked for; without one until the client goes away.
async fn stall(exchange: &mut Exchange<'_>, knobs: &Knobs) -> Result<(), Ended> {
    match knobs.stall {
        Some(time) => exchange.pause(time).await,
        None => loop {
            exchange.pause(std::time::Duration::MAX).await?;
        },
    }
}
