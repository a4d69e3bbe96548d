//! What stands at the other end of a webhook: takes HTTP requests, keeps them, and answers as the test says.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A listening receiver; its thread ends with the process.
pub(crate) struct Receiver {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Answers to come; 204 when there are none left.
    statuses: VecDeque<u16>,
    received: Vec<Message>,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Receiver {
    /// Listens, and answers with these statuses first.
    pub(crate) fn start(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let statuses = statuses.iter().copied().collect();
        let state = Arc::new(Mutex::new(State { statuses, received: Vec::new() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A sender that goes away in the middle has sent nothing.
                let _ = answer(stream, &shared);
            }
        });
        Self { addr, state }
    }

    /// Its URL, by a name or an address of this host.
    pub(crate) fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/hook?key=1", self.addr.port())
    }

    /// What has come so far.
    pub(crate) fn received(&self) -> Vec<Message> {
        self.state.lock().unwrap().received.clone()
    }
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found =
            self.head.lines().filter_map(|line| line.split_once(": ")).find(|(other, _)| *other == name);
        found.unwrap_or_else(|| panic!("no {name}: {}", self.head)).1
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
    reader.read_exact(&mut body)?;
    let mut state = state.lock().unwrap();
    let status = state.statuses.pop_front().unwrap_or(204);
    state.received.push(Message { head, body: String::from_utf8(body).unwrap() });
    drop(state);
    write!(
        reader.get_mut(),
        "HTTP/1.1 {status} x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    )
}
