//! The API over its router, with a control loop that only applies and drains; and its sockets.

use std::os::unix::fs::PermissionsExt;

use axum::http::HeaderValue;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::*;
use crate::control::apply::Applier;
use crate::control::node::tests::TestNode;

const CONFIG: &str = r#"
[[listeners]]
name = "http"
bind = "127.0.0.1:0"
[[routes]]
name = "chat"
cluster = "llm"
[[clusters]]
name = "llm"
endpoints = [{ address = "127.0.0.1:1" }]
"#;

/// A router with what stands behind it.
struct Api {
    node: TestNode,
    router: Router,
}

impl Api {
    fn start() -> Self {
        let node = TestNode::start(1);
        let (wish_to, mut wishes) = mpsc::channel(WISHES_MAX);
        let mut applier = Applier::new(Arc::clone(&node), Vec::new());
        tokio::spawn(async move {
            while let Some(wish) = wishes.recv().await {
                match wish {
                    Wish::Apply { text, reply, .. } => drop(reply.send(applier.apply(&text).await)),
                    Wish::Drain { reply } => {
                        applier.drain(false);
                        let _ = reply.send(());
                    }
                    Wish::Undrain { reply } => drop(reply.send(applier.undrain().await)),
                }
            }
        });
        let router = router(Arc::clone(&node), wish_to);
        Api { node, router }
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        self.send_bytes(method, path, body.into()).await
    }

    async fn send_bytes(&self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        answer(self.router.clone().oneshot(request).await.unwrap()).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_and_a_control_loop_without_time_are_not_waited_for_forever() {
    let api = Api::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(axum::serve(listener, api.router.clone()).into_future());
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    client.write_all(b"PUT /config HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    let (wish_to, _wishes) = mpsc::channel(WISHES_MAX);
    let idle = router(Arc::clone(&api.node), wish_to);
    let request = Request::builder().method("POST").uri("/drain").body(Body::empty()).unwrap();
    let (status, text) = answer(idle.oneshot(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{text}");
}

async fn answer(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[tokio::test]
async fn is_ready_from_the_first_config_to_the_drain() {
    let api = Api::start();
    assert_eq!(api.send("GET", "/readyz", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(api.send("GET", "/healthz", "").await.0, StatusCode::OK);
    assert_eq!(api.send("PUT", "/config", CONFIG).await.0, StatusCode::OK);
    assert_eq!(api.send("GET", "/readyz", "").await.0, StatusCode::OK);
    let (status, body) = api.send("POST", "/drain", "").await;
    assert_eq!((status, json(&body)["draining"].clone()), (StatusCode::ACCEPTED, true.into()));
    let (status, body) = api.send("GET", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "the node is draining\n"));
    assert_eq!(api.send("GET", "/healthz", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_config_is_applied_and_given_back_as_it_was_sent() {
    let api = Api::start();
    assert_eq!(api.send("GET", "/config", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, body) = api.send("PUT", "/config", CONFIG).await;
    assert_eq!((status, json(&body)["generation"].clone()), (StatusCode::OK, 1.into()));
    assert_eq!(api.send("GET", "/config", "").await, (StatusCode::OK, CONFIG.to_owned()));
}

#[tokio::test]
async fn a_wrong_config_is_refused_with_its_place() {
    let api = Api::start();
    let wrong = CONFIG.replace("cluster = \"llm\"", "cluster = \"lln\"");
    for (method, path) in [("PUT", "/config"), ("POST", "/config/check")] {
        let (status, body) = api.send(method, path, &wrong).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let error = &json(&body)["errors"][0];
        assert_eq!((&error["path"], &error["line"]), (&"routes[0].cluster".into(), &7.into()), "{body}");
        assert!(
            error["message"].is_string() && error["help"].is_string() && error["column"].is_u64(),
            "{body}"
        );
    }
    assert!(api.node.applied().is_none());
}

#[tokio::test]
async fn a_config_in_another_encoding_is_refused_with_the_command_that_converts_it() {
    let api = Api::start();
    let utf16: Vec<u8> = CONFIG.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (method, path) in [("PUT", "/config"), ("POST", "/config/check")] {
        let (status, body) = api.send_bytes(method, path, utf16.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(json(&body)["errors"][0]["help"].as_str().unwrap().contains("iconv -f UTF-16LE "), "{body}");
    }
    assert!(api.node.applied().is_none());
}

#[tokio::test]
async fn a_refusal_says_whether_the_same_text_may_be_taken_later() {
    let api = Api::start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bound = CONFIG.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let logged = format!("{CONFIG}[log]\naccess = \"/nonexistent/access.log\"\n");
    for (path, text, status, code, retry) in [
        ("/config", "nonsense", 422, "config_invalid", false),
        ("/config", &bound, 422, "address_unavailable", true),
        ("/config", &logged, 422, "access_log_unavailable", true),
        ("/log", "nonsense", 422, "request_invalid", false),
    ] {
        let (answered, body) = api.send("PUT", path, text).await;
        let body = json(&body);
        assert_eq!(
            (answered.as_u16(), &body["code"], &body["retry"]),
            (status, &code.into(), &retry.into()),
            "{body}"
        );
        assert!(body["errors"][0]["message"].is_string(), "{body}");
    }
    let (answered, body) = api.send("GET", "/config", "").await;
    let body = json(&body);
    assert_eq!(
        (answered.as_u16(), &body["code"], &body["retry"]),
        (503, &"busy".into(), &true.into()),
        "{body}"
    );
}

#[tokio::test]
async fn a_check_applies_nothing() {
    let api = Api::start();
    let (status, body) = api.send("POST", "/config/check", CONFIG).await;
    assert_eq!((status, json(&body)["warnings"].clone()), (StatusCode::OK, Value::Array(Vec::new())));
    assert!(api.node.applied().is_none());
}

#[tokio::test]
async fn a_body_without_end_is_cut() {
    let api = Api::start();
    let longest = "#".repeat(TEXT_BYTES_MAX + 1);
    let (status, body) = api.send("PUT", "/config", &longest).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(json(&body)["errors"][0]["message"].is_string());
}

#[tokio::test]
async fn the_log_level_can_be_seen_and_set() {
    let api = Api::start();
    let (status, body) = api.send("PUT", "/log", "{\"level\":\"debug\"}").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "{\"level\":\"debug\"}"));
    assert_eq!(api.send("PUT", "/log", "{\"level\":\"loud\"}").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(api.send("GET", "/log", "").await.1, "{\"level\":\"debug\"}");
}

#[tokio::test]
async fn web_pages_may_not_change_anything() {
    let api = Api::start();
    let mut request = Request::builder().method("POST").uri("/drain").body(Body::empty()).unwrap();
    request.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("http://example.com"));
    let (status, _) = answer(api.router.clone().oneshot(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!api.node.is_draining());
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_usual_shape() {
    let api = Api::start();
    for (method, path, expected) in
        [("GET", "/nothing", StatusCode::NOT_FOUND), ("DELETE", "/config", StatusCode::METHOD_NOT_ALLOWED)]
    {
        let (status, body) = api.send(method, path, "").await;
        assert_eq!(status, expected);
        assert!(json(&body)["errors"][0]["message"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn the_status_has_every_key_of_the_contract() {
    let api = Api::start();
    api.send("PUT", "/config", CONFIG).await;
    let status = json(&api.send("GET", "/status", "").await.1);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["generation"], &status["workers"]), (&1.into(), &1.into()));
    assert_eq!(status["generations"], serde_json::json!([{ "generation": 1, "streams": 0 }]));
    assert_eq!((&status["driver"], &status["pid"]), (&"epoll".into(), &std::process::id().into()));
    assert!(status["connections"].is_u64() && status["streams"].is_u64());
    assert_eq!(status["clusters"][0]["endpoints"][0]["healthy"], true);
    assert!(status["memory"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let address = status["listeners"][0]["addresses"][0].as_str().unwrap();
    assert!(!address.ends_with(":0"), "{address} is what was bound, not what was asked for");
}

#[tokio::test]
async fn the_metrics_say_what_was_applied_and_refused() {
    let api = Api::start();
    api.send("PUT", "/config", CONFIG).await;
    api.send("PUT", "/config", "nonsense").await;
    let (_, text) = api.send("GET", "/metrics", "").await;
    for line in ["millrace_config_applies_total 1", "millrace_config_refusals_total 1", "millrace_ready 1"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

fn admin(listen: Option<&str>, socket: Option<PathBuf>) -> Admin {
    Admin { listen: listen.map(|address| address.parse().unwrap()), socket, access: SocketAccess::admin() }
}

#[tokio::test]
async fn the_unix_socket_is_its_users_alone_and_serves() {
    let api = Api::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let sockets = AdminSockets::bind(&admin(None, Some(path.clone())), AdminSockets::default()).unwrap();
    let (_end, ended) = watch::channel(false);
    sockets.serve(&api.router, &ended).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = admin(None, Some(dir.path().join("admin.sock")));
    let first = AdminSockets::bind(&config, AdminSockets::default()).unwrap();
    let failure = AdminSockets::bind(&config, AdminSockets::default()).unwrap_err();
    assert_eq!((failure.key, failure.error.kind()), ("admin.socket", io::ErrorKind::AddrInUse));
    drop(first);
    assert!(AdminSockets::bind(&config, AdminSockets::default()).is_ok());
}

#[tokio::test]
async fn sockets_of_the_old_process_are_used_where_the_address_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let old =
        AdminSockets::bind(&admin(Some("127.0.0.1:0"), Some(path.clone())), AdminSockets::default()).unwrap();
    let (address, socket) =
        old.tcp.as_ref().map(|(address, socket)| (*address, socket.try_clone().unwrap())).unwrap();
    let unix = old.unix.as_ref().map(|unix| AdminUnix {
        path: unix.path.clone(),
        socket: unix.socket.try_clone().unwrap(),
        file: unix.file,
        is_inherited: true,
    });
    let left = AdminSockets { tcp: Some((address, socket)), unix };
    // The old process still listens: binding anew would fail.
    let new = AdminSockets::bind(&admin(None, Some(path)), left).unwrap();
    assert!(new.unix.is_some() && new.tcp.is_none());
}
