//! Alerts: rules that people keep, what they say of the fleet now, and silences. Rules, silences and what fires are stored;
//! what has only begun to be broken is not, and waits anew after a restart of the master.

pub(crate) mod board;
pub(crate) mod machine;
pub(crate) mod reading;
pub(crate) mod rule;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use board::{Alert, Board, Coverage, Notice, RuleState, Silence};
use machine::State;
use reading::Subject;
use rule::{Rule, Severity, built_in};

use super::call::Call;
use super::name::{check_name, check_text};
use super::page::{Page, Paging};
use super::refusal::Refusal;
use crate::store::{Records, Source as _, Store, StoreError, Writer};

/// Rules that people made, or made other than they are built in; by id.
pub(crate) const RULES: Records<String, Rule> = Records::new("alert_rules");
/// Alerts that fire or have ended; by id.
pub(crate) const ALERTS: Records<String, Alert> = Records::new("alerts");
/// By the alert's id.
pub(crate) const SILENCES: Records<String, Silence> = Records::new("silences");

/// The tables.
pub(crate) const TABLES: [&str; 3] = [RULES.name(), ALERTS.name(), SILENCES.name()];

/// Rules there may be: each is held against every node, every few seconds.
pub(crate) const RULES_MAX: u64 = 200;

/// Longest silence: what is known for longer is a rule to be changed.
pub(crate) const SILENCE_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// The alerts.
pub(crate) struct Alerts {
    store: Store,
    board: Mutex<Board>,
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// As it is built in.
    BuiltIn,
    /// Built in, and changed.
    Changed,
    /// Made by people.
    Custom,
}

/// A rule with its id and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct KnownRule {
    /// Its name.
    pub(crate) id: String,
    /// What it says.
    pub(crate) rule: Rule,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

/// Which alerts are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default)]
pub(crate) struct AlertFilter {
    /// In this state.
    pub(crate) state: Option<StateName>,
    /// This bad.
    pub(crate) severity: Option<Severity>,
    /// Of this node.
    pub(crate) node: Option<String>,
    /// Of this rule.
    pub(crate) rule: Option<String>,
}

/// A state without its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateName {
    /// Broken, not for long enough yet.
    Pending,
    /// Broken.
    Firing,
    /// No longer.
    Resolved,
}

impl From<State> for StateName {
    fn from(state: State) -> Self {
        match state {
            State::Pending { .. } => Self::Pending,
            State::Firing { .. } => Self::Firing,
            State::Resolved { .. } => Self::Resolved,
        }
    }
}

impl StateName {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

impl Alerts {
    /// Over a store, as they were when the master stopped.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn open(store: Store) -> Result<Self, StoreError> {
        let reader = store.read()?;
        let alerts = reader.all(ALERTS)?.into_iter().map(|(_, alert)| alert);
        let board = Mutex::new(Board::resume(alerts, reader.all(SILENCES)?));
        Ok(Self { store, board })
    }

    /// All rules, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn rules(&self) -> Result<Vec<KnownRule>, Refusal> {
        let mut rules: BTreeMap<String, KnownRule> = built_in()
            .into_iter()
            .map(|(id, rule)| (id.to_owned(), KnownRule { id: id.to_owned(), rule, origin: Origin::BuiltIn }))
            .collect();
        for (id, rule) in self.store.read()?.all(RULES)? {
            let origin = if rules.contains_key(&id) { Origin::Changed } else { Origin::Custom };
            rules.insert(id.clone(), KnownRule { id, rule, origin });
        }
        Ok(rules.into_values().collect())
    }

    /// One rule.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn rule(&self, id: &str) -> Result<KnownRule, Refusal> {
        check_name("id", id)?;
        let found = self.rules()?.into_iter().find(|known| known.id == id);
        found.ok_or_else(|| Refusal::not_found("id", "alert rule", id))
    }

    /// Makes a rule.
    ///
    /// # Errors
    /// It is none, there is one of this id, or there are too many.
    pub(crate) fn create_rule(&self, call: &Call, id: &str, rule: &Rule) -> Result<(), Refusal> {
        check_name("id", id)?;
        rule.check()?;
        self.store.change(|writer| {
            if built_in().contains_key(id) || writer.find(RULES, &id.to_owned())?.is_some() {
                return Err(Refusal::conflict("id", "taken", format!("there is a rule `{id}` already")));
            }
            if writer.count(RULES)? >= RULES_MAX {
                return Err(Refusal::limit("id", "alert rules", RULES_MAX));
            }
            writer.put(RULES, &id.to_owned(), rule)?;
            Ok(((), call.done("alert_rules.create", id, &rule.description)))
        })
    }

    /// Changes a rule, a built-in one too.
    ///
    /// # Errors
    /// There is none of this id, or it would be no rule.
    pub(crate) fn change_rule(&self, call: &Call, id: &str, rule: &Rule) -> Result<KnownRule, Refusal> {
        self.rule(id)?;
        rule.check()?;
        self.store.change(|writer| {
            writer.put(RULES, &id.to_owned(), rule)?;
            Ok::<_, Refusal>(((), call.done("alert_rules.change", id, format!("enabled {}", rule.enabled))))
        })?;
        self.rule(id)
    }

    /// Removes a rule. A built-in one that was changed is as it was built in again.
    ///
    /// # Errors
    /// There is none of this id, or it is as it was built in.
    pub(crate) fn remove_rule(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        let known = self.rule(id)?;
        if known.origin == Origin::BuiltIn {
            let message = "the rule is built in and not changed: set `enabled` to false to switch it off";
            return Err(Refusal::conflict("id", "built_in", message));
        }
        self.store.change(|writer| {
            writer.remove(RULES, &id.to_owned())?;
            Ok(((), call.done("alert_rules.delete", id, "")))
        })
    }

    /// The alerts that meet the filter, each with its silence: what fires first, then by rule and node.
    pub(crate) fn list(&self, filter: &AlertFilter, paging: Paging) -> Page<(Alert, Option<Silence>)> {
        let board = self.board();
        let mut found: Vec<&Alert> = board.alerts().filter(|alert| filter.is_met_by(alert)).collect();
        found.sort_by_key(|alert| match alert.state {
            State::Firing { .. } => 0,
            State::Pending { .. } => 1,
            State::Resolved { .. } => 2,
        });
        paging.cut(found).map(|alert| (alert.clone(), board.silence(&alert.id).cloned()))
    }

    /// One alert with its silence.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str) -> Result<(Alert, Option<Silence>), Refusal> {
        check_name("id", id)?;
        let board = self.board();
        let alert = board.find(id).ok_or_else(|| Refusal::not_found("id", "alert", id))?;
        Ok((alert.clone(), board.silence(id).cloned()))
    }

    /// Silences an alert for a while; it is still judged and shown.
    ///
    /// # Errors
    /// There is none of this id, or the silence is too long or without a reason.
    pub(crate) fn silence(
        &self,
        call: &Call,
        id: &str,
        duration_ms: u64,
        comment: &str,
    ) -> Result<(Alert, Option<Silence>), Refusal> {
        let (alert, _) = self.find(id)?;
        check_text("comment", comment)?;
        if comment.trim().is_empty() {
            return Err(Refusal::invalid("comment", "missing", "`comment` is to say why"));
        }
        if !(1..=SILENCE_MS_MAX).contains(&duration_ms) {
            return Err(Refusal::invalid(
                "duration",
                "out_of_range",
                "`duration` is to be above 0 and at most 30d",
            ));
        }
        let silence = Silence {
            until_ms: call.at_ms.saturating_add(duration_ms),
            comment: comment.to_owned(),
            by: call.actor.name().to_owned(),
            since_ms: call.at_ms,
        };
        self.store.change(|writer| {
            writer.put(SILENCES, &id.to_owned(), &silence)?;
            let target = format!("{} on {}", alert.rule, alert.node);
            Ok::<_, Refusal>(((), call.done("alerts.silence", &target, comment)))
        })?;
        self.board().begin_silence(id, silence.clone());
        Ok((alert, Some(silence)))
    }

    /// Ends a silence before its time.
    ///
    /// # Errors
    /// There is no such alert, or it is not silenced.
    pub(crate) fn end_silence(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        let (alert, silence) = self.find(id)?;
        if silence.is_none() {
            return Err(Refusal::not_found("id", "silence of the alert", id));
        }
        self.store.change(|writer| {
            writer.remove(SILENCES, &id.to_owned())?;
            let target = format!("{} on {}", alert.rule, alert.node);
            Ok::<_, Refusal>(((), call.done("alerts.end_silence", &target, "")))
        })?;
        self.board().end_silence(id);
        Ok(())
    }

    /// Holds all rules against all nodes; what there is to tell, with what it is about.
    ///
    /// # Errors
    /// The rules cannot be read.
    pub(crate) fn evaluate(
        &self,
        subjects: &[Subject],
        now_ms: u64,
    ) -> Result<Vec<(Notice, Alert)>, Refusal> {
        let rules = self.rules()?.into_iter().map(|known| (known.id, known.rule)).collect();
        let changes = self.board().evaluate(&rules, subjects, now_ms);
        if changes.stored.is_empty() && changes.forgotten.is_empty() && changes.expired.is_empty() {
            return Ok(changes.notices);
        }
        let stored = self.store.observe(|writer: &Writer| {
            let firing =
                changes.stored.iter().filter(|alert| StateName::from(alert.state) != StateName::Pending);
            firing.into_iter().try_for_each(|alert| writer.put(ALERTS, &alert.id, alert))?;
            changes.forgotten.iter().try_for_each(|id| writer.remove(ALERTS, id).map(drop))?;
            changes.expired.iter().try_for_each(|id| writer.remove(SILENCES, id).map(drop))
        });
        // What is to be told is told although it could not be stored.
        if let Err::<(), StoreError>(error) = stored {
            tracing::error!(%error, "alerts could not be stored");
        }
        Ok(changes.notices)
    }

    /// How many alerts there are of each severity in each state.
    pub(crate) fn counts(&self) -> BTreeMap<(Severity, &'static str), u64> {
        let mut counts = BTreeMap::new();
        for alert in self.board().alerts() {
            *counts.entry((alert.severity, StateName::from(alert.state).name())).or_default() += 1;
        }
        counts
    }

    /// Alerts that are firing, for a scrape.
    pub(crate) fn firing(&self) -> Vec<Alert> {
        let is_firing = |alert: &&Alert| matches!(alert.state, State::Firing { .. });
        self.board().alerts().filter(is_firing).cloned().collect()
    }

    /// How much of the fleet a rule sees, and what it says of it.
    pub(crate) fn standing(&self, known: &KnownRule) -> (Coverage, RuleState) {
        let board = self.board();
        let standing = if known.rule.enabled { board.standing(&known.id) } else { RuleState::Disabled };
        (board.coverage(&known.id), standing)
    }

    /// Alerts beyond the limit that are not kept.
    pub(crate) fn left_out(&self) -> u64 {
        self.board().left_out()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AlertFilter {
    fn is_met_by(&self, alert: &Alert) -> bool {
        self.state.is_none_or(|state| state == alert.state.into())
            && self.severity.is_none_or(|severity| severity == alert.severity)
            && self.node.as_ref().is_none_or(|node| *node == alert.node)
            && self.rule.as_ref().is_none_or(|rule| *rule == alert.rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_rules_and_not_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &TABLES).unwrap();
        let rule = built_in().remove("node-offline").unwrap();
        store
            .observe(|writer: &Writer| {
                (1..RULES_MAX).try_for_each(|number| writer.put(RULES, &format!("r{number}"), &rule))
            })
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
        let alerts = Alerts::open(store).unwrap();
        let call = Call::system(0);
        alerts.create_rule(&call, "last", &rule).unwrap();
        let refusal = alerts.create_rule(&call, "one-more", &rule).unwrap_err();
        assert_eq!(refusal.details[0].code, "limit");
    }
}
