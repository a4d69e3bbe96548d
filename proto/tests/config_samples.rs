//! The samples of `tests/config`: every accepted file is accepted, every refused one is refused with just the message
//! that is kept beside it. Not here: what an accepted file means, which is `config_meaning.rs`.
//!
//! `BLESS=1 cargo test -p proto --test config_samples` writes the messages anew; read the difference before you keep it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in its helpers")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proto::config::{Config, ConfigErrors, TEXT_BYTES_MAX, schema};
use serde_json::Value;

fn env(name: &str) -> Option<String> {
    match name {
        "REGION" => Some("hk".to_owned()),
        "TOKEN" => Some("secret".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, &env, "test-host")
}

fn samples(kind: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut samples: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    samples.sort();
    assert!(!samples.is_empty(), "no samples in {}", folder.display());
    samples
}

fn all_samples() -> Vec<String> {
    samples("accepted").into_iter().chain(samples("refused")).map(|(_, text)| text).collect()
}

/// Where an error may point: inside the text, at whole characters, with line and column that say the same.
fn assert_errors_in_source(errors: &ConfigErrors, text: &str) {
    assert!(!errors.as_slice().is_empty());
    for error in errors.as_slice() {
        assert!(text.get(error.span.clone()).is_some(), "{error:?}");
        let line = text.split('\n').nth(error.line - 1).unwrap();
        let before: String = line.chars().take(error.column - 1).collect();
        assert_eq!(before.chars().count(), error.column - 1, "{error:?}");
        assert!(text[error.span.start..].starts_with(&line[before.len()..]), "{error:?}");
    }
    let positions: Vec<_> = errors.as_slice().iter().map(|error| error.span.start).collect();
    assert!(positions.is_sorted());
}

#[test]
fn accepts_accepted_samples() {
    for (path, text) in samples("accepted") {
        if let Err(errors) = parse(&text) {
            panic!("{}", errors.render(&path.display().to_string(), &text, false));
        }
    }
}

#[test]
fn refuses_refused_samples_with_the_message_beside_them() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut different = Vec::new();
    for (path, text) in samples("refused") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Err(errors) = parse(&text) else { panic!("{name} is accepted") };
        assert_errors_in_source(&errors, &text);
        let rendered = errors.render(name, &text, false);
        let first = &errors.as_slice()[0];
        assert!(rendered.starts_with(&format!("{name}:{}:{}: ", first.line, first.column)), "{rendered}");
        let expected_path = path.with_extension("expected");
        if bless {
            fs::write(&expected_path, &rendered).unwrap();
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if rendered != expected {
            different.push(format!("--- {name}, expected:\n{expected}--- got:\n{rendered}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn keeps_no_message_without_its_sample() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/refused");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.with_extension("toml").exists(), "{}", path.display());
    }
}

#[test]
fn schema_accepts_accepted_samples() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (path, text) in samples("accepted") {
        let json: Value = toml::from_str(&text).unwrap();
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
}

#[test]
fn schema_refuses_unknown_keys_in_every_table() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let json: Value = toml::from_str(include_str!("config/accepted/everything.toml")).unwrap();
    let tables = pointers_of_tables(&json, "");
    assert!(tables.len() > 20, "{tables:?}");
    for pointer in tables {
        // The names of headers are the user's own.
        if pointer.ends_with("/set") || pointer.ends_with("/add") {
            continue;
        }
        let mut changed = json.clone();
        changed.pointer_mut(&pointer).unwrap()["no_such_key"] = true.into();
        assert!(!validator.is_valid(&changed), "{pointer}");
    }
}

#[test]
fn schema_refuses_what_is_missing_or_of_a_wrong_type() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let json: Value = toml::from_str(include_str!("config/accepted/minimal.toml")).unwrap();
    for pointer in ["", "/listeners/0", "/routes/0", "/clusters/0", "/clusters/0/endpoints/0"] {
        let keys: Vec<String> = json.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect();
        for key in keys {
            let mut without = json.clone();
            without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(&key);
            assert!(!validator.is_valid(&without), "{pointer} without {key}");
            let mut wrong = json.clone();
            wrong.pointer_mut(pointer).unwrap()[&key] = true.into();
            assert!(!validator.is_valid(&wrong), "{pointer}/{key} = true");
        }
    }
}

#[test]
fn schema_describes_every_key() {
    let schema = schema();
    let mut nodes = vec![("".to_owned(), &schema)];
    let mut keys = 0;
    while let Some((path, node)) = nodes.pop() {
        for (key, property) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
            keys += 1;
            assert!(property.get("description").is_some(), "{path}/{key}: {property}");
        }
        let children = node.as_object().into_iter().flatten();
        nodes.extend(children.map(|(key, child)| (format!("{path}/{key}"), child)));
    }
    assert!(keys > 70, "{keys}");
    assert!(!schema.to_string().contains("\"null\""));
}

fn pointers_of_tables(value: &Value, pointer: &str) -> Vec<String> {
    let (is_table, children): (bool, Vec<(String, &Value)>) = match value {
        Value::Object(table) => (true, table.iter().map(|(key, value)| (key.clone(), value)).collect()),
        Value::Array(array) => {
            (false, array.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (false, Vec::new()),
    };
    let below =
        children.iter().flat_map(|(key, value)| pointers_of_tables(value, &format!("{pointer}/{key}")));
    is_table.then(|| pointer.to_owned()).into_iter().chain(below).collect()
}

#[test]
fn survives_deep_nesting_and_many_errors() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(parse(&deep).is_err());
    let tables = format!("a = {}", "{ a = ".repeat(100_000));
    assert!(parse(&tables).is_err());
    let dotted = format!("a{} = 1", ".a".repeat(1_000_000));
    assert!(parse(&dotted).is_err());
    let key = format!("a{}", ".a".repeat(78));
    let every_way =
        format!("[{key}]\n{}1{}", format!("{key} = {{").repeat(77) + &key + " = ", "}".repeat(77));
    assert!(parse(&every_way).is_err());
    let unknown: String = (0..2_000).map(|number| format!("key_{number} = 1\n")).collect();
    assert!(parse(&unknown).is_err());
    let routes: String = (0..2_000).map(|_| "[[routes]]\n").collect();
    let errors = parse(&routes).unwrap_err();
    assert!(errors.as_slice().len() <= 50);
}

#[test]
fn reads_thousands_of_routes_whether_right_or_wrong() {
    let route = |number: usize, cluster: &str| {
        format!(
            "[[routes]]\nname = \"r{number}\"\nhosts = [\"h{number}.example\"]\ncluster = \"{cluster}\"\n"
        )
    };
    let cluster = |number: usize| {
        format!("[[clusters]]\nname = \"c{number}\"\nendpoints = [{{ address = \"a:1\" }}]\n")
    };
    let listener = "[[listeners]]\nname = \"http\"\nbind = \"127.0.0.1:0\"\n";
    let clusters: String = (0..3_000).map(cluster).collect();
    let right: String = (0..3_000).map(|number| route(number, &format!("c{number}"))).collect();
    assert_eq!(parse(&format!("{listener}{clusters}{right}")).unwrap().routes.len(), 3_000);
    let wrong: String = (0..3_000).map(|number| route(number, &format!("k{number}"))).collect();
    assert_eq!(parse(&format!("{listener}{clusters}{wrong}")).unwrap_err().as_slice().len(), 50);
}

#[test]
fn refuses_a_text_that_is_too_long() {
    let comment = "#".repeat(TEXT_BYTES_MAX);
    assert_eq!(parse(&comment).unwrap_err().as_slice()[0].path, "listeners");
    let longer = comment + "\n";
    assert!(parse(&longer).unwrap_err().to_string().contains("longer than"));
}

/// A sample with some of its bytes replaced, taken out or doubled.
fn mutated() -> impl Strategy<Value = String> {
    let edit =
        (any::<prop::sample::Index>(), 0..20_usize, prop::option::of("[ -~]{0,3}|\\PC|\\[\\[|\\$\\{|\"|\n"));
    (prop::sample::select(all_samples()), prop::collection::vec(edit, 1..6)).prop_map(|(mut text, edits)| {
        for (index, length, replacement) in edits {
            let start = text.floor_char_boundary(index.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            let replacement = replacement.unwrap_or_else(|| text[start..end].repeat(2));
            text.replace_range(start..end, &replacement);
        }
        text
    })
}

proptest! {
    #[test]
    fn never_panics_on_any_text(text in "\\PC{0,200}") {
        if let Err(errors) = parse(&text) {
            assert_errors_in_source(&errors, &text);
            errors.render("any.toml", &text, true);
        }
    }

    #[test]
    fn never_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        if let Err(errors) = parse(&text) {
            assert_errors_in_source(&errors, &text);
            errors.render("any.toml", &text, true);
        }
    }

    #[test]
    fn never_panics_on_mutated_samples(text in mutated()) {
        if let Err(errors) = parse(&text) {
            assert_errors_in_source(&errors, &text);
            errors.render("any.toml", &text, true);
        }
    }
}
