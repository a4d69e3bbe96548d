//! Work that may block, off the control thread and with a deadline: a file system that hangs keeps neither a signal nor
//! `/readyz` waiting.
//!
//! A thread that hangs cannot be ended from here. It is left behind, and so many may be left and no more.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
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

static THREADS: Threads = Threads(AtomicUsize::new(0));

/// How many threads do such work now.
struct Threads(AtomicUsize);

/// Does `work` on a thread of its own.
///
/// # Errors
/// What the work says; or it takes longer than `deadline`, and goes on without anybody who waits for it; or too many have
/// done so before.
pub(crate) async fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    THREADS.within(deadline, work).await
}

impl Threads {
    async fn within<T: Send + 'static>(
        &'static self,
        deadline: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let running = Running::begin(self)?;
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
                Err(io::Error::new(ErrorKind::TimedOut, message))
            }
        }
    }
}

/// One of the threads.
struct Running(&'static Threads);

impl Running {
    fn begin(threads: &'static Threads) -> io::Result<Self> {
        let running = Self(threads);
        if threads.0.fetch_add(1, Ordering::Relaxed) < THREADS_MAX {
            return Ok(running);
        }
        Err(io::Error::other(format!("{THREADS_MAX} files are waited for already: a file system hangs")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads the bytes of a config file, whatever encoding they are in. It may block only where its file system does.
///
/// # Errors
/// It is no regular file (`IsADirectory`, `InvalidInput`), longer than any config (`FileTooLarge`), or cannot be read.
pub(crate) fn read_config(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK the open of a FIFO would wait for somebody who writes.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => no_regular_file(ErrorKind::InvalidInput, "a socket or a device"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(no_regular_file(ErrorKind::IsADirectory, "a directory"));
    }
    if !kind.is_file() {
        let kind = if kind.is_fifo() { "a FIFO" } else { "a device" };
        return Err(no_regular_file(ErrorKind::InvalidInput, kind));
    }
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is longer than {TEXT_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

fn no_regular_file(kind: ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("it is {what}: a config is a regular file"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Other tests have work of their own.
    static HANGING: Threads = Threads(AtomicUsize::new(0));

    /// One story, since it has one count of threads.
    #[tokio::test]
    async fn work_that_hangs_is_waited_for_until_its_deadline_and_only_so_many_may_hang() {
        assert_eq!(HANGING.within(FILE_WITHIN, || Ok(7)).await.unwrap(), 7);
        let mut ends = Vec::new();
        let refused = loop {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let hanging =
                HANGING.within(Duration::from_millis(1), move || Ok(ended.recv().is_ok())).await.unwrap_err();
            if hanging.kind() != ErrorKind::TimedOut {
                break hanging;
            }
            assert!(ends.len() <= THREADS_MAX);
        };
        assert!(refused.to_string().contains("a file system hangs"), "{refused}");
        drop(ends);
        while HANGING.within(FILE_WITHIN, || Ok(())).await.is_err() {
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
        let socket = dir.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let cases = [
            (fifo.as_path(), ErrorKind::InvalidInput, "a FIFO"),
            (&socket, ErrorKind::InvalidInput, "a socket"),
            (dir.path(), ErrorKind::IsADirectory, "a directory"),
            (Path::new("/dev/zero"), ErrorKind::InvalidInput, "a device"),
            (&long, ErrorKind::FileTooLarge, "longer than 4194304 bytes"),
        ];
        for (path, kind, reason) in cases {
            let refused = read_config(path).unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(refused.to_string().contains(reason), "{refused}");
        }
        assert_eq!(read_config(&longest).unwrap().len(), TEXT_BYTES_MAX);
    }
}
