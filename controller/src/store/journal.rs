//! The commits that are in SQLite's journal and not yet in its tables.
//!
//! A commit of many studies touches many pages, and most of what it writes is overtaken soon after. So a commit appends one
//! row to the journal, and every so often what has gathered goes to the tables: in their order, and part by part, so that
//! no commit has to wait for all of it. Theta is not in the journal, nor what is remembered of costs: both follow from what
//! the tables have of them and the reports in the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{
    Changes, Error,
    rows::{self, OpenRow, PastRow, PointRow, ReportRow, StateRow, StudyRow},
};
use crate::study::ClosedOutcome;

/// Steps after which what has gathered begins to go to the tables.
const FULL: usize = 1024;
/// Parts in which it goes there.
const PARTS: usize = 8;

/// Study and step.
type Key = (i64, i64);

/// The content of the journal.
#[derive(Default)]
pub(super) struct Journal {
    newer: Gathered,
    /// On its way to the tables, and the steps in a part of it. The history goes first and the rest with the last part:
    /// until then all of it is in the journal as well.
    older: Option<(Gathered, usize)>,
}

#[derive(Default)]
struct Gathered {
    states: BTreeMap<i64, StateRow>,
    passed: BTreeSet<Key>,
    open: BTreeMap<Key, OpenRow>,
    past: BTreeMap<Key, PastRow>,
    late: BTreeMap<Key, ReportRow>,
    points: Vec<PointRow>,
    /// The last row of the journal that is in it.
    last: i64,
}

/// A part of the journal that is to be written to the tables.
pub(super) struct Part {
    pub(super) changes: Changes,
    /// The last row of the journal that is not needed after that.
    pub(super) done: Option<i64>,
}

impl Journal {
    /// The row of the journal that holds `changes`; none if these must go to the tables. The architectures of a step whose
    /// opening is here as well are taken out of `changes`, and come back by [`add`](Journal::add).
    pub(super) fn entry(&self, changes: &mut Changes) -> Option<Vec<u8>> {
        let Changes { deleted, importing, imported, abandoned, studies, pruned, .. } = &*changes;
        let plain = deleted.is_empty()
            && importing.is_empty()
            && imported.is_empty()
            && abandoned.is_empty()
            && studies.is_empty()
            && pruned.is_empty();
        if !plain {
            return None;
        }
        for PastRow { step, .. } in &mut changes.past {
            if self.newer.open.contains_key(&step.key()) {
                (step.train, step.rank) = ([].into(), [].into());
            }
        }
        // Unwrap safety: rows are texts, numbers and lists of them.
        Some(rmp_serde::to_vec(changes).unwrap())
    }

    /// Reads a row of the journal, as when the controller starts.
    pub(super) fn read(&mut self, id: i64, entry: &[u8]) -> Result<(), rmp_serde::decode::Error> {
        self.add(id, rmp_serde::from_slice(entry)?);
        Ok(())
    }

    /// Gathers what has been committed to the journal, in its row `id`.
    pub(super) fn add(&mut self, id: i64, changes: Changes) {
        self.newer.add(changes);
        self.newer.last = id;
    }

    /// Returns the part to be written next; none if there is little, unless it is wanted `soon`.
    pub(super) fn part(&mut self, soon: bool) -> Option<Part> {
        let due = self.newer.steps() >= FULL || soon && !self.newer.is_empty();
        if self.older.is_none() && due {
            let older = mem::take(&mut self.newer);
            let size = older.steps().div_ceil(PARTS);
            self.older = Some((older, size));
        }
        let (older, size) = self.older.as_mut()?;
        if let Some(rest) = older.past.keys().nth(*size).copied() {
            let rest = older.past.split_off(&rest);
            let past = mem::replace(&mut older.past, rest).into_values().collect();
            return Some(Part { changes: Changes { past, ..Changes::default() }, done: None });
        }
        let (older, _) = self.older.take()?;
        Some(Part { done: Some(older.last), changes: older.into_changes() })
    }

    /// All that is to be written, in this order.
    pub(super) fn into_changes(self) -> impl Iterator<Item = Changes> {
        let older = self.older.map(|(older, _)| older);
        older.into_iter().chain([self.newer]).map(Gathered::into_changes)
    }

    /// The newer first.
    fn parts(&self) -> impl DoubleEndedIterator<Item = &Gathered> {
        [&self.newer].into_iter().chain(self.older.as_ref().map(|(older, _)| older))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts().all(Gathered::is_empty)
    }

    /// Returns the outcome of a step, if it is in the journal.
    pub(super) fn closed(&self, key: Key) -> Option<ClosedOutcome> {
        let PastRow { step, report, .. } =
            self.parts().find_map(|gathered| gathered.past.get(&key))?;
        let made = report.as_ref().and_then(|report| report.generation_made);
        Some(rows::closed(
            step.generation,
            step.applied,
            report.is_some() || self.is_late(key),
            made,
        ))
    }

    /// Returns true if a step that was closed unreported was reported after all.
    pub(super) fn is_late(&self, key: Key) -> bool {
        self.parts().any(|gathered| gathered.late.contains_key(&key))
    }

    /// A study's state and open steps, where the tables have `state` and `open`.
    pub(super) fn overlay(
        &self,
        study: i64,
        mut state: StateRow,
        mut open: Vec<OpenRow>,
    ) -> (StateRow, Vec<OpenRow>) {
        for gathered in self.parts().rev() {
            open.retain(|OpenRow { step, .. }| {
                !gathered.passed.contains(&step.key()) && !gathered.open.contains_key(&step.key())
            });
            let opened = gathered.open.range((study, i64::MIN)..=(study, i64::MAX));
            open.extend(opened.map(|(_, row)| row.clone()));
            if let Some(newer) = gathered.states.get(&study) {
                state = newer.clone();
            }
        }
        (state, open)
    }

    /// Studies whose theta has to be computed after a start.
    pub(super) fn studies(&self) -> Vec<i64> {
        self.newer.states.keys().copied().collect()
    }

    /// Computes theta of a study, and what it remembers of costs, from those in the tables and the reports here, after a
    /// start.
    pub(super) fn find_learnt(&mut self, study: &StudyRow, table: &StateRow) -> Result<(), Error> {
        let past = self.newer.past.range((study.id, i64::MIN)..=(study.id, i64::MAX));
        let learnt = rows::replay(study, table, past.map(|(_, row)| row))?;
        if let Some(state) = self.newer.states.get_mut(&study.id) {
            (state.theta, state.selection) = learnt;
        }
        Ok(())
    }
}

impl Gathered {
    fn add(&mut self, changes: Changes) {
        let Changes { states, passed, open, past, late, points, .. } = changes;
        self.points.extend(points);
        self.states.extend(states.into_iter().map(|row| (row.study, row)));
        for mut row in past {
            let key = row.step.key();
            // A step of the warm-up ranks nothing, but every step has architectures.
            if row.step.train.is_empty()
                && row.step.rank.is_empty()
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

    fn steps(&self) -> usize {
        self.past.len() + self.open.len()
    }

    fn is_empty(&self) -> bool {
        // A step does not change without its study's state.
        self.states.is_empty()
    }

    fn into_changes(self) -> Changes {
        let late = self.late.into_iter().map(|((study, step), row)| (study, step, row));
        Changes {
            states: self.states.into_values().collect(),
            passed: self.passed.into_iter().collect(),
            open: self.open.into_values().collect(),
            past: self.past.into_values().collect(),
            late: late.collect(),
            points: self.points,
            ..Changes::default()
        }
    }
}
