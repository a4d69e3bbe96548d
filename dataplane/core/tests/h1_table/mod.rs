//! Reads the tables in `tests/data`: messages, and what is expected of each. The tables are plain data, so that the same rows can be sent
//! over real sockets too, to this proxy and to others.
#![allow(dead_code, reason = "each test file that includes this one uses a part of it")]

use serde_json::{Map, Value};

/// The requests of `h1_requests.json`.
pub(crate) fn requests() -> Vec<Row> {
    rows(include_str!("../data/h1_requests.json"))
}

/// The responses of `h1_responses.json`.
pub(crate) fn responses() -> Vec<Row> {
    rows(include_str!("../data/h1_responses.json"))
}

/// One row of a table.
pub(crate) struct Row {
    /// The message's bytes.
    pub(crate) raw: Vec<u8>,
    columns: Map<String, Value>,
}

impl Row {
    /// The row's name, unique in its table.
    pub(crate) fn name(&self) -> &str {
        self.text("name").unwrap()
    }

    /// `ok`, `redundant`, `refused`, `body_refused` or `incomplete`.
    pub(crate) fn expect(&self) -> &str {
        self.text("expect").unwrap()
    }

    /// The text in a column.
    pub(crate) fn text(&self, column: &str) -> Option<&str> {
        self.columns.get(column).and_then(Value::as_str)
    }

    /// What is in a column, if the row has it.
    pub(crate) fn column(&self, column: &str) -> Option<&Value> {
        self.columns.get(column)
    }
}

fn rows(table: &str) -> Vec<Row> {
    let table: Value = serde_json::from_str(table).unwrap();
    let rows = table["rows"].as_array().unwrap();
    rows.iter()
        .map(|row| Row { raw: bytes(&row["raw"]), columns: row.as_object().unwrap().clone() })
        .collect()
}

/// Text stands for bytes one by one (Latin-1); a list is joined; `{repeat, times}` is repeated.
fn bytes(raw: &Value) -> Vec<u8> {
    match raw {
        Value::String(text) => latin1(text),
        Value::Array(parts) => parts.iter().flat_map(bytes).collect(),
        Value::Object(part) => {
            latin1(part["repeat"].as_str().unwrap()).repeat(part["times"].as_u64().unwrap() as usize)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => panic!("no bytes: {raw}"),
    }
}

/// The bytes of a text whose characters are bytes.
pub(crate) fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(char).unwrap()).collect()
}
