//! The access log's writer: one thread that takes records from the workers' queue and writes them down as JSON lines.
//!
//! The file is opened by whoever applies a config, so that one that cannot be opened refuses the config. It is opened
//! again on SIGHUP, and when somebody has moved it away (logrotate). Records that got lost, because the writer was behind
//! or the disk full, leave a line that says how many they were.
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
use std::time::{Duration, Instant, SystemTime};

use proto::config::AccessLog as Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::warn;

use super::blocking::{FILE_WITHIN, within};
use crate::metrics::access::{AccessLog, write_dropped};

/// How long records may wait before they are written. Workers do not wake the writer: that would cost them a call.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How often the writer looks whether its file was moved away, and says how many records were lost.
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

/// Whether the log would be written into this file, whatever names both have.
pub(crate) fn is_at(target: &Target, file: &Path) -> bool {
    let Target::File(path) = target else { return false };
    let (log, file) = (identity(std::fs::metadata(path)), identity(std::fs::metadata(file)));
    log.is_some() && log == file
}

/// As [`is_at`], off this thread.
///
/// # Errors
/// The file system does not say it in time.
pub(crate) async fn is_at_in_time(target: &Target, file: &Path) -> io::Result<bool> {
    let Target::File(_) = target else { return Ok(false) };
    let (target, file) = (target.clone(), file.to_owned());
    within(FILE_WITHIN, move || Ok(is_at(&target, &file))).await
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
            Ok(Order::WriteTo(destination)) => out.go_on_at(destination, queue),
            Ok(Order::Reopen) => out.reopen(queue),
            Err(RecvTimeoutError::Timeout) if looked.elapsed() < LOOK_EVERY => {}
            Err(RecvTimeoutError::Timeout) => {
                looked = Instant::now();
                out.reopen_if_moved(queue);
                out.tell_losses(queue);
            }
            Err(RecvTimeoutError::Disconnected) => return out.write_last_of(queue),
        }
    }
}

/// How many lost records each log knows of.
#[derive(Debug, Default)]
struct Losses {
    /// Of those that a line of the access log stands for.
    written: u64,
    /// Of those that the process's log has told of.
    warned: u64,
    /// Of those that the line stands for which waits to be written.
    pending: Option<Loss>,
}

/// A line in [`Out::pending`] that tells of lost records.
#[derive(Clone, Copy, Debug)]
struct Loss {
    records: u64,
    /// Records that are to be written before.
    behind: u64,
}

impl Losses {
    /// Tells the process's log of records that were lost since.
    fn warn(&mut self, dropped: u64) {
        if dropped > self.warned {
            warn!(records = dropped - self.warned, "access log records were lost");
            self.warned = dropped;
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
    /// How many of them are records.
    records: u64,
    /// The destination has a part of the first one already.
    is_torn: bool,
    losses: Losses,
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
        Out {
            path,
            identity,
            file,
            is_regular,
            pending: Vec::new(),
            records: 0,
            is_torn: false,
            losses: Losses::default(),
            has_failed: false,
        }
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
                    self.take(count);
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
                    self.give_up_whole_lines(queue);
                    if self.is_torn {
                        return false;
                    }
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

    /// The destination has taken the first so many bytes.
    fn take(&mut self, count: usize) {
        let mut lines = 0;
        for byte in self.pending.drain(..count) {
            self.is_torn = byte != b'\n';
            lines += u64::from(!self.is_torn);
        }
        if let Some(loss) = &mut self.losses.pending {
            if lines > loss.behind {
                self.losses.written += loss.records;
                self.losses.pending = None;
                lines -= 1;
            } else {
                loss.behind -= lines;
            }
        }
        // Each record is a line.
        self.records -= lines;
    }

    /// Tells both logs of records that were lost since; the access log as soon as it can be written again.
    fn tell_losses(&mut self, queue: &AccessLog) {
        let dropped = queue.dropped();
        self.losses.warn(dropped);
        if dropped > self.losses.written && self.losses.pending.is_none() {
            let records = dropped - self.losses.written;
            // A vector takes everything.
            let _ = write_dropped(&mut self.pending, SystemTime::now(), records);
            self.losses.pending = Some(Loss { records, behind: self.records });
            self.write_all_of(queue);
        }
    }

    /// Writes what waits at the end of the process, as long as that may take, and gives up the rest.
    fn write_last_of(&mut self, queue: &AccessLog) {
        let until = Instant::now() + LAST_WITHIN;
        self.tell_losses(queue);
        while !self.write_all_of(queue) && Instant::now() < until {
            std::thread::sleep(WRITE_EVERY);
        }
        self.give_up(queue);
        while queue.pop().is_some() {
            queue.count_dropped();
        }
        self.losses.warn(queue.dropped());
    }

    /// Drops what waits, and counts it.
    fn give_up(&mut self, queue: &AccessLog) {
        (0..std::mem::take(&mut self.records)).for_each(|_| queue.count_dropped());
        self.losses.pending = None;
        self.pending.clear();
    }

    /// As [`Out::give_up`], but for the rest of a line that the destination has a part of.
    fn give_up_whole_lines(&mut self, queue: &AccessLog) {
        let torn = self.pending.iter().position(|byte| *byte == b'\n').filter(|_| self.is_torn);
        let Some(end) = torn else { return self.give_up(queue) };
        let loss = self.losses.pending.filter(|loss| loss.behind == 0);
        let kept = u64::from(loss.is_none());
        (kept..self.records).for_each(|_| queue.count_dropped());
        self.records = self.records.min(kept);
        self.losses.pending = loss;
        self.pending.truncate(end + 1);
    }

    /// Goes on at another place; what the one before did not take is lost.
    fn go_on_at(&mut self, destination: Destination, queue: &AccessLog) {
        self.give_up(queue);
        let losses = std::mem::take(&mut self.losses);
        *self = Out { losses, ..Out::new(destination) };
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
            Ok(file) => self.go_on_at(Destination::File { path, file }, queue),
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
        Some(libc::ENXIO) => io::Error::new(error.kind(), "it is a FIFO that nobody reads, or a socket"),
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

    #[test]
    fn lost_records_leave_one_line_that_counts_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (queue, mut out) = (AccessLog::new(), Out::new(file_at(&path)));
        out.tell_losses(&queue);
        (0..3).for_each(|_| queue.count_dropped());
        queue.push(cut_stream());
        out.write_all_of(&queue);
        out.tell_losses(&queue);
        out.tell_losses(&queue);
        queue.count_dropped();
        out.tell_losses(&queue);
        let text = std::fs::read_to_string(&path).unwrap();
        let dropped =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["dropped"].as_u64();
        assert_eq!(text.lines().map(dropped).collect::<Vec<_>>(), [None, Some(3), Some(1)]);
    }

    #[test]
    fn a_full_disk_is_told_of_once_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let queue = AccessLog::new();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut out = Out::new(Destination::File { path: "/dev/full".into(), file: full });
        queue.push(cut_stream());
        out.write_all_of(&queue);
        out.tell_losses(&queue);
        out.go_on_at(file_at(&path), &queue);
        out.tell_losses(&queue);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with(",\"dropped\":1}\n"));
    }

    #[test]
    fn lost_records_are_told_of_behind_a_pipe_that_is_full_and_only_once() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let queue = AccessLog::new();
        let mut out = Out::new(Destination::Stdout(std::os::fd::OwnedFd::from(pipe).into()));
        (0..2000).for_each(|_| queue.push(cut_stream()));
        assert!(!out.write_all_of(&queue), "it took everything");
        (0..3).for_each(|_| queue.count_dropped());
        (0..2).for_each(|_| out.tell_losses(&queue));
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).map(|_| text)
        });
        while !out.write_all_of(&queue) {
            std::thread::yield_now();
        }
        out.tell_losses(&queue);
        drop(out);
        let text = reading.join().unwrap().unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<u64> = lines.iter().filter_map(|line| line["dropped"].as_u64()).collect();
        assert_eq!((lines.len(), told), (2001, vec![3]));
    }

    /// A pipe stands for the disk: both have taken a part of a line before they took no more.
    #[test]
    fn a_line_of_which_a_part_is_written_is_ended_before_another_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let queue = AccessLog::new();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut out = Out::new(file_at(&path));
        (0..2).for_each(|_| cut_stream().write_json(&mut out.pending).unwrap());
        out.records = 2;
        let half = out.pending.len() / 4;
        out.file.write_all(&out.pending[..half]).unwrap();
        out.take(half);
        let disk = std::mem::replace(&mut out.file, full);
        queue.push(cut_stream());
        assert!(!out.write_all_of(&queue));
        assert_eq!((out.records, queue.dropped()), (1, 2));
        out.tell_losses(&queue);
        out.file = disk;
        assert!(out.write_all_of(&queue));
        out.tell_losses(&queue);
        let text = std::fs::read_to_string(&path).unwrap();
        let dropped =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["dropped"].as_u64();
        assert_eq!(text.lines().map(dropped).collect::<Vec<_>>(), [None, Some(2)]);
    }
}
