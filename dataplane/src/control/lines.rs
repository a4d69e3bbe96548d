//! Lines on their way to standard error: a queue, and a thread that writes. A pipe that nobody reads costs lines of the
//! log, and never a worker's or the control thread's time.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait: seconds of a busy log, and at the longest a few megabytes.
const LINES_MAX: usize = 1024;
/// What is kept of a line.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Between two tries to ask for what waits to be written.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Where lines are left. Clones leave them in the same queue.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Somebody waits until everything before this is written.
    Flush(SyncSender<()>),
}

impl Lines {
    /// Starts the thread, which writes to `out`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = sync_channel(LINES_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&entries, out, &counted))?;
        Ok(Lines { queue, dropped })
    }

    /// Leaves a line, or counts it as dropped where too many wait.
    pub(crate) fn push(&self, line: &[u8]) {
        let kept = &line[..line.len().min(LINE_BYTES_MAX)];
        if self.queue.try_send(Entry::Line(kept.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was left is written, and no longer than this.
    pub(crate) fn flush_within(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        let (written, is_written) = sync_channel(1);
        let mut flush = Entry::Flush(written);
        while let Err(error) = self.queue.try_send(flush) {
            let (TrySendError::Full(again) | TrySendError::Disconnected(again)) = error;
            if Instant::now() >= until {
                return;
            }
            flush = again;
            std::thread::sleep(LOOK_EVERY);
        }
        // It may be too late: then the rest is lost.
        let _ = is_written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    /// Lines that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(entries: &Receiver<Entry>, mut out: impl Write, dropped: &AtomicU64) {
    let mut told = 0;
    for entry in entries {
        // An error means that nobody reads, now or ever again; there is no other place to say so.
        let _ = match entry {
            Entry::Line(line) => out.write_all(&line),
            Entry::Flush(written) => {
                let flushed = out.flush();
                let _ = written.send(());
                flushed
            }
        };
        let now = dropped.load(Ordering::Relaxed);
        if now > told {
            let _ = writeln!(out, "{} lines of this log were dropped: it was not read", now - told);
            told = now;
        }
    }
}

/// One event of the log is one write.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = &'l Lines;

    fn make_writer(&'l self) -> &'l Lines {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_left_is_written_by_the_time_a_flush_returns() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        lines.push(b"one\n");
        (&lines).write_all(b"two\n").unwrap();
        lines.flush_within(Duration::from_secs(20));
        let mut text = [0; 8];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"one\ntwo\n");
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_no_time_and_is_told_of_afterwards() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // Twice what the pipe and the queue hold.
        (0..2 * (LINES_MAX + 64)).for_each(|_| lines.push(&line));
        let dropped = lines.dropped();
        assert!(dropped > 0);
        let began = Instant::now();
        lines.flush_within(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(10));
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        lines.flush_within(Duration::from_secs(20));
        drop(lines);
        let text = reading.join().unwrap().unwrap();
        let told = text
            .lines()
            .filter_map(|line| line.strip_suffix(" lines of this log were dropped: it was not read"));
        assert_eq!(told.map(|count| count.parse::<u64>().unwrap()).sum::<u64>(), dropped);
    }

    #[test]
    fn a_line_is_kept_up_to_a_limit() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        lines.push(&vec![b'x'; LINE_BYTES_MAX + 1]);
        drop(lines);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text.len(), LINE_BYTES_MAX);
    }
}
