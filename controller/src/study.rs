//! A study: the state machine between the optimiser and the trainers.
//!
//! It is pure. It is told what time it is, draws from generators seeded by (study seed, step id), and says what happened
//! through [`Study::take_events`]; it knows no database, no network and no clock. ARCHITECTURE.md lists the rules it
//! keeps ("Rules of a step"); comments here cite them by number.
//!
//! | file | contents |
//! | --- | --- |
//! | `leasing` | which step a trainer gets, and when it goes back |
//! | `reporting` | what a report changes |
//! | `record` | the stored state, and its checks |
//! | `spec`, `differences` | the settings of a study, and how two differ |
//! | `costs` | limits and penalties, and the choice of the final architecture |
//! | `step`, `trainers`, `trace` | steps and leases; counters by trainer; the course of the search |

mod costs;
mod differences;
mod leasing;
mod record;
mod reporting;
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

use self::trace::TraceWindow;
pub use self::{
    costs::{
        COSTS_RULE, Candidate, CostRule, Costs, Evaluation, Point, Selection, are_costs,
        cost_name_violations, learn,
    },
    differences::{differences, summary},
    leasing::{Next, RETRY_WHEN_IDLE},
    record::{
        ClosedReport, ClosedStep, Incumbent, Pending, Progress, Record, State, StopRule,
        elapsed_since,
    },
    reporting::{ClosedOutcome, Receipt},
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
    StepClosed(Box<ClosedStep>),
    /// A step that the history has as closed was reported after all.
    ReportedLate(StepId, Box<ClosedReport>),
    /// Some time has passed that counts towards the study's limit; see [`Study::elapsed`].
    TimePassed,
    /// A window of the search has ended.
    Traced {
        /// The trace point that was completed.
        point: Box<TracePoint>,
        /// True if the trace is full with it, and has to be thinned.
        full: bool,
    },
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
    window: TraceWindow,
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
            window: TraceWindow::default(),
            trainers: RecentTrainers::default(),
            events: vec![Event::Created],
            spec,
        };
        if !study.spec.variables.is_empty() {
            study.begin(study.spec.variables.clone(), None, now)?;
        }
        Ok(study)
    }

    /// Returns the events since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.elapsed_noted = self.elapsed;
        }
        mem::take(&mut self.events)
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
        self.end_window(false);
        self.window = TraceWindow::default();
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
