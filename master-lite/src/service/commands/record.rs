//! Tasks as the store has them: a head for each, and a record for each node's run, so that one node's result is one
//! small write. The oldest tasks make room for new ones.

use std::ops::Bound;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::command::{Command, TargetType};
use super::task::{Run, RunState};
use crate::store::{Order, Records, Source, StoreError, Writer};

/// By id; ids rise with time.
pub(crate) const TASKS: Records<String, TaskRecord> = Records::new("tasks");
/// By `task/node`: neither has a slash.
pub(crate) const RUNS: Records<String, Run> = Records::new("task_runs");

/// Tasks that are kept. At most a megabyte of output each: half a gigabyte of disk.
pub(crate) const TASKS_KEPT_MAX: u64 = 500;

/// How a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TaskState {
    /// Not all nodes have ended.
    Running,
    /// Every node has done it.
    Succeeded,
    /// Some node has not.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

/// How many nodes are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct TaskProgress {
    /// All targets.
    pub(crate) total: u64,
    /// Sent or running.
    pub(crate) running: u64,
    /// Done.
    pub(crate) succeeded: u64,
    /// Failed, refused, not possible there, too late, or lost.
    pub(crate) failed: u64,
    /// Ended by somebody.
    pub(crate) cancelled: u64,
    /// Not connected when it was to be sent.
    pub(crate) offline: u64,
}

/// The head of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    /// What is run.
    pub(crate) command: Command,
    /// Lines of the log; 0 for other commands.
    pub(crate) lines: u32,
    /// For whom, as asked.
    pub(crate) target_type: TargetType,
    /// For whom, as asked.
    pub(crate) target_ids: Vec<String>,
    /// Who asked.
    pub(crate) by: String,
    /// When.
    pub(crate) created_at_ms: u64,
    /// How long it may take on each node.
    pub(crate) timeout_ms: u64,
    /// When somebody ended it.
    pub(crate) cancelled_at_ms: Option<u64>,
    /// When its last node ended.
    pub(crate) ended_at_ms: Option<u64>,
    /// How it is.
    pub(crate) state: TaskState,
    /// How far it is.
    pub(crate) progress: TaskProgress,
}

impl TaskProgress {
    /// Counts states.
    pub(crate) fn of(states: impl Iterator<Item = RunState>) -> Self {
        states.fold(TaskProgress::default(), |mut progress, state| {
            progress.total += 1;
            *match state {
                RunState::Sent | RunState::Running => &mut progress.running,
                RunState::Succeeded => &mut progress.succeeded,
                RunState::Failed
                | RunState::Refused
                | RunState::Unsupported
                | RunState::TimedOut
                | RunState::Lost => &mut progress.failed,
                RunState::Cancelled => &mut progress.cancelled,
                RunState::Offline => &mut progress.offline,
            } += 1;
            progress
        })
    }

    /// What it says of the task.
    pub(crate) fn state(&self, is_cancelled: bool) -> TaskState {
        match self {
            TaskProgress { running: 1.., .. } => TaskState::Running,
            TaskProgress { total, succeeded, .. } if total == succeeded => TaskState::Succeeded,
            TaskProgress { .. } if is_cancelled => TaskState::Cancelled,
            TaskProgress { .. } => TaskState::Failed,
        }
    }
}

/// Where a node's run is stored.
pub(crate) fn run_key(task: &str, node: &str) -> String {
    format!("{task}/{node}")
}

/// The stored runs of a task, by node.
///
/// # Errors
/// The store fails.
pub(crate) fn runs_of(source: &impl Source, task: &str) -> Result<Vec<(String, Run)>, StoreError> {
    let prefix = run_key(task, "");
    let mut runs = Vec::new();
    source.visit(RUNS, Bound::Included(prefix.clone()), Order::Ascending, |key: String, run| {
        let node = key.strip_prefix(&prefix);
        runs.extend(node.map(|node| (node.to_owned(), run)));
        node.is_some()
    })?;
    Ok(runs)
}

/// Removes the oldest tasks that have ended, until one more has room.
///
/// # Errors
/// The store fails.
pub(crate) fn make_room(writer: &Writer) -> Result<(), StoreError> {
    let excess = (writer.count(TASKS)? + 1).saturating_sub(TASKS_KEPT_MAX);
    let mut oldest = Vec::new();
    writer.visit(TASKS, Bound::Unbounded, Order::Ascending, |id: String, task| {
        if task.ended_at_ms.is_some() && (oldest.len() as u64) < excess {
            oldest.push(id);
        }
        (oldest.len() as u64) < excess
    })?;
    for task in oldest {
        for (node, _) in runs_of(writer, &task)? {
            writer.remove(RUNS, &run_key(&task, &node))?;
        }
        writer.remove(TASKS, &task)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_task_has_succeeded_only_where_every_node_has() {
        let state =
            |states: &[RunState], is_cancelled| TaskProgress::of(states.iter().copied()).state(is_cancelled);
        assert_eq!(state(&[RunState::Succeeded, RunState::Succeeded], false), TaskState::Succeeded);
        assert_eq!(state(&[RunState::Succeeded, RunState::Sent], false), TaskState::Running);
        for other in [RunState::Offline, RunState::Lost, RunState::TimedOut, RunState::Refused] {
            assert_eq!(state(&[RunState::Succeeded, other], false), TaskState::Failed);
        }
        assert_eq!(state(&[RunState::Succeeded, RunState::Cancelled], true), TaskState::Cancelled);
        assert_eq!(state(&[RunState::Succeeded], true), TaskState::Succeeded, "the cancel came too late");
    }

    #[test]
    fn the_oldest_ended_tasks_make_room_with_their_runs() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &super::super::TABLES).unwrap();
        let record = |ended_at_ms| TaskRecord {
            command: Command::Status,
            lines: 0,
            target_type: TargetType::All,
            target_ids: Vec::new(),
            by: "ops".to_owned(),
            created_at_ms: 0,
            timeout_ms: 1,
            cancelled_at_ms: None,
            ended_at_ms,
            state: TaskState::Failed,
            progress: TaskProgress::default(),
        };
        store
            .observe(|writer: &Writer| {
                // The oldest of all still runs.
                writer.put(TASKS, &"t000".to_owned(), &record(None))?;
                for number in 1..TASKS_KEPT_MAX {
                    let id = format!("t{number:03}");
                    writer.put(TASKS, &id, &record(Some(1)))?;
                    writer.put(RUNS, &run_key(&id, "a"), &Run::begin(None, 0))?;
                }
                make_room(writer)
            })
            .unwrap();
        let reader = store.read().unwrap();
        let ids: Vec<String> = reader.all(TASKS).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len() as u64, TASKS_KEPT_MAX - 1);
        assert_eq!(ids[..2], ["t000", "t002"]);
        assert!(runs_of(&reader, "t001").unwrap().is_empty());
        assert_eq!(runs_of(&reader, "t002").unwrap().len(), 1);
    }
}
