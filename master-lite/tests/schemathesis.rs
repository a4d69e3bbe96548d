//! The API against its own document, by a program that knows nothing else of it: schemathesis sends what the document
//! allows and what it forbids, and looks whether the answers are what it promises. Needs the Python of `make/python`.
//!
//! `MILLRACE_SEED` replays a failure.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;
use story::Master;

/// Cases for each route: about half a minute in all.
const CASES: &str = "25";

/// The programs beside the Python that the tests are given; none, with a word, where there is none and need not be.
fn schemathesis() -> Option<PathBuf> {
    let python = std::env::var_os("MILLRACE_TEST_PYTHON").map(PathBuf::from);
    let program =
        python.map(|python| python.with_file_name("schemathesis")).filter(|program| program.is_file());
    if program.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI is set, and there is no schemathesis: make/python makes it"
        );
        println!("skipped: MILLRACE_TEST_PYTHON names no Python with schemathesis beside it");
    }
    program
}

#[test]
fn every_answer_is_as_the_document_says() {
    let Some(program) = schemathesis() else { return };
    let master = Master::start();
    // A key, and no login: what is sent changes users, and a changed user has to log in again.
    let body = json!({ "name": "schemathesis", "role": "admin", "expires_in_s": 600 });
    let key = master.admin().post("/api/v1/api-keys", &body);
    let key = key.data()["key"].as_str().unwrap().to_owned();
    let seed = std::env::var("MILLRACE_SEED").unwrap_or_else(|_| std::process::id().to_string());
    let mut command = Command::new(program);
    // What the environment says of proxies is not for this host.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    // Whether a TOML text is a good config is beyond what a schema can say: what the document allows may be refused.
    let output = command
        .current_dir(master.dir())
        .args(["run", &format!("http://{}/api/v1/openapi.json", master.rest())])
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", CASES, "--seed", &seed])
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"])
        // It learns ids from lists, and would revoke the key that it comes with.
        .args(["--exclude-operation-id", "api_keys.delete"])
        .args(["--continue-on-failure", "--no-color"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "MILLRACE_SEED={seed}\n{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!printed.contains("401 Unauthorized ("), "it has seen closed doors only:\n{printed}");
    assert_eq!(master.anonymous().get("/health").status, 200);
    assert!(!master.output().contains("panicked"), "{}", master.output());
}
