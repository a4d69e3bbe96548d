//! Runs a plan in one thread of this process, or in several processes of their own, and adds up what they counted.
//! All open their connections first and then begin at the same time; the same connections can be run several times.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::origin::monotonic_ns;

use super::engine::{Engine, Standing};
use super::plan::{Plan, Times};
use super::tally::Tally;

/// The hidden subcommand of a generator process.
pub(crate) const WORKER_COMMAND: &str = "load-worker";

/// From "all are ready" to the start: every process has heard of it by then.
const START_DELAY_NS: u64 = 10_000_000;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
enum Note {
    Ready,
    Standing(Standing),
    Done(Box<Tally>),
    Failed(String),
}

/// One run of a worker's connections.
#[derive(Debug, Serialize, Deserialize)]
struct Stage {
    start_ns: u64,
    times: Times,
}

/// The generators of a plan, their connections open. They end with it.
pub(crate) struct Crew {
    workers: Vec<Worker>,
    heard: Receiver<(u32, Note)>,
}

/// A generator thread or process, as the one who started it sees it.
enum Worker {
    Thread(Sender<Stage>),
    Process(Child),
}

/// Moments of a run that somebody else wants to hear of.
pub(crate) trait Watch {
    /// The measured time begins.
    fn begins(&mut self);
    /// How far all processes are together, and after how many nanoseconds.
    fn stands(&mut self, sum: Standing, elapsed_ns: u64);
    /// Every exchange is over.
    fn ends(&mut self);
}

impl Crew {
    /// Starts the generators, and waits until they have their connections.
    pub(crate) fn start(plan: &Plan) -> anyhow::Result<Self> {
        let (notes, heard) = channel();
        let mut workers = Vec::new();
        for index in 0..plan.processes {
            workers.push(Worker::start(plan, index, notes.clone())?);
        }
        for _ in 0..workers.len() {
            match heard.recv()? {
                (_, Note::Ready) => {}
                (_, Note::Failed(why)) => bail!(why),
                (_, Note::Standing(_) | Note::Done(_)) => bail!("a generator spoke before it was asked"),
            }
        }
        Ok(Self { workers, heard })
    }

    /// Puts the connections through a time table, to its end.
    pub(crate) fn run(&mut self, times: &Times, watch: &mut impl Watch) -> anyhow::Result<Tally> {
        let start_ns = monotonic_ns() + START_DELAY_NS;
        let processes = self.workers.len() as u32;
        for (index, worker) in (0..).zip(&mut self.workers) {
            worker.begin(Stage { start_ns, times: times.share(index, processes) })?;
        }
        let tally = self.collect(start_ns, start_ns + times.warmup_ns, watch)?;
        watch.ends();
        Ok(tally)
    }

    /// Its processes; a thread is in this one.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pid = |worker: &Worker| match worker {
            Worker::Thread(_) => std::process::id(),
            Worker::Process(child) => child.id(),
        };
        self.workers.iter().map(pid).collect()
    }

    fn collect(&self, start_ns: u64, counted_from: u64, watch: &mut impl Watch) -> anyhow::Result<Tally> {
        let mut standings = vec![Standing::default(); self.workers.len()];
        let (mut sum, mut done) = (Tally::default(), 0);
        let mut counted_from = Some(counted_from);
        while done < self.workers.len() {
            let left = counted_from.map_or(u64::MAX, |at| at.saturating_sub(monotonic_ns()));
            let note = match self.heard.recv_timeout(Duration::from_nanos(left)) {
                Ok(note) => Some(note),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => bail!("a generator ended without a result"),
            };
            if counted_from.is_some_and(|at| at <= monotonic_ns()) {
                counted_from = None;
                watch.begins();
            }
            match note {
                Some((index, Note::Standing(standing))) => {
                    standings[index as usize] = standing;
                    let all = standings.iter().copied().fold(Standing::default(), Standing::plus);
                    watch.stands(all, monotonic_ns().saturating_sub(start_ns));
                }
                Some((_, Note::Done(tally))) => {
                    sum.merge(*tally);
                    done += 1;
                }
                Some((_, Note::Failed(why))) => bail!(why),
                Some((_, Note::Ready)) | None => {}
            }
        }
        Ok(sum)
    }
}

/// The body of the hidden subcommand `load-worker`: the plan comes on stdin, notes go to stdout.
///
/// # Errors
/// If nobody is there to talk to.
pub fn worker() -> anyhow::Result<()> {
    // Nobody would read the result.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut lines = io::stdin().lines();
    let mut line = || lines.next().map(|line| line.context("stdin"));
    let plan = line().context("the plan is missing")??;
    let plan = serde_json::from_str(&plan)?;
    let say = |note: Note| {
        let mut text = serde_json::to_string(&note)?;
        text.push('\n');
        io::stdout().lock().write_all(text.as_bytes()).context("stdout")
    };
    let stages = || Ok(line().transpose()?.map(|stage| serde_json::from_str(&stage)).transpose()?);
    generate(plan, stages, say)
}

/// Runs stage after stage until there are no more.
fn generate(
    plan: Plan,
    mut stages: impl FnMut() -> anyhow::Result<Option<Stage>>,
    say: impl Fn(Note) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut engine = match Engine::new(plan) {
        Ok(engine) => engine,
        Err(error) => return say(Note::Failed(error.to_string())),
    };
    say(Note::Ready)?;
    while let Some(Stage { start_ns, times }) = stages()? {
        // A listener that is gone is found out at the end.
        let tally = engine.run(start_ns, times, |standing| drop(say(Note::Standing(standing))));
        say(match tally {
            Ok(tally) => Note::Done(Box::new(tally)),
            Err(error) => Note::Failed(error.to_string()),
        })?;
    }
    Ok(())
}

impl Worker {
    fn start(plan: &Plan, index: u32, notes: Sender<(u32, Note)>) -> anyhow::Result<Self> {
        let share = plan.share(index);
        if plan.processes == 1 {
            let (begin, stages) = channel();
            let say = move |note: Note| notes.send((index, note)).map_err(|_| anyhow!("nobody listens"));
            // The crew is gone: there will be no more stages.
            let body = move || generate(share, || Ok(stages.recv().ok()), say);
            std::thread::Builder::new().name("load".to_owned()).spawn(body)?;
            return Ok(Self::Thread(begin));
        }
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg(WORKER_COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a generator process")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut worker = Self::Process(child);
        worker.say(&serde_json::to_string(&share)?)?;
        std::thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || relay(stdout, index, &notes))?;
        Ok(worker)
    }

    fn begin(&mut self, stage: Stage) -> anyhow::Result<()> {
        match self {
            Self::Thread(stages) => stages.send(stage).map_err(|_| anyhow!("the generator is gone")),
            Self::Process(_) => self.say(&serde_json::to_string(&stage)?),
        }
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let Self::Process(child) = self else { return Ok(()) };
        let stdin = child.stdin.as_mut().context("no stdin")?;
        stdin.write_all(format!("{line}\n").as_bytes()).context("a generator process is gone")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Self::Process(child) = self {
            // It has ended, or it is in the way of an error that is on its way out.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lines of a process as notes. One that ends without a result has failed.
fn relay(stdout: impl BufRead, index: u32, notes: &Sender<(u32, Note)>) {
    let mut is_done = false;
    for line in stdout.lines() {
        let note = line.map_err(anyhow::Error::from).and_then(|line| Ok(serde_json::from_str(&line)?));
        let note = note.unwrap_or_else(|error| Note::Failed(format!("a generator process: {error}")));
        is_done = matches!(note, Note::Done(_) | Note::Failed(_));
        if notes.send((index, note)).is_err() {
            return;
        }
    }
    if !is_done {
        // If nobody listens any more, the run has failed already.
        let _ = notes.send((index, Note::Failed("a generator process died".to_owned())));
    }
}

impl Standing {
    fn plus(self, other: Self) -> Self {
        Self {
            completed: self.completed + other.completed,
            rejected: self.rejected + other.rejected,
            failed: self.failed + other.failed,
            events: self.events + other.events,
            under_way: self.under_way + other.under_way,
            waiting: self.waiting + other.waiting,
        }
    }
}
