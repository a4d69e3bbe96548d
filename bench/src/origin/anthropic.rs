//! Anthropic's Messages API as its SDKs expect it, streamed or not. No tools, no thinking: one text block.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::clock::monotonic_ns;
use super::exchange::{Ended, Exchange};
use super::knobs::EarlyResponse;
use super::openai::{PROMPT_MAX, model_name};
use super::response::{Head, anthropic_error};
use super::stream::{self, Dialect};
use super::tokens::{planned, prompt_tokens, push_token, whole_text};

#[derive(Debug, Default, Deserialize)]
struct MessagesRequest {
    model: Option<String>,
    messages: Option<Vec<IgnoredAny>>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    id: String,
    model: String,
    tokens: u64,
    token_size: Option<usize>,
    input_tokens: u64,
    stop_reason: &'static str,
}

/// Answers `POST /v1/messages`.
pub(crate) async fn messages(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let early = exchange.knobs.early_response != EarlyResponse::Off;
    let body = exchange.read_body_whole(PROMPT_MAX).await?;
    let request = if early { Ok(MessagesRequest::default()) } else { serde_json::from_slice(&body) };
    let request: MessagesRequest = match request {
        Ok(request) if request.messages.is_some() || early => request,
        Ok(_) => return exchange.respond_error(400, "messages: Field required").await,
        Err(wrong) => {
            return exchange.respond_error(400, &format!("The body is no messages request: {wrong}")).await;
        }
    };
    let streams = request.stream.unwrap_or(false);
    let (tokens, cut) = planned(&exchange.knobs, request.max_tokens, streams);
    let message = Message {
        id: format!("msg_{:024x}", monotonic_ns()),
        model: model_name(request.model, "mock-claude"),
        tokens,
        token_size: exchange.knobs.token_size,
        input_tokens: prompt_tokens(&body),
        stop_reason: if cut { "max_tokens" } else { "end_turn" },
    };
    if streams {
        return stream::send(exchange, &Dialect::Messages(message), tokens).await;
    }
    exchange.generate(tokens).await?;
    let head = exchange.model_head(Head::json(200));
    exchange.respond(head, message.whole().to_string().as_bytes()).await
}

impl Message {
    pub(crate) fn prelude(&self) -> Vec<String> {
        let start = self.message(json!([]), Value::Null, 1);
        let block = json!({ "type": "text", "text": "" });
        vec![
            event("message_start", &json!({ "type": "message_start", "message": start })),
            event(
                "content_block_start",
                &json!({ "type": "content_block_start", "index": 0, "content_block": block }),
            ),
            event("ping", &json!({ "type": "ping" })),
        ]
    }

    pub(crate) fn token(&self, index: u64, event: &mut Vec<u8>) {
        event.extend_from_slice(
            b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
              \"delta\":{\"type\":\"text_delta\",\"text\":\"",
        );
        push_token(index, self.token_size, event);
        event.extend_from_slice(b"\"}}\n\n");
    }

    pub(crate) fn epilogue(&self) -> Vec<String> {
        let delta = json!({
            "type": "message_delta",
            "delta": { "stop_reason": self.stop_reason, "stop_sequence": null },
            "usage": { "output_tokens": self.tokens },
        });
        vec![
            event("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 })),
            event("message_delta", &delta),
            event("message_stop", &json!({ "type": "message_stop" })),
        ]
    }

    pub(crate) fn error() -> String {
        let error = json!({ "type": anthropic_error(529), "message": "Overloaded" });
        event("error", &json!({ "type": "error", "error": error }))
    }

    /// The message without streaming.
    fn whole(&self) -> Value {
        let text = whole_text(self.tokens, self.token_size);
        self.message(json!([{ "type": "text", "text": text }]), json!(self.stop_reason), self.tokens)
    }

    fn message(&self, content: Value, stop_reason: Value, output_tokens: u64) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": null,
            "usage": { "input_tokens": self.input_tokens, "output_tokens": output_tokens },
        })
    }
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
