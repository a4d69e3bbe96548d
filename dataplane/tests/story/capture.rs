//! An origin that answers everything with `ok` and keeps what it was asked, byte by byte; it parses strictly, so that a
//! request which it counts is one that no two parsers read differently.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use super::wire::{Head, Wire};

/// One whole request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

/// The origin.
#[derive(Debug)]
pub(crate) struct Capture {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Capture {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || serve(Wire::over(stream), &kept));
            }
        });
        Self { addr, seen }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes what it has seen since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn serve(mut wire: Wire, seen: &Mutex<Vec<Seen>>) {
    wire.patience(std::time::Duration::from_secs(600));
    while let Ok(head) = wire.try_head() {
        let Ok(body) = wire.try_body(&head) else { return };
        let answer: &[u8] = match head.start.split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        // First of all: who sees the answer may look here.
        seen.lock().unwrap().push(Seen { head, body });
        if wire.try_send(answer).is_err() {
            return;
        }
    }
}

impl Seen {
    /// Why another parser could read this request differently, if it could.
    pub(crate) fn ambiguity(&self) -> Option<&'static str> {
        let head = &self.head;
        let (lengths, codings) = (head.all("Content-Length"), head.all("Transfer-Encoding"));
        let text = head.raw.strip_suffix("\r\n\r\n").unwrap_or_default();
        let checks = [
            (lengths.len() + codings.len() > 1, "more than one length"),
            (codings.iter().any(|coding| *coding != "chunked"), "an unusual coding"),
            (lengths.iter().any(|length| !length.bytes().all(|byte| byte.is_ascii_digit())), "no number"),
            (head.all("Host").len() != 1, "not one Host"),
            (!head.start.ends_with(" HTTP/1.1"), "another version"),
            (head.start.split(' ').count() != 3, "not three words in the request line"),
            (text.replace("\r\n", "").contains(['\r', '\n', '\0']), "control bytes"),
            (text.split("\r\n").skip(1).any(|line| line.starts_with([' ', '\t'])), "a folded line"),
            (
                text.split("\r\n").skip(1).any(|line| {
                    line.split_once(':').is_none_or(|(name, _)| name.is_empty() || name.contains([' ', '\t']))
                }),
                "a line that is no field",
            ),
        ];
        checks.into_iter().find_map(|(is_wrong, why)| is_wrong.then_some(why))
    }
}
