//! What SQLite has in its journal and not yet in its tables.
//!
//! A commit of many studies touches many pages, and most of what it writes is overtaken soon after. So a commit appends one
//! row to the journal, and every so often what has gathered goes to the tables, in their order. Theta is not in the
//! journal: it follows from the theta in the tables and the reports in the journal.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Changes, Error,
    rows::{self, OpenRow, PastRow, ReportRow, StateRow, StudyRow},
};
use crate::study::Closed;

/// Steps after which what has gathered goes to the tables.
const FULL: usize = 2048;

/// Study and step.
type Key = (i64, i64);

/// What has gathered.
#[derive(Default)]
pub(super) struct Journal {
    states: BTreeMap<i64, StateRow>,
    passed: BTreeSet<Key>,
    open: BTreeMap<Key, OpenRow>,
    past: BTreeMap<Key, PastRow>,
    late: BTreeMap<Key, ReportRow>,
}

impl Journal {
    /// The row of the journal that holds `changes`; none if these must go to the tables. The architectures of a step whose
    /// opening is here as well are taken out of `changes`, and come back by [`add`](Journal::add).
    pub(super) fn entry(&self, changes: &mut Changes) -> Option<String> {
        let Changes { deleted, importing, imported, abandoned, studies, pruned, .. } = &*changes;
        let plain = deleted.is_empty()
            && importing.is_empty()
            && imported.is_empty()
            && abandoned.is_empty()
            && studies.is_empty()
            && pruned.is_empty();
        if !plain || self.is_full() {
            return None;
        }
        for PastRow { step, .. } in &mut changes.past {
            if self.open.contains_key(&step.key()) {
                step.train.clear();
                step.rank.clear();
            }
        }
        // Unwrap safety: rows are texts and numbers.
        Some(serde_json::to_string(changes).unwrap())
    }

    /// Reads a row of the journal, as when the controller starts.
    pub(super) fn read(&mut self, text: &str) -> Result<(), serde_json::Error> {
        self.add(serde_json::from_str(text)?);
        Ok(())
    }

    /// Gathers what has been committed to the journal.
    pub(super) fn add(&mut self, changes: Changes) {
        let Changes { states, passed, open, past, late, .. } = changes;
        self.states.extend(states.into_iter().map(|row| (row.study, row)));
        for mut row in past {
            let key = row.step.key();
            if row.step.rank.is_empty()
                && let Some(open) = self.open.remove(&key)
            {
                (row.step.train, row.step.rank) = (open.step.train, open.step.rank);
            }
            self.past.insert(key, row);
        }
        for key in passed {
            self.open.remove(&key);
            self.passed.insert(key);
        }
        self.open.extend(open.into_iter().map(|row| (row.step.key(), row)));
        for (study, step, report) in late {
            match self.past.get_mut(&(study, step)) {
                Some(past) => past.report = Some(report),
                None => {
                    self.late.insert((study, step), report);
                }
            }
        }
    }

    /// Whether it is time to let go.
    fn is_full(&self) -> bool {
        self.past.len() + self.open.len() >= FULL
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty() && self.past.is_empty() && self.open.is_empty()
    }

    /// What has gathered, as it has to be written to the tables.
    pub(super) fn into_changes(self) -> Changes {
        let late = self.late.into_iter().map(|((study, step), row)| (study, step, row));
        Changes {
            states: self.states.into_values().collect(),
            passed: self.passed.into_iter().collect(),
            open: self.open.into_values().collect(),
            past: self.past.into_values().collect(),
            late: late.collect(),
            ..Changes::default()
        }
    }

    /// What became of a step, if that is here.
    pub(super) fn closed(&self, key: Key) -> Option<Closed> {
        self.past.get(&key).map(PastRow::closed)
    }

    /// Whether a step that the tables have as closed was reported after all.
    pub(super) fn is_late(&self, key: Key) -> bool {
        self.late.contains_key(&key)
    }

    /// A study's state and open steps, where the tables have `state` and `open`.
    pub(super) fn overlay(
        &self,
        study: i64,
        state: StateRow,
        mut open: Vec<OpenRow>,
    ) -> (StateRow, Vec<OpenRow>) {
        open.retain(|row| {
            !self.passed.contains(&row.step.key()) && !self.open.contains_key(&row.step.key())
        });
        open.extend(
            self.open.range((study, i64::MIN)..=(study, i64::MAX)).map(|(_, row)| row.clone()),
        );
        (self.states.get(&study).cloned().unwrap_or(state), open)
    }

    /// Studies whose theta has to be computed after a start.
    pub(super) fn studies(&self) -> Vec<i64> {
        self.states.keys().copied().collect()
    }

    /// Computes the theta of a study from that in the tables and the reports here.
    pub(super) fn find_theta(&mut self, study: &StudyRow, table: &StateRow) -> Result<(), Error> {
        let past = self.past.range((study.id, i64::MIN)..=(study.id, i64::MAX));
        let theta = rows::replay(study, table, past.map(|(_, row)| row))?;
        if let Some(state) = self.states.get_mut(&study.id) {
            state.theta = theta;
        }
        Ok(())
    }
}
