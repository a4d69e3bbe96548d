//! The rules of the code base that no compiler holds, checked on its text with nothing but `std::fs`: imports flow one
//! way, every file says what it is, `unsafe` and the runtime stay behind their doors, no dead code in comments, no file
//! too long, and every protocol and policy has its tests. It understands no Rust: a rule that would need that is clippy's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use proto::config::{ClusterProtocol, ListenerProtocol, Policy};

/// Law 2: a module uses only what stands to its right. The first is for tests alone.
const FLOW: [&str; 12] = [
    "simulation",
    "main",
    "server",
    "control",
    "worker",
    "listener",
    "protocol",
    "upstream",
    "relay",
    "metrics",
    "io",
    "sys",
];

/// Above this a file is two.
const LINES_MAX: usize = 600;

#[test]
fn imports_flow_one_way() {
    let found = in_each_file("dataplane/src", |file| {
        let Some(place) = module_of(&file.path).and_then(place_of) else { return Vec::new() };
        let against = |name: &String| place_of(name).is_some_and(|used| used < place);
        let uses = modules_used(&file.code());
        uses.into_iter()
            .filter(against)
            .map(|name| format!("uses {name}, which stands to its left"))
            .collect()
    });
    assert_tidy(&found);
}

#[test]
fn every_module_has_its_place_in_the_flow() {
    let found = in_each_file("dataplane/src", |file| match module_of(&file.path) {
        Some(module) if module != "lib" && place_of(module).is_none() => {
            vec![format!("{module} has no place in FLOW")]
        }
        Some(_) | None => Vec::new(),
    });
    assert_tidy(&found);
}

#[test]
fn every_file_says_what_it_is() {
    let found = in_each_file("", |file| {
        let says = file.text.starts_with("//! ");
        if says { Vec::new() } else { vec!["does not begin with `//! ` and what it is".to_owned()] }
    });
    assert_tidy(&found);
}

#[test]
fn unsafe_stays_in_sys_and_io() {
    let found = in_each_file("", |file| {
        let is_allowed = ["dataplane/src/sys/", "dataplane/src/io/", "bench/src/floor/sys.rs"]
            .iter()
            .any(|folder| file.path.starts_with(folder));
        let lines = file.code_lines().filter(|(_, code)| !is_allowed && has_unsafe(code));
        lines.map(|(line, _)| format!("line {line}: `unsafe` outside of sys and io")).collect()
    });
    assert_tidy(&found);
}

#[test]
fn the_ring_is_named_in_io_alone() {
    let found = in_each_file("dataplane/src", |file| {
        let is_allowed = file.path.starts_with("dataplane/src/io/");
        let lines = file.code_lines().filter(|(_, code)| !is_allowed && code.contains("io_uring::"));
        lines.map(|(line, _)| format!("line {line}: the ring outside of io")).collect()
    });
    assert_tidy(&found);
}

#[test]
fn no_code_is_commented_out() {
    let found = in_each_file("", |file| {
        let lines = file.text.lines().enumerate().filter(|(_, line)| is_commented_out(line));
        lines.map(|(line, text)| format!("line {}: code in a comment: {}", line + 1, text.trim())).collect()
    });
    assert_tidy(&found);
}

#[test]
fn no_file_is_too_long() {
    let found = in_each_file("", |file| {
        let lines = file.text.lines().count();
        if lines < LINES_MAX { Vec::new() } else { vec![format!("{lines} lines, which is two files")] }
    });
    assert_tidy(&found);
}

#[test]
fn every_policy_has_its_file_and_the_shared_laws() {
    let laws = read("dataplane/core/tests/balancing.rs");
    assert!(laws.contains("Policy::ALL"), "the laws of balancing are to be run over Policy::ALL");
    for policy in Policy::ALL {
        let path = root().join("dataplane/core/src/balance").join(policy.name()).with_extension("rs");
        assert!(path.is_file(), "the policy {} has no {}", policy.name(), path.display());
    }
}

#[test]
fn every_protocol_has_its_tests() {
    let listeners = [ListenerProtocol::Http].map(tests_of_listener);
    let clusters = [ClusterProtocol::Http1].map(tests_of_cluster);
    for path in listeners.into_iter().chain(clusters).flatten() {
        assert!(read(path).contains("#[test]"), "{path} has no tests");
    }
}

/// A protocol that is new does not compile here before it names its tests.
fn tests_of_listener(protocol: ListenerProtocol) -> &'static [&'static str] {
    match protocol {
        ListenerProtocol::Http => {
            &["dataplane/core/tests/h1_framing.rs", "dataplane/core/tests/h1_properties.rs"]
        }
    }
}

/// As [`tests_of_listener`].
fn tests_of_cluster(protocol: ClusterProtocol) -> &'static [&'static str] {
    match protocol {
        ClusterProtocol::Http1 => &["dataplane/core/tests/h1_encode.rs"],
    }
}

/// A source file of the workspace.
struct Source {
    /// From the workspace's root on.
    path: String,
    text: String,
}

impl Source {
    /// Numbered from 1, without comments and strings.
    fn code_lines(&self) -> impl Iterator<Item = (usize, String)> {
        self.text.lines().enumerate().map(|(line, text)| (line + 1, without_prose(text)))
    }

    fn code(&self) -> String {
        self.code_lines().map(|(_, code)| code + "\n").collect()
    }
}

/// Runs a rule over every Rust file below `folder`; what it finds, with the file's path in front.
fn in_each_file(folder: &str, rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    assert!(!paths.is_empty(), "there are no files below {folder}");
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        Source { path, text }
    };
    let found = |file: Source| rule(&file).into_iter().map(move |found| format!("{}: {found}", file.path));
    paths.into_iter().map(source).flat_map(found).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_tidy(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// `dataplane/src/io/buf.rs` and `dataplane/src/io.rs` are both of `io`.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("dataplane/src/")?;
    let first = inside.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

fn place_of(module: impl AsRef<str>) -> Option<usize> {
    FLOW.iter().position(|name| *name == module.as_ref())
}

/// The first names behind `crate::`, in braces too.
fn modules_used(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(first_names(list)),
            None => used.push(name_at(rest)),
        }
    }
    used
}

/// The first name of each entry of a list in braces, which may hold lists itself.
fn first_names(list: &str) -> Vec<String> {
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, character) in list.char_indices() {
        match character {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => begins = depth == 0,
            other if begins && !other.is_whitespace() => {
                names.push(name_at(&list[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn name_at(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// A line without its comment and without what stands in its strings.
fn without_prose(line: &str) -> String {
    let (mut code, mut is_in_string, mut is_escaped) = (String::new(), false, false);
    for (at, character) in line.char_indices() {
        if !is_in_string && line[at..].starts_with("//") {
            break;
        }
        // A quote in quotes is a character, not a string's end.
        let is_quote = character == '"' && !is_escaped && !line[..at].ends_with('\'');
        is_escaped = character == '\\' && !is_escaped;
        if is_quote {
            is_in_string = !is_in_string;
        }
        if !is_in_string {
            code.push(character);
        }
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
}

fn has_unsafe(code: &str) -> bool {
    let begins = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "unsafe("];
    has_word(code, "unsafe") && begins.iter().any(|begin| code.contains(begin))
}

/// Prose does not end like a statement that has a call, a path or an assignment in it, or like the head of a block.
fn is_commented_out(line: &str) -> bool {
    let Some(comment) = line.trim().strip_prefix("// ") else { return false };
    let comment = comment.trim();
    let is_statement = comment.ends_with(';')
        && (comment.starts_with("return") || ["(", "::", " = "].iter().any(|sign| comment.contains(sign)));
    let is_block = comment.ends_with(" {") || comment == "}" || comment == "});";
    let is_attribute = comment.starts_with("#[") && comment.ends_with(']');
    is_statement || is_block || is_attribute
}

#[test]
fn the_rules_see_what_they_are_for() {
    let uses = modules_used(
        "use crate::io::{self, Buf};\nuse crate::{sys::cpu, worker::{Order, Workers}};\ncrate::control::x()",
    );
    assert_eq!(uses, ["io", "sys", "worker", "control"]);
    assert_eq!(module_of("dataplane/src/io/buf.rs"), Some("io"));
    assert_eq!(module_of("dataplane/src/worker.rs"), Some("worker"));
    assert!(place_of("control") < place_of("io"));
    assert!(
        has_unsafe(&without_prose("    unsafe { call() }")) && !has_unsafe(&without_prose("// unsafe {"))
    );
    assert!(!has_unsafe("#![deny(unsafe_code)]"));
    assert_eq!(without_prose(r#"let url = "http://x"; // a comment"#), r#"let url = "; "#);
    assert!(has_word("unsafe { x }", "unsafe") && !has_word("unsafely", "unsafe"));
    for code in ["// let x = y();", "    // if a {", "// }", "// #[test]", "// return;"] {
        assert!(is_commented_out(code), "{code}");
    }
    for prose in
        ["// It ends here; the next begins.", "/// let x = y();", "// See RFC 9112;", "let x = y(); // why"]
    {
        assert!(!is_commented_out(prose), "{prose}");
    }
}
