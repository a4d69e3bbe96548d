//! The access log's writer: one thread that takes records from the workers' queue and writes them down as JSON lines.
//!
//! The file is opened by whoever applies a config, so that one that cannot be opened refuses the config. It is opened
//! again on SIGHUP, and when somebody has moved it away (logrotate).
//!
//! A pipe that nobody reads is not waited for: what it does not take stays here up to a limit, and then in the queue, which
//! drops and counts what it has no room for. Only a file on a file system that hangs can hold the thread up, and nobody
//! waits for the thread without a deadline.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use proto::config::AccessLog as Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::warn;

use super::blocking::{FILE_WITHIN, within};
use crate::metrics::access::AccessLog;

/// How long records may wait before they are written. Workers do not wake the writer: that would cost them a call.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How often the writer looks whether its file was moved away.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of records that are written at one go, and kept for a pipe that is full.
const PENDING_BYTES: usize = 64 * 1024;
/// What a pipe that is ready takes without waiting (`PIPE_BUF`, pipe(7)).
const PIPE_BYTES: usize = 4096;
/// How long the last records may take to be written when the process ends.
const LAST_WITHIN: Duration = Duration::from_secs(1);
/// How long the thread may take beyond that, before it is left behind.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Where records go: opened, ready to be written to.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Standard output.
    Stdout(File),
    /// A file.
    File {
        /// Its path, to open it again.
        path: PathBuf,
        /// Open for appending.
        file: File,
    },
}

/// Opens what the config names; none when the log is off.
///
/// # Errors
/// The file cannot be opened for appending, or not in time.
pub(crate) async fn open(target: &Target) -> io::Result<Option<Destination>> {
    Ok(match target {
        Target::Off => None,
        Target::Stdout => Some(Destination::Stdout(io::stdout().as_fd().try_clone_to_owned()?.into())),
        Target::File(path) => {
            let path = path.clone();
            Some(within(FILE_WITHIN, move || Ok(Destination::File { file: append_to(&path)?, path })).await?)
        }
    })
}

/// The queue and the thread that empties it. Dropped, it is told to write what waits and to end, and is not waited for.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<AccessLog>,
    orders: Sender<Order>,
    /// Closed by the end of the thread.
    ended: Receiver<()>,
}

#[derive(Debug)]
enum Order {
    WriteTo(Destination),
    Reopen,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(destination: Destination) -> io::Result<Self> {
        let queue = Arc::new(AccessLog::new());
        let (orders, inbox) = channel();
        let (end, ended) = channel();
        let of_thread = Arc::clone(&queue);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            write_until_dropped(&of_thread, &inbox, destination);
            drop(end);
        })?;
        Ok(Writer { queue, orders, ended })
    }

    /// Where workers push to.
    pub(crate) fn queue(&self) -> &Arc<AccessLog> {
        &self.queue
    }

    /// Goes on at another place, after what waits now.
    pub(crate) fn write_to(&self, destination: Destination) {
        self.order(Order::WriteTo(destination));
    }

    /// Opens the file under its path again.
    pub(crate) fn reopen(&self) {
        self.order(Order::Reopen);
    }

    /// Waits until what was pushed is written, within a deadline; what is not is lost, and counted.
    pub(crate) fn finish(self) {
        let Self { orders, ended, .. } = self;
        drop(orders);
        if ended.recv_timeout(END_WITHIN) == Err(RecvTimeoutError::Timeout) {
            warn!("the access log's last records cannot be written: its file system hangs");
        }
    }

    fn order(&self, order: Order) {
        // Fails only if the thread has ended, which it does not before this value is dropped.
        let _ = self.orders.send(order);
    }
}

fn write_until_dropped(queue: &AccessLog, inbox: &Receiver<Order>, destination: Destination) {
    let mut out = Out::new(destination);
    let mut looked = Instant::now();
    loop {
        let order = inbox.recv_timeout(WRITE_EVERY);
        out.write_all_of(queue);
        match order {
            Ok(Order::WriteTo(destination)) => {
                out.give_up(queue);
                out = Out::new(destination);
            }
            Ok(Order::Reopen) => out.reopen(queue),
            Err(RecvTimeoutError::Timeout) if looked.elapsed() < LOOK_EVERY => {}
            Err(RecvTimeoutError::Timeout) => {
                looked = Instant::now();
                out.reopen_if_moved(queue);
            }
            Err(RecvTimeoutError::Disconnected) => return out.write_last_of(queue),
        }
    }
}

/// An open destination, and what it has not taken yet.
struct Out {
    path: Option<PathBuf>,
    /// Device and inode of the open file.
    identity: Option<(u64, u64)>,
    file: File,
    /// A regular file: it takes everything, and is always ready.
    is_regular: bool,
    /// Whole lines, but for the first one.
    pending: Vec<u8>,
    /// How many they are.
    records: u64,
    has_failed: bool,
}

impl Out {
    fn new(destination: Destination) -> Self {
        let (path, file) = match destination {
            Destination::Stdout(file) => (None, file),
            Destination::File { path, file } => (Some(path), file),
        };
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let identity = identity(file.metadata());
        Out { path, identity, file, is_regular, pending: Vec::new(), records: 0, has_failed: false }
    }

    /// Writes what waits; false when the destination takes no more for now. What cannot be written is counted as dropped;
    /// the first failure in a row is told of.
    fn write_all_of(&mut self, queue: &AccessLog) -> bool {
        loop {
            while self.pending.len() < PENDING_BYTES
                && let Some(record) = queue.pop()
            {
                self.records += 1;
                // A vector takes everything.
                let _ = record.write_json(&mut self.pending);
            }
            if self.pending.is_empty() {
                return true;
            }
            match self.write_some() {
                Ok(count) => {
                    // Each record is a line.
                    self.records -= self.pending.drain(..count).filter(|byte| *byte == b'\n').count() as u64;
                    self.has_failed &= !self.pending.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.has_failed, true) {
                        warn!(%error, path = ?self.path, "the access log cannot be written");
                    }
                    if error.kind() == ErrorKind::WouldBlock {
                        return false;
                    }
                    self.give_up(queue);
                }
            }
        }
    }

    fn write_some(&mut self) -> io::Result<usize> {
        if self.is_regular {
            return self.file.write(&self.pending);
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&at_once))? == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.file.write(&self.pending[..self.pending.len().min(PIPE_BYTES)])
    }

    /// Writes what waits at the end of the process, as long as that may take, and gives up the rest.
    fn write_last_of(&mut self, queue: &AccessLog) {
        let until = Instant::now() + LAST_WITHIN;
        while !self.write_all_of(queue) && Instant::now() < until {
            std::thread::sleep(WRITE_EVERY);
        }
        self.give_up(queue);
        while queue.pop().is_some() {
            queue.count_dropped();
        }
    }

    fn give_up(&mut self, queue: &AccessLog) {
        (0..std::mem::take(&mut self.records)).for_each(|_| queue.count_dropped());
        self.pending.clear();
    }

    fn reopen_if_moved(&mut self, queue: &AccessLog) {
        let Some(path) = &self.path else { return };
        if identity(std::fs::metadata(path)) != self.identity {
            self.reopen(queue);
        }
    }

    fn reopen(&mut self, queue: &AccessLog) {
        let Some(path) = self.path.clone() else { return };
        match append_to(&path) {
            Ok(file) => {
                self.give_up(queue);
                *self = Out::new(Destination::File { path, file });
            }
            Err(error) => {
                warn!(%error, path = %path.display(), "the access log's file cannot be opened again");
            }
        }
    }
}

/// Without `O_NONBLOCK` the open of a FIFO would wait for somebody who reads.
fn append_to(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("it is a FIFO or a socket that nobody reads"),
        _ => error,
    })
}

fn identity(metadata: io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::access::tests::cut_stream;

    fn file_at(path: &Path) -> Destination {
        Destination::File { path: path.to_owned(), file: append_to(path).unwrap() }
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).unwrap().lines().count()
    }

    #[test]
    fn what_waits_is_written_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let writer = Writer::start(file_at(&path)).unwrap();
        (0..1000).for_each(|_| writer.queue().push(cut_stream()));
        writer.finish();
        assert_eq!(lines(&path), 1000);
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let queue = AccessLog::new();
        let mut out = Out::new(file_at(&path));
        queue.push(cut_stream());
        out.write_all_of(&queue);
        std::fs::rename(&path, &moved).unwrap();
        out.reopen_if_moved(&queue);
        (0..2).for_each(|_| queue.push(cut_stream()));
        out.write_all_of(&queue);
        assert_eq!((lines(&moved), lines(&path)), (1, 2));
    }

    #[test]
    fn another_destination_gets_what_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let writer = Writer::start(file_at(&first)).unwrap();
        writer.queue().push(cut_stream());
        writer.write_to(file_at(&second));
        writer.finish();
        assert_eq!(lines(&first) + lines(&second), 1);
        assert_eq!(lines(&first), 1);
    }

    #[tokio::test]
    async fn a_file_in_no_folder_is_an_error_and_so_is_a_fifo_that_nobody_reads() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&Target::File(dir.path().join("no/such/access.log"))).await.is_err());
        let refused = open(&Target::File(fifo(dir.path()))).await.unwrap_err();
        assert!(refused.to_string().contains("nobody reads"), "{refused}");
    }

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        path
    }

    #[test]
    fn a_pipe_that_is_not_read_holds_nobody_up_and_gets_whole_lines_when_it_is() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let queue = AccessLog::new();
        let mut out = Out::new(Destination::Stdout(std::os::fd::OwnedFd::from(pipe).into()));
        (0..2000).for_each(|_| queue.push(cut_stream()));
        assert!(!out.write_all_of(&queue), "it took everything");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).map(|_| text)
        });
        while !out.write_all_of(&queue) {
            std::thread::yield_now();
        }
        drop(out);
        let text = reading.join().unwrap().unwrap();
        let is_whole = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert_eq!(text.lines().filter(|line| is_whole(line)).count(), 2000);
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn another_destination_takes_over_from_a_pipe_that_nobody_reads_and_the_loss_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (_reader, pipe) = io::pipe().unwrap();
        let writer = Writer::start(Destination::Stdout(std::os::fd::OwnedFd::from(pipe).into())).unwrap();
        let queue = Arc::clone(writer.queue());
        (0..2000).for_each(|_| queue.push(cut_stream()));
        writer.write_to(file_at(&path));
        writer.finish();
        assert!(queue.dropped() > 0);
        assert!(queue.dropped() as usize + lines(&path) < 2000, "nothing went into the pipe");
        assert!(lines(&path) > 0);
    }

    #[test]
    fn the_end_does_not_wait_for_a_pipe_that_nobody_reads() {
        let (_reader, pipe) = io::pipe().unwrap();
        let writer = Writer::start(Destination::Stdout(std::os::fd::OwnedFd::from(pipe).into())).unwrap();
        let queue = Arc::clone(writer.queue());
        (0..2000).for_each(|_| queue.push(cut_stream()));
        let began = Instant::now();
        writer.finish();
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(queue.pop().is_none() && queue.dropped() > 0);
    }

    #[test]
    fn records_that_cannot_be_written_are_counted() {
        let queue = AccessLog::new();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut out = Out::new(Destination::File { path: "/dev/full".into(), file: full });
        queue.push(cut_stream());
        out.write_all_of(&queue);
        assert_eq!(queue.dropped(), 1);
    }
}
