//! The contestants of a comparison: each is a variant here and a file beside this one, which says where its program is
//! found and writes its configuration. All are set up alike: one worker, logs off, connections to the origin kept,
//! limits out of the way. How they are run is `process`'s and `running`'s business, what they are asked for is the
//! comparison's.

mod caddy;
mod haproxy;
mod millrace;
mod nginx;
mod process;
mod program;
mod relay;
mod running;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use process::Process;
pub use program::Program;
pub use running::{Running, ask, free_address, start_origin};

use crate::floor::Kind;

/// Connections to the origin that a proxy may keep: more than any row has clients at once, those of the overload too.
const ORIGIN_CONNECTIONS_KEPT: u32 = 8192;

/// Something that stands between the load and the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contestant {
    /// Our data plane.
    Millrace,
    /// An earlier build of it, to show that a change made no row worse. It takes part where it is named and given.
    MillraceBefore,
    /// nginx as one sets it up for streams: `proxy_buffering off`.
    Nginx,
    /// nginx with its default buffering.
    NginxBuffered,
    /// nginx's TCP relay, which knows no HTTP.
    NginxStream,
    /// HAProxy.
    Haproxy,
    /// Caddy.
    Caddy,
    /// A bare relay.
    Relay(Kind),
}

/// What a contestant is measured as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whose rows are won or lost.
    Ours,
    /// An HTTP proxy that a user would otherwise run, or ours as it was.
    Rival,
    /// Moves bytes and understands none of them: shown beside the proxies, but nobody can route requests with it.
    Relay,
    /// The barest relay, which ratios to the floor are taken of.
    Floor,
}

/// Where a contestant listens, whom it forwards to, and its own folder.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its own address.
    pub listen: SocketAddr,
    /// The origin's.
    pub origin: SocketAddr,
    /// Empty at first, and removed afterwards.
    pub dir: PathBuf,
}

/// Why a contestant has no figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum Fault {
    /// Its program is not there.
    #[error("not installed: {0}")]
    Missing(String),
    /// It could not be started, or was not ready in time.
    #[error("does not start: {0}")]
    NotReady(String),
    /// It answered, and wrongly.
    #[error("answers wrongly: {0}")]
    Wrong(String),
    /// Its process ended by itself.
    #[error("died: {0}")]
    Died(String),
    /// The load generator did not keep up, as on a busy machine: times and rates would be its own.
    #[error("the load generator did not keep up: {0}")]
    Saturated(String),
    /// It could not be measured for another reason.
    #[error("not measured: {0}")]
    Unmeasured(String),
}

impl Contestant {
    /// All of them, ours first.
    pub const ALL: [Self; 12] = [
        Self::Millrace,
        Self::Nginx,
        Self::Haproxy,
        Self::NginxBuffered,
        Self::Caddy,
        Self::NginxStream,
        Self::Relay(Kind::Ring),
        Self::Relay(Kind::Epoll),
        Self::Relay(Kind::Monoio),
        Self::Relay(Kind::MonoioTuned),
        Self::Relay(Kind::TokioUring),
        Self::MillraceBefore,
    ];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::MillraceBefore => "millrace-before",
            Self::Nginx => "nginx",
            Self::NginxBuffered => "nginx-buffered",
            Self::NginxStream => "nginx-stream",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Relay(kind) => kind.name(),
        }
    }

    /// What it is measured as.
    pub fn role(self) -> Role {
        match self {
            Self::Millrace => Role::Ours,
            Self::MillraceBefore | Self::Nginx | Self::NginxBuffered | Self::Haproxy | Self::Caddy => {
                Role::Rival
            }
            Self::Relay(Kind::Ring) => Role::Floor,
            Self::NginxStream
            | Self::Relay(Kind::Epoll | Kind::Monoio | Kind::MonoioTuned | Kind::TokioUring) => Role::Relay,
        }
    }

    /// Its program, at `given` or where it usually is.
    ///
    /// # Errors
    /// [`Fault::Missing`], with what to install.
    pub fn find(self, given: Option<&Path>) -> Result<Program, Fault> {
        match self {
            Self::Millrace => millrace::find(given),
            Self::MillraceBefore => millrace::find_before(given),
            Self::Nginx | Self::NginxBuffered => nginx::find(given),
            Self::NginxStream => nginx::find_with_stream(given),
            Self::Haproxy => haproxy::find(given),
            Self::Caddy => caddy::find(given),
            Self::Relay(_) => relay::find(given),
        }
    }

    /// Writes its configuration into the seat's folder.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn configure(self, seat: &Seat, program: &Program) -> io::Result<()> {
        let text = match self {
            Self::Millrace | Self::MillraceBefore => millrace::config(seat),
            Self::Nginx => nginx::config(seat, nginx::Buffering::Off),
            Self::NginxBuffered => nginx::config(seat, nginx::Buffering::Default),
            Self::NginxStream => nginx::stream_config(seat, program),
            Self::Haproxy => haproxy::config(seat),
            Self::Caddy => caddy::config(seat),
            Self::Relay(_) => return Ok(()),
        };
        std::fs::write(self.config_file(seat), text)
    }

    /// How it is started with what [`Contestant::configure`] has written, in the foreground.
    pub fn command(self, seat: &Seat, program: &Program) -> Command {
        let mut command = Command::new(&program.path);
        let file = self.config_file(seat);
        match self {
            Self::Millrace | Self::MillraceBefore => millrace::arguments(&mut command, &file),
            Self::Nginx | Self::NginxBuffered | Self::NginxStream => {
                nginx::arguments(&mut command, &file, seat);
            }
            Self::Haproxy => haproxy::arguments(&mut command, &file),
            Self::Caddy => caddy::arguments(&mut command, &file, seat),
            Self::Relay(kind) => relay::arguments(&mut command, kind, seat),
        }
        command
    }

    /// How its program is asked whether it likes its configuration; a relay has none.
    pub fn check_command(self, seat: &Seat, program: &Program) -> Option<Command> {
        let mut command = Command::new(&program.path);
        let file = self.config_file(seat);
        match self {
            Self::Millrace | Self::MillraceBefore => command.args(["check", "-c"]).arg(file),
            Self::Nginx | Self::NginxBuffered | Self::NginxStream => {
                nginx::arguments(&mut command, &file, seat);
                command.arg("-t")
            }
            Self::Haproxy => command.args(["-c", "-f"]).arg(file),
            Self::Caddy => command.args(["validate", "--adapter", "caddyfile", "--config"]).arg(file),
            Self::Relay(_) => return None,
        };
        Some(command)
    }

    fn config_file(self, seat: &Seat) -> PathBuf {
        let name = match self {
            Self::Millrace | Self::MillraceBefore => "edge.toml",
            Self::Nginx | Self::NginxBuffered | Self::NginxStream => "nginx.conf",
            Self::Haproxy => "haproxy.cfg",
            Self::Caddy => "Caddyfile",
            Self::Relay(_) => "no-config",
        };
        seat.dir.join(name)
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Contestant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|contestant| contestant.name() == text);
        found.ok_or_else(|| format!("there is no contestant {text:?}: write one of {}", names()))
    }
}

impl Serialize for Contestant {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Contestant {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contestant_is_found_by_its_name() {
        for contestant in Contestant::ALL {
            assert_eq!(contestant.name().parse(), Ok(contestant));
        }
        let error = "apache".parse::<Contestant>().unwrap_err();
        assert!(error.contains("haproxy") && error.contains("tokio-uring"), "{error}");
    }

    #[test]
    fn an_earlier_build_takes_part_only_where_it_is_given() {
        let missing = Contestant::MillraceBefore.find(None).unwrap_err();
        assert!(missing.to_string().contains("--program millrace-before=PATH"), "{missing}");
    }

    #[test]
    fn there_is_one_of_ours_and_one_floor() {
        let count = |role| Contestant::ALL.into_iter().filter(|contestant| contestant.role() == role).count();
        assert_eq!((count(Role::Ours), count(Role::Floor)), (1, 1));
        assert!(count(Role::Rival) >= 3);
    }
}
