//! Programs that people use, unchanged, through the proxy: curl, hey, wrk, the OpenAI and the Anthropic SDK. A tool that
//! is not there skips its story with a word, unless `CI` is set: then it must be there.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::origin::monotonic_ns;
use serde_json::Value;
use story::config::Config;
use story::hole::Refusing;
use story::{PATIENCE, Proxy, origin};

/// The program called `name`; none, with a word, where it is not there and need not be.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    missing_only_outside_of_ci(name, found)
}

/// The Python that has the SDKs.
fn python() -> Option<PathBuf> {
    let found = std::env::var_os("MILLRACE_TEST_PYTHON").map(PathBuf::from).filter(|path| path.is_file());
    missing_only_outside_of_ci("MILLRACE_TEST_PYTHON", found)
}

fn missing_only_outside_of_ci(name: &str, found: Option<PathBuf>) -> Option<PathBuf> {
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is missing, and CI is set");
        println!("skipped: {name} is missing");
    }
    found
}

/// Runs a program to its end and gives what it printed.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn sdk(python: &Path, case: &str, base: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/sdk.py");
    let mut command = Command::new(python);
    // What the environment says of proxies is not for this host.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    let printed = run(command.arg(script).args([case, base]));
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

#[test]
fn curl_shows_events_as_they_come() {
    let Some(curl) = tool("curl") else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let mut child = Command::new(curl)
        .args(["--no-progress-meter", "--noproxy", "*", "-N"])
        .arg(proxy.url("/v1/chat/completions"))
        .args(["-H", "X-Mock-Tokens: 40", "-H", "X-Mock-Tokens-Per-Second: 20"])
        .args(["-d", "{\"messages\":[],\"stream\":true}"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("data: {"), "{first}");
    assert!(began.elapsed() < Duration::from_millis(1500), "the first event came with the last");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.trim_end().ends_with("data: [DONE]"), "{rest}");
    assert!(child.wait().unwrap().success());
    assert!(began.elapsed() > Duration::from_millis(1500), "the events were not paced");
}

#[test]
fn curl_gets_bodies_uploads_and_ends_as_they_are() {
    let Some(curl) = tool("curl") else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let ask = |arguments: &[&str], path: &str| {
        run(Command::new(&curl).args(["-sS", "--noproxy", "*"]).args(arguments).arg(proxy.url(path)))
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("upload");
    std::fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
    let file = file.to_str().unwrap();
    // curl sends Expect: 100-continue here.
    assert_eq!(ask(&["-T", file], "/upload").trim(), "{\"bytes\":5242880}");
    assert_eq!(
        ask(&["-T", file, "-H", "Transfer-Encoding: chunked"], "/upload").trim(),
        "{\"bytes\":5242880}"
    );
    assert_eq!(
        ask(&["-o", "/dev/null", "-w", "%{http_code} %{size_download}"], "/bytes/10MiB"),
        "200 10485760"
    );
    assert_eq!(ask(&["-0", "-o", "/dev/null", "-w", "%{size_download}"], "/bytes/1MiB?chunked"), "1048576");
    assert!(ask(&["-I"], "/bytes/1MiB").starts_with("HTTP/1.1 200"));
    for path in ["/bytes/1MiB?cut_at=1000", "/bytes/1MiB?chunked&cut_at=1000"] {
        let status = Command::new(&curl)
            .args(["-sS", "--noproxy", "*", "-o", "/dev/null"])
            .arg(proxy.url(path))
            .status();
        // 18: the transfer was closed with data outstanding.
        assert_eq!(status.unwrap().code(), Some(18), "{path}");
    }
}

#[test]
fn hey_sees_no_error() {
    let Some(hey) = tool("hey") else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    for extra in [&[][..], &["-disable-keepalive"], &["-m", "POST", "-d", "{\"messages\":[]}"]] {
        let path = if extra.contains(&"POST") { "/v1/chat/completions?tokens_per_second=0" } else { "/" };
        let printed =
            run(Command::new(&hey).args(["-n", "2000", "-c", "20"]).args(extra).arg(proxy.url(path)));
        assert!(printed.contains("[200]\t2000 responses"), "{extra:?}: {printed}");
        assert!(!printed.contains("Error distribution"), "{extra:?}: {printed}");
    }
    proxy.assert_at_rest();
}

#[test]
fn wrk_sees_no_error() {
    let Some(wrk) = tool("wrk") else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let printed = run(Command::new(&wrk).args(["-t", "1", "-c", "50", "-d", "2s"]).arg(proxy.url("/")));
    assert!(printed.contains("Requests/sec"), "{printed}");
    assert!(!printed.contains("Socket errors") && !printed.contains("Non-2xx"), "{printed}");
    proxy.assert_at_rest();
}

#[test]
fn the_openai_sdk_works_unchanged() {
    let Some(python) = python() else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let base = proxy.url("");
    let whole = sdk(&python, "whole", &base);
    assert!(!whole["text"].as_str().unwrap().is_empty(), "{whole}");
    assert_eq!(whole["tokens"], 16);
    assert_eq!(whole["request_id"].as_str().unwrap().len(), 32, "the SDK knows the id: {whole}");
    let stream = sdk(&python, "stream", &base);
    assert_eq!((&stream["pieces"], &stream["tokens"]), (&20.into(), &20.into()), "{stream}");
    let (first, last) = (stream["first_s"].as_f64().unwrap(), stream["last_s"].as_f64().unwrap());
    assert!(last - first > 0.7, "20 tokens at 20 a second came within {} s", last - first);
    let embeddings = sdk(&python, "embeddings", &base);
    assert_eq!((&embeddings["vectors"], &embeddings["dimensions"]), (&2.into(), &1536.into()));
}

#[test]
fn a_cancel_in_the_openai_sdk_reaches_the_origin() {
    let Some(python) = python() else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let cancelled = sdk(&python, "cancel", &proxy.url(""));
    let now_ns = monotonic_ns();
    let stats = origin.wait_for(PATIENCE, |stats| stats.aborts.total == 1).expect("the origin is told");
    let abort = &stats.aborts.recorded[0];
    assert_eq!((abort.path, abort.request_id.as_deref()), ("/v1/chat/completions", Some("cancelled")));
    assert_eq!(cancelled["seen"], 3);
    let closed_ns = cancelled["closed_ns"].as_u64().unwrap();
    let after_us = abort.at_ns.saturating_sub(closed_ns) / 1000;
    println!("the origin notices {after_us} us after the SDK has closed");
    assert!(after_us < 50_000 && abort.at_ns < now_ns + 50_000_000, "{after_us} us");
}

#[test]
fn errors_of_the_proxy_are_the_exceptions_that_the_openai_sdk_has_for_them() {
    let Some(python) = python() else { return };
    let (origin, refusing) = (origin(), Refusing::new());
    let proxy = Proxy::start(
        &Config::to(origin.addr()).route("path = \"/slow\"\ntimeouts = { first_byte = \"200ms\" }").more(
            &format!(
                "[[routes]]\nname = \"refused\"\npath = \"/refused\"\ncluster = \"refusing\"\n\
             [[clusters]]\nname = \"refusing\"\nendpoints = [{{ address = \"{}\" }}]",
                refusing.addr()
            ),
        ),
    );
    let errors = sdk(&python, "errors", &proxy.url(""));
    let expected = [
        ("no_route", "NotFoundError", 404, "no_route", "invalid_request_error"),
        ("refused", "InternalServerError", 502, "connect_refused", "upstream_error"),
        ("slow", "InternalServerError", 504, "first_byte_timeout", "upstream_error"),
    ];
    for (name, class, status, code, kind) in expected {
        let error = &errors[name];
        assert_eq!((&error["class"], &error["status"]), (&class.into(), &status.into()), "{errors}");
        assert_eq!((&error["code"], &error["type"]), (&code.into(), &kind.into()), "{errors}");
        assert_eq!(error["request_id"], error["body_id"], "{errors}");
        assert_eq!(error["request_id"].as_str().unwrap().len(), 32, "{errors}");
    }
}

#[test]
fn the_anthropic_sdk_streams_unchanged() {
    let Some(python) = python() else { return };
    let origin = origin();
    let proxy = Proxy::before(&origin);
    let stream = sdk(&python, "anthropic_stream", &proxy.url(""));
    assert_eq!((&stream["same"], &stream["tokens"]), (&true.into(), &20.into()), "{stream}");
    assert!(stream["pieces"].as_u64().unwrap() >= 20, "{stream}");
    assert!(stream["stop"].is_string(), "{stream}");
}
