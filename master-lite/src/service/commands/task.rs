//! One task: a command and the nodes it is for. Pure: what happened comes in with its time, what is to be sent and what
//! is to be stored comes out. It knows no session and no store.
//!
//! ```text
//!                 ┌─▶ Offline                                  the node had no session: said at once, not done later
//!   a node's run ─┤
//!                 └─▶ Sent ──piece of output──▶ Running ──▶ Succeeded | Failed | Refused | Unsupported
//!                      │                           │    ──▶ TimedOut    by the agent, or nothing came by the deadline
//!                      │                           │    ──▶ Cancelled   by the agent, or it did not confirm in time
//!                      └───────────────────────────┴──────▶ Lost        the agent was started anew and knows nothing of it
//! ```
//! A session that ends is no end of a run: the agent goes on, and sends the result in its next session. A command is sent
//! again only to the very instance of the agent that had it, which does not run it twice.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::output::{Output, OutputText, Stream};

/// How long after a deadline, or after a cancel, a result may still come: it has to cross the same network.
pub(crate) const RESULT_GRACE_MS: u64 = 5_000;

/// Where a node is with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunState {
    /// Given to the node's session.
    Sent,
    /// Output has come.
    Running,
    /// Done.
    Succeeded,
    /// Tried, and it did not work.
    Failed,
    /// The agent did not try.
    Refused,
    /// This node cannot do it.
    Unsupported,
    /// Not done by its deadline.
    TimedOut,
    /// Ended because somebody asked for it.
    Cancelled,
    /// The node was not connected.
    Offline,
    /// The agent was started anew: nobody knows whether it was done.
    Lost,
}

impl RunState {
    /// Whether nothing more will happen.
    pub(crate) fn is_final(self) -> bool {
        match self {
            RunState::Sent | RunState::Running => false,
            RunState::Succeeded
            | RunState::Failed
            | RunState::Refused
            | RunState::Unsupported
            | RunState::TimedOut
            | RunState::Cancelled
            | RunState::Offline
            | RunState::Lost => true,
        }
    }
}

/// One node's part of a task, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Where it is.
    pub(crate) state: RunState,
    /// The agent's process that has the command; none where the node was offline.
    pub(crate) instance: Option<Vec<u8>>,
    /// When it ended; none while it runs.
    pub(crate) ended_ms: Option<u64>,
    /// For people, one line.
    pub(crate) message: String,
    /// Of the program that was run.
    pub(crate) exit_code: Option<i32>,
    /// By the agent's clock, from the command's arrival to its end.
    pub(crate) took_ms: Option<u64>,
    /// As far as it is kept; empty while it runs.
    pub(crate) output: OutputText,
}

/// How a command ended, as an agent tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// A final state.
    pub(crate) state: RunState,
    /// For people, one line.
    pub(crate) message: String,
    /// Of the program that was run.
    pub(crate) exit_code: Option<i32>,
    /// Output that the agent did not send.
    pub(crate) left_out_bytes: u64,
    /// From the command's arrival to its end.
    pub(crate) took_ms: u64,
}

/// What a session is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The command.
    Send,
    /// That it is not wanted any more.
    Cancel,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Task {
    runs: BTreeMap<String, (Run, Output)>,
    under_way: usize,
    deadline_ms: u64,
    cancelled_ms: Option<u64>,
    orders: VecDeque<(String, Order)>,
    ended: VecDeque<String>,
}

impl Task {
    /// A task whose command goes to every node that has a session now: nodes with the instance of their agent, or none.
    pub(crate) fn begin(
        targets: impl IntoIterator<Item = (String, Option<Vec<u8>>)>,
        deadline_ms: u64,
        now_ms: u64,
    ) -> Self {
        let runs = targets.into_iter().map(|(node, instance)| (node, Run::begin(instance, now_ms)));
        let mut task = Task::resume(runs, deadline_ms, None);
        let (open, ended): (Vec<_>, Vec<_>) =
            task.runs.iter().partition(|(_, (run, _))| !run.state.is_final());
        let orders = open.into_iter().map(|(node, _)| (node.clone(), Order::Send)).collect();
        task.ended = ended.into_iter().map(|(node, _)| node.clone()).collect();
        task.orders = orders;
        task
    }

    /// A task as it was stored when the master stopped. What is missing is sent again when its node registers.
    pub(crate) fn resume(
        runs: impl IntoIterator<Item = (String, Run)>,
        deadline_ms: u64,
        cancelled_ms: Option<u64>,
    ) -> Self {
        let runs: Vec<(String, Run)> = runs.into_iter().collect();
        let nodes = runs.len();
        let under_way = runs.iter().filter(|(_, run)| !run.state.is_final()).count();
        let runs = runs.into_iter().map(|(node, run)| (node, (run, Output::new(nodes)))).collect();
        Task { runs, under_way, deadline_ms, cancelled_ms, orders: VecDeque::new(), ended: VecDeque::new() }
    }

    /// An agent has opened a session. It gets the command again if its result is missing: the answer to the first time
    /// may have been lost, and the agent does not run it twice.
    pub(crate) fn handle_registered(&mut self, node: &str, instance: &[u8], now_ms: u64) {
        if self.open_run(node).is_none() {
            return;
        }
        if !self.is_with(node, instance) {
            let message = "the agent was started anew and knows nothing of the command";
            return self.end(node, RunState::Lost, message, now_ms);
        }
        self.orders.push_back((node.to_owned(), Order::Send));
        if self.cancelled_ms.is_some() {
            self.orders.push_back((node.to_owned(), Order::Cancel));
        }
    }

    /// A piece of output has come.
    pub(crate) fn handle_output(&mut self, node: &str, piece: u64, stream: Stream, data: &[u8]) {
        if let Some((run, output)) = self.open_run(node) {
            run.state = RunState::Running;
            output.add(piece, stream, data);
        }
    }

    /// An agent tells how it ended. What comes after an end is not heard: the end was told to people already.
    pub(crate) fn handle_result(&mut self, node: &str, outcome: Outcome, now_ms: u64) {
        debug_assert!(outcome.state.is_final(), "an outcome is an end");
        let Some((run, output)) = self.open_run(node) else { return };
        run.exit_code = outcome.exit_code;
        run.took_ms = Some(outcome.took_ms);
        run.output = output.text(outcome.left_out_bytes);
        self.end(node, outcome.state, &outcome.message, now_ms);
    }

    /// The task is not wanted any more. Runs that are under way end when their agents say so, or with the grace.
    pub(crate) fn handle_cancel(&mut self, now_ms: u64) {
        if self.cancelled_ms.is_some() {
            return;
        }
        self.cancelled_ms = Some(now_ms);
        let orders: Vec<_> = self.open_nodes().map(|node| (node.to_owned(), Order::Cancel)).collect();
        self.orders.extend(orders);
    }

    /// The command could not be given to the node's session.
    pub(crate) fn handle_unreachable(&mut self, node: &str, message: &str, now_ms: u64) {
        self.end(node, RunState::Offline, message, now_ms);
    }

    /// A node is deleted: no result will come.
    pub(crate) fn handle_removed(&mut self, node: &str, now_ms: u64) {
        self.end(node, RunState::Lost, "the node was deleted", now_ms);
    }

    /// Time has passed.
    pub(crate) fn handle_time(&mut self, now_ms: u64) {
        if self.next_timeout_ms().is_none_or(|due_ms| now_ms < due_ms) {
            return;
        }
        let (state, message) = match self.cancelled_ms {
            Some(cancelled_ms) if now_ms >= cancelled_ms + RESULT_GRACE_MS => {
                (RunState::Cancelled, "cancelled; the agent did not confirm it in time")
            }
            Some(_) | None => (RunState::TimedOut, "no result came by the deadline"),
        };
        let open: Vec<String> = self
            .runs
            .iter()
            .filter(|(_, (run, _))| !run.state.is_final())
            .map(|(node, _)| node.clone())
            .collect();
        open.iter().for_each(|node| self.end(node, state, message, now_ms));
    }

    /// When [`Task::handle_time`] is due; none when all is done.
    pub(crate) fn next_timeout_ms(&self) -> Option<u64> {
        let cancelled = self.cancelled_ms.map_or(u64::MAX, |at_ms| at_ms.saturating_add(RESULT_GRACE_MS));
        let deadline = self.deadline_ms.saturating_add(RESULT_GRACE_MS);
        (self.under_way > 0).then_some(cancelled.min(deadline))
    }

    /// What is to be sent next. What was for a run that has ended meanwhile is not sent any more.
    pub(crate) fn poll_order(&mut self) -> Option<(String, Order)> {
        loop {
            let (node, order) = self.orders.pop_front()?;
            if self.open_run(&node).is_some() {
                return Some((node, order));
            }
        }
    }

    /// A node whose run has ended since, for the store.
    pub(crate) fn poll_ended(&mut self) -> Option<(&str, &Run)> {
        let node = self.ended.pop_front()?;
        self.runs.get_key_value(&node).map(|(node, (run, _))| (node.as_str(), run))
    }

    /// Whether all runs have ended.
    pub(crate) fn is_done(&self) -> bool {
        self.under_way == 0
    }

    /// All runs by node, those under way with the output so far.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (&str, Run)> {
        self.runs.iter().map(|(node, (run, output))| {
            let mut run = run.clone();
            if !run.state.is_final() {
                run.output = output.text(0);
            }
            (node.as_str(), run)
        })
    }

    /// Whether a node's command is with this instance of its agent.
    pub(crate) fn is_with(&self, node: &str, instance: &[u8]) -> bool {
        self.runs.get(node).is_some_and(|(run, _)| run.instance.as_deref() == Some(instance))
    }

    /// Nodes whose runs have not ended.
    pub(crate) fn open_nodes(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter(|(_, (run, _))| !run.state.is_final()).map(|(node, _)| node.as_str())
    }

    /// The state of each run.
    pub(crate) fn states(&self) -> impl Iterator<Item = RunState> {
        self.runs.values().map(|(run, _)| run.state)
    }

    fn open_run(&mut self, node: &str) -> Option<&mut (Run, Output)> {
        self.runs.get_mut(node).filter(|(run, _)| !run.state.is_final())
    }

    fn end(&mut self, node: &str, state: RunState, message: &str, now_ms: u64) {
        let Some((run, output)) = self.open_run(node) else { return };
        if run.output == OutputText::default() {
            run.output = output.text(0);
        }
        run.state = state;
        run.ended_ms = Some(now_ms);
        run.message = message.to_owned();
        self.under_way -= 1;
        self.ended.push_back(node.to_owned());
    }
}

impl Run {
    /// Where a node's part begins: sent, or offline.
    pub(super) fn begin(instance: Option<Vec<u8>>, now_ms: u64) -> Self {
        let (state, ended_ms, message) = match instance {
            Some(_) => (RunState::Sent, None, ""),
            None => (RunState::Offline, Some(now_ms), "the node is offline; the command was not sent"),
        };
        let (message, output) = (message.to_owned(), OutputText::default());
        Run { state, instance, ended_ms, message, exit_code: None, took_ms: None, output }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const DEADLINE_MS: u64 = 30_000;

    fn task(nodes: &[(&str, bool)]) -> Task {
        let targets = nodes.iter().map(|(node, is_online)| ((*node).to_owned(), is_online.then(|| vec![1])));
        Task::begin(targets, DEADLINE_MS, 0)
    }

    fn outcome(state: RunState) -> Outcome {
        let message = "done".to_owned();
        Outcome { state, message, exit_code: Some(0), left_out_bytes: 0, took_ms: 3 }
    }

    fn orders(task: &mut Task) -> Vec<(String, Order)> {
        std::iter::from_fn(|| task.poll_order()).collect()
    }

    fn ended(task: &mut Task) -> Vec<(String, RunState)> {
        let mut found = Vec::new();
        while let Some((node, run)) = task.poll_ended() {
            found.push((node.to_owned(), run.state));
        }
        found
    }

    #[test]
    fn says_at_once_which_nodes_are_offline_and_sends_to_the_others() {
        let mut task = task(&[("a", true), ("b", false)]);
        assert_eq!(orders(&mut task), [("a".to_owned(), Order::Send)]);
        assert_eq!(ended(&mut task), [("b".to_owned(), RunState::Offline)]);
        assert!(!task.is_done());
        task.handle_registered("b", &[1], 10);
        assert_eq!(orders(&mut task), [], "a node that comes later is not surprised with it");
    }

    #[test]
    fn a_result_ends_a_run_and_a_second_one_changes_nothing() {
        let mut task = task(&[("a", true)]);
        task.handle_output("a", 0, Stream::Stdout, b"text");
        assert_eq!(task.states().next(), Some(RunState::Running));
        task.handle_result("a", outcome(RunState::Succeeded), 40);
        task.handle_result("a", outcome(RunState::Failed), 50);
        assert_eq!(ended(&mut task), [("a".to_owned(), RunState::Succeeded)]);
        let (_, run) = task.runs().next().unwrap();
        assert_eq!((run.output.stdout.as_str(), run.ended_ms, run.exit_code), ("text", Some(40), Some(0)));
        assert!(task.is_done() && task.next_timeout_ms().is_none());
    }

    #[test]
    fn is_sent_again_to_the_same_instance_and_lost_with_another() {
        let mut task = task(&[("a", true), ("b", true)]);
        orders(&mut task);
        task.handle_registered("a", &[1], 10);
        task.handle_registered("b", &[2], 10);
        assert_eq!(orders(&mut task), [("a".to_owned(), Order::Send)]);
        assert_eq!(ended(&mut task), [("b".to_owned(), RunState::Lost)]);
    }

    #[test]
    fn times_out_when_no_result_comes_and_not_before_the_grace() {
        let mut task = task(&[("a", true)]);
        task.handle_output("a", 0, Stream::Stderr, b"half");
        assert_eq!(task.next_timeout_ms(), Some(DEADLINE_MS + RESULT_GRACE_MS));
        task.handle_time(DEADLINE_MS + RESULT_GRACE_MS - 1);
        assert!(!task.is_done());
        task.handle_time(DEADLINE_MS + RESULT_GRACE_MS);
        assert_eq!(ended(&mut task), [("a".to_owned(), RunState::TimedOut)]);
        assert_eq!(task.runs().next().unwrap().1.output.stderr, "half", "what came is kept");
    }

    #[test]
    fn a_cancel_goes_to_those_under_way_and_ends_them_with_or_without_their_word() {
        let mut task = task(&[("a", true), ("b", true), ("c", true)]);
        orders(&mut task);
        task.handle_result("a", outcome(RunState::Succeeded), 5);
        task.handle_cancel(10);
        task.handle_cancel(11);
        assert_eq!(orders(&mut task), [("b".to_owned(), Order::Cancel), ("c".to_owned(), Order::Cancel)]);
        task.handle_result("b", outcome(RunState::Cancelled), 20);
        task.handle_time(10 + RESULT_GRACE_MS);
        let expected = [("a", RunState::Succeeded), ("b", RunState::Cancelled), ("c", RunState::Cancelled)];
        assert_eq!(ended(&mut task), expected.map(|(node, state)| (node.to_owned(), state)));
    }

    #[test]
    fn nothing_is_sent_for_a_run_that_has_ended_meanwhile() {
        let mut task = task(&[("a", true)]);
        task.handle_registered("a", &[2], 1);
        assert_eq!(orders(&mut task), []);
        assert_eq!(ended(&mut task), [("a".to_owned(), RunState::Lost)]);
    }

    #[test]
    fn an_agent_that_comes_back_is_told_of_the_cancel_too() {
        let mut task = task(&[("a", true)]);
        orders(&mut task);
        task.handle_cancel(10);
        orders(&mut task);
        task.handle_registered("a", &[1], 20);
        assert_eq!(orders(&mut task), [("a".to_owned(), Order::Send), ("a".to_owned(), Order::Cancel)]);
    }

    #[test]
    fn a_stored_task_goes_on() {
        let first = task(&[("a", true), ("b", false)]);
        let stored: Vec<(String, Run)> = first.runs().map(|(node, run)| (node.to_owned(), run)).collect();
        let mut resumed = Task::resume(stored, DEADLINE_MS, None);
        assert_eq!(orders(&mut resumed), [], "nobody has registered yet");
        resumed.handle_registered("a", &[1], 10);
        assert_eq!(orders(&mut resumed), [("a".to_owned(), Order::Send)]);
        resumed.handle_result("a", outcome(RunState::Succeeded), 12);
        assert!(resumed.is_done());
    }

    #[derive(Clone, Debug)]
    enum Event {
        Registered(usize, u8),
        Output(usize, u64),
        Result(usize),
        Cancel,
        Removed(usize),
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let node = || 0_usize..4;
        prop_oneof![
            (node(), 1_u8..3).prop_map(|(node, instance)| Event::Registered(node, instance)),
            (node(), 0_u64..5).prop_map(|(node, piece)| Event::Output(node, piece)),
            node().prop_map(Event::Result),
            Just(Event::Cancel),
            node().prop_map(Event::Removed),
            (0_u64..10_000).prop_map(Event::Pass),
        ]
    }

    proptest! {
        #[test]
        fn each_run_ends_once_and_nothing_is_ordered_after_its_end(
            online in vec(any::<bool>(), 4),
            events in vec(event(), 0..60),
        ) {
            let name = |node: usize| format!("n{node}");
            let targets = (0..4).map(|node| (name(node), online[node].then(|| vec![1])));
            let (mut task, mut now_ms) = (Task::begin(targets, DEADLINE_MS, 0), 0);
            let mut over = Vec::new();
            for event in events {
                match event {
                    Event::Registered(node, instance) => task.handle_registered(&name(node), &[instance], now_ms),
                    Event::Output(node, piece) => task.handle_output(&name(node), piece, Stream::Stdout, b"x"),
                    Event::Result(node) => task.handle_result(&name(node), outcome(RunState::Succeeded), now_ms),
                    Event::Cancel => task.handle_cancel(now_ms),
                    Event::Removed(node) => task.handle_removed(&name(node), now_ms),
                    Event::Pass(more_ms) => {
                        now_ms += more_ms;
                        task.handle_time(now_ms);
                    }
                }
                for (node, _) in orders(&mut task) {
                    prop_assert!(!over.contains(&node), "{} is ordered after its end", node);
                }
                for (node, state) in ended(&mut task) {
                    prop_assert!(state.is_final() && !over.contains(&node));
                    over.push(node);
                }
            }
            task.handle_time(u64::MAX);
            over.extend(ended(&mut task).into_iter().map(|(node, _)| node));
            over.sort();
            prop_assert_eq!(over, (0..4).map(name).collect::<Vec<_>>());
            prop_assert!(task.is_done());
        }
    }
}
