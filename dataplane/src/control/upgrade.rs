//! Binary upgrade: a new process of the same program takes the listening sockets over, and this one drains.
//!
//! ```text
//! old: spawn the program at its path ──▶ wait for the ready pipe ──▶ drain, exit
//! new: take the sockets, apply a config, serve ──▶ a byte into the ready pipe
//! ```
//! The sockets are inherited, so the kernel's queues go on and no connection is refused. A new process that fails leaves
//! the old one as it was.

use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use dataplane_core::snapshot::plan::BindAt;
use proto::config::Bind;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;

use super::admin::{AdminSockets, AdminUnix};
use super::resolve::Host;
use super::sockets::{Inherited, Open};
use crate::sys::inherit;
use crate::sys::unix::FileId;

/// What tells the new process that it takes over, and what it was left.
const VARIABLE: &str = "MILLRACE_TAKE_OVER";
/// systemd names the process that it started; the new one is another.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// A new process that does not serve by then will not.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a new process that failed may take to end before it is killed.
const END_WITHIN: Duration = Duration::from_secs(2);

/// How this process was started, taken down before anything could change it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// What a new process is left: numbers of descriptors, with what they are.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Will {
    listeners: Vec<WillListener>,
    admin_tcp: Option<(SocketAddr, RawFd)>,
    admin_unix: Option<(PathBuf, RawFd)>,
    /// Not there in the will of an older version.
    #[serde(default)]
    admin_file: Option<FileId>,
    /// The text of a config that came over the API: the file has another one.
    config: Option<RawFd>,
    /// The last good answers for the names of endpoints, as JSON; not there in the will of an older version.
    #[serde(default)]
    names: Option<RawFd>,
    /// Where a byte says that the new process serves.
    ready: RawFd,
}

#[derive(Debug, Serialize, Deserialize)]
struct WillListener {
    listener: String,
    tcp: Option<SocketAddr>,
    unix: Option<PathBuf>,
    send_buffer: Option<u32>,
    receive_buffer: Option<u32>,
    fds: Vec<RawFd>,
    /// Not there in the will of an older version.
    #[serde(default)]
    file: Option<FileId>,
}

/// What this process took over.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// Listening sockets, to be matched with the config.
    pub(crate) listeners: Vec<Inherited>,
    /// Those of the admin API.
    pub(crate) admin: AdminSockets,
    /// The config to serve, where it is not the file's.
    pub(crate) config: Option<String>,
    /// The last good answers for the names of endpoints: the resolver may be down just now.
    pub(crate) names: Vec<(Host, Vec<SocketAddr>)>,
    ready: Option<OwnedFd>,
}

/// A new process that is starting.
#[derive(Debug)]
pub(crate) struct Upgrade {
    child: tokio::process::Child,
    ready: pipe::Receiver,
}

impl Origin {
    /// This process's program and arguments.
    ///
    /// # Errors
    /// The program's path cannot be told.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        Ok(Origin { program: std::env::current_exe()?, arguments: std::env::args_os().skip(1).collect() })
    }

    /// Starts the program that now stands at this one's path, and leaves it the sockets. `config` is the text to serve
    /// if it is not the file's; `names` are the answers to go on with.
    ///
    /// # Errors
    /// It cannot be started; nothing has changed.
    pub(crate) fn upgrade(
        &self,
        listeners: &[Open],
        admin: &AdminSockets,
        config: Option<&str>,
        names: &[(Host, Vec<SocketAddr>)],
    ) -> io::Result<Upgrade> {
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        let config = config.map(text_descriptor).transpose()?;
        // Not in the variable: that has room for 128 KiB.
        let names = text_descriptor(&serde_json::to_string(names)?)?;
        let will = Will {
            listeners: listeners.iter().map(will_of).collect(),
            admin_tcp: admin.tcp.as_ref().map(|(address, socket)| (*address, socket.as_raw_fd())),
            admin_unix: admin.unix.as_ref().map(|unix| (unix.path.clone(), unix.socket.as_raw_fd())),
            admin_file: admin.unix.as_ref().and_then(|unix| unix.file),
            config: config.as_ref().map(AsRawFd::as_raw_fd),
            names: Some(names.as_raw_fd()),
            ready: writer.as_raw_fd(),
        };
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(VARIABLE, serde_json::to_string(&will)?).env_remove(WATCHDOG_PID);
        command.stdin(Stdio::null());
        inherit::keep_in_child(&mut command, will.descriptors());
        let child = tokio::process::Command::from(command).spawn()?;
        // Ours is closed by now or with this scope, so that the pipe ends when the child does.
        drop(writer);
        Ok(Upgrade { child, ready: pipe::Receiver::from_owned_fd(reader)? })
    }
}

impl Upgrade {
    /// The new process's id; 0 if it has ended.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Waits until the new process serves.
    ///
    /// # Errors
    /// It ended, or took too long and was killed.
    pub(crate) async fn ready(&mut self) -> io::Result<()> {
        let failure = match tokio::time::timeout(READY_WITHIN, self.first_byte()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "it did not serve in time"),
        };
        // One that gave up by itself is left the time to say why.
        if let Ok(status) = tokio::time::timeout(END_WITHIN, self.child.wait()).await {
            return Err(io::Error::other(format!("{failure} ({})", status?)));
        }
        self.child.kill().await?;
        Err(io::Error::other(format!("{failure} (killed)")))
    }

    async fn first_byte(&self) -> io::Result<()> {
        loop {
            self.ready.readable().await?;
            match self.ready.try_read(&mut [0; 1]) {
                Ok(0) => return Err(io::Error::other("it ended before it served")),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Will {
    fn descriptors(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().flat_map(|listener| listener.fds.iter().copied());
        let admin = self.admin_tcp.iter().map(|(_, fd)| *fd).chain(self.admin_unix.iter().map(|(_, fd)| *fd));
        listeners.chain(admin).chain(self.config).chain(self.names).chain([self.ready]).collect()
    }
}

impl Inheritance {
    /// What the previous process left; nothing where there was none. Call it once, before anything is opened.
    ///
    /// # Errors
    /// The will cannot be read, or a descriptor is not there.
    pub(crate) fn take() -> io::Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(will) => Self::from_will(serde_json::from_str(&will)?),
            Err(_) => Ok(Self::default()),
        }
    }

    fn from_will(will: Will) -> io::Result<Self> {
        let listeners = will.listeners.into_iter().map(inherited).collect::<io::Result<_>>()?;
        let tcp = will.admin_tcp.map(|(address, fd)| io::Result::Ok((address, inherit::take(fd)?)));
        let unix = will.admin_unix.map(|(path, fd)| {
            let file = will.admin_file.or_else(|| FileId::at(&path));
            io::Result::Ok(AdminUnix { path, socket: inherit::take(fd)?, file, is_inherited: true })
        });
        let admin = AdminSockets { tcp: tcp.transpose()?, unix: unix.transpose()? };
        let config = will.config.map(|fd| text_of(inherit::take(fd)?)).transpose()?;
        let names = will.names.map(|fd| text_of(inherit::take(fd)?)).transpose()?;
        let names = names.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default();
        Ok(Inheritance { listeners, admin, config, names, ready: Some(inherit::take(will.ready)?) })
    }

    /// Whether this process takes over from another one.
    pub(crate) fn is_some(&self) -> bool {
        self.ready.is_some()
    }

    /// Tells the previous process that this one serves.
    pub(crate) fn tell_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // If nobody listens any more, there is nobody to tell.
            let _ = std::fs::File::from(ready).write_all(b"\n");
        }
    }
}

fn will_of(open: &Open) -> WillListener {
    let (tcp, unix) = match &open.at.bind {
        Bind::Tcp(address) => (Some(*address), None),
        Bind::Unix(path) => (None, Some(path.clone())),
    };
    WillListener {
        listener: open.at.listener.clone(),
        tcp,
        unix,
        send_buffer: open.options.send_buffer,
        receive_buffer: open.options.receive_buffer,
        fds: open.fds.iter().map(AsRawFd::as_raw_fd).collect(),
        file: open.file,
    }
}

fn inherited(will: WillListener) -> io::Result<Inherited> {
    let fds = will.fds.into_iter().map(inherit::take).collect::<io::Result<_>>()?;
    let bind = will.tcp.map(Bind::Tcp).or(will.unix.map(Bind::Unix));
    let bind =
        bind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a listener without an address"))?;
    let file = match &bind {
        Bind::Unix(path) => will.file.or_else(|| FileId::at(path)),
        Bind::Tcp(_) => None,
    };
    let at = BindAt { listener: will.listener, bind };
    Ok(Inherited { at, send_buffer: will.send_buffer, receive_buffer: will.receive_buffer, fds, file })
}

/// A file without a name that holds the text, to be read from its beginning.
fn text_descriptor(text: &str) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("config", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

fn text_of(descriptor: OwnedFd) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::from(descriptor).read_to_string(&mut text)?;
    Ok(text)
}
