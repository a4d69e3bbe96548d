//! What is sent and what must come back: the choice between the scenarios. A new protocol is a variant here and in
//! `exchange`, and a file of its own.

use serde::{Deserialize, Serialize};

use super::body::Body;
use super::exchange::{Exchange, Message};
use super::get::{self, Get};
use super::h1;
use super::plan::Target;
use super::post::Post;
use super::sse::Sse;
use super::tcp::Echo;

/// One scenario with its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Scenario {
    Get(Get),
    Post(Post),
    Sse(Sse),
    Body(Body),
    Churn(Get),
    Tcp { size: u64 },
}

impl Scenario {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Post(_) => "post",
            Self::Sse(_) => "sse",
            Self::Body(_) => "body",
            Self::Churn(_) => "churn",
            Self::Tcp { .. } => "tcp",
        }
    }

    /// The path on the mock origin, with the knobs that make it answer as the check expects.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Get(_) | Self::Churn(_) => get::PATH.to_owned(),
            Self::Post(post) => post.path(),
            Self::Sse(sse) => sse.path(),
            Self::Body(body) => body.path(),
            Self::Tcp { .. } => String::new(),
        }
    }

    /// What every exchange sends.
    pub(crate) fn message(&self, target: &Target, headers: &[String]) -> Message {
        match self {
            Self::Get(_) => request("GET", target, headers, &[]),
            Self::Churn(_) => request("GET", target, headers, &["Connection: close"]),
            Self::Sse(_) => request("GET", target, headers, &["Accept: text/event-stream"]),
            Self::Post(post) => {
                let body = post.request_body();
                let length = format!("Content-Length: {}", body.len());
                let mut message =
                    request("POST", target, headers, &["Content-Type: application/json", &length]);
                message.start.extend_from_slice(&body);
                message
            }
            Self::Body(body) if body.upload => {
                let length = format!("Content-Length: {}", body.size);
                let message = request("PUT", target, headers, &[&length]);
                Message { pattern_bytes: body.size, ..message }
            }
            Self::Body(_) => request("GET", target, headers, &[]),
            Self::Tcp { size } => Message { start: Vec::new(), pattern_bytes: *size },
        }
    }

    /// The reader of the next exchange.
    pub(crate) fn exchange(&self) -> Exchange {
        let check = match self {
            Self::Get(get) | Self::Churn(get) => get.check(),
            Self::Post(post) => post.check(),
            Self::Sse(sse) => sse.check(),
            Self::Body(body) => body.check(),
            Self::Tcp { size } => return Exchange::Tcp(Echo::new(*size)),
        };
        Exchange::Http1(h1::Response::new(check))
    }

    pub(crate) fn keeps_connections(&self) -> bool {
        !matches!(self, Self::Churn(_))
    }

    /// Whether its exchanges are long by nature, so that only silence is a sign of failure.
    pub(crate) fn times_out_by_silence(&self) -> bool {
        matches!(self, Self::Sse(_) | Self::Body(_))
    }
}

fn request(method: &str, target: &Target, headers: &[String], own: &[&str]) -> Message {
    let mut head = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", target.path, target.authority);
    for field in own.iter().copied().chain(headers.iter().map(String::as_str)) {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    Message { start: head.into_bytes(), pattern_bytes: 0 }
}
