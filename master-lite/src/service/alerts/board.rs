//! All alerts of a fleet: every rule held against every node it is for, what fires, what is silenced, and what somebody
//! is to be told. Pure: rules, nodes and time are arguments; what is to be stored and sent is the answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::machine::{self, Event, State};
use super::reading::{Subject, read};
use super::rule::{Rule, Severity};
use crate::service::secret::sha256;

/// Alerts that are kept at once. A fleet that has more has one cause, and nobody reads them one by one.
pub(crate) const ALERTS_MAX: usize = 10_000;

/// Characters of an alert's id: enough that no two of a fleet are the same.
const ID_CHARACTERS: usize = 16;

/// A rule that is broken on a node, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alert {
    /// Always the same for a rule and a node, so that a silence outlives the alert.
    pub(crate) id: String,
    /// The rule's id.
    pub(crate) rule: String,
    /// The node's id.
    pub(crate) node: String,
    /// Of the node.
    pub(crate) role: String,
    /// Of the node.
    pub(crate) region: String,
    /// Of the rule.
    pub(crate) severity: Severity,
    /// Of the rule.
    pub(crate) labels: BTreeMap<String, String>,
    /// Of the rule.
    pub(crate) description: String,
    /// The last reading.
    pub(crate) value: Option<f64>,
    /// Where it stands.
    pub(crate) state: State,
    /// Whether somebody was told that it fires.
    pub(crate) is_told: bool,
}

/// Nobody is to be told of an alert for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Silence {
    /// Until then.
    pub(crate) until_ms: u64,
    /// Why.
    pub(crate) comment: String,
    /// Who wanted it.
    pub(crate) by: String,
    /// Since when.
    pub(crate) since_ms: u64,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It fires.
    Firing,
    /// It has ended.
    Resolved,
}

/// What an evaluation has changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Alerts whose state is another, to be stored.
    pub(crate) stored: Vec<Alert>,
    /// Ids of alerts that are gone.
    pub(crate) forgotten: Vec<String>,
    /// Ids of silences that are over.
    pub(crate) expired: Vec<String>,
    /// What somebody is to be told.
    pub(crate) notices: Vec<(Notice, Alert)>,
}

/// The alerts and silences.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// By rule, then by node.
    alerts: BTreeMap<String, BTreeMap<String, Alert>>,
    silences: BTreeMap<String, Silence>,
    /// By rule.
    coverage: BTreeMap<String, Coverage>,
    left_out: u64,
}

/// How much of a fleet a rule sees: one that nobody reports to says nothing, which is not that all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Nodes that the rule is for.
    pub(crate) nodes: u64,
    /// Those that report what it looks at.
    pub(crate) reporting: u64,
}

/// What a rule says of the nodes that it is for. No data is not that all is well: nobody reports what it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RuleState {
    /// It is not judged.
    Disabled,
    /// No node reports what it looks at.
    NoData,
    /// Nothing is wrong on the nodes that report.
    Ok,
    /// It is broken somewhere, but nowhere for long enough.
    Pending,
    /// It fires somewhere.
    Firing,
}

impl Board {
    /// As it was stored.
    pub(crate) fn resume(
        alerts: impl IntoIterator<Item = Alert>,
        silences: impl IntoIterator<Item = (String, Silence)>,
    ) -> Self {
        let mut board = Board { silences: silences.into_iter().collect(), ..Board::default() };
        for alert in alerts {
            board.alerts.entry(alert.rule.clone()).or_default().insert(alert.node.clone(), alert);
        }
        board
    }

    /// Holds every rule against every node. What is not held any more (the rule, the node, or its match is gone) ends.
    pub(crate) fn evaluate(
        &mut self,
        rules: &BTreeMap<String, Rule>,
        subjects: &[Subject],
        now_ms: u64,
    ) -> Changes {
        let mut changes = Changes::default();
        self.expire(now_ms, &mut changes);
        let mut before = std::mem::take(&mut self.alerts);
        self.coverage.clear();
        self.left_out = 0;
        let mut room = ALERTS_MAX;
        for (id, rule) in rules {
            let mut earlier = before.remove(id).unwrap_or_default();
            let mut current = BTreeMap::new();
            for subject in subjects.iter().filter(|subject| rule.is_for(subject)) {
                let alert = earlier.remove(&subject.node);
                if let Some(alert) = self.judge((id, rule), subject, alert, now_ms, &mut changes) {
                    keep(alert, &mut current, &mut room, &mut self.left_out);
                }
            }
            for alert in earlier.into_values() {
                if let Some(alert) = self.withdraw(alert, now_ms, &mut changes) {
                    keep(alert, &mut current, &mut room, &mut self.left_out);
                }
            }
            self.alerts.insert(id.clone(), current);
        }
        for (id, earlier) in before {
            let ended = earlier.into_values().filter_map(|alert| self.withdraw(alert, now_ms, &mut changes));
            let current = ended.map(|alert| (alert.node.clone(), alert)).collect();
            self.alerts.insert(id, current);
        }
        self.alerts.retain(|_, alerts| !alerts.is_empty());
        changes
    }

    /// All alerts, by rule and node.
    pub(crate) fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values().flat_map(BTreeMap::values)
    }

    /// One alert.
    pub(crate) fn find(&self, id: &str) -> Option<&Alert> {
        self.alerts().find(|alert| alert.id == id)
    }

    /// The silence of an alert.
    pub(crate) fn silence(&self, id: &str) -> Option<&Silence> {
        self.silences.get(id)
    }

    /// How much a rule saw the last time.
    pub(crate) fn coverage(&self, rule: &str) -> Coverage {
        self.coverage.get(rule).copied().unwrap_or_default()
    }

    /// What a rule that is judged said the last time.
    pub(crate) fn standing(&self, rule: &str) -> RuleState {
        let states = || self.alerts.get(rule).into_iter().flatten().map(|(_, alert)| alert.state);
        if states().any(|state| matches!(state, State::Firing { .. })) {
            RuleState::Firing
        } else if states().any(|state| matches!(state, State::Pending { .. })) {
            RuleState::Pending
        } else if self.coverage(rule).reporting == 0 {
            RuleState::NoData
        } else {
            RuleState::Ok
        }
    }

    /// Silences an alert, in the place of an earlier silence.
    pub(crate) fn begin_silence(&mut self, id: &str, silence: Silence) {
        self.silences.insert(id.to_owned(), silence);
    }

    /// Ends a silence; whether there was one.
    pub(crate) fn end_silence(&mut self, id: &str) -> bool {
        self.silences.remove(id).is_some()
    }

    /// Alerts beyond [`ALERTS_MAX`] that the last evaluation could not keep.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    fn expire(&mut self, now_ms: u64, changes: &mut Changes) {
        let over = self.silences.iter().filter(|(_, silence)| silence.until_ms <= now_ms);
        changes.expired = over.map(|(id, _)| id.clone()).collect();
        changes.expired.iter().for_each(|id| drop(self.silences.remove(id)));
    }

    fn judge(
        &mut self,
        (id, rule): (&str, &Rule),
        subject: &Subject,
        earlier: Option<Alert>,
        now_ms: u64,
        changes: &mut Changes,
    ) -> Option<Alert> {
        let value = read(rule.metric, subject, now_ms);
        let coverage = self.coverage.entry(id.to_owned()).or_default();
        coverage.nodes += 1;
        coverage.reporting += u64::from(value.is_some());
        let before = earlier.as_ref().map(|alert| alert.state);
        let (state, event) = machine::step(before, rule.judge(value), rule.for_ms, now_ms);
        // Nothing is written for the many that are well.
        if before.is_none() && state.is_none() {
            return None;
        }
        let Some(state) = state else {
            changes.forgotten.extend(earlier.map(|alert| alert.id));
            return None;
        };
        let mut alert = Alert {
            id: earlier.as_ref().map_or_else(|| id_of(id, &subject.node), |alert| alert.id.clone()),
            rule: id.to_owned(),
            node: subject.node.clone(),
            role: subject.role.clone(),
            region: subject.region.clone(),
            severity: rule.severity,
            labels: rule.labels.clone(),
            description: rule.description.clone(),
            value: value.or_else(|| earlier.as_ref().and_then(|alert| alert.value)),
            state,
            is_told: earlier.as_ref().is_some_and(|alert| alert.is_told),
        };
        self.tell(&mut alert, event, changes);
        let is_news = earlier.is_none_or(|earlier| is_other(&earlier, &alert));
        if is_news {
            changes.stored.push(alert.clone());
        }
        Some(alert)
    }

    fn withdraw(&self, earlier: Alert, now_ms: u64, changes: &mut Changes) -> Option<Alert> {
        let (state, event) = match earlier.state {
            // Withdrawn long ago: it is forgotten as others are.
            State::Resolved { .. } => {
                machine::step(Some(earlier.state), machine::Reading::Missing, 0, now_ms)
            }
            State::Pending { .. } | State::Firing { .. } => machine::withdraw(earlier.state, now_ms),
        };
        let Some(state) = state else {
            changes.forgotten.push(earlier.id);
            return None;
        };
        let mut alert = Alert { state, ..earlier.clone() };
        self.tell(&mut alert, event, changes);
        if is_other(&earlier, &alert) {
            changes.stored.push(alert.clone());
        }
        Some(alert)
    }

    /// An alert that was silenced when it began to fire is told when the silence ends; an end is told to those who know
    /// of the beginning.
    fn tell(&self, alert: &mut Alert, event: Option<Event>, changes: &mut Changes) {
        let is_firing = matches!(alert.state, State::Firing { .. });
        let notice = if is_firing && !alert.is_told && !self.silences.contains_key(&alert.id) {
            Notice::Firing
        } else if alert.is_told && matches!(event, Some(Event::Resolved(_))) {
            Notice::Resolved
        } else {
            return;
        };
        alert.is_told = notice == Notice::Firing;
        changes.notices.push((notice, alert.clone()));
    }
}

/// Keeps an alert while there is room.
fn keep(alert: Alert, current: &mut BTreeMap<String, Alert>, room: &mut usize, left_out: &mut u64) {
    if *room == 0 {
        *left_out += 1;
        return;
    }
    *room -= 1;
    current.insert(alert.node.clone(), alert);
}

/// Whether an alert is to be stored anew: its state has another name, or it was told. That it was read again, or that
/// its value is another, is not worth the disk.
fn is_other(before: &Alert, after: &Alert) -> bool {
    std::mem::discriminant(&before.state) != std::mem::discriminant(&after.state)
        || before.is_told != after.is_told
}

fn id_of(rule: &str, node: &str) -> String {
    // Names have no NUL.
    let mut id = sha256(format!("{rule}\0{node}"));
    id.truncate(ID_CHARACTERS);
    id
}

#[cfg(test)]
mod tests {
    use super::super::machine::Resolution;
    use super::super::rule::built_in;
    use super::*;

    const TICK_MS: u64 = 10_000;

    fn rules() -> BTreeMap<String, Rule> {
        built_in()
            .into_iter()
            .filter(|(id, _)| *id == "node-offline")
            .map(|(id, rule)| (id.into(), rule))
            .collect()
    }

    fn node(id: &str, is_offline: bool) -> Subject {
        Subject { node: id.to_owned(), is_offline: Some(is_offline), ..Subject::default() }
    }

    fn told(changes: &Changes) -> Vec<(Notice, &str)> {
        changes.notices.iter().map(|(notice, alert)| (*notice, alert.node.as_str())).collect()
    }

    #[test]
    fn tells_once_that_it_fires_and_once_that_it_ended() {
        let (mut board, rules) = (Board::default(), rules());
        let first = board.evaluate(&rules, &[node("a", true), node("b", false)], 0);
        assert_eq!(told(&first), [(Notice::Firing, "a")]);
        assert_eq!(first.stored.len(), 1);
        assert_eq!(board.evaluate(&rules, &[node("a", true)], TICK_MS), Changes::default());
        let last = board.evaluate(&rules, &[node("a", false)], 2 * TICK_MS);
        assert_eq!(told(&last), [(Notice::Resolved, "a")]);
        assert_eq!(board.alerts().count(), 1, "it is still shown");
        let later = board.evaluate(&rules, &[node("a", false)], 2 * TICK_MS + machine::RESOLVED_KEPT_MS);
        assert_eq!(later.forgotten, [last.stored[0].id.clone()]);
        assert_eq!(board.alerts().count(), 0);
    }

    #[test]
    fn a_silenced_alert_is_told_when_the_silence_ends_and_it_still_fires() {
        let (mut board, rules) = (Board::default(), rules());
        let silence =
            Silence { until_ms: 3 * TICK_MS, comment: "known".into(), by: "ops".into(), since_ms: 0 };
        board.begin_silence(&id_of("node-offline", "a"), silence);
        for tick in 0..3 {
            assert_eq!(told(&board.evaluate(&rules, &[node("a", true)], tick * TICK_MS)), []);
        }
        let after = board.evaluate(&rules, &[node("a", true)], 3 * TICK_MS);
        assert_eq!(told(&after), [(Notice::Firing, "a")]);
        assert_eq!(after.expired.len(), 1);
    }

    #[test]
    fn an_end_is_not_told_to_those_who_know_of_no_beginning() {
        let (mut board, rules) = (Board::default(), rules());
        let silence = Silence { until_ms: u64::MAX, comment: "known".into(), by: "ops".into(), since_ms: 0 };
        board.begin_silence(&id_of("node-offline", "a"), silence);
        board.evaluate(&rules, &[node("a", true)], 0);
        let ended = board.evaluate(&rules, &[node("a", false)], TICK_MS);
        assert_eq!(told(&ended), []);
        assert_eq!(ended.stored.len(), 1);
    }

    #[test]
    fn what_is_no_longer_watched_ends() {
        let (mut board, all) = (Board::default(), rules());
        board.evaluate(&all, &[node("a", true), node("b", true)], 0);
        let without_a = board.evaluate(&all, &[node("b", true)], TICK_MS);
        assert_eq!(told(&without_a), [(Notice::Resolved, "a")]);
        let without_rules = board.evaluate(&BTreeMap::new(), &[node("b", true)], 2 * TICK_MS);
        assert_eq!(told(&without_rules), [(Notice::Resolved, "b")]);
        let withdrawn =
            |alert: &Alert| matches!(alert.state, State::Resolved { reason: Resolution::Withdrawn, .. });
        assert!(board.alerts().all(withdrawn));
        let later = machine::RESOLVED_KEPT_MS + 2 * TICK_MS;
        board.evaluate(&BTreeMap::new(), &[], later);
        assert_eq!(board.alerts().count(), 0, "withdrawn ones are forgotten, too");
    }

    #[test]
    fn a_restart_tells_nothing_twice() {
        let (mut board, rules) = (Board::default(), rules());
        let stored = board.evaluate(&rules, &[node("a", true)], 0).stored;
        let mut resumed = Board::resume(stored, []);
        assert_eq!(resumed.evaluate(&rules, &[node("a", true)], TICK_MS), Changes::default());
        let last = resumed.evaluate(&rules, &[node("a", false)], 2 * TICK_MS);
        assert_eq!(told(&last), [(Notice::Resolved, "a")]);
    }

    #[test]
    fn a_rule_tells_how_much_it_sees() {
        let (mut board, rules) = (Board::default(), rules());
        let unheard = Subject { node: "c".to_owned(), ..Subject::default() };
        board.evaluate(&rules, &[node("a", true), node("b", false), unheard], 0);
        assert_eq!(board.coverage("node-offline"), Coverage { nodes: 3, reporting: 2 });
        assert_eq!(board.coverage("nothing"), Coverage::default());
    }

    #[test]
    fn a_rule_without_readings_is_not_well() {
        let (mut board, mut rules) = (Board::default(), rules());
        let unheard = Subject { node: "c".to_owned(), ..Subject::default() };
        board.evaluate(&rules, std::slice::from_ref(&unheard), 0);
        assert_eq!(board.standing("node-offline"), RuleState::NoData);
        board.evaluate(&rules, &[node("a", false), unheard], TICK_MS);
        assert_eq!(board.standing("node-offline"), RuleState::Ok);
        rules.get_mut("node-offline").unwrap().for_ms = TICK_MS;
        board.evaluate(&rules, &[node("a", true), node("b", false)], 2 * TICK_MS);
        assert_eq!(board.standing("node-offline"), RuleState::Pending);
        board.evaluate(&rules, &[node("a", true), node("b", false)], 3 * TICK_MS);
        assert_eq!(board.standing("node-offline"), RuleState::Firing);
        board.evaluate(&rules, &[node("b", false)], 4 * TICK_MS);
        assert_eq!(board.standing("node-offline"), RuleState::Ok, "what has ended is no longer so");
    }

    #[test]
    fn there_are_so_many_alerts_and_not_more() {
        let (mut board, rules) = (Board::default(), rules());
        let nodes: Vec<Subject> =
            (0..ALERTS_MAX + 3).map(|number| node(&format!("n{number:06}"), true)).collect();
        board.evaluate(&rules, &nodes, 0);
        assert_eq!((board.alerts().count(), board.left_out()), (ALERTS_MAX, 3));
    }
}
