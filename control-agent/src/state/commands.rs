//! Commands: each is run once, for so long, with so much output, and its result is remembered.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proto::fleet::CommandId;
use proto::fleet::limits::{
    COMMAND_ID_BYTES_MAX, COMMAND_OUTPUT_BYTES_MAX, COMMAND_RESULTS_KEPT_MAX, COMMANDS_RUNNING_MAX,
    LOG_LINES, LOG_LINES_MAX, MESSAGE_TEXT_BYTES_MAX, clipped, command_deadline,
};
use proto::v1;

use super::Time;

/// What a driver is to run: everything but what the machine does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// `systemctl reload`: only where no published config is served.
    ReloadUnit,
    /// `systemctl restart`.
    Restart,
    /// The data plane's `/status`.
    Status,
    /// This many of the last lines of the data plane's log.
    Logs {
        /// At least 1.
        lines: u32,
    },
    /// The data plane's `POST /drain`.
    Drain,
    /// The data plane's `POST /undrain`.
    Undrain,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEnd {
    /// Not `Unspecified`.
    pub outcome: v1::CommandOutcome,
    /// For people, one line.
    pub message: String,
    /// Of the program that was run, if one was.
    pub exit_code: Option<i32>,
}

impl TaskEnd {
    /// Without a program.
    pub fn new(outcome: v1::CommandOutcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into(), exit_code: None }
    }
}

#[derive(Debug)]
struct Running {
    began: Time,
    deadline: Time,
    /// Pieces sent.
    sequence: u64,
    output_bytes: usize,
    left_out: u64,
}

/// What is to be done with a command that came.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing: it runs already.
    Ignore,
    /// Send this.
    Answer(v1::CommandResult),
    /// Give the published config to the data plane again.
    Reload(CommandId),
    /// Let the driver run it.
    Run(CommandId, Task),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Commands {
    running: BTreeMap<CommandId, Running>,
    /// The oldest first.
    results: VecDeque<v1::CommandResult>,
    /// Results that ended while no session lived.
    unsent: Vec<String>,
}

impl Commands {
    pub(super) fn handle_command(&mut self, now: Time, command: &v1::Command) -> Verdict {
        let refused = |message: String| {
            let command_id = clipped(&command.command_id, COMMAND_ID_BYTES_MAX).to_owned();
            let outcome = v1::CommandOutcome::Refused.into();
            Verdict::Answer(v1::CommandResult {
                command_id,
                outcome,
                message,
                ..v1::CommandResult::default()
            })
        };
        let id = match command.command_id.parse::<CommandId>() {
            Ok(id) => id,
            Err(error) => return refused(format!("command_id: {error}")),
        };
        if let Some(known) = self.results.iter().find(|result| result.command_id == id.as_str()) {
            return Verdict::Answer(known.clone());
        }
        if self.running.contains_key(&id) {
            return Verdict::Ignore;
        }
        let task = match command.kind() {
            v1::CommandKind::Unspecified => return refused(format!("kind: {} is no command", command.kind)),
            v1::CommandKind::Reload => None,
            v1::CommandKind::Restart => Some(Task::Restart),
            v1::CommandKind::Status => Some(Task::Status),
            v1::CommandKind::Logs => Some(Task::Logs { lines: log_lines(command.log_lines) }),
            v1::CommandKind::Drain => Some(Task::Drain),
            v1::CommandKind::Undrain => Some(Task::Undrain),
        };
        if self.running.len() >= COMMANDS_RUNNING_MAX {
            return refused(format!("{COMMANDS_RUNNING_MAX} commands run already"));
        }
        let deadline = now + command_deadline(command.deadline_ms);
        let running = Running { began: now, deadline, sequence: 0, output_bytes: 0, left_out: 0 };
        self.running.insert(id.clone(), running);
        match task {
            Some(task) => Verdict::Run(id, task),
            None => Verdict::Reload(id),
        }
    }

    /// A piece of output as it is sent; none: the command has ended, or has written too much.
    pub(super) fn handle_output(
        &mut self,
        id: &CommandId,
        stream: v1::OutputStream,
        mut data: Bytes,
    ) -> Option<v1::CommandOutput> {
        let running = self.running.get_mut(id)?;
        let room = COMMAND_OUTPUT_BYTES_MAX - running.output_bytes;
        running.left_out += data.len().saturating_sub(room) as u64;
        data.truncate(room);
        if data.is_empty() {
            return None;
        }
        running.output_bytes += data.len();
        let sequence = running.sequence;
        running.sequence += 1;
        Some(v1::CommandOutput { command_id: id.to_string(), sequence, stream: stream.into(), data })
    }

    /// The result; none: the command has ended before.
    pub(super) fn handle_end(
        &mut self,
        now: Time,
        id: &CommandId,
        end: TaskEnd,
    ) -> Option<v1::CommandResult> {
        let running = self.running.remove(id)?;
        let result = v1::CommandResult {
            command_id: id.to_string(),
            outcome: end.outcome.into(),
            message: clipped(&end.message, MESSAGE_TEXT_BYTES_MAX).to_owned(),
            exit_code: end.exit_code,
            output_bytes_left_out: running.left_out,
            took_ms: u64::try_from(now.saturating_sub(running.began).as_millis()).unwrap_or(u64::MAX),
        };
        if self.results.len() >= COMMAND_RESULTS_KEPT_MAX {
            self.results.pop_front();
        }
        self.results.push_back(result.clone());
        Some(result)
    }

    pub(super) fn is_running(&self, id: &CommandId) -> bool {
        self.running.contains_key(id)
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.running.values().map(|running| running.deadline).min()
    }

    /// Commands whose deadline has passed.
    pub(super) fn overdue(&self, now: Time) -> Vec<CommandId> {
        let overdue = self.running.iter().filter(|(_, running)| running.deadline <= now);
        overdue.map(|(id, _)| id.clone()).collect()
    }

    /// Every command that runs.
    pub(super) fn running(&self) -> Vec<CommandId> {
        self.running.keys().cloned().collect()
    }

    /// What `Register` lists: commands that run, and whose results wait.
    pub(super) fn unfinished(&self) -> Vec<String> {
        self.running.keys().map(ToString::to_string).chain(self.unsent.iter().cloned()).collect()
    }

    /// No session lives: the result waits for one. As many wait as are remembered.
    pub(super) fn keep_for_later(&mut self, result: &v1::CommandResult) {
        self.unsent.push(result.command_id.clone());
        let excess = self.unsent.len().saturating_sub(COMMAND_RESULTS_KEPT_MAX);
        self.unsent.drain(..excess);
    }

    /// The results that have waited.
    pub(super) fn take_unsent(&mut self) -> Vec<v1::CommandResult> {
        let unsent = std::mem::take(&mut self.unsent);
        self.results.iter().filter(|result| unsent.contains(&result.command_id)).cloned().collect()
    }
}

fn log_lines(asked: u32) -> u32 {
    if asked == 0 { LOG_LINES } else { asked.min(LOG_LINES_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Time = Duration::from_secs(1);

    fn command(id: &str, kind: v1::CommandKind) -> v1::Command {
        v1::Command { command_id: id.to_owned(), kind: kind.into(), deadline_ms: 0, log_lines: 0 }
    }

    fn succeeded() -> TaskEnd {
        TaskEnd::new(v1::CommandOutcome::Succeeded, "done")
    }

    #[test]
    fn a_command_that_comes_again_is_not_run_again() {
        let mut commands = Commands::default();
        let restart = command("c1", v1::CommandKind::Restart);
        let Verdict::Run(id, Task::Restart) = commands.handle_command(NOW, &restart) else { panic!() };
        assert!(matches!(commands.handle_command(NOW, &restart), Verdict::Ignore));
        let result = commands.handle_end(NOW, &id, succeeded()).unwrap();
        let Verdict::Answer(again) = commands.handle_command(NOW, &restart) else { panic!() };
        assert_eq!(again, result);
        assert_eq!(commands.handle_end(NOW, &id, succeeded()), None, "it has ended before");
    }

    #[test]
    fn refuses_what_is_not_in_the_list() {
        let mut commands = Commands::default();
        let unknown = v1::Command { kind: 99, ..command("c1", v1::CommandKind::Status) };
        let tricky = command("../../etc/passwd", v1::CommandKind::Status);
        for refused in [unknown, tricky, command("", v1::CommandKind::Status)] {
            let Verdict::Answer(result) = commands.handle_command(NOW, &refused) else {
                panic!("{refused:?}")
            };
            assert_eq!(result.outcome(), v1::CommandOutcome::Refused);
        }
        assert!(commands.running().is_empty());
    }

    #[test]
    fn only_so_many_run_at_once() {
        let mut commands = Commands::default();
        for number in 0..COMMANDS_RUNNING_MAX {
            let status = command(&format!("c{number}"), v1::CommandKind::Status);
            assert!(matches!(commands.handle_command(NOW, &status), Verdict::Run(..)));
        }
        let verdict = commands.handle_command(NOW, &command("more", v1::CommandKind::Status));
        assert!(matches!(verdict, Verdict::Answer(_)));
    }

    #[test]
    fn output_beyond_the_limit_is_counted_and_left_out() {
        let mut commands = Commands::default();
        let Verdict::Run(id, Task::Logs { lines: LOG_LINES }) =
            commands.handle_command(NOW, &command("c1", v1::CommandKind::Logs))
        else {
            panic!()
        };
        let mut write = |bytes: usize| {
            let piece = Bytes::from(vec![b'x'; bytes]);
            commands
                .handle_output(&id, v1::OutputStream::Stdout, piece)
                .map(|sent| (sent.sequence, sent.data.len()))
        };
        assert_eq!(write(COMMAND_OUTPUT_BYTES_MAX - 3), Some((0, COMMAND_OUTPUT_BYTES_MAX - 3)));
        assert_eq!(write(5), Some((1, 3)));
        assert_eq!(write(7), None);
        let result = commands.handle_end(NOW, &id, succeeded()).unwrap();
        assert_eq!(result.output_bytes_left_out, 9);
    }

    #[test]
    fn remembers_so_many_results_and_no_more() {
        let mut commands = Commands::default();
        for number in 0..=COMMAND_RESULTS_KEPT_MAX {
            let status = command(&format!("c{number}"), v1::CommandKind::Status);
            let Verdict::Run(id, _) = commands.handle_command(NOW, &status) else { panic!() };
            let result = commands.handle_end(NOW, &id, succeeded()).unwrap();
            commands.keep_for_later(&result);
        }
        assert_eq!(commands.unfinished().len(), COMMAND_RESULTS_KEPT_MAX);
        let unsent = commands.take_unsent();
        assert_eq!((unsent.len(), unsent[0].command_id.as_str()), (COMMAND_RESULTS_KEPT_MAX, "c1"));
        assert!(commands.unfinished().is_empty());
    }

    #[test]
    fn log_lines_are_within_the_limit() {
        assert_eq!((log_lines(0), log_lines(7), log_lines(u32::MAX)), (LOG_LINES, 7, LOG_LINES_MAX));
    }
}
