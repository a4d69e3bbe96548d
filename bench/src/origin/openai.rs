//! OpenAI's API as its SDKs expect it: chat completions (streamed or not), embeddings, models. The model
//! behind it is `tokens`: what is asked does not change what is answered.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::clock::{monotonic_ns, unix_seconds};
use super::exchange::{Ended, Exchange};
use super::response::Head;
use super::stream::{self, Dialect};
use super::tokens::{planned, prompt_tokens, push_token, whole_text};

/// Largest request body of a model API: a prompt of some million tokens, or its images.
pub(crate) const PROMPT_MAX: usize = 64 << 20;

/// Model names longer than this are cut: they are repeated in every event.
const MODEL_NAME_MAX: usize = 200;

/// Dimensions of an embedding unless the request says otherwise.
const EMBEDDING_DIMENSIONS: usize = 1536;

/// Most dimensions; the largest that OpenAI has are 3072.
const EMBEDDING_DIMENSIONS_MAX: usize = 4096;

/// Most inputs in one request, as OpenAI allows.
const EMBEDDING_INPUTS_MAX: usize = 2048;

const MODELS: [&str; 3] = ["mock-gpt", "mock-claude", "mock-embedding"];

#[derive(Debug, Default, Deserialize)]
struct ChatRequest {
    model: Option<String>,
    messages: Option<Vec<IgnoredAny>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct EmbeddingsRequest {
    model: Option<String>,
    #[serde(default)]
    input: Value,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
}

/// One chat completion.
#[derive(Debug)]
pub(crate) struct Chat {
    id: String,
    created: u64,
    model: String,
    tokens: u64,
    token_size: Option<usize>,
    prompt_tokens: u64,
    finish_reason: &'static str,
    include_usage: bool,
    /// A token's event up to its text …
    before_text: Vec<u8>,
    /// … and from there on.
    after_text: Vec<u8>,
}

/// Answers `POST /v1/chat/completions`.
pub(crate) async fn chat(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let early = exchange.knobs.early_response != super::knobs::EarlyResponse::Off;
    let body = exchange.read_body_whole(PROMPT_MAX).await?;
    let request =
        if early { Ok(ChatRequest::default()) } else { serde_json::from_slice::<ChatRequest>(&body) };
    let request = match request {
        Ok(request) if request.messages.is_some() || early => request,
        Ok(_) => return exchange.respond_error(400, "Missing required parameter: 'messages'.").await,
        Err(wrong) => {
            return exchange.respond_error(400, &format!("The body is not a chat request: {wrong}")).await;
        }
    };
    let streams = request.stream.unwrap_or(false);
    let chat = Chat::new(exchange, request, prompt_tokens(&body));
    let tokens = chat.tokens;
    if streams {
        return stream::send(exchange, &Dialect::Chat(chat), tokens).await;
    }
    exchange.generate(tokens).await?;
    let head = exchange.model_head(Head::json(200));
    exchange.respond(head, chat.whole().to_string().as_bytes()).await
}

/// Answers `POST /v1/embeddings`.
pub(crate) async fn embeddings(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let body = exchange.read_body_whole(PROMPT_MAX).await?;
    let request = match serde_json::from_slice::<EmbeddingsRequest>(&body) {
        Ok(request) => request,
        Err(_) if body.is_empty() => EmbeddingsRequest::default(),
        Err(wrong) => {
            return exchange.respond_error(400, &format!("The body is no embeddings request: {wrong}")).await;
        }
    };
    let count = count_inputs(&request.input);
    let dimensions = request.dimensions.unwrap_or(EMBEDDING_DIMENSIONS);
    if !(1..=EMBEDDING_INPUTS_MAX).contains(&count) || !(1..=EMBEDDING_DIMENSIONS_MAX).contains(&dimensions) {
        return exchange.respond_error(400, "'input' takes 1 to 2048 inputs, 'dimensions' 1 to 4096.").await;
    }
    let as_base64 = request.encoding_format.as_deref() == Some("base64");
    let data: Vec<Value> = (0..count)
        .map(|index| {
            json!({ "object": "embedding", "index": index, "embedding": embedding(index, dimensions, as_base64) })
        })
        .collect();
    let prompt = prompt_tokens(&body);
    let answer = json!({
        "object": "list",
        "data": data,
        "model": model_name(request.model, "mock-embedding"),
        "usage": { "prompt_tokens": prompt, "total_tokens": prompt },
    });
    exchange.pause(exchange.knobs.ttft).await?;
    let head = exchange.model_head(Head::json(200));
    exchange.respond(head, answer.to_string().as_bytes()).await
}

/// Answers `GET /v1/models` and `GET /v1/models/{id}`.
pub(crate) async fn models(exchange: &mut Exchange<'_>) -> Result<(), Ended> {
    let model =
        |id: &str| json!({ "id": id, "object": "model", "created": 1_700_000_000, "owned_by": "millrace" });
    let answer = match exchange.request.path().strip_prefix("/v1/models/") {
        Some(id) if !MODELS.contains(&id) => {
            return exchange.respond_error(404, "There is no such model.").await;
        }
        Some(id) => model(id),
        None => json!({ "object": "list", "data": MODELS.map(model) }),
    };
    let head = exchange.model_head(Head::json(200));
    exchange.respond(head, answer.to_string().as_bytes()).await
}

impl Chat {
    fn new(exchange: &Exchange<'_>, request: ChatRequest, prompt_tokens: u64) -> Self {
        let limit = request.max_completion_tokens.or(request.max_tokens);
        let (tokens, cut) = planned(&exchange.knobs, limit, request.stream.unwrap_or(false));
        let mut chat = Self {
            id: format!("chatcmpl-{:024x}", monotonic_ns()),
            created: unix_seconds(),
            model: model_name(request.model, "mock-gpt"),
            tokens,
            token_size: exchange.knobs.token_size,
            prompt_tokens,
            finish_reason: if cut { "length" } else { "stop" },
            include_usage: request.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            before_text: Vec::new(),
            after_text: Vec::new(),
        };
        // Rendered once: of 20,000 events a second only the text differs. No other string can look like
        // this slot, its quotes would be escaped.
        const SLOT: &str = "\"content\":\"\"";
        let sample = chat.chunk(&json!({ "content": "" }), None);
        if let Some(at) = sample.find(SLOT) {
            let (before, after) = sample.split_at(at + SLOT.len() - 1);
            chat.before_text = before.as_bytes().to_vec();
            chat.after_text = after.as_bytes().to_vec();
        }
        chat
    }

    pub(crate) fn prelude(&self) -> Vec<String> {
        vec![self.chunk(&json!({ "role": "assistant", "content": "", "refusal": null }), None)]
    }

    pub(crate) fn token(&self, index: u64, event: &mut Vec<u8>) {
        event.extend_from_slice(&self.before_text);
        push_token(index, self.token_size, event);
        event.extend_from_slice(&self.after_text);
    }

    pub(crate) fn epilogue(&self) -> Vec<String> {
        let mut events = vec![self.chunk(&json!({}), Some(self.finish_reason))];
        if self.include_usage {
            let mut last = self.envelope("chat.completion.chunk", json!([]));
            last["usage"] = self.usage();
            events.push(format!("data: {last}\n\n"));
        }
        events.push("data: [DONE]\n\n".to_owned());
        events
    }

    pub(crate) fn error(&self) -> String {
        let message = format!("The model {} was asked to fail.", self.model);
        let error =
            json!({ "error": { "message": message, "type": "server_error", "param": null, "code": null } });
        format!("data: {error}\n\n")
    }

    /// The completion without streaming.
    fn whole(&self) -> Value {
        let message = json!({
            "role": "assistant",
            "content": whole_text(self.tokens, self.token_size),
            "refusal": null,
        });
        let choice = json!({
            "index": 0, "message": message, "logprobs": null, "finish_reason": self.finish_reason,
        });
        let mut whole = self.envelope("chat.completion", json!([choice]));
        whole["usage"] = self.usage();
        whole
    }

    fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> String {
        let choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason });
        let mut chunk = self.envelope("chat.completion.chunk", json!([choice]));
        if self.include_usage {
            // Every chunk has the field once it is asked for; only the last one has a value.
            chunk["usage"] = Value::Null;
        }
        format!("data: {chunk}\n\n")
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_mock",
            "choices": choices,
        })
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        })
    }
}

/// The name that the request gave, within bounds.
pub(crate) fn model_name(asked: Option<String>, default: &str) -> String {
    asked.map_or_else(|| default.to_owned(), |name| name.chars().take(MODEL_NAME_MAX).collect())
}

/// One text, one list of token numbers, or a list of either.
fn count_inputs(input: &Value) -> usize {
    match input {
        Value::String(_) => 1,
        Value::Array(list) if list.iter().all(Value::is_number) => usize::from(!list.is_empty()),
        Value::Array(list) => list.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => 0,
    }
}

/// A vector that depends on nothing but its index, as numbers or as the base64 of its little-endian bytes
/// (what the Python SDK asks for).
fn embedding(index: usize, dimensions: usize, as_base64: bool) -> Value {
    let values = (0..dimensions).map(|dimension| coordinate(index, dimension));
    if as_base64 {
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Value::String(BASE64_STANDARD.encode(bytes))
    } else {
        // Eight decimals, the size of a real embedding's text.
        values.map(|value| json!((f64::from(value) * 1e8).round() / 1e8)).collect()
    }
}

/// In -0.05 … 0.05, spread by a multiplicative hash.
fn coordinate(index: usize, dimension: usize) -> f32 {
    let hash = ((index as u32) << 12 | dimension as u32).wrapping_add(1).wrapping_mul(2_654_435_769);
    (f64::from(hash) / f64::from(u32::MAX) * 0.1 - 0.05) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_numbers_is_one_input_and_a_list_of_lists_is_many() {
        for (input, count) in [
            (json!("text"), 1),
            (json!([1, 2, 3]), 1),
            (json!([[1, 2], [3]]), 2),
            (json!(["a", "b", "c"]), 3),
            (json!([]), 0),
            (json!(null), 0),
        ] {
            assert_eq!(count_inputs(&input), count, "{input}");
        }
    }

    #[test]
    fn base64_and_numbers_are_the_same_vector() {
        let numbers = embedding(3, 1536, false);
        let text = embedding(3, 1536, true);
        let bytes = BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
        let decoded: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!((decoded.len(), numbers.as_array().unwrap().len()), (1536, 1536));
        for (one, other) in decoded.iter().zip(numbers.as_array().unwrap()) {
            assert!((f64::from(*one) - other.as_f64().unwrap()).abs() < 1e-7);
        }
        assert_ne!(embedding(4, 8, false), embedding(3, 8, false));
    }
}
