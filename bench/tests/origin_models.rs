//! The shapes of the model APIs, as their SDKs rely on them. Whether an SDK is content is tested with the
//! SDKs themselves, elsewhere.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod client;

use client::{Client, End, Response, start};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

fn chat(client: &mut Client, query: &str, more: Value) -> Response {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post(&format!("{CHAT}?tokens_per_second=0&{query}"), &body.to_string())
}

/// The chunks of a stream that ends with `[DONE]`.
fn chunks(response: &Response) -> Vec<Value> {
    let mut events = response.events();
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn chat_stream_opens_with_the_role_and_ends_with_a_reason_and_done() {
    let (_origin, mut client) = start();
    let response = chat(&mut client, "tokens=5", json!({ "stream": true }));
    assert_eq!((response.status, response.end), (200, End::Clean));
    assert_eq!(response.field("content-type"), Some("text/event-stream; charset=utf-8"));
    let chunks = chunks(&response);
    assert_eq!(chunks.len(), 1 + 5 + 1);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["model"]), (&chunks[0]["id"], &json!("m")));
        assert!(chunk["id"].as_str().unwrap().starts_with("chatcmpl-") && chunk["created"].is_u64());
        assert_eq!(chunk["choices"][0]["index"], 0);
        assert!(chunk.get("usage").is_none(), "nobody asked for usage");
    }
    let reasons: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["finish_reason"].clone()).collect();
    assert_eq!(reasons[..6], vec![Value::Null; 6]);
    assert_eq!(reasons[6], "stop");
    assert_eq!(chunks[6]["choices"][0]["delta"], json!({}));
}

#[test]
fn every_event_is_a_chunk_of_its_own() {
    let (_origin, mut client) = start();
    let response = chat(&mut client, "tokens=30", json!({ "stream": true }));
    assert_eq!(response.chunks.len(), 1 + 30 + 1 + 1);
    for chunk in &response.chunks {
        let text = String::from_utf8_lossy(chunk);
        assert!(
            text.starts_with("data: ") && text.ends_with("\n\n") && text.matches("\n\n").count() == 1,
            "{text:?}"
        );
    }
}

#[test]
fn chat_usage_comes_last_and_only_when_asked_for() {
    let (_origin, mut client) = start();
    let more = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = chunks(&chat(&mut client, "tokens=4", more));
    let (last, others) = chunks.split_last().unwrap();
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    let usage = &last["usage"];
    assert_eq!(usage["completion_tokens"], 4);
    assert_eq!(usage["total_tokens"].as_u64(), usage["prompt_tokens"].as_u64().map(|prompt| prompt + 4));
}

#[test]
fn a_completion_says_the_same_streamed_and_whole() {
    let (_origin, mut client) = start();
    for query in ["tokens=40", "tokens=7&token_size=9"] {
        let streamed = content(&chunks(&chat(&mut client, query, json!({ "stream": true }))));
        let whole = chat(&mut client, query, json!({})).json();
        assert_eq!(whole["object"], "chat.completion");
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["message"]["role"], &choice["finish_reason"]),
            (&json!("assistant"), &json!("stop"))
        );
        assert_eq!(choice["message"]["content"].as_str().unwrap(), streamed);
        assert!(whole["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    }
}

#[test]
fn the_clients_token_limit_ends_with_length() {
    let (_origin, mut client) = start();
    for limit in ["max_tokens", "max_completion_tokens"] {
        let streamed = chunks(&chat(&mut client, "tokens=9", json!({ "stream": true, limit: 3 })));
        assert_eq!(streamed.len(), 1 + 3 + 1);
        assert_eq!(streamed[4]["choices"][0]["finish_reason"], "length");
        let whole = chat(&mut client, "tokens=9", json!({ limit: 3 })).json();
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!(whole["usage"]["completion_tokens"], 3);
    }
}

#[test]
fn a_model_name_that_looks_like_json_stays_a_name() {
    let (_origin, mut client) = start();
    let name = r#"a"content":""b\"#;
    let chunks = chunks(&chat(&mut client, "tokens=3", json!({ "stream": true, "model": name })));
    assert!(chunks.iter().all(|chunk| chunk["model"] == name));
    assert_eq!(content(&chunks), "The model answers");
}

#[test]
fn wrong_chat_requests_get_an_openai_error() {
    let (_origin, mut client) = start();
    for body in ["{", "[]", "{}", r#"{"messages":"no list"}"#] {
        let response = client.post(CHAT, body);
        assert_eq!(response.status, 400, "{body}");
        let error = &response.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].is_string() && error.get("code").is_some() && error.get("param").is_some());
    }
    let response = client.get(CHAT);
    assert_eq!((response.status, response.field("allow")), (405, Some("POST")));
}

#[test]
fn messages_stream_has_its_events_in_order() {
    let (_origin, mut client) = start();
    let body = r#"{"model":"c","max_tokens":100,"stream":true,"messages":[]}"#;
    let response = client.post(&format!("{MESSAGES}?tokens=3&tokens_per_second=0"), body);
    let events = response.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
    let delta = "content_block_delta";
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            delta,
            delta,
            delta,
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let data: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert!(data.iter().zip(&names).all(|(data, name)| data["type"] == *name));
    let message = &data[0]["message"];
    assert_eq!(
        (&message["role"], &message["content"], &message["model"]),
        (&json!("assistant"), &json!([]), &json!("c"))
    );
    assert!(message["usage"]["input_tokens"].as_u64().unwrap() > 0 && message["stop_reason"].is_null());
    let text: String = data[3..6].iter().map(|data| data["delta"]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "The model answers");
    assert_eq!(
        (&data[7]["delta"]["stop_reason"], &data[7]["usage"]["output_tokens"]),
        (&json!("end_turn"), &json!(3))
    );
}

#[test]
fn messages_whole_and_its_errors_have_anthropics_shape() {
    let (_origin, mut client) = start();
    let body = r#"{"model":"c","max_tokens":2,"messages":[]}"#;
    let whole = client.post(&format!("{MESSAGES}?tokens_per_second=0"), body).json();
    assert_eq!((&whole["type"], &whole["stop_reason"]), (&json!("message"), &json!("max_tokens")));
    assert_eq!(whole["content"], json!([{ "type": "text", "text": "The model" }]));
    assert_eq!(whole["usage"]["output_tokens"], 2);
    let failed = client.post(&format!("{MESSAGES}?status=529"), body);
    assert_eq!((failed.status, &failed.json()["error"]["type"]), (529, &json!("overloaded_error")));
    assert_eq!(failed.json()["type"], "error");
}

#[test]
fn embeddings_have_realistic_sizes_in_both_encodings() {
    let (_origin, mut client) = start();
    let response = client.post("/v1/embeddings", r#"{"model":"e","input":["a","b","c"]}"#);
    let answer = response.json();
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    for (index, item) in data.iter().enumerate() {
        assert_eq!((item["index"].as_u64(), &item["object"]), (Some(index as u64), &json!("embedding")));
        assert_eq!(item["embedding"].as_array().unwrap().len(), 1536);
    }
    assert!(response.body.len() > 3 * 15_000, "{}", response.body.len());
    let body = r#"{"model":"e","input":"a","encoding_format":"base64","dimensions":256}"#;
    let base64 = client.post("/v1/embeddings", body).json();
    assert_eq!(base64["data"][0]["embedding"].as_str().unwrap().len(), (256_usize * 4).div_ceil(3) * 4);
    assert_eq!(client.post("/v1/embeddings", r#"{"input":[]}"#).status, 400);
}

#[test]
fn models_are_listed_and_found() {
    let (_origin, mut client) = start();
    let list = client.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let id = list["data"][0]["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/v1/models/{id}")).json(), list["data"][0]);
    assert_eq!(client.get("/v1/models/none").status, 404);
}

#[test]
fn sse_events_carry_number_and_send_time_whatever_the_method() {
    let (origin, mut client) = start();
    let before = bench::origin::monotonic_ns();
    let target = "/sse?tokens=20&tokens_per_second=0";
    for response in [client.get(target), client.post(target, "ignored")] {
        assert!(response.chunks.iter().all(|chunk| chunk.len() == 120));
        let data: Vec<Value> =
            response.events().iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        assert!(data.iter().map(|data| data["seq"].as_u64().unwrap()).eq(0..20));
        let times: Vec<_> = data.iter().map(|data| data["ns"].as_u64().unwrap()).collect();
        assert!(times.is_sorted() && times[0] > before && times[19] < bench::origin::monotonic_ns());
    }
    assert_eq!(origin.stats().events, 40);
}

#[test]
fn tokens_come_at_their_pace_and_not_before_the_first_token_time() {
    let (_origin, mut client) = start();
    let sent = bench::origin::monotonic_ns();
    let response = client.get("/sse?ttft=80ms&tokens=11&tokens_per_second=100");
    let data: Vec<Value> =
        response.events().iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let first = data[0]["ns"].as_u64().unwrap();
    assert!(first - sent >= 80_000_000);
    for (index, data) in (0..).zip(&data) {
        // The first token itself may have left a little after it was due.
        let due = first + index * 10_000_000 - 5_000_000;
        assert!(data["ns"].as_u64().unwrap() >= due, "token {index} came early");
    }
}

#[test]
fn a_request_id_is_given_back() {
    let (origin, mut client) = start();
    client.send("GET /v1/models HTTP/1.1\r\nHost: o\r\nX-Request-ID: abc-1\r\n\r\n");
    assert_eq!(client.response().field("x-request-id"), Some("abc-1"));
    assert_eq!(origin.request_count("abc-1"), 1);
}
