//! What the scheduler knows of a process or thread: time on a CPU and time spent waiting for one, from `schedstat`
//! (tick-based `utime` is off by a factor of two at this scale), and where it may run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

/// CPU numbers beyond do not fit the kernel's default set.
pub(crate) const CPUS_MAX: u32 = 1024;

/// Nanoseconds since the thread or process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// On a CPU.
    pub(crate) ran_ns: u64,
    /// Ready to run, with the CPU given to somebody else.
    pub(crate) waited_ns: u64,
}

impl Usage {
    /// What came on top of an earlier reading.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(before.ran_ns),
            waited_ns: self.waited_ns.saturating_sub(before.waited_ns),
        }
    }
}

/// Of the calling thread.
pub(crate) fn of_this_thread() -> io::Result<Usage> {
    parse(&fs::read_to_string("/proc/thread-self/schedstat")?)
}

/// Of a process: the sum over its living threads.
pub(crate) fn of_process(pid: u32) -> io::Result<Usage> {
    Ok(Threads::of(pid)?.since(&Threads::default()))
}

/// How long a CPU has had nothing to do since the host was started, as `/proc/stat` has it: in steps of 10 ms.
pub(crate) fn idle_of_cpu(cpu: u32) -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")));
    // user nice system idle iowait …
    let fields = line.into_iter().flat_map(|line| line.split_ascii_whitespace().skip(3).take(2));
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    if ticks.len() < 2 {
        return Err(io::Error::other(format!("/proc/stat knows no CPU {cpu}")));
    }
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

/// Of a process, thread by thread: one that ends takes its account with it, and must not make the rest look cheaper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Threads(BTreeMap<OsString, Usage>);

impl Threads {
    /// The living threads of a process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            threads.insert(task.file_name(), parse(&text)?);
        }
        Ok(Self(threads))
    }

    /// What the threads that live now have used since an earlier reading; new ones count from their beginning.
    pub(crate) fn since(&self, before: &Self) -> Usage {
        self.0.iter().fold(Usage::default(), |sum, (thread, usage)| {
            let used = usage.since(before.0.get(thread).copied().unwrap_or_default());
            Usage { ran_ns: sum.ran_ns + used.ran_ns, waited_ns: sum.waited_ns + used.waited_ns }
        })
    }
}

/// Lets the calling thread, and the threads it starts later, run on one CPU only.
pub(crate) fn pin_this_thread(cpu: u32) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu as usize);
    Ok(sched_setaffinity(None, &cpus)?)
}

fn parse(text: &str) -> io::Result<Usage> {
    let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(ran_ns)), Some(Ok(waited_ns))) => Ok(Usage { ran_ns, waited_ns }),
        _ => Err(io::Error::other("the kernel keeps no schedstat (CONFIG_SCHED_INFO)")),
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn work_shows_in_the_account_of_thread_and_process() {
        let (thread, process) = (of_this_thread().unwrap(), Threads::of(std::process::id()).unwrap());
        let mut sum = 0_u64;
        while of_this_thread().unwrap().since(thread).ran_ns < 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        // Thread by thread: those of other tests may end meanwhile.
        let now = Threads::of(std::process::id()).unwrap();
        assert!(now.since(&process).ran_ns >= 1_000_000);
    }

    #[test]
    fn a_cpu_has_nothing_to_do_or_is_not_there() {
        let cpus = sched_getaffinity(None).unwrap();
        let cpu = (0..1024).find(|cpu| cpus.is_set(*cpu)).unwrap();
        let idle = idle_of_cpu(u32::try_from(cpu).unwrap()).unwrap();
        assert!(idle < Duration::from_secs(100 * 365 * 24 * 3_600), "{idle:?}");
        assert!(idle_of_cpu(9_999).is_err());
    }

    #[test]
    fn a_thread_that_ends_takes_nothing_from_the_others() {
        let usage = |ran_ns| Usage { ran_ns, waited_ns: 0 };
        let threads = |of: &[(&str, u64)]| {
            Threads(of.iter().map(|(thread, ran)| (OsString::from(thread), usage(*ran))).collect())
        };
        let (before, after) = (threads(&[("1", 100), ("2", 9000)]), threads(&[("1", 130), ("3", 5)]));
        assert_eq!(after.since(&before), usage(35));
    }

    #[test]
    fn a_process_that_is_gone_has_no_account() {
        assert!(of_process(u32::MAX).is_err());
        assert!(parse("7").is_err() && parse("a b c").is_err());
    }
}
