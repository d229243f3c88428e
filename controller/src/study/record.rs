//! The stored state of a study, without its history.

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    Costs, NamedMarginal, RecentTrainers, Search, Selection, Spec, Step, StepId, Study, StudyId,
    Variable, Violation, are_costs,
    costs::{self, RankKey},
    trace::TraceWindow,
};
use crate::asng::{self, Architecture, Asng};

/// All of a study that a database keeps, but for its history.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which study.
    pub id: StudyId,
    /// Name.
    pub name: String,
    /// As submitted.
    pub spec: Spec,
    /// In use.
    pub seed: u64,
    /// Whose it is.
    pub owner: String,
    /// Where theta is to start, once the variables are known.
    pub start: Vec<NamedMarginal>,
    /// The time of its creation.
    pub created: SystemTime,
    /// State.
    pub state: State,
    /// The time of the last change of state.
    pub state_since: SystemTime,
    /// The time at which the variables became known.
    pub started: Option<SystemTime>,
    /// Time since then in which a controller had it.
    pub elapsed: Duration,
    /// The variables, once known.
    pub variables: Option<Vec<Variable>>,
    /// Theta and its companions, once the variables are known.
    pub asng: Option<asng::State>,
    /// Counters.
    pub progress: Progress,
    /// Best so far.
    pub incumbent: Option<Incumbent>,
    /// The evaluated architectures that are kept for their costs.
    pub selection: Arc<Selection>,
    /// Steps handed out, or to be handed out again.
    pub live: Vec<Step>,
    /// Reports that wait for their batch.
    pub pending: Vec<Pending>,
}

/// Bounds the counters of a study that comes from elsewhere.
const MAX_COUNTER: u64 = 1 << 62;

impl Study {
    /// Returns the study that was stored. Errors with the first thing in the record that makes no sense. A lease in it runs its full
    /// time again (rule 4).
    pub fn restore(mut record: Record) -> Result<Study, String> {
        let search = record.take_search()?;
        record.check(search.as_ref())?;
        Ok(Study {
            id: record.id,
            name: record.name,
            spec: record.spec,
            seed: record.seed,
            owner: record.owner,
            start: record.start,
            created: record.created,
            state: record.state,
            state_since: record.state_since,
            started: record.started,
            elapsed: record.elapsed,
            counted_until: None,
            elapsed_noted: record.elapsed,
            search,
            progress: record.progress,
            incumbent: record.incumbent,
            live: record.live.into_iter().map(|step| (step.id, step)).collect(),
            pending: record.pending.into_iter().map(|pending| (pending.step.id, pending)).collect(),
            window: TraceWindow::default(),
            trainers: RecentTrainers::default(),
            events: Vec::new(),
        })
    }

    /// Returns all of it that is stored, without its history.
    pub fn record(&self) -> Record {
        Record {
            id: self.id,
            name: self.name.clone(),
            spec: self.spec.clone(),
            seed: self.seed,
            owner: self.owner.clone(),
            start: self.start.clone(),
            created: self.created,
            state: self.state.clone(),
            state_since: self.state_since,
            started: self.started,
            elapsed: self.elapsed,
            variables: self.variables().map(<[Variable]>::to_vec),
            asng: self.asng().map(|asng| asng.state().clone()),
            progress: self.progress,
            incumbent: self.incumbent.clone(),
            selection: self.selection(),
            live: self.live.values().cloned().collect(),
            pending: self.pending.values().cloned().collect(),
        }
    }
}

impl Record {
    /// Takes the variables, the optimiser and the selection out of the record; none if the variables are not known.
    fn take_search(&mut self) -> Result<Option<Search>, String> {
        let (Some(variables), Some(state)) = (self.variables.take(), self.asng.take()) else {
            return Ok(None);
        };
        if ![&[][..], &variables].contains(&self.spec.variables.as_slice()) {
            return Err("its variables are not those of its spec".into());
        }
        let shapes = self.spec.shapes(&variables).map_err(|found| found[0].to_string())?;
        let asng = Asng::from_state(&shapes, self.spec.optimiser(), state)
            .map_err(|error| error.to_string())?;
        let described = self.spec.unless_given(variables);
        Ok(Some(Search { described, asng, selection: mem::take(&mut self.selection) }))
    }

    /// Errors if the record contradicts itself. `search` was taken out of it.
    fn check(&self, search: Option<&Search>) -> Result<(), String> {
        let shapes = search.map_or(&[][..], |search| search.asng.variables());
        let pending = self.pending.iter().map(|pending| &pending.step);
        let open: Vec<&Step> = self.live.iter().chain(pending).collect();
        let architectures = open.iter().flat_map(|step| step.train.iter().chain(step.rank.iter()));
        let incumbent = self.incumbent.iter().map(|incumbent| &incumbent.architecture);
        if !architectures.chain(incumbent).all(|architecture| architecture.fits(shapes)) {
            return Err("an architecture does not fit the variables".into());
        }
        let selection = search.map(|search| &search.selection);
        if selection.is_some_and(|selection| !selection.fits(&self.spec, shapes)) {
            return Err("what it remembers of costs does not fit it".into());
        }
        let (train, rank) =
            (self.spec.lambda_x(), |step: &Step| self.spec.rank_count(step.applied));
        let sound = |step: &Step| {
            (1..=self.progress.sampled).contains(&step.id.0)
                && step.generation <= self.progress.generation
                && (1..u32::MAX / 2).contains(&step.attempt)
                && (step.train.len(), step.rank.len()) == (train, rank(step))
        };
        let mut ids: Vec<_> = open.iter().map(|step| step.id).collect();
        ids.sort();
        ids.dedup();
        let progress = self.progress;
        let counters = [
            progress.sampled,
            progress.duplicate,
            progress.diverged,
            progress.over_limit,
            progress.expired,
        ];
        if progress.generation > progress.applied
            || progress.applied > progress.sampled.min(self.spec.max_steps)
            || progress.stale > progress.sampled
            || counters.iter().any(|counter| *counter > MAX_COUNTER)
        {
            return Err("its counters make no sense".into());
        }
        let sound_incumbent = |Incumbent { loss, costs, .. }: &Incumbent| {
            let rank_key = RankKey::of(&self.spec, *loss, Some(costs));
            matches!(rank_key, RankKey::Within(_)) && are_costs(costs)
        };
        if !self.incumbent.as_ref().is_none_or(sound_incumbent) {
            return Err("its incumbent has diverged or is over a limit".into());
        }
        let losses_fit = |pending: &Pending| {
            let rank = rank(&pending.step);
            pending.losses.len() == rank
                && costs::report_violations(&self.spec.costs, &pending.costs, rank).is_empty()
                && pending.costs.iter().all(are_costs)
        };
        if (search.is_none() || self.state.has_ended()) && !open.is_empty() {
            return Err("it has open steps, which its state does not allow".into());
        }
        if !open.iter().all(|step| sound(step))
            || ids.len() < open.len()
            || !self.pending.iter().all(losses_fit)
        {
            return Err("its open steps do not fit it".into());
        }
        Ok(())
    }
}

/// Elapsed time of a study that was stored without it, by the wall clock: the best that is known.
pub fn elapsed_since(started: Option<SystemTime>) -> Duration {
    started.and_then(|started| started.elapsed().ok()).unwrap_or_default()
}

/// Where a study is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for a trainer to describe its variables.
    Waiting,
    /// Hands out steps.
    Running,
    /// Hands out nothing; reports count.
    Paused,
    /// A stop rule held.
    Finished(StopRule),
    /// Ended by a person.
    Stopped,
    /// A trainer rejected its settings.
    Failed(Vec<Violation>),
}

impl State {
    /// Returns true if the study has ended for good.
    pub fn has_ended(&self) -> bool {
        matches!(self, State::Finished(_) | State::Stopped | State::Failed(_))
    }

    /// One word for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "WAITING",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Finished(_) => "FINISHED",
            State::Stopped => "STOPPED",
            State::Failed(_) => "FAILED",
        }
    }
}

/// A rule that can finish a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRule {
    /// Reports applied.
    MaxSteps,
    /// Time since the variables became known in which a controller had the study.
    MaxDuration,
    /// Convergence of theta.
    Convergence,
    /// A figure of a report.
    Target,
}

/// Counters that are stored with the study.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Batches of reports applied to theta, also those that left it where it was.
    pub generation: u64,
    /// Reports that entered an update.
    pub applied: u64,
    /// Reports that came too late.
    pub stale: u64,
    /// Repeated reports of a step already reported.
    pub duplicate: u64,
    /// Losses that were not finite, in reports that counted.
    pub diverged: u64,
    /// Architectures over a limit, with finite losses, in reports that counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over_limit: u64,
    /// Leases that ran out.
    pub expired: u64,
    /// Steps sampled so far; the next one has this number plus 1.
    pub sampled: u64,
}

fn is_zero(counter: &u64) -> bool {
    *counter == 0
}

/// The best architecture evaluated so far, of those within the limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incumbent {
    /// The evaluated architecture.
    pub architecture: Architecture,
    /// The best finite loss reported; where costs have weights, that of what ranks first by both.
    pub loss: f64,
    /// The step whose report carried it.
    pub step: StepId,
    /// The costs reported with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub costs: Costs,
}

/// A report that waits for its batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The step.
    pub step: Step,
    /// The trainer that reported.
    pub trainer: String,
    /// Losses of the step's `rank` architectures.
    pub losses: Vec<f64>,
    /// Their costs; empty for none.
    pub costs: Vec<Costs>,
    /// Further figures.
    pub metrics: BTreeMap<String, f64>,
    /// Generation of the study when it arrived, minus the step's.
    pub staleness: u64,
    /// The time of its arrival.
    pub at: SystemTime,
}

/// A step of the past, as the history keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedStep {
    /// The step; nobody holds it.
    pub step: Step,
    /// Its report; none if it was closed unreported.
    pub report: Option<ClosedReport>,
}

/// A report of the past.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedReport {
    /// The trainer that reported.
    pub trainer: String,
    /// Losses of the step's `rank` architectures; NaN for whatever was not finite.
    pub losses: Vec<f64>,
    /// Their costs; empty for none.
    pub costs: Vec<Costs>,
    /// Further figures.
    pub metrics: BTreeMap<String, f64>,
    /// Generation of the study when it arrived, minus the step's.
    pub staleness: u64,
    /// The time of its arrival.
    pub at: SystemTime,
    /// The generation that its update made; none if it was stale.
    pub update: Option<u64>,
}
