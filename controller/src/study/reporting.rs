//! Reporting: what a report is worth, and what it changes.

use std::{collections::BTreeMap, mem};

use super::{
    ClosedReport, ClosedStep, Costs, Error, Evaluation, Event, Incumbent, Now, Outcome, Pending,
    Report, State, Step, StepId, StopRule, Study, TracePoint, Violation,
    costs::{self, RankKey},
    learn, trace,
};

/// The answer to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The outcome of the step's first report; none if the history of that step is no longer kept.
    pub outcome: Option<Outcome>,
    /// True if this report was not the first one, and so changed nothing.
    pub duplicate: bool,
    /// Generation of the study when the report arrived, minus the step's.
    pub staleness: u64,
}

/// A step that is no longer live, as the history has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedOutcome {
    /// The outcome of its report; none if it was closed unreported.
    pub outcome: Option<Outcome>,
    /// Generation it was sampled from.
    pub generation: u64,
    /// Reports that had been applied when it was sampled.
    pub applied: u64,
}

impl Study {
    /// Returns true if the outcome of step `id` is in the history rather than here.
    pub fn is_closed(&self, id: StepId) -> bool {
        (1..=self.progress.sampled).contains(&id.0)
            && !self.live.contains_key(&id)
            && !self.pending.contains_key(&id)
    }

    /// Takes a report. `closed` is what the history knows of the step, when [`is_closed`](Study::is_closed).
    pub fn report(
        &mut self,
        report: Report,
        closed: Option<ClosedOutcome>,
        now: Now,
    ) -> Result<Receipt, Error> {
        let id = report.lease.step;
        let attempts = self.live.get(&id).map_or(u32::MAX, |step| step.attempt);
        if report.lease.study != self.id || !(1..=attempts).contains(&report.lease.attempt) {
            return Err(Error::UnknownLease { step: id, lease: report.lease });
        }
        if !(1..=self.progress.sampled).contains(&id.0) {
            return Err(Error::UnknownStep(id));
        }
        let open = self.live.get(&id).or(self.pending.get(&id).map(|pending| &pending.step));
        let closed_step = || self.just_closed(id).or(closed).map(|closed| closed.applied);
        let applied = open.map(|step| step.applied).or_else(closed_step);
        let count = report.losses.len();
        // A step that the history no longer keeps can only be repeated, whatever the report says.
        let expected = applied.map_or(count, |applied| self.spec.rank_count(applied));
        if count != expected {
            let description = format!("{count} losses; the step has {expected} rank architectures");
            return Err(Error::Invalid(vec![Violation::new("losses", description)]));
        }
        let violations = costs::report_violations(&self.spec.costs, &report.costs, expected);
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        if let Some(pending) = self.pending.get(&id) {
            let staleness = pending.staleness;
            return Ok(self.repeated(&report.trainer, Some(Outcome::Pending), staleness, now));
        }
        self.end_in_time(now);
        let report = ClosedReport {
            trainer: report.trainer,
            losses: report.losses,
            costs: report.costs,
            metrics: report.metrics,
            staleness: 0,
            at: now.wall,
            update: None,
        };
        let Some(step) = self.live.remove(&id) else {
            return Ok(self.report_closed(id, closed, report, now));
        };
        let staleness = self.progress.generation - step.generation;
        if staleness > self.spec.max_staleness() {
            self.record_report(id, &report.trainer, Outcome::Stale, staleness, now);
            self.close_step(step, ClosedReport { staleness, ..report });
            return Ok(Receipt { outcome: Some(Outcome::Stale), duplicate: false, staleness });
        }
        let ClosedReport { trainer, losses, costs, metrics, at, .. } = report;
        let target = self.update_incumbent(&step, &losses, &costs, &metrics);
        let full = self.pending.len() + 1 >= self.spec.steps_per_update();
        let all_reported = self.live.is_empty()
            && self.progress.applied + self.pending.len() as u64 + 1 >= self.spec.max_steps;
        let outcome =
            if full || all_reported || target { Outcome::Applied } else { Outcome::Pending };
        self.record_report(id, &trainer, outcome, staleness, now);
        let pending = Pending { step, trainer, losses, costs, metrics, staleness, at };
        self.pending.insert(id, pending);
        if outcome == Outcome::Applied {
            self.update(now);
        }
        if all_reported {
            self.end(State::Finished(StopRule::MaxSteps), now);
        } else if target {
            self.end(State::Finished(StopRule::Target), now);
        } else if outcome == Outcome::Applied
            && self.progress.applied > self.spec.warmup_steps()
            && self.spec.convergence.is_some_and(|enough| self.convergence() >= enough)
        {
            self.end(State::Finished(StopRule::Convergence), now);
        }
        Ok(Receipt { outcome: Some(outcome), duplicate: false, staleness })
    }

    /// Takes a report of a step that the history knows, unless it no longer keeps it.
    fn report_closed(
        &mut self,
        id: StepId,
        closed: Option<ClosedOutcome>,
        report: ClosedReport,
        now: Now,
    ) -> Receipt {
        let Some(closed) = self.just_closed(id).or(closed) else {
            return self.repeated(&report.trainer, None, 0, now);
        };
        let staleness = self.progress.generation.saturating_sub(closed.generation);
        if closed.outcome.is_some() {
            return self.repeated(&report.trainer, closed.outcome, staleness, now);
        }
        self.record_report(id, &report.trainer, Outcome::Stale, staleness, now);
        let report = ClosedReport { staleness, ..report };
        self.events.push(Event::ReportedLate(id, Box::new(report)));
        Receipt { outcome: Some(Outcome::Stale), duplicate: false, staleness }
    }

    /// Returns a step that was closed unreported while a report of it was on its way: by the end of the study's time.
    fn just_closed(&self, id: StepId) -> Option<ClosedOutcome> {
        self.events.iter().find_map(|event| match event {
            Event::StepClosed(past) if past.step.id == id && past.report.is_none() => {
                let Step { generation, applied, .. } = past.step;
                Some(ClosedOutcome { outcome: None, generation, applied })
            }
            _ => None,
        })
    }

    /// Answers a report of a step whose first one was another; `outcome` is that one's.
    fn repeated(
        &mut self,
        trainer: &str,
        outcome: Option<Outcome>,
        staleness: u64,
        now: Now,
    ) -> Receipt {
        self.progress.duplicate += 1;
        self.trainers.hear(trainer, now).duplicate += 1;
        Receipt { outcome, duplicate: true, staleness }
    }

    fn record_report(
        &mut self,
        step: StepId,
        trainer: &str,
        outcome: Outcome,
        staleness: u64,
        now: Now,
    ) {
        self.trainers.hear(trainer, now).reported(outcome, staleness);
        self.progress.stale += u64::from(outcome == Outcome::Stale);
        self.events.push(Event::Reported { step, trainer: trainer.into(), outcome, staleness });
    }

    /// Closes a reported step: it goes into the history.
    fn close_step(&mut self, step: Step, mut report: ClosedReport) {
        for loss in &mut report.losses {
            if !loss.is_finite() {
                *loss = f64::NAN;
            }
        }
        let past = ClosedStep { step: Step { lease: None, ..step }, report: Some(report) };
        self.events.push(Event::StepClosed(Box::new(past)));
    }

    /// Updates the counters and the incumbent by a report that counts, and returns true if it reaches the target.
    fn update_incumbent(
        &mut self,
        step: &Step,
        losses: &[f64],
        costs: &[Costs],
        metrics: &BTreeMap<String, f64>,
    ) -> bool {
        let mut best = match &self.incumbent {
            Some(best) => RankKey::of(&self.spec, best.loss, Some(&best.costs)),
            None => RankKey::Within(f64::INFINITY),
        };
        let rank_keys = costs::rank_keys(&self.spec, losses, costs);
        for (i, rank_key) in rank_keys.enumerate() {
            match rank_key {
                RankKey::Diverged => self.progress.diverged += 1,
                RankKey::Over(_) => self.progress.over_limit += 1,
                RankKey::Within(_) if rank_key < best => {
                    best = rank_key;
                    self.incumbent = Some(Incumbent {
                        architecture: step.rank[i].clone(),
                        loss: losses[i],
                        step: step.id,
                        costs: costs.get(i).cloned().unwrap_or_default(),
                    });
                }
                RankKey::Within(_) => {}
            }
        }
        let within = costs::rank_keys(&self.spec, losses, costs).zip(losses);
        let within = within.filter(|(rank_key, _)| matches!(rank_key, RankKey::Within(_)));
        self.spec.reaches_target(within.map(|(_, loss)| *loss), metrics)
    }

    /// Applies the pending reports, in the order of their steps so that the order of arrival leaves no trace in the
    /// sums (rule 6).
    pub(super) fn update(&mut self, now: Now) {
        let batch = mem::take(&mut self.pending);
        let Some(search) = self.search.as_mut().filter(|_| !batch.is_empty()) else { return };
        let evaluations: Vec<Evaluation<'_>> = batch
            .values()
            .map(|Pending { step, losses, costs, .. }| Evaluation { step, losses, costs })
            .collect();
        // Unwrap safety: the architectures are this optimiser's own, and the losses were counted on arrival.
        learn(&mut search.asng, &mut search.selection, &self.spec, &evaluations).unwrap();
        let before = self.progress.applied;
        self.progress.generation += 1;
        self.progress.applied += batch.len() as u64;
        for Pending { losses, metrics, .. } in batch.values() {
            self.window.add(losses, metrics, now.wall);
        }
        if trace::ends_window(before, self.progress.applied) {
            self.end_window(trace::fills_trace(before, self.progress.applied));
        }
        let update = Some(self.progress.generation);
        for Pending { step, trainer, losses, costs, metrics, staleness, at } in batch.into_values()
        {
            self.close_step(
                step,
                ClosedReport { trainer, losses, costs, metrics, staleness, at, update },
            );
        }
    }

    pub(super) fn end_window(&mut self, full: bool) {
        if let Some(point) = self.current_window() {
            self.events.push(Event::Traced { point: Box::new(point), full });
        }
        self.window.end();
    }

    /// The window that has not ended; none if nothing has been applied in it, or not since this controller took the study
    /// up.
    pub fn current_window(&self) -> Option<TracePoint> {
        self.window.point(&self.progress, self.asng()?)
    }
}
