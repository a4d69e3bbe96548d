//! The listening sockets of all listeners. The control thread owns them and lends each worker a duplicate: so a worker
//! that had to be started again gets them back, and a new process can take them over.
//!
//! A TCP address has one socket per worker (`SO_REUSEPORT`), each with a queue of its own; a Unix path has one socket
//! that all workers accept on. A change is prepared first, which binds what is new and may fail, and then made, which
//! cannot.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use dataplane_core::snapshot::plan::{BindAt, ListenerChanges};
use proto::config::{Bind, Config, SocketOptions};
use socket2::{Domain, Socket, Type};

use super::node::Bound;
use crate::sys::unix::FileId;
use crate::sys::{socket, unix};
use crate::worker::{Order, Workers};

/// Everything that is bound.
#[derive(Debug)]
pub(crate) struct Sockets {
    workers: usize,
    open: Vec<Open>,
}

/// One bound address.
#[derive(Debug)]
pub(crate) struct Open {
    /// The listener and the address as configured.
    pub(crate) at: BindAt,
    /// What the sockets were opened with.
    pub(crate) options: SocketOptions,
    /// One per worker or more for TCP, one for a Unix path.
    pub(crate) fds: Vec<OwnedFd>,
    /// A Unix socket's file, as it was made when the socket was bound.
    pub(crate) file: Option<FileId>,
    /// Another process bound it, which may still listen there.
    pub(crate) is_inherited: bool,
}

/// What another process left of one address.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// The listener and the address, as that process had them.
    pub(crate) at: BindAt,
    /// `SO_SNDBUF`, where it was set.
    pub(crate) send_buffer: Option<u32>,
    /// `SO_RCVBUF`, where it was set.
    pub(crate) receive_buffer: Option<u32>,
    /// The sockets.
    pub(crate) fds: Vec<OwnedFd>,
    /// A Unix socket's file.
    pub(crate) file: Option<FileId>,
}

/// A change that is ready to be made: everything new is bound. Dropped, it unbinds that again.
#[derive(Debug, Default)]
pub(crate) struct Change {
    opened: Vec<Open>,
    /// As they are now, to be closed.
    closed: Vec<BindAt>,
    /// From what they are now to what they will be; their sockets stay.
    renamed: Vec<(BindAt, BindAt)>,
    /// As they are now, with their new options; their sockets stay.
    retuned: Vec<(BindAt, SocketOptions)>,
}

/// An address that cannot be bound.
#[derive(Debug)]
pub(crate) struct BindFailure {
    /// The listener and the address.
    pub(crate) at: BindAt,
    /// What the kernel says.
    pub(crate) error: io::Error,
}

impl Sockets {
    /// None yet, for so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Sockets { workers, open: Vec::new() }
    }

    /// All of them.
    pub(crate) fn open(&self) -> &[Open] {
        &self.open
    }

    /// What is bound, with the addresses that the kernel gave.
    pub(crate) fn bound(&self) -> Vec<Bound> {
        self.open.iter().map(Open::bound).collect()
    }

    /// Binds what `config` needs and is not there. `inherited` are sockets of the process that this one takes over
    /// from: what fits is taken out of it.
    ///
    /// # Errors
    /// The first address that cannot be bound; nothing stays bound then.
    pub(crate) fn prepare(
        &self,
        changes: &ListenerChanges,
        config: &Config,
        inherited: &mut Vec<Inherited>,
    ) -> Result<Change, BindFailure> {
        let mut change = Change::default();
        change.closed.clone_from(&changes.closed);
        for at in changes.opened.iter().chain(&changes.changed) {
            let options = options_of(config, at);
            match self.find(at) {
                Some(open) if open.can_become(&options) => {
                    if open.options != options {
                        try_options(at, &options)?;
                        change.retuned.push((open.at.clone(), options));
                    }
                    if open.at != *at {
                        change.renamed.push((open.at.clone(), at.clone()));
                    }
                }
                found => {
                    // A port that the kernel chose stays the one it chose.
                    let actual = found.and_then(Open::actual);
                    change.closed.extend(found.map(|open| open.at.clone()));
                    let is_ours = self.has_port(&at.bind, inherited, &change.opened);
                    let adopted = take_fitting(inherited, at, &options);
                    let opened = self.bind(at, actual, &options, adopted, is_ours || found.is_some());
                    change.opened.push(opened.map_err(|error| BindFailure { at: at.clone(), error })?);
                }
            }
        }
        Ok(change)
    }

    /// Makes the change. Workers must have the config that it belongs to before this is called.
    pub(crate) fn commit(&mut self, mut change: Change, workers: &Workers) {
        let opened = std::mem::take(&mut change.opened);
        // First all that stops: the same listener and address may come again with other sockets, which are bound by
        // now and already take new connections into their queues.
        for at in change.closed.iter().chain(change.renamed.iter().map(|(before, _)| before)) {
            workers.post_all(|| Order::Unlisten { listener: at.listener.clone(), bind: at.bind.clone() });
        }
        for at in std::mem::take(&mut change.closed) {
            self.open.extract_if(.., |open| open.at == at).for_each(|open| open.remove_file());
        }
        for (at, options) in std::mem::take(&mut change.retuned) {
            self.open.iter_mut().filter(|open| open.at == at).for_each(|open| open.retune(options.clone()));
        }
        for (before, after) in std::mem::take(&mut change.renamed) {
            if let Some(open) = self.open.iter_mut().find(|open| open.at == before) {
                open.at = after;
                open.lend_to_all(workers);
            }
        }
        for mut open in opened {
            if open.is_inherited {
                // Not before this process is sure to serve: the old one has these sockets, too.
                open.retune(open.options.clone());
            }
            open.lend_to_all(workers);
            self.open.push(open);
        }
    }

    /// Gives one worker its sockets, all of them.
    pub(crate) fn lend_to(&self, workers: &Workers, worker: usize) {
        self.open.iter().for_each(|open| open.lend(workers, |of| of == worker));
    }

    /// Closes all of them here; workers close theirs when they are told to drain. `unlink_paths` removes the files of
    /// Unix sockets too, which must not be done when another process listens there now.
    pub(crate) fn close(&mut self, unlink_paths: bool) {
        for open in self.open.drain(..) {
            if unlink_paths {
                open.remove_file();
            }
        }
    }

    fn find(&self, at: &BindAt) -> Option<&Open> {
        self.open.iter().find(|open| is_same_socket(&open.at, at))
    }

    /// Opens what is missing. `is_ours`: the port is one of ours already, so that nobody else can have it.
    fn bind(
        &self,
        at: &BindAt,
        actual: Option<SocketAddr>,
        options: &SocketOptions,
        adopted: Option<Inherited>,
        is_ours: bool,
    ) -> io::Result<Open> {
        let is_inherited = adopted.is_some();
        let (mut fds, mut file) = adopted.map(|left| (left.fds, left.file)).unwrap_or_default();
        match &at.bind {
            Bind::Unix(path) if fds.is_empty() => {
                let (fd, made) = unix::listen(path, &options.access, socket::backlog(options))?;
                fds.push(fd);
                file = Some(made);
            }
            Bind::Unix(_) => unix::try_access(&options.access)?,
            Bind::Tcp(address) => {
                if !is_ours && !options.shared {
                    refuse_taken(*address, options)?;
                }
                let mut address = actual.unwrap_or(*address);
                while fds.len() < self.workers {
                    address = fds.first().and_then(local_address).unwrap_or(address);
                    fds.push(socket::listen_tcp(address, options)?);
                }
            }
        }
        Ok(Open { at: at.clone(), options: options.clone(), fds, file, is_inherited })
    }

    /// Whether a socket that this process has, was left or has just opened has this port, on whatever address.
    fn has_port(&self, bind: &Bind, inherited: &[Inherited], opened: &[Open]) -> bool {
        let Bind::Tcp(address) = bind else { return false };
        let ours = self.open.iter().chain(opened).map(|open| &open.at.bind);
        let mut known = ours.chain(inherited.iter().map(|left| &left.at.bind));
        address.port() != 0
            && known.any(|known| matches!(known, Bind::Tcp(known) if known.port() == address.port()))
    }
}

impl Open {
    /// Whether the sockets can be given these options and stay: all but a buffer size can be set on a socket that
    /// listens.
    fn can_become(&self, options: &SocketOptions) -> bool {
        matches!(self.at.bind, Bind::Unix(_))
            || !is_given_back(self.options.send_buffer, options.send_buffer)
                && !is_given_back(self.options.receive_buffer, options.receive_buffer)
    }

    fn retune(&mut self, options: SocketOptions) {
        let retuned = match &self.at.bind {
            Bind::Tcp(_) => self.fds.iter().try_for_each(|fd| socket::retune_listener(fd, &options)),
            Bind::Unix(path) => {
                self.file.map_or(Ok(()), |file| unix::set_access(path, file, &options.access))
            }
        };
        if let Err(error) = retuned {
            tracing::warn!(bind = %self.at.bind, %error, "a listening socket keeps its old options");
        }
        self.options = options;
    }

    /// Removes a Unix socket's file. Before the socket is closed, so that no other file can have its number.
    fn remove_file(&self) {
        if let (Bind::Unix(path), Some(file)) = (&self.at.bind, self.file) {
            unix::remove(path, file);
        }
    }

    fn bound(&self) -> Bound {
        Bound {
            listener: self.at.listener.clone(),
            actual: self.actual().map_or_else(|| self.at.bind.clone(), Bind::Tcp),
        }
    }

    fn actual(&self) -> Option<SocketAddr> {
        self.fds.first().and_then(local_address)
    }

    fn lend_to_all(&self, workers: &Workers) {
        self.lend(workers, |_| true);
    }

    /// Each TCP socket goes to one worker, several to the same one where there are more sockets than workers: none may
    /// be left without anybody who accepts on it.
    fn lend(&self, workers: &Workers, is_wanted: impl Fn(usize) -> bool) {
        let count = workers.count();
        let pairs: Vec<(usize, &OwnedFd)> = match self.at.bind {
            Bind::Tcp(_) => self.fds.iter().enumerate().map(|(place, fd)| (place % count, fd)).collect(),
            Bind::Unix(_) => {
                (0..count).flat_map(|worker| self.fds.iter().map(move |fd| (worker, fd))).collect()
            }
        };
        for (worker, fd) in pairs.into_iter().filter(|(worker, _)| is_wanted(*worker)) {
            let BindAt { listener, bind } = self.at.clone();
            match fd.try_clone() {
                Ok(socket) => workers.post(worker, Order::Listen { listener, bind, socket }),
                Err(error) => {
                    tracing::error!(worker, listener, %bind, %error, "a worker cannot be lent its listening socket")
                }
            }
        }
    }
}

impl Drop for Change {
    /// Only what was not committed is still there.
    fn drop(&mut self) {
        self.opened.iter().filter(|open| !open.is_inherited).for_each(Open::remove_file);
    }
}

/// Sockets of another process for this address, unless they cannot be given these options.
fn take_fitting(inherited: &mut Vec<Inherited>, at: &BindAt, options: &SocketOptions) -> Option<Inherited> {
    let place = inherited.iter().position(|left| {
        let is_tcp = matches!(left.at.bind, Bind::Tcp(_));
        let gives_back = is_given_back(left.send_buffer, options.send_buffer)
            || is_given_back(left.receive_buffer, options.receive_buffer);
        is_same_socket(&left.at, at) && !(is_tcp && gives_back) && !left.fds.is_empty()
    })?;
    Some(inherited.swap_remove(place))
}

/// A buffer size, once set, cannot be given back to the kernel.
fn is_given_back(before: Option<u32>, after: Option<u32>) -> bool {
    before.is_some() && after.is_none()
}

/// Addresses are unique over all listeners, but for port 0: there the listener tells.
fn is_same_socket(one: &BindAt, other: &BindAt) -> bool {
    let is_any_port = matches!(one.bind, Bind::Tcp(address) if address.port() == 0);
    one.bind == other.bind && (!is_any_port || one.listener == other.listener)
}

/// Options that no socket takes refuse the config; tried on a socket that is thrown away.
fn try_options(at: &BindAt, options: &SocketOptions) -> Result<(), BindFailure> {
    let tried = match at.bind {
        Bind::Tcp(address) => Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)
            .and_then(|socket| socket::set_listener_options(&socket, options)),
        Bind::Unix(_) => unix::try_access(&options.access),
    };
    tried.map_err(|error| BindFailure { at: at.clone(), error })
}

fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    socket::local_address(fd).ok().flatten()
}

fn options_of(config: &Config, at: &BindAt) -> SocketOptions {
    let listener = config.listeners.iter().find(|listener| listener.name == at.listener);
    listener.map_or_else(SocketOptions::listener, |listener| listener.socket.clone())
}

/// `SO_REUSEPORT` would let two processes of one user share an address without a word. So an address that is new to
/// this process is first tried without it, unless the config says that it is shared.
fn refuse_taken(address: SocketAddr, options: &SocketOptions) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket::set_freebind(&socket, address, options)?;
    socket.bind(&address.into())
}
