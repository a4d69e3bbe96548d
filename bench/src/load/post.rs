//! A prompt sent to a chat completion that is answered whole. The answer must hold the text that the mock model speaks
//! and count every token of the prompt: so both bodies came through whole.

use std::sync::Arc;

use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::record::Failure;

use super::check::Check;
use super::exchange::Reading;
use super::tally::Wrong;

/// Before and behind the prompt's text.
const REQUEST: [&str; 2] = [r#"{"model":"mock-gpt","messages":[{"role":"user","content":""#, r#""}]}"#];

/// Least request: its frame.
pub(crate) const PROMPT_MIN: u64 = (REQUEST[0].len() + REQUEST[1].len()) as u64;

/// As much as the mock model gives in one token.
pub(crate) const ANSWER_MAX: u64 = 1 << 20;

/// Bytes of an answer beside its text are a few hundred: more than this is another answer.
const ANSWER_OVERHEAD_MAX: usize = 64 << 10;

/// The mock origin counts this many bytes of a request as one token.
const BYTES_PER_TOKEN: u64 = 4;

/// Sizes of both bodies, and what the answer must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Post {
    pub(crate) prompt: u64,
    pub(crate) answer: u64,
    expected: Arc<[Vec<u8>; 2]>,
}

/// The answer on its way here.
#[derive(Debug)]
pub(crate) struct Completion {
    expected: Arc<[Vec<u8>; 2]>,
    body: Vec<u8>,
}

impl Post {
    pub(crate) fn new(prompt: u64, answer: u64) -> Self {
        // The first token of a fixed size is a row of this letter.
        let text = format!("\"content\":\"{}\"", "a".repeat(answer as usize));
        let count = format!("\"prompt_tokens\":{}", prompt.div_ceil(BYTES_PER_TOKEN));
        Self { prompt, answer, expected: Arc::new([text.into_bytes(), count.into_bytes()]) }
    }

    pub(crate) fn path(&self) -> String {
        format!("/v1/chat/completions?tokens=1&token_size={}", self.answer)
    }

    pub(crate) fn request_body(&self) -> Vec<u8> {
        let [before, behind] = REQUEST;
        let filler = "x".repeat(self.prompt.saturating_sub(PROMPT_MIN) as usize);
        format!("{before}{filler}{behind}").into_bytes()
    }

    pub(crate) fn check(&self) -> Check {
        Check::Completion(Completion { expected: Arc::clone(&self.expected), body: Vec::new() })
    }
}

impl Completion {
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        if self.body.len() + bytes.len() > self.expected[0].len() + ANSWER_OVERHEAD_MAX {
            return Err(Wrong::new(Failure::Content, "the answer is much longer than what was asked for"));
        }
        self.body.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn end(&self, reading: &mut Reading<'_>) -> Result<(), Wrong> {
        for expected in self.expected.iter() {
            if memmem::find(&self.body, expected).is_none() {
                let shown = String::from_utf8_lossy(&expected[..expected.len().min(60)]).into_owned();
                return Err(Wrong::new(Failure::Content, format!("the answer does not hold {shown}")));
            }
        }
        reading.tally.bytes.checked += self.body.len() as u64;
        Ok(())
    }
}
