//! Work that may block, off the control thread and with a deadline: a file system that hangs keeps neither a signal nor
//! `/readyz` waiting.
//!
//! A thread that hangs cannot be ended from here. It is left behind, and so many may be left and no more.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::config::TEXT_BYTES_MAX;
use tokio::sync::oneshot;

/// A file that takes longer to open or to read is on a file system that hangs: a local one takes milliseconds, one on the
/// network far less than a second.
pub(crate) const FILE_WITHIN: Duration = Duration::from_secs(5);
/// Threads that may hang at once. Each has a stack and nothing else.
const THREADS_MAX: usize = 16;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Does `work` on a thread of its own.
///
/// # Errors
/// What the work says; or it takes longer than `deadline`, and goes on without anybody who waits for it; or too many have
/// done so before.
pub(crate) async fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let running = Running::begin()?;
    let (done, output) = oneshot::channel();
    std::thread::Builder::new().name("file".to_owned()).spawn(move || {
        // Fails only when nobody waits any more.
        let _ = done.send(work());
        drop(running);
    })?;
    match tokio::time::timeout(deadline, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(_)) => Err(io::Error::other("it panicked")),
        Err(_) => {
            let message =
                format!("it took longer than {} s: does its file system hang?", deadline.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }
    }
}

/// One of the threads.
struct Running;

impl Running {
    fn begin() -> io::Result<Self> {
        let running = Self;
        if THREADS.fetch_add(1, Ordering::Relaxed) < THREADS_MAX {
            return Ok(running);
        }
        Err(io::Error::other(format!("{THREADS_MAX} files are waited for already: a file system hangs")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a config file. It may block only where its file system does.
///
/// # Errors
/// It is no regular file, longer than any config, not UTF-8, or cannot be read.
pub(crate) fn read_config(path: &Path) -> io::Result<String> {
    // Without O_NONBLOCK the open of a FIFO would wait for somebody who writes.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        let kind = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a FIFO"
        } else {
            "a device or a socket"
        };
        return Err(io::Error::other(format!("it is {kind}: a config is a regular file")));
    }
    let mut text = String::new();
    file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// One story, since all tests share the count of threads.
    #[tokio::test]
    async fn work_that_hangs_is_waited_for_until_its_deadline_and_only_so_many_may_hang() {
        assert_eq!(within(FILE_WITHIN, || Ok(7)).await.unwrap(), 7);
        let mut ends = Vec::new();
        let refused = loop {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let hanging =
                within(Duration::from_millis(1), move || Ok(ended.recv().is_ok())).await.unwrap_err();
            if hanging.kind() != io::ErrorKind::TimedOut {
                break hanging;
            }
            assert!(ends.len() <= THREADS_MAX);
        };
        assert!(refused.to_string().contains("a file system hangs"), "{refused}");
        drop(ends);
        while within(FILE_WITHIN, || Ok(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_is_no_regular_file_or_too_long_is_refused_and_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let long = dir.path().join("long");
        std::fs::write(&long, vec![b'#'; TEXT_BYTES_MAX + 1]).unwrap();
        let longest = dir.path().join("longest");
        std::fs::write(&longest, vec![b'#'; TEXT_BYTES_MAX]).unwrap();
        let cases = [
            (fifo.as_path(), "a FIFO"),
            (dir.path(), "a directory"),
            (Path::new("/dev/zero"), "a device"),
            (&long, "longer than 4194304 bytes"),
        ];
        for (path, reason) in cases {
            let refused = read_config(path).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        assert_eq!(read_config(&longest).unwrap().len(), TEXT_BYTES_MAX);
    }
}
