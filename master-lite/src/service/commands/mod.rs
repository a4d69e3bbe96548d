//! Commands to nodes: tasks with a result for each node, stored, watched until all have ended. What agents say comes in
//! through [`Commands::handle_message`], which waits for nothing; what has ended is stored by [`Commands::drive`].

pub(crate) mod command;
mod output;
pub(crate) mod record;
pub(crate) mod task;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::fleet::limits::{MESSAGE_TEXT_BYTES_MAX, clipped};
use proto::v1::{self, CommandOutcome, MasterMessage, OutputStream, agent_message, master_message};
use tokio::sync::Notify as Bell;

use command::Wish;
use output::Stream;
use record::{RUNS, TASKS, TaskProgress, TaskRecord, make_room, run_key, runs_of};
use task::{Order, Outcome, Run, RunState, Task};

use super::call::Call;
use super::name::check_name;
use super::nodes::{NodeFilter, Nodes};
use super::page::{Page, Paging};
use super::refusal::Refusal;
use super::secret::new_id;
use super::sessions::{Sessions, Unreachable};
use crate::store::{self, Source as _, Store, StoreError, Writer};

/// The tables.
pub(crate) const TABLES: [&str; 2] = [TASKS.name(), RUNS.name()];

/// Tasks under way at once: more is a script that has run away.
pub(crate) const RUNNING_MAX: usize = 50;

/// The commands.
pub(crate) struct Commands {
    store: Store,
    sessions: Arc<Sessions>,
    desk: Mutex<Desk>,
    bell: Bell,
}

/// What is under way.
#[derive(Default)]
struct Desk {
    /// The agents that have a session, each with what tells one start of it from another.
    instances: HashMap<String, Vec<u8>>,
    running: BTreeMap<String, Running>,
    /// Failures of the store that were looked after: each may have lost the ends of tasks.
    failures_seen: u64,
}

struct Running {
    record: TaskRecord,
    task: Task,
}

/// One page of a task's runs, with its head.
pub(crate) struct TaskView {
    /// Its id.
    pub(crate) id: String,
    /// Its head, as it is now.
    pub(crate) record: TaskRecord,
    /// Its runs, by node.
    pub(crate) runs: Page<(String, Run)>,
}

impl Commands {
    /// Over a store; tasks that were under way when the master stopped go on.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn open(store: Store, sessions: Arc<Sessions>) -> Result<Self, StoreError> {
        let mut desk = Desk { failures_seen: store.health().failures, ..Desk::default() };
        desk.resume(&store)?;
        Ok(Self { store, sessions, desk: Mutex::new(desk), bell: Bell::new() })
    }

    /// Begins a task, and sends its command to every target that has a session.
    ///
    /// # Errors
    /// The wish is against the rules, names nobody, or too much is under way.
    pub(crate) fn begin(&self, call: &Call, nodes: &Nodes, wish: &Wish) -> Result<TaskView, Refusal> {
        wish.check()?;
        let targets = wish.targets(&nodes.matching(&NodeFilter::default(), call.at_ms)?)?;
        let id = format!("{:012x}-{}", call.at_ms, new_id());
        let mut running = self.plan(call, wish, targets)?;
        self.store.change(|writer| {
            make_room(writer)?;
            writer.put(TASKS, &id, &running.record)?;
            running.task.runs().try_for_each(|(node, run)| writer.put(RUNS, &run_key(&id, node), &run))?;
            let TaskProgress { total, offline, .. } = running.record.progress;
            let detail = format!("task {id}, {total} nodes, {offline} of them offline");
            Ok::<_, Refusal>(((), call.done("commands.create", wish.command.name(), detail)))
        })?;
        // Sent under the lock: an answer that is faster than we are finds the task.
        let mut desk = self.desk();
        desk.recheck(&mut running, call.at_ms);
        running.send(&id, &self.sessions, call.at_ms);
        desk.running.insert(id.clone(), running);
        drop(desk);
        self.bell.notify_one();
        self.find(&id, Paging { page: 1, page_size: super::page::PAGE_SIZE })
    }

    /// The tasks, the newest first.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, TaskRecord)>, Refusal> {
        let mut tasks = Vec::new();
        self.store.read()?.visit(TASKS, Bound::Unbounded, store::Order::Descending, |id, record| {
            tasks.push((id, record));
            true
        })?;
        let desk = self.desk();
        Ok(paging.cut(tasks).map(|(id, record)| match desk.running.get(&id) {
            Some(running) => (id, running.head()),
            None => (id, record),
        }))
    }

    /// One task with a page of its runs.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str, paging: Paging) -> Result<TaskView, Refusal> {
        check_name("task_id", id)?;
        if let Some(running) = self.desk().running.get(id) {
            let runs = running.task.runs().map(|(node, run)| (node.to_owned(), run)).collect();
            return Ok(TaskView { id: id.to_owned(), record: running.head(), runs: paging.cut(runs) });
        }
        let reader = self.store.read()?;
        let record: Option<TaskRecord> = reader.find(TASKS, &id.to_owned())?;
        let record = record.ok_or_else(|| Refusal::not_found("task_id", "task", id))?;
        Ok(TaskView { id: id.to_owned(), record, runs: paging.cut(runs_of(&reader, id)?) })
    }

    /// Ends a task: agents that are at it are told so.
    ///
    /// # Errors
    /// There is none of this id, or it has ended.
    pub(crate) fn cancel(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        self.find(id, Paging { page: 1, page_size: 1 })?;
        let ended = || Refusal::conflict("task_id", "ended", "the task has ended already");
        let record = self.desk().running.get(id).map(|running| running.record.clone()).ok_or_else(ended)?;
        let record = TaskRecord { cancelled_at_ms: record.cancelled_at_ms.or(Some(call.at_ms)), ..record };
        self.store.change(|writer| {
            writer.put(TASKS, &id.to_owned(), &record)?;
            Ok::<_, Refusal>(((), call.done("commands.cancel", id, record.command.name())))
        })?;
        if let Some(running) = self.desk().running.get_mut(id) {
            running.record.cancelled_at_ms = record.cancelled_at_ms;
            running.task.handle_cancel(call.at_ms);
            running.send(id, &self.sessions, call.at_ms);
        }
        self.bell.notify_one();
        Ok(())
    }

    /// An agent has opened a session.
    pub(crate) fn handle_connected(&self, node: &str, instance: &[u8], now_ms: u64) {
        let mut desk = self.desk();
        desk.instances.insert(node.to_owned(), instance.to_vec());
        for (id, running) in &mut desk.running {
            running.task.handle_registered(node, instance, now_ms);
            running.send(id, &self.sessions, now_ms);
        }
        self.bell.notify_one();
    }

    /// A node's last session has ended. What it was sent may still be done.
    pub(crate) fn handle_disconnected(&self, node: &str) {
        self.desk().instances.remove(node);
    }

    /// An agent has said something; what is not about commands is not for here.
    pub(crate) fn handle_message(&self, node: &str, message: &agent_message::Kind, now_ms: u64) {
        let (id, is_result) = match message {
            agent_message::Kind::CommandOutput(output) => (&output.command_id, false),
            agent_message::Kind::CommandResult(result) => (&result.command_id, true),
            agent_message::Kind::Register(_)
            | agent_message::Kind::Heartbeat(_)
            | agent_message::Kind::Metrics(_)
            | agent_message::Kind::MetricsPiece(_)
            | agent_message::Kind::ConfigAck(_)
            | agent_message::Kind::ConfigNack(_)
            | agent_message::Kind::ConfigDeferred(_)
            | agent_message::Kind::CredentialChange(_)
            | agent_message::Kind::Leaving(_) => return,
        };
        // A result of a task that has ended is late: people have been told otherwise.
        if let Some(running) = self.desk().running.get_mut(id) {
            running.hear(node, message, now_ms);
        }
        if is_result {
            self.bell.notify_one();
        }
    }

    /// Lets time pass, ends what is of nodes that are gone, and stores what has ended. May wait for the disk.
    ///
    /// # Errors
    /// The store fails; it is tried again with the next call.
    pub(crate) fn drive(&self, is_known: impl Fn(&str) -> bool, now_ms: u64) -> Result<(), StoreError> {
        let (ended, done) = {
            let mut desk = self.desk();
            let failures = self.store.health().failures;
            if failures != desk.failures_seen {
                desk.resume(&self.store)?;
                desk.failures_seen = failures;
            }
            desk.progress(is_known, now_ms)
        };
        if ended.is_empty() && done.is_empty() {
            return Ok(());
        }
        self.store.observe(|writer: &Writer| {
            ended.iter().try_for_each(|(key, run)| writer.put(RUNS, key, run))?;
            done.iter().try_for_each(|(id, record)| writer.put(TASKS, id, record))
        })?;
        // Only now: until it is stored, it is looked for here.
        let mut desk = self.desk();
        done.iter().for_each(|(id, _)| drop(desk.running.remove(id)));
        Ok(())
    }

    /// Waits until something has ended, or is due.
    pub(crate) async fn wait(&self) {
        self.bell.notified().await;
    }

    /// Tasks under way.
    pub(crate) fn running(&self) -> usize {
        self.desk().running.len()
    }

    /// What a wish comes to now.
    fn plan(&self, call: &Call, wish: &Wish, targets: Vec<String>) -> Result<Running, Refusal> {
        let desk = self.desk();
        if desk.running.len() >= RUNNING_MAX {
            let message = format!("{RUNNING_MAX} tasks are under way: wait for one to end, or cancel one");
            return Err(Refusal::conflict("command", "too_many", message));
        }
        let targets = targets.into_iter().map(|node| {
            let instance = desk.instances.get(&node).cloned();
            (node, instance)
        });
        let mut record = TaskRecord {
            command: wish.command,
            lines: wish.lines(),
            target_type: wish.target_type,
            target_ids: wish.target_ids.clone(),
            by: call.actor.name().to_owned(),
            created_at_ms: call.at_ms,
            timeout_ms: wish.timeout_ms(),
            cancelled_at_ms: None,
            ended_at_ms: None,
            state: record::TaskState::Running,
            progress: TaskProgress::default(),
        };
        let task = Task::begin(targets, record.deadline_ms(), call.at_ms);
        record.progress = TaskProgress::of(task.states());
        Ok(Running { record, task })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskRecord {
    /// When every node is to have ended.
    fn deadline_ms(&self) -> u64 {
        self.created_at_ms.saturating_add(self.timeout_ms)
    }
}

/// Runs by their keys and tasks by their ids, to be stored.
type Ended = (Vec<(String, Run)>, Vec<(String, TaskRecord)>);

impl Desk {
    /// Goes on with the tasks that the store says are under way: after a start, and after the store has lost the ends
    /// that were not on the disk yet.
    fn resume(&mut self, store: &Store) -> Result<(), StoreError> {
        let reader = store.read()?;
        for (id, record) in reader.all(TASKS)? {
            if record.ended_at_ms.is_none() && !self.running.contains_key(&id) {
                let runs = runs_of(&reader, &id)?;
                let task = Task::resume(runs, record.deadline_ms(), record.cancelled_at_ms);
                self.running.insert(id, Running { record, task });
            }
        }
        Ok(())
    }

    /// An agent may have been started anew while the task was being stored.
    fn recheck(&self, running: &mut Running, now_ms: u64) {
        let open: Vec<String> = running.task.open_nodes().map(str::to_owned).collect();
        for node in open {
            if let Some(instance) = self.instances.get(&node).filter(|now| !running.task.is_with(&node, now))
            {
                running.task.handle_registered(&node, instance, now_ms);
            }
        }
    }

    fn progress(&mut self, is_known: impl Fn(&str) -> bool, now_ms: u64) -> Ended {
        let (mut ended, mut done) = (Vec::new(), Vec::new());
        for (id, running) in &mut self.running {
            running.task.handle_time(now_ms);
            let gone: Vec<String> =
                running.task.open_nodes().filter(|node| !is_known(node)).map(str::to_owned).collect();
            gone.iter().for_each(|node| running.task.handle_removed(node, now_ms));
            while let Some((node, run)) = running.task.poll_ended() {
                ended.push((run_key(id, node), run.clone()));
            }
            if running.task.is_done() {
                running.record.ended_at_ms.get_or_insert(now_ms);
                // All of them again: an earlier write may have failed.
                ended.extend(running.task.runs().map(|(node, run)| (run_key(id, node), run)));
                done.push((id.clone(), running.head()));
            }
        }
        (ended, done)
    }
}

impl Running {
    /// The head as it is now.
    fn head(&self) -> TaskRecord {
        let progress = TaskProgress::of(self.task.states());
        let state = progress.state(self.record.cancelled_at_ms.is_some());
        TaskRecord { progress, state, ..self.record.clone() }
    }

    /// Gives sessions what the task has for them.
    fn send(&mut self, id: &str, sessions: &Sessions, now_ms: u64) {
        while let Some((node, order)) = self.task.poll_order() {
            let sent = sessions.send(&node, self.message(id, order, now_ms));
            let message = match sent {
                Ok(()) => continue,
                Err(Unreachable::Offline) => "the node went offline; the command was not sent",
                Err(Unreachable::Busy) => "the agent reads too slowly; the command was not sent",
            };
            // A cancel that cannot be sent is sent when the agent comes back; a command is not.
            if order == Order::Send {
                self.task.handle_unreachable(&node, message, now_ms);
            }
        }
    }

    fn message(&self, id: &str, order: Order, now_ms: u64) -> MasterMessage {
        let command_id = id.to_owned();
        let kind = match order {
            Order::Send => master_message::Kind::Command(v1::Command {
                command_id,
                kind: self.record.command.kind().into(),
                deadline_ms: self.record.deadline_ms().saturating_sub(now_ms).max(1),
                log_lines: self.record.lines,
            }),
            Order::Cancel => master_message::Kind::CommandCancel(v1::CommandCancel { command_id }),
        };
        MasterMessage { kind: Some(kind) }
    }

    fn hear(&mut self, node: &str, message: &agent_message::Kind, now_ms: u64) {
        if let agent_message::Kind::CommandOutput(output) = message {
            let stream = match output.stream() {
                OutputStream::Unspecified | OutputStream::Stdout => Stream::Stdout,
                OutputStream::Stderr => Stream::Stderr,
            };
            self.task.handle_output(node, output.sequence, stream, &output.data);
        }
        if let agent_message::Kind::CommandResult(result) = message {
            self.task.handle_result(node, outcome(result), now_ms);
        }
    }
}

fn outcome(result: &v1::CommandResult) -> Outcome {
    let state = match result.outcome() {
        CommandOutcome::Succeeded => RunState::Succeeded,
        // An outcome that is newer than this program is at least no success that it knows of.
        CommandOutcome::Failed | CommandOutcome::Unspecified => RunState::Failed,
        CommandOutcome::Refused => RunState::Refused,
        CommandOutcome::TimedOut => RunState::TimedOut,
        CommandOutcome::Cancelled => RunState::Cancelled,
        CommandOutcome::Unsupported => RunState::Unsupported,
    };
    Outcome {
        state,
        message: clipped(&result.message, MESSAGE_TEXT_BYTES_MAX).to_owned(),
        exit_code: result.exit_code,
        left_out_bytes: result.output_bytes_left_out,
        took_ms: result.took_ms,
    }
}
