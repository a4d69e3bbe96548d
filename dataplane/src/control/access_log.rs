//! The access log's writer: one thread that takes records from the workers' queue and writes them down as JSON lines.
//!
//! The file is opened by whoever applies a config, so that one that cannot be opened refuses the config. It is opened
//! again on SIGHUP, and when somebody has moved it away (logrotate). Records that got lost, because the writer was behind
//! or the disk full, leave a line that says how many they were.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use proto::config::AccessLog as Target;
use rustix::fs::OFlags;
use tracing::warn;

use crate::metrics::access::{AccessLog, write_dropped};

/// How long records may wait before they are written. Workers do not wake the writer: that would cost them a call.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How often the writer looks whether its file was moved away, and says how many records were lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where records go: opened, ready to be written to.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Standard output.
    Stdout,
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
/// The file cannot be opened for appending.
pub(crate) fn open(target: &Target) -> io::Result<Option<Destination>> {
    Ok(match target {
        Target::Off => None,
        Target::Stdout => Some(Destination::Stdout),
        Target::File(path) => Some(Destination::File { path: path.clone(), file: append_to(path)? }),
    })
}

/// Whether the log would be written into this file, whatever names both have.
pub(crate) fn is_at(target: &Target, file: &Path) -> bool {
    let Target::File(path) = target else { return false };
    let (log, file) = (identity(std::fs::metadata(path)), identity(std::fs::metadata(file)));
    log.is_some() && log == file
}

/// The queue and the thread that empties it. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<AccessLog>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
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
        let of_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_until_dropped(&of_thread, &inbox, destination))?;
        Ok(Writer { queue, orders: Some(orders), thread: Some(thread) })
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

    fn order(&self, order: Order) {
        // Fails only if the thread has ended, which it does not before this value is dropped.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic there is told of by the thread itself.
            let _ = thread.join();
        }
    }
}

fn write_until_dropped(queue: &AccessLog, inbox: &Receiver<Order>, destination: Destination) {
    let mut out = Out::new(destination);
    let mut losses = Losses::default();
    let mut looked = Instant::now();
    loop {
        let order = inbox.recv_timeout(WRITE_EVERY);
        out.write_all_of(queue);
        match order {
            Ok(Order::WriteTo(destination)) => out = Out::new(destination),
            Ok(Order::Reopen) => out.reopen(),
            Err(RecvTimeoutError::Timeout) if looked.elapsed() < LOOK_EVERY => {}
            Err(RecvTimeoutError::Timeout) => {
                looked = Instant::now();
                out.reopen_if_moved();
                losses.tell(queue, &mut out);
            }
            Err(RecvTimeoutError::Disconnected) => {
                losses.tell(queue, &mut out);
                return;
            }
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
}

impl Losses {
    /// Tells both logs of records that were lost since; the access log as soon as it can be written again.
    fn tell(&mut self, queue: &AccessLog, out: &mut Out) {
        let dropped = queue.dropped();
        if dropped > self.warned {
            warn!(records = dropped - self.warned, "access log records were lost");
            self.warned = dropped;
        }
        if dropped > self.written && out.write_loss(dropped - self.written).is_ok() {
            self.written = dropped;
        }
    }
}

/// An open destination with a buffer in front of it.
struct Out {
    path: Option<PathBuf>,
    /// Device and inode of the open file.
    identity: Option<(u64, u64)>,
    writer: BufWriter<Box<dyn Write>>,
    has_failed: bool,
}

impl Out {
    fn new(destination: Destination) -> Self {
        let (path, identity, writer): (_, _, Box<dyn Write>) = match destination {
            Destination::Stdout => (None, None, Box::new(io::stdout())),
            Destination::File { path, file } => (Some(path), identity(file.metadata()), Box::new(file)),
        };
        Out { path, identity, writer: BufWriter::new(writer), has_failed: false }
    }

    /// Writes what waits. What cannot be written is counted as dropped; the first failure in a row is told of.
    fn write_all_of(&mut self, queue: &AccessLog) {
        let mut written = 0;
        let mut result = Ok(());
        while let Some(record) = queue.pop() {
            written += 1;
            result = result.and(record.write_json(&mut self.writer));
        }
        if let Err(error) = result.and_then(|()| self.writer.flush()) {
            (0..written).for_each(|_| queue.count_dropped());
            if !std::mem::replace(&mut self.has_failed, true) {
                warn!(%error, path = ?self.path, "the access log cannot be written");
            }
        } else if written > 0 {
            self.has_failed = false;
        }
    }

    /// Writes that so many records were lost.
    fn write_loss(&mut self, records: u64) -> io::Result<()> {
        write_dropped(&mut self.writer, SystemTime::now(), records)?;
        self.writer.flush()
    }

    fn reopen_if_moved(&mut self) {
        let Some(path) = &self.path else { return };
        if identity(std::fs::metadata(path)) != self.identity {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        let Some(path) = self.path.take() else { return };
        match append_to(&path) {
            Ok(file) => *self = Out::new(Destination::File { path, file }),
            Err(error) => {
                warn!(%error, path = %path.display(), "the access log's file cannot be opened again");
                self.path = Some(path);
            }
        }
    }
}

/// Whoever applies a config must not wait here, as an open would for somebody who reads a FIFO.
fn append_to(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::new(error.kind(), "it is a FIFO that nobody reads, or a socket"),
        _ => error,
    })?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

fn identity(metadata: io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::access::tests::cut_stream;

    fn file_at(path: &Path) -> Destination {
        open(&Target::File(path.to_owned())).unwrap().unwrap()
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
        drop(writer);
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
        out.reopen_if_moved();
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
        drop(writer);
        assert_eq!(lines(&first) + lines(&second), 1);
        assert_eq!(lines(&first), 1);
    }

    #[test]
    fn a_file_in_no_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&Target::File(dir.path().join("no/such/access.log"))).is_err());
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
        let mut losses = Losses::default();
        losses.tell(&queue, &mut out);
        (0..3).for_each(|_| queue.count_dropped());
        queue.push(cut_stream());
        out.write_all_of(&queue);
        losses.tell(&queue, &mut out);
        losses.tell(&queue, &mut out);
        queue.count_dropped();
        losses.tell(&queue, &mut out);
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
        let mut losses = Losses::default();
        queue.push(cut_stream());
        out.write_all_of(&queue);
        losses.tell(&queue, &mut out);
        let mut out = Out::new(file_at(&path));
        losses.tell(&queue, &mut out);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with(",\"dropped\":1}\n"));
    }
}
