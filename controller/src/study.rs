//! A study: the state machine between the optimiser and the trainers.
//!
//! It is pure. It is told what time it is, draws from generators seeded by (study seed, step id), and says what happened
//! through [`Study::take_events`]; it knows no database, no network and no clock. ARCHITECTURE.md lists the rules it
//! keeps ("Rules of a step"); comments here cite them by number.

mod costs;
mod differences;
mod record;
mod spec;
mod step;
#[cfg(test)]
mod tests;
mod trace;
mod trainers;

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::{costs::Standing, trace::Stretch};
pub use self::{
    costs::{
        COSTS_RULE, Candidate, CostRule, Costs, Evaluation, Point, Selection, are_costs,
        cost_name_violations, learn,
    },
    differences::{differences, summary},
    record::{
        Incumbent, Past, PastReport, Pending, Progress, Record, State, StopRule, elapsed_since,
    },
    spec::{
        Direction, FAMILIES, Kind, LABEL_RULE, MAX_DEFINITION, NAME_RULE, NamedMarginal, Retention,
        Spec, Start, Target, Variable, Violation, is_label, is_name,
    },
    step::{
        Lease, LeaseId, NotALeaseId, NotAStudyId, Origin, Outcome, Report, Step, StepId, StudyId,
    },
    trace::{LossBand, MAX_POINTS, TracePoint, thin},
    trainers::{RecentTrainers, TrainerStats},
};
use crate::asng::{Architecture, Asng};

/// Bounds the memory of a study, whatever `steps_per_update` and `max_staleness` allow.
const MAX_LIVE_STEPS: usize = 4096;
/// Bounds the counters of a study that comes from elsewhere.
const MAX_COUNTER: u64 = 1 << 62;
/// The time after which a trainer asks again if other trainers hold every step that is allowed.
const RETRY_WHEN_BUSY: Duration = Duration::from_millis(200);
/// How much of the time that counts towards a limit may be lost when the controller is killed.
const TIME_NOTED_EVERY: Duration = Duration::from_secs(10);
/// The time after which a trainer asks again if a person has to act first.
pub const RETRY_WHEN_IDLE: Duration = Duration::from_secs(2);

/// The time, as the shell reads it: leases and time limits run on the monotonic clock, records carry the other.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations.
    pub monotonic: Instant,
    /// For people.
    pub wall: SystemTime,
}

/// The part of a study that exists once its variables are known.
#[derive(Clone, Debug)]
struct Search {
    /// Empty where the spec has them.
    described: Vec<Variable>,
    asng: Asng,
    selection: Arc<Selection>,
}

/// Something that happened to a study and has to be stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The study was created.
    Created,
    /// The study was deleted, by those who keep it.
    Deleted,
    /// The variables became known.
    Described,
    /// The state became this one.
    StateChanged(State),
    /// A new step was sampled and handed out; see [`Study::step`].
    Sampled(StepId),
    /// A step that had come back was handed out again; see [`Study::step`].
    LeasedAgain(StepId),
    /// A lease ran out.
    Expired(StepId),
    /// A trainer gave a step back.
    Released(StepId),
    /// A step's first report arrived.
    Reported {
        /// The step.
        step: StepId,
        /// The trainer that reported.
        trainer: String,
        /// The outcome of the report.
        outcome: Outcome,
        /// Generation of the study when it arrived, minus the step's.
        staleness: u64,
    },
    /// A step went into the history: its report entered an update or was stale, or it was closed unreported, since it
    /// was too old to be handed out again or the study has ended.
    Passed(Box<Past>),
    /// A step that the history has as closed was reported after all.
    ReportedLate(StepId, Box<PastReport>),
    /// Some time has passed that counts towards the study's limit; see [`Study::elapsed`].
    TimePassed,
    /// A stretch of the search has ended.
    Traced {
        /// The trace point that was completed.
        point: Box<TracePoint>,
        /// True if the trace is full with it, and has to be thinned.
        full: bool,
    },
}

/// The answer to a trainer that asks for a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The step with this number; see [`Study::step`].
    Step(StepId),
    /// Nothing now: ask again after this time.
    NoWork(Duration),
    /// A description of the space is wanted first.
    Describe,
    /// The study has ended.
    Finished,
}

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
pub struct Closed {
    /// The outcome of its report; none if it was closed unreported.
    pub outcome: Option<Outcome>,
    /// Generation it was sampled from.
    pub generation: u64,
    /// Reports that had been applied when it was sampled.
    pub applied: u64,
}

/// Why a study refuses what it is asked. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed; every fault is listed.
    #[error("invalid request: {}", .0.first().map_or_else(String::new, ToString::to_string))]
    Invalid(Vec<Violation>),
    /// No step of this number has been handed out.
    #[error("it has no step {0}")]
    UnknownStep(StepId),
    /// The lease was not given out by this study, or not for this step.
    #[error("lease {lease} is not one of its step {step}")]
    UnknownLease {
        /// The step.
        step: StepId,
        /// The lease.
        lease: LeaseId,
    },
    /// The lease ran out or was given back.
    #[error("lease {0} is no longer held; the step's report is still welcome")]
    LeaseNotHeld(LeaseId),
    /// The study's state does not allow it.
    #[error("it is {state}, which does not allow to {action} it")]
    WrongState {
        /// The requested action.
        action: &'static str,
        /// The state.
        state: &'static str,
    },
    /// Reports of it have counted, so it can be served.
    #[error("{0} of its reports counted, so it can no longer be rejected; stop it instead")]
    HasReports(u64),
    /// The study would continue beside its copy.
    #[error("it is {0} and goes on; pause it before it is exported, or ask for a fork")]
    GoesOn(&'static str),
    /// The variables are known and different.
    #[error("it has been described already, with other variables")]
    DescribedDifferently,
    /// The variables are not known yet.
    #[error("it waits for a trainer to describe its variables")]
    NotDescribed,
    /// The trainer does not know the study's space.
    #[error("it is of space {space:?}; this trainer serves: {served}")]
    OtherSpace {
        /// The study's.
        space: String,
        /// The trainer's.
        served: String,
    },
}

/// A study.
#[derive(Clone, Debug)]
pub struct Study {
    id: StudyId,
    name: String,
    spec: Spec,
    seed: u64,
    owner: String,
    start: Vec<NamedMarginal>,
    created: SystemTime,
    state: State,
    state_since: SystemTime,
    started: Option<SystemTime>,
    /// Time since the variables became known, without that in which no controller had the study.
    elapsed: Duration,
    /// Until when `elapsed` counts; none until this controller has looked at the time.
    counted_until: Option<Instant>,
    /// `elapsed` when something last happened that is stored.
    elapsed_noted: Duration,
    search: Option<Search>,
    progress: Progress,
    incumbent: Option<Incumbent>,
    live: BTreeMap<StepId, Step>,
    pending: BTreeMap<StepId, Pending>,
    stretch: Stretch,
    trainers: RecentTrainers<TrainerStats>,
    events: Vec<Event>,
}

impl Study {
    /// A new study, or what in its spec does not go together. `spec` has no violations; `id` is random; `seed` is the
    /// spec's, or random; `start` is where the spec lets theta start.
    pub fn new(
        id: StudyId,
        name: &str,
        spec: Spec,
        seed: u64,
        owner: &str,
        start: Vec<NamedMarginal>,
        now: Now,
    ) -> Result<Study, Vec<Violation>> {
        let mut study = Study {
            id,
            name: name.into(),
            seed,
            owner: owner.into(),
            start,
            created: now.wall,
            state: State::Waiting,
            state_since: now.wall,
            started: None,
            elapsed: Duration::ZERO,
            counted_until: None,
            elapsed_noted: Duration::ZERO,
            search: None,
            progress: Progress::default(),
            incumbent: None,
            live: BTreeMap::new(),
            pending: BTreeMap::new(),
            stretch: Stretch::default(),
            trainers: RecentTrainers::default(),
            events: vec![Event::Created],
            spec,
        };
        if !study.spec.variables.is_empty() {
            study.begin(study.spec.variables.clone(), None, now)?;
        }
        Ok(study)
    }

    /// The study that was stored, or what in the record makes no sense. A lease in it runs its full time again
    /// (rule 4).
    pub fn restore(record: Record) -> Result<Study, String> {
        let search = match (record.variables, record.asng) {
            (Some(variables), Some(state)) => {
                if ![&[][..], &variables].contains(&record.spec.variables.as_slice()) {
                    return Err("its variables are not those of its spec".into());
                }
                let shapes =
                    record.spec.shapes(&variables).map_err(|found| found[0].to_string())?;
                let asng = Asng::from_state(&shapes, record.spec.optimiser(), state)
                    .map_err(|error| error.to_string())?;
                let (described, selection) =
                    (record.spec.unless_given(variables), record.selection);
                Some(Search { described, asng, selection })
            }
            _ => None,
        };
        let shapes = search.as_ref().map_or(&[][..], |search| search.asng.variables());
        let pending = record.pending.iter().map(|pending| &pending.step);
        let open: Vec<&Step> = record.live.iter().chain(pending).collect();
        let architectures = open.iter().flat_map(|step| step.train.iter().chain(step.rank.iter()));
        let incumbent = record.incumbent.iter().map(|incumbent| &incumbent.architecture);
        if !architectures.chain(incumbent).all(|architecture| architecture.fits(shapes)) {
            return Err("an architecture does not fit the variables".into());
        }
        let selection = search.as_ref().map(|search| &search.selection);
        if selection.is_some_and(|selection| !selection.fits(&record.spec, shapes)) {
            return Err("what it remembers of costs does not fit it".into());
        }
        let (train, rank) =
            (record.spec.lambda_x(), |step: &Step| record.spec.rank_count(step.applied));
        let sound = |step: &Step| {
            (1..=record.progress.sampled).contains(&step.id.0)
                && step.generation <= record.progress.generation
                && (1..u32::MAX / 2).contains(&step.attempt)
                && (step.train.len(), step.rank.len()) == (train, rank(step))
        };
        let mut ids: Vec<_> = open.iter().map(|step| step.id).collect();
        ids.sort();
        ids.dedup();
        let progress = record.progress;
        let counters = [
            progress.sampled,
            progress.duplicate,
            progress.diverged,
            progress.over_limit,
            progress.expired,
        ];
        if progress.generation > progress.applied
            || progress.applied > progress.sampled.min(record.spec.max_steps)
            || progress.stale > progress.sampled
            || counters.iter().any(|counter| *counter > MAX_COUNTER)
        {
            return Err("its counters make no sense".into());
        }
        let sound_incumbent = |Incumbent { loss, costs, .. }: &Incumbent| {
            let standing = Standing::of(&record.spec, *loss, Some(costs));
            matches!(standing, Standing::Within(_)) && are_costs(costs)
        };
        if !record.incumbent.as_ref().is_none_or(sound_incumbent) {
            return Err("its incumbent has diverged or is over a limit".into());
        }
        let losses_fit = |pending: &Pending| {
            let rank = rank(&pending.step);
            pending.losses.len() == rank
                && costs::report_violations(&record.spec.costs, &pending.costs, rank).is_empty()
                && pending.costs.iter().all(are_costs)
        };
        if (search.is_none() || record.state.has_ended()) && !open.is_empty() {
            return Err("it has open steps, which its state does not allow".into());
        }
        if !open.iter().all(|step| sound(step))
            || ids.len() < open.len()
            || !record.pending.iter().all(losses_fit)
        {
            return Err("its open steps do not fit it".into());
        }
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
            stretch: Stretch::default(),
            trainers: RecentTrainers::default(),
            events: Vec::new(),
        })
    }

    /// All of it that is stored, but for its history.
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

    /// Returns the events since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.elapsed_noted = self.elapsed;
        }
        mem::take(&mut self.events)
    }

    /// Hands out a step to `trainer`, which serves `spaces`, or says why there is none. A study whose variables came
    /// with its spec may name no space, and then goes to whoever asks.
    pub fn lease(
        &mut self,
        trainer: &str,
        spaces: &[String],
        origin: &Origin,
        now: Now,
    ) -> Result<Next, Error> {
        let space = &self.spec.space;
        if self.spec.variables.is_empty() && !spaces.contains(space) {
            return Err(Error::OtherSpace { space: space.clone(), served: spaces.join(", ") });
        }
        self.trainers.hear(trainer, now);
        self.tick(now);
        let until = now.monotonic + self.spec.lease();
        match self.state {
            State::Waiting => return Ok(Next::Describe),
            State::Finished(_) | State::Stopped | State::Failed(_) => return Ok(Next::Finished),
            State::Running | State::Paused => {}
        }
        // The same request again gets the same step (rule 3).
        for step in self.live.values_mut() {
            if let Some(lease) = &mut step.lease
                && lease.trainer == trainer
                && lease.origin == *origin
            {
                lease.until = until;
                return Ok(Next::Step(step.id));
            }
        }
        if self.state == State::Paused {
            return Ok(Next::NoWork(RETRY_WHEN_IDLE));
        }
        let lease = Lease { trainer: trainer.into(), origin: origin.clone(), until };
        // A step that came back goes first, as it was sampled (rule 4).
        if let Some(step) = self.live.values_mut().find(|step| step.lease.is_none()) {
            step.attempt += 1;
            step.lease = Some(lease);
            self.events.push(Event::LeasedAgain(step.id));
            return Ok(Next::Step(step.id));
        }
        if !self.may_sample() {
            return Ok(Next::NoWork(RETRY_WHEN_BUSY));
        }
        Ok(self.sample(lease))
    }

    /// Rules 6 and 7: how many steps may be under way.
    fn may_sample(&self) -> bool {
        let under_way = self.live.len() + self.pending.len();
        let gathered = self.spec.steps_per_update() as u64 * (1 + self.spec.max_staleness());
        (under_way as u64) < gathered
            && self.live.len() < MAX_LIVE_STEPS
            && self.progress.applied + (under_way as u64) < self.spec.max_steps
    }

    fn sample(&mut self, lease: Lease) -> Next {
        let Some(search) = &self.search else { return Next::Describe };
        self.progress.sampled += 1;
        let id = StepId(self.progress.sampled);
        // Rule 1: a named generator, seeded by (study seed, step id).
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(id.0);
        let step = Step {
            id,
            generation: self.progress.generation,
            applied: self.progress.applied,
            train: search.asng.ask(self.spec.lambda_x(), &mut rng).into(),
            rank: search.asng.ask(self.spec.rank_count(self.progress.applied), &mut rng).into(),
            attempt: 1,
            lease: Some(lease),
        };
        self.live.insert(id, step);
        self.events.push(Event::Sampled(id));
        Next::Step(id)
    }

    /// Does what time asks for: puts back the steps whose lease has run out, closes those that came back and are no longer
    /// fresh (rule 5), and ends the study when its time is over.
    pub fn tick(&mut self, now: Now) {
        for step in self.live.values_mut() {
            if let Some(lease) = step.lease.take_if(|lease| lease.until <= now.monotonic) {
                // This is no sign of life.
                if let Some(trainer) = self.trainers.get_mut(&lease.trainer) {
                    trainer.expired += 1;
                }
                self.progress.expired += 1;
                self.events.push(Event::Expired(step.id));
            }
        }
        let oldest = self.progress.generation.saturating_sub(self.spec.max_staleness());
        self.close(|step| step.lease.is_none() && step.generation < oldest);
        self.end_in_time(now);
        if self.spec.max_duration.is_some()
            && self.elapsed >= self.elapsed_noted.saturating_add(TIME_NOTED_EVERY)
        {
            self.events.push(Event::TimePassed);
        }
    }

    /// Adds the time since this was last called to that which counts towards the limit.
    fn count_time(&mut self, now: Now) {
        let since = self.counted_until.replace(now.monotonic);
        if self.search.is_some()
            && !self.state.has_ended()
            && let Some(since) = since
        {
            let passed = now.monotonic.saturating_duration_since(since);
            self.elapsed = self.elapsed.saturating_add(passed);
        }
    }

    fn end_in_time(&mut self, now: Now) {
        self.count_time(now);
        if !self.state.has_ended()
            && self.search.is_some()
            && self.spec.max_duration.is_some_and(|limit| self.elapsed >= limit)
        {
            self.end(State::Finished(StopRule::MaxDuration), now);
        }
    }

    fn close(&mut self, condition: impl Fn(&Step) -> bool) {
        for (_, step) in self.live.extract_if(.., |_, step| condition(step)) {
            let past = Past { step: Step { lease: None, ..step }, report: None };
            self.events.push(Event::Passed(Box::new(past)));
        }
    }

    /// Puts back every step that `trainer` holds: the process that leased them is gone.
    pub fn forget_trainer(&mut self, trainer: &str) {
        for step in self.live.values_mut() {
            if step.lease.as_ref().is_some_and(|lease| lease.trainer == trainer) {
                step.lease = None;
                self.events.push(Event::Released(step.id));
            }
        }
    }

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
        closed: Option<Closed>,
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
        let report = PastReport {
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
            self.note_report(id, &report.trainer, Outcome::Stale, staleness, now);
            self.pass(step, PastReport { staleness, ..report });
            return Ok(Receipt { outcome: Some(Outcome::Stale), duplicate: false, staleness });
        }
        let PastReport { trainer, losses, costs, metrics, at, .. } = report;
        let target = self.judge(&step, &losses, &costs, &metrics);
        let full = self.pending.len() + 1 >= self.spec.steps_per_update();
        let all_reported = self.live.is_empty()
            && self.progress.applied + self.pending.len() as u64 + 1 >= self.spec.max_steps;
        let outcome =
            if full || all_reported || target { Outcome::Applied } else { Outcome::Pending };
        self.note_report(id, &trainer, outcome, staleness, now);
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
        closed: Option<Closed>,
        report: PastReport,
        now: Now,
    ) -> Receipt {
        let Some(closed) = self.just_closed(id).or(closed) else {
            return self.repeated(&report.trainer, None, 0, now);
        };
        let staleness = self.progress.generation.saturating_sub(closed.generation);
        if closed.outcome.is_some() {
            return self.repeated(&report.trainer, closed.outcome, staleness, now);
        }
        self.note_report(id, &report.trainer, Outcome::Stale, staleness, now);
        let report = PastReport { staleness, ..report };
        self.events.push(Event::ReportedLate(id, Box::new(report)));
        Receipt { outcome: Some(Outcome::Stale), duplicate: false, staleness }
    }

    /// Returns a step that was closed unreported while a report of it was on its way: by the end of the study's time.
    fn just_closed(&self, id: StepId) -> Option<Closed> {
        self.events.iter().find_map(|event| match event {
            Event::Passed(past) if past.step.id == id && past.report.is_none() => {
                let Step { generation, applied, .. } = past.step;
                Some(Closed { outcome: None, generation, applied })
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

    fn note_report(
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

    /// Lets a reported step go into the history.
    fn pass(&mut self, step: Step, mut report: PastReport) {
        for loss in &mut report.losses {
            if !loss.is_finite() {
                *loss = f64::NAN;
            }
        }
        let past = Past { step: Step { lease: None, ..step }, report: Some(report) };
        self.events.push(Event::Passed(Box::new(past)));
    }

    /// Looks at a report that counts: for the counters, for the incumbent, and whether it reaches the target.
    fn judge(
        &mut self,
        step: &Step,
        losses: &[f64],
        costs: &[Costs],
        metrics: &BTreeMap<String, f64>,
    ) -> bool {
        let mut best = match &self.incumbent {
            Some(best) => Standing::of(&self.spec, best.loss, Some(&best.costs)),
            None => Standing::Within(f64::INFINITY),
        };
        let standings = costs::standings(&self.spec, losses, costs);
        for (i, standing) in standings.enumerate() {
            match standing {
                Standing::Diverged => self.progress.diverged += 1,
                Standing::Over(_) => self.progress.over_limit += 1,
                Standing::Within(_) if standing < best => {
                    best = standing;
                    self.incumbent = Some(Incumbent {
                        architecture: step.rank[i].clone(),
                        loss: losses[i],
                        step: step.id,
                        costs: costs.get(i).cloned().unwrap_or_default(),
                    });
                }
                Standing::Within(_) => {}
            }
        }
        let within = costs::standings(&self.spec, losses, costs).zip(losses);
        let within = within.filter(|(standing, _)| matches!(standing, Standing::Within(_)));
        self.spec.reaches_target(within.map(|(_, loss)| *loss), metrics)
    }

    /// Applies the pending reports, in the order of their steps so that the order of arrival leaves no trace in the
    /// sums (rule 6).
    fn update(&mut self, now: Now) {
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
            self.stretch.add(losses, metrics, now.wall);
        }
        if trace::ends_stretch(before, self.progress.applied) {
            self.end_stretch(trace::fills_trace(before, self.progress.applied));
        }
        let update = Some(self.progress.generation);
        for Pending { step, trainer, losses, costs, metrics, staleness, at } in batch.into_values()
        {
            self.pass(step, PastReport { trainer, losses, costs, metrics, staleness, at, update });
        }
    }

    fn end_stretch(&mut self, full: bool) {
        if let Some(point) = self.stretch_so_far() {
            self.events.push(Event::Traced { point: Box::new(point), full });
        }
        self.stretch.end();
    }

    /// The stretch that has not ended; none if nothing has been applied in it, or not since this controller took the study
    /// up.
    pub fn stretch_so_far(&self) -> Option<TracePoint> {
        self.stretch.point(&self.progress, self.asng()?)
    }

    /// Starts the time of a lease anew.
    pub fn extend(&mut self, id: LeaseId, now: Now) -> Result<Duration, Error> {
        self.tick(now);
        let duration = self.spec.lease();
        let lease = self.held(id)?.ok_or(Error::LeaseNotHeld(id))?;
        lease.until = now.monotonic + duration;
        if let Some(lease) = self.live.get(&id.step).and_then(|step| step.lease.as_ref()) {
            self.trainers.hear(&lease.trainer, now);
        }
        Ok(duration)
    }

    /// Takes a step back unreported.
    pub fn release(&mut self, id: LeaseId, now: Now) -> Result<(), Error> {
        if self.held(id)?.is_some()
            && let Some(step) = self.live.get_mut(&id.step)
        {
            if let Some(lease) = step.lease.take() {
                self.trainers.hear(&lease.trainer, now);
            }
            self.events.push(Event::Released(id.step));
            self.tick(now);
        }
        Ok(())
    }

    /// Returns the trainer that holds the lease `id`; none if nobody does any more.
    pub fn holder(&self, id: LeaseId) -> Option<&str> {
        let step = self.live.get(&id.step).filter(|step| self.lease_id(step) == id)?;
        step.lease.as_ref().map(|lease| &*lease.trainer)
    }

    /// Returns whether `trainer` holds step `id`, unreported.
    pub fn is_held_by(&self, trainer: &str, id: StepId, now: Now) -> bool {
        let lease = self.live.get(&id).and_then(|step| step.lease.as_ref());
        lease.is_some_and(|lease| lease.trainer == trainer && lease.until > now.monotonic)
    }

    /// The lease `id`, if it is still held.
    fn held(&mut self, id: LeaseId) -> Result<Option<&mut Lease>, Error> {
        if id.study != self.id {
            return Err(Error::UnknownLease { step: id.step, lease: id });
        }
        if !(1..=self.progress.sampled).contains(&id.step.0) {
            return Err(Error::UnknownStep(id.step));
        }
        let step = self.live.get_mut(&id.step).filter(|step| step.attempt == id.attempt);
        Ok(step.and_then(|step| step.lease.as_mut()))
    }

    /// Learns what the study's variables are, and which costs are reported of every architecture, if that is known. The first
    /// description wins.
    pub fn describe(
        &mut self,
        variables: Vec<Variable>,
        costs: Option<&[String]>,
        now: Now,
    ) -> Result<(), Error> {
        match (&self.state, &self.search) {
            (State::Failed(_), _) => Err(self.wrong_state("describe")),
            (_, Some(_)) if self.variables() == Some(&variables) => Ok(()),
            (_, Some(_)) => Err(Error::DescribedDifferently),
            (State::Waiting, None) => {
                let violations = self.spec.variable_violations("description.variables", &variables);
                if !violations.is_empty() {
                    return Err(Error::Invalid(violations));
                }
                // The creator's spec does not fit the space, which is no fault of the trainer.
                if let Err(violations) = self.begin(variables, costs, now) {
                    self.change_state(State::Failed(violations), now);
                }
                Ok(())
            }
            (_, None) => Err(self.wrong_state("describe")),
        }
    }

    fn begin(
        &mut self,
        variables: Vec<Variable>,
        costs: Option<&[String]>,
        now: Now,
    ) -> Result<(), Vec<Violation>> {
        let mut violations =
            costs.map_or_else(Vec::new, |costs| costs::unreported(&self.spec.costs, costs));
        let shapes = match self.spec.shapes(&variables) {
            Ok(shapes) => shapes,
            Err(found) => {
                violations.extend(found);
                return Err(violations);
            }
        };
        // Unwrap safety: `violations` and `variable_violations` have made a trial of it, `shapes` left one free.
        let mut asng = Asng::new(&shapes, self.spec.optimiser()).unwrap();
        for NamedMarginal { name, marginal } in &self.start {
            let place = variables.iter().position(|variable| variable.name == *name);
            let started = match place {
                Some(place) => asng.start_at(place, marginal),
                None => Err("the study has no variable of this name".into()),
            };
            if let Err(description) = started {
                violations.push(Violation::new(format!("spec.start[{name:?}]"), description));
            }
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        let described = self.spec.unless_given(variables);
        self.search = Some(Search { described, asng, selection: Arc::default() });
        self.started = Some(now.wall);
        self.counted_until = Some(now.monotonic);
        self.events.push(Event::Described);
        self.change_state(State::Running, now);
        Ok(())
    }

    /// Takes a trainer's word that the study cannot be served: its settings, or the variables that came with its spec, as
    /// long as no report has counted.
    pub fn reject(&mut self, violations: Vec<Violation>, now: Now) -> Result<(), Error> {
        match self.state {
            State::Waiting => {}
            State::Running | State::Paused if !self.spec.variables.is_empty() => {
                let counted = self.progress.applied + self.pending.len() as u64;
                if counted > 0 {
                    return Err(Error::HasReports(counted));
                }
            }
            _ => return Err(self.wrong_state("reject")),
        }
        self.end(State::Failed(violations), now);
        Ok(())
    }

    /// Stops handing out steps.
    pub fn pause(&mut self, now: Now) -> Result<(), Error> {
        self.toggle("pause", State::Running, State::Paused, now)
    }

    /// Hands out steps again.
    pub fn resume(&mut self, now: Now) -> Result<(), Error> {
        self.toggle("resume", State::Paused, State::Running, now)
    }

    fn toggle(
        &mut self,
        action: &'static str,
        from: State,
        to: State,
        now: Now,
    ) -> Result<(), Error> {
        if self.state == from {
            self.change_state(to, now);
        } else if self.state != to {
            return Err(self.wrong_state(action));
        }
        Ok(())
    }

    /// Ends the study early and for good.
    pub fn stop(&mut self, now: Now) {
        if !self.state.has_ended() {
            self.end(State::Stopped, now);
        }
    }

    /// Ends the study: pending reports are applied (rule 7), outstanding steps are closed.
    fn end(&mut self, state: State, now: Now) {
        self.update(now);
        self.end_stretch(false);
        self.stretch = Stretch::default();
        self.close(|_| true);
        self.change_state(state, now);
    }

    fn change_state(&mut self, state: State, now: Now) {
        self.state = state.clone();
        self.state_since = now.wall;
        self.events.push(Event::StateChanged(state));
    }

    fn wrong_state(&self, action: &'static str) -> Error {
        Error::WrongState { action, state: self.state.name() }
    }

    /// The wire's form of an architecture: what the network is built from.
    pub fn settle(&self, architecture: &Architecture) -> Vec<i64> {
        self.asng().map_or_else(Vec::new, |asng| architecture.settled(asng.variables()))
    }

    /// The most likely architecture, once the variables are known.
    pub fn mode(&self) -> Option<Architecture> {
        self.search.as_ref().map(|search| search.asng.mode())
    }

    /// Returns the current best guess at the final architecture: the mode, or what is chosen in its place where a limit is not known to be
    /// kept by it.
    pub fn chosen(&self) -> Option<Candidate> {
        let Search { asng, selection, .. } = self.search.as_ref()?;
        selection.chosen(asng, &self.spec.costs)
    }

    /// Returns the evaluated architectures that are kept for their costs.
    pub fn selection(&self) -> Arc<Selection> {
        self.search.as_ref().map_or_else(Arc::default, |search| search.selection.clone())
    }

    /// The distribution, variable by variable; empty while the variables are not known.
    pub fn marginals(&self) -> Vec<NamedMarginal> {
        let (Some(asng), Some(variables)) = (self.asng(), self.variables()) else {
            return Vec::new();
        };
        let names = variables.iter().map(|variable| variable.name.clone());
        let named = names.zip(asng.marginals());
        named.map(|(name, marginal)| NamedMarginal { name, marginal }).collect()
    }

    /// The optimiser, once the variables are known.
    pub fn asng(&self) -> Option<&Asng> {
        self.search.as_ref().map(|search| &search.asng)
    }

    /// The variables, once they are known.
    pub fn variables(&self) -> Option<&[Variable]> {
        let search = self.search.as_ref()?;
        let given = &self.spec.variables;
        Some(if given.is_empty() { &search.described } else { given })
    }

    /// Convergence of theta, from 0 to 1; 0 while the variables are not known.
    pub fn convergence(&self) -> f64 {
        self.asng().map_or(0.0, Asng::convergence)
    }

    /// Errors if the study would continue beside its copy.
    pub fn goes_on(&self) -> Result<(), Error> {
        match self.state {
            State::Waiting | State::Running => Err(Error::GoesOn(self.state.name())),
            _ => Ok(()),
        }
    }

    /// A report that waits for its batch.
    pub fn pending_step(&self, id: StepId) -> Option<&Pending> {
        self.pending.get(&id)
    }

    /// A live step.
    pub fn step(&self, id: StepId) -> Option<&Step> {
        self.live.get(&id)
    }

    /// Id of the lease under which a live step was last handed out.
    pub fn lease_id(&self, step: &Step) -> LeaseId {
        LeaseId { study: self.id, step: step.id, attempt: step.attempt }
    }

    /// Steps handed out, or to be handed out again.
    pub fn outstanding(&self) -> usize {
        self.live.len()
    }

    /// Returns the trainers that have worked on it since this controller took it up, the latest heard of first: name, last
    /// sign of life, counters, and the steps that each holds.
    pub fn trainers(&self) -> Vec<(&str, SystemTime, &TrainerStats, Vec<StepId>)> {
        let mut holds: BTreeMap<&str, Vec<StepId>> = BTreeMap::new();
        for step in self.live.values() {
            if let Some(lease) = &step.lease {
                holds.entry(&lease.trainer).or_default().push(step.id);
            }
        }
        let mut holds = |name| holds.remove(name).unwrap_or_default();
        let known = self.trainers.latest_first().into_iter();
        known.map(|(name, seen, stats)| (name, seen, stats, holds(name))).collect()
    }

    /// Returns the counters of the trainers that have worked on it since this controller took it up, by their names.
    pub fn trainer_stats(&self) -> impl Iterator<Item = (&str, &TrainerStats)> {
        self.trainers.iter().map(|(name, _, stats)| (name, stats))
    }

    /// Time since the oldest lease that is held was given or extended.
    pub fn oldest_lease_age(&self, now: Now) -> Option<Duration> {
        let leases = self.live.values().filter_map(|step| step.lease.as_ref());
        let until = leases.map(|lease| lease.until).min()?;
        Some((now.monotonic + self.spec.lease()).saturating_duration_since(until))
    }

    /// Reports that wait for their batch.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Which study: a name may be used again after a deletion, this is not.
    pub fn id(&self) -> StudyId {
        self.id
    }

    /// Orders studies by their creation.
    pub fn age(&self) -> (SystemTime, StudyId) {
        (self.created, self.id)
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The spec as submitted.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Where theta was to start, or is to start once the variables are known.
    pub fn start(&self) -> &[NamedMarginal] {
        &self.start
    }

    /// Returns the time at which its variables became known.
    pub fn started(&self) -> Option<SystemTime> {
        self.started
    }

    /// Time since its variables became known, pauses included, without that in which no controller had it: what counts
    /// towards `max_duration`.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the time of its creation.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// State.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the time of the last change of state.
    pub fn state_since(&self) -> SystemTime {
        self.state_since
    }

    /// Counters.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Best so far.
    pub fn incumbent(&self) -> Option<&Incumbent> {
        self.incumbent.as_ref()
    }
}
