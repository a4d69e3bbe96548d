//! A contestant at work: started in a folder of its own, and not counted as started before it has answered a request
//! as the origin would. The origin is started here too.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Contestant, Fault, Process, Program, Seat};
use crate::pattern;

/// How long a contestant may take to be ready. All take far less; a loaded machine gets the benefit of the doubt.
const READY_TIME: Duration = Duration::from_secs(10);
const READY_STEP: Duration = Duration::from_millis(10);
/// Longest wait for one answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// What is asked for: more than a head and less than a buffer, with every byte known.
const QUESTION_BYTES: usize = 4000;

/// Where ports are looked for: above what services usually take, up to what the kernel gives to connections.
const PORTS_BEGIN: u16 = 10_000;
/// The kernel's default.
const LOCAL_PORTS_BEGIN: u16 = 32_768;

/// A contestant that has answered rightly. It is stopped when it is dropped.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub process: Process,
    /// Where it is.
    pub seat: Seat,
    _dir: tempfile::TempDir,
}

impl Running {
    /// Starts a contestant on `cpu` before the origin, and waits until it answers.
    ///
    /// # Errors
    /// It does not start, dies, or answers wrongly.
    pub fn start(
        contestant: Contestant,
        program: &Program,
        origin: SocketAddr,
        cpu: u32,
    ) -> Result<Self, Fault> {
        let not_ready = |error: io::Error| Fault::NotReady(error.to_string());
        let dir = tempfile::Builder::new().prefix("millrace-contest-").tempdir().map_err(not_ready)?;
        let listen = free_address().map_err(not_ready)?;
        let seat = Seat { listen, origin, dir: dir.path().to_owned() };
        contestant.configure(&seat, program).map_err(not_ready)?;
        let command = contestant.command(&seat, program);
        let process = Process::start(&command, cpu, &seat.dir.join("output.log")).map_err(not_ready)?;
        let mut running = Self { process, seat, _dir: dir };
        wait_for_answer(&mut running.process, listen)?;
        Ok(running)
    }
}

/// Starts the mock origin on `cpu`, with one worker, as a process of its own.
///
/// # Errors
/// It does not start.
pub fn start_origin(cpu: u32, log: &std::path::Path) -> Result<(Process, SocketAddr), Fault> {
    let not_ready = |error: io::Error| Fault::NotReady(format!("the origin: {error}"));
    let address = free_address().map_err(not_ready)?;
    let mut command = Command::new(std::env::current_exe().map_err(not_ready)?);
    command.args(["origin", "--request-ids-max", "0", "--listen", &address.to_string()]);
    let mut process = Process::start(&command, cpu, log).map_err(not_ready)?;
    wait_for_answer(&mut process, address)?;
    Ok((process, address))
}

/// Asks for bytes that are known and looks at each of them.
///
/// # Errors
/// What is wrong with the answer; [`Fault::NotReady`] if there is none, or one that says to come again.
pub fn ask(address: SocketAddr) -> Result<(), Fault> {
    let answer = exchange(address).map_err(|error| Fault::NotReady(error.to_string()))?;
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let begin = match head.parse(&answer) {
        Ok(httparse::Status::Complete(begin)) => begin,
        Ok(httparse::Status::Partial) => {
            return Err(Fault::NotReady("it closed before it had answered".to_owned()));
        }
        Err(error) => return Err(Fault::Wrong(format!("no HTTP: {error}"))),
    };
    match head.code {
        Some(200) if answer.len() - begin == QUESTION_BYTES && pattern::matches(0, &answer[begin..]) => {
            Ok(())
        }
        Some(200) => Err(Fault::Wrong("another body than the origin's".to_owned())),
        // The origin's end is not found yet.
        Some(status @ 502..=504) => Err(Fault::NotReady(format!("status {status}"))),
        status => Err(Fault::Wrong(format!("status {}", status.unwrap_or_default()))),
    }
}

/// An address that nobody listens on, and that no connection is given by chance: below the local ports.
///
/// # Errors
/// None is free.
pub fn free_address() -> io::Result<SocketAddr> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let begin_of_local = range.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    let count = begin_of_local.unwrap_or(LOCAL_PORTS_BEGIN).saturating_sub(PORTS_BEGIN).max(1);
    for _ in 0..count {
        // By chance, since others look at the same time and nobody holds a port that is looked at.
        let chance = RandomState::new().build_hasher().finish();
        let port = PORTS_BEGIN + (chance % u64::from(count)) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free below the local ones"))
}

fn wait_for_answer(process: &mut Process, address: SocketAddr) -> Result<(), Fault> {
    let deadline = Instant::now() + READY_TIME;
    loop {
        process.check()?;
        match ask(address) {
            Err(Fault::NotReady(_)) if Instant::now() < deadline => std::thread::sleep(READY_STEP),
            Err(Fault::NotReady(why)) => {
                return Err(Fault::NotReady(format!("{why}{}", process.log_tail())));
            }
            answered => return answered,
        }
    }
}

fn exchange(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    let request =
        format!("GET /bytes/{QUESTION_BYTES} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Knobs, Origin, OriginOptions};

    fn origin_with(knob: &str, value: &str) -> Origin {
        let mut defaults = Knobs::default();
        defaults.set(knob, value).unwrap();
        Origin::start(OriginOptions { defaults, ..OriginOptions::default() }).unwrap()
    }

    #[test]
    fn a_right_answer_is_taken() {
        let origin = Origin::start(OriginOptions::default()).unwrap();
        assert_eq!(ask(origin.addr()), Ok(()));
    }

    #[test]
    fn a_wrong_answer_is_told_from_none_yet() {
        for (knob, value) in [("status", "500"), ("cut_at", "100"), ("bad_framing", "status_code")] {
            let origin = origin_with(knob, value);
            assert!(matches!(ask(origin.addr()), Err(Fault::Wrong(_))), "{knob}={value}");
        }
        let origin = origin_with("status", "503");
        assert!(matches!(ask(origin.addr()), Err(Fault::NotReady(_))));
        assert!(matches!(ask(free_address().unwrap()), Err(Fault::NotReady(_))));
    }

    #[test]
    fn addresses_are_free_and_apart() {
        let addresses: Vec<SocketAddr> = (0..50).map(|_| free_address().unwrap()).collect();
        let distinct: std::collections::HashSet<_> = addresses.iter().collect();
        assert!(distinct.len() > 40, "{addresses:?}");
        assert!(addresses.iter().all(|address| TcpListener::bind(address).is_ok()));
    }
}
