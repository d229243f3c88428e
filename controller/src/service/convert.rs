//! Between the wire's messages and the domain. What arrives may be missing or out of range: it becomes violations.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use asng_proto::v1;

use crate::{
    asng::{self, Architecture},
    studies::{Announcement, FleetTrainer, SetAside, StudyRegistry, Unserved},
    study::{
        Candidate, CostRule, Direction, Kind, NAME_RULE, NamedMarginal, Next, Now, Outcome, Point,
        Retention, Spec, Start, State, Step, StepId, StopRule, Study, StudyId, Target,
        TrainerStats, Variable, Violation, is_name,
    },
};

/// Largest number of spaces that are not served, and of studies that are set aside, in a request.
const MAX_ANNOUNCED: usize = 100;
/// Longest reason for either, in characters.
const MAX_REASON: usize = 1000;
const LENGTH_RULE: &str = "seconds must not be negative, nanos must be between 0 and 999999999";

/// The spec in a request.
pub(super) fn spec(spec: v1::StudySpec) -> Result<Spec, Vec<Violation>> {
    let mut violations = Vec::new();
    let variables = match variables("spec.variables", spec.variables) {
        Ok(variables) => variables,
        Err(found) => {
            violations.extend(found);
            Vec::new()
        }
    };
    let direction = match v1::Direction::try_from(spec.direction) {
        Ok(v1::Direction::Unspecified | v1::Direction::Minimize) => Direction::Minimize,
        Ok(v1::Direction::Maximize) => Direction::Maximize,
        Err(unknown) => {
            let description = format!("{} is not a known direction", unknown.0);
            violations.push(Violation::new("spec.direction", description));
            Direction::Minimize
        }
    };
    let settings = spec.algorithm.unwrap_or_default();
    let algorithm = match v1::Algorithm::try_from(settings.algorithm) {
        Ok(v1::Algorithm::Unspecified) => None,
        Ok(v1::Algorithm::Asng) => Some(asng::Algorithm::Asng),
        Ok(v1::Algorithm::Sng) => Some(asng::Algorithm::Sng),
        Ok(v1::Algorithm::Random) => Some(asng::Algorithm::Random),
        Err(unknown) => {
            let description = format!("{} is not a known algorithm", unknown.0);
            violations.push(Violation::new("spec.algorithm.algorithm", description));
            None
        }
    };
    let mut length = |field: &str, duration: Option<prost_types::Duration>| {
        let length = length_of(duration?);
        if length.is_none() {
            violations.push(Violation::new(format!("spec.{field}"), LENGTH_RULE));
        }
        length
    };
    let stop = spec.stop.unwrap_or_default();
    let lease = length("lease", spec.lease);
    let max_duration = length("stop.max_duration", stop.max_duration);
    let start = match spec.start.map(|start| start.from) {
        None => None,
        Some(Some(v1::start::From::Study(study))) => Some(Start::Study(study)),
        Some(Some(v1::start::From::Distribution(start))) => {
            match marginals("spec.start.distribution", start) {
                Ok(marginals) => Some(Start::Distribution(marginals)),
                Err(violation) => {
                    violations.push(violation);
                    None
                }
            }
        }
        Some(None) => {
            let description = "name a study, or give a distribution";
            violations.push(Violation::new("spec.start", description));
            None
        }
    };
    let retention = match spec.retention.map(|retention| retention.keep) {
        None => None,
        Some(Some(v1::retention::Keep::Every(every))) => Some(Retention::Every(every)),
        Some(Some(v1::retention::Keep::Last(last))) => Some(Retention::Last(last)),
        Some(None) => {
            let description = "set `every` or `last`, or leave retention out to keep all steps";
            violations.push(Violation::new("spec.retention", description));
            None
        }
    };
    if !violations.is_empty() {
        return Err(violations);
    }
    let rule = |v1::CostRule { cost, weight, limit }| CostRule { cost, weight, limit };
    Ok(Spec {
        space: spec.space,
        settings: spec.settings,
        variables,
        direction,
        algorithm,
        alpha: settings.alpha,
        delta_init: settings.delta_init,
        // Infinity is what its absence stands for.
        delta_max: settings.delta_max.filter(|delta| *delta != f64::INFINITY),
        lambda_x: settings.lambda_x,
        lambda_theta: settings.lambda_theta,
        steps_per_update: settings.steps_per_update,
        max_staleness: settings.max_staleness,
        seed: settings.seed,
        warmup_steps: settings.warmup_steps,
        max_steps: stop.max_steps,
        max_duration,
        convergence: stop.convergence,
        target: stop.target.map(|v1::Target { metric, value, at_least }| Target {
            metric,
            value,
            at_least,
        }),
        lease,
        start,
        fixed: spec.fixed,
        labels: spec.labels,
        owner: spec.owner,
        retention,
        costs: spec.costs.into_iter().map(rule).collect(),
        space_definition: spec.space_definition,
    })
}

/// The distribution in a request; `field` is where it stands in it.
pub(super) fn marginals(
    field: &str,
    distribution: v1::Distribution,
) -> Result<Vec<NamedMarginal>, Violation> {
    use v1::marginal::Kind;
    let marginals = distribution.marginals.into_iter().enumerate().map(|(i, marginal)| {
        let refused = |what: &str| Violation::new(format!("{field}.marginals[{i}]"), what);
        let finite = |number: &f64| number.is_finite();
        let converted = match marginal.kind {
            Some(Kind::Categorical(v1::CategoricalMarginal { probabilities }))
                if probabilities.iter().all(finite) =>
            {
                asng::Marginal::Categorical(probabilities)
            }
            Some(Kind::Integer(v1::IntegerMarginal { mean, deviation }))
                if finite(&mean) && finite(&deviation) =>
            {
                asng::Marginal::Integer { mean, deviation }
            }
            Some(_) => return Err(refused("has a number that is not finite")),
            None => return Err(refused("must be categorical or integer")),
        };
        Ok(NamedMarginal { name: marginal.name, marginal: converted })
    });
    marginals.collect()
}

/// The variables in a request; `field` is where they stand in it.
pub(super) fn variables(
    field: &str,
    variables: Vec<v1::Variable>,
) -> Result<Vec<Variable>, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut converted = Vec::with_capacity(variables.len());
    for (i, variable) in variables.into_iter().enumerate() {
        let kind = match variable.kind {
            Some(v1::variable::Kind::Categorical(v1::Categorical { choices })) => {
                Kind::Categorical { choices }
            }
            Some(v1::variable::Kind::Integer(v1::Integer { low, high })) => {
                Kind::Integer { low, high }
            }
            None => {
                let description = "must be categorical or integer";
                violations.push(Violation::new(format!("{field}[{i}].kind"), description));
                continue;
            }
        };
        converted.push(Variable { name: variable.name, kind });
    }
    if violations.is_empty() { Ok(converted) } else { Err(violations) }
}

/// A study as people see it.
pub(super) fn study(study: &Study) -> v1::Study {
    v1::Study {
        variables: study.variables().unwrap_or_default().iter().map(variable).collect(),
        fronts: study.selection().fronts().iter().map(front).collect(),
        spec: Some(spec_message(study.spec())),
        ..summary(study)
    }
}

/// A study as people see it in a list: without what may be large.
pub(super) fn summary(study: &Study) -> v1::Study {
    let progress = study.progress();
    v1::Study {
        name: study.name().into(),
        spec: Some(v1::StudySpec { space_definition: String::new(), ..spec_message(study.spec()) }),
        state: state(study.state()).into(),
        variables: Vec::new(),
        progress: Some(v1::Progress {
            generation: progress.generation,
            applied: progress.applied,
            pending: study.pending() as u64,
            outstanding: study.outstanding() as u64,
            stale: progress.stale,
            duplicate: progress.duplicate,
            diverged: progress.diverged,
            expired: progress.expired,
            max_steps: study.spec().max_steps,
            convergence: study.convergence(),
            over_limit: progress.over_limit,
        }),
        mode: study.mode().map(|mode| architecture(study, &mode)),
        incumbent: study.incumbent().map(|incumbent| v1::Incumbent {
            architecture: Some(architecture(study, &incumbent.architecture)),
            loss: incumbent.loss,
            step_id: incumbent.step.0,
            costs: incumbent.costs.clone(),
        }),
        failure: match study.state() {
            State::Failed(violations) => violations.iter().map(violation_message).collect(),
            _ => Vec::new(),
        },
        create_time: timestamp(study.created()),
        seed: study.seed(),
        state_time: timestamp(study.state_since()),
        study_id: study.id().to_string(),
        stop_reason: stop_reason(study.state()).into(),
        owner: study.owner().into(),
        chosen: study.chosen().as_ref().map(candidate),
        fronts: Vec::new(),
    }
}

pub(super) fn candidate(candidate: &Candidate) -> v1::Candidate {
    let Candidate { values, costs } = candidate;
    let architecture = v1::Architecture { values: values.to_vec() };
    v1::Candidate { architecture: Some(architecture), costs: (**costs).clone() }
}

fn front((cost, points): (&String, &Vec<Point>)) -> v1::Front {
    let point = |Point { cost, loss, values, step }: &Point| v1::FrontPoint {
        cost: *cost,
        loss: *loss,
        architecture: Some(v1::Architecture { values: values.to_vec() }),
        step_id: step.0,
    };
    v1::Front { cost: cost.clone(), points: points.iter().map(point).collect() }
}

/// Returns true if a study in a message has ended.
pub(super) fn has_ended(study: &v1::Study) -> bool {
    use v1::StudyState::{Failed, Finished, Stopped};
    matches!(study.state(), Finished | Stopped | Failed)
}

/// A study's distribution; none while its variables are not known.
pub(super) fn distribution(study: &Study) -> Option<v1::GetDistributionResponse> {
    let asng = study.asng()?;
    Some(v1::GetDistributionResponse {
        generation: study.progress().generation,
        marginals: marginal_messages(study.marginals()),
        delta: asng.state().snr_factor,
    })
}

pub(super) fn marginal_messages(marginals: Vec<NamedMarginal>) -> Vec<v1::Marginal> {
    use v1::marginal::Kind;
    let message = |NamedMarginal { name, marginal }| {
        let kind = match marginal {
            asng::Marginal::Categorical(probabilities) => {
                Kind::Categorical(v1::CategoricalMarginal { probabilities })
            }
            asng::Marginal::Integer { mean, deviation } => {
                Kind::Integer(v1::IntegerMarginal { mean, deviation })
            }
        };
        v1::Marginal { name, kind: Some(kind) }
    };
    marginals.into_iter().map(message).collect()
}

/// Returns the trainers that a study knows, the latest heard of first.
pub(super) fn trainers(study: &Study) -> Vec<v1::Trainer> {
    let known = study.trainers().into_iter();
    known
        .map(|(name, last_seen, stats, holds)| v1::Trainer {
            holds: holds.into_iter().map(|StepId(step)| step).collect(),
            ..trainer(name, last_seen, stats)
        })
        .collect()
}

/// Returns all trainers that this controller has heard of, the latest first.
pub(super) fn fleet(registry: &StudyRegistry, now: Now) -> Vec<v1::Trainer> {
    let stats = registry.trainer_stats();
    let message = |known: FleetTrainer<'_>| {
        let stats = stats.get(known.name).copied().unwrap_or_default();
        let mut message = trainer(known.name, known.last_seen, &stats);
        announce(&mut message, &known);
        message
    };
    registry.fleet(now).into_iter().map(message).collect()
}

/// Adds to the trainers that a study knows what they last said of themselves.
pub(super) fn add_fleet(registry: &StudyRegistry, trainers: &mut [v1::Trainer], now: Now) {
    let fleet = registry.fleet(now);
    let known: HashMap<_, _> = fleet.iter().map(|known| (known.name, known)).collect();
    for trainer in trainers {
        if let Some(known) = known.get(&*trainer.trainer_id) {
            announce(trainer, known);
        }
    }
}

fn trainer(name: &str, last_seen: SystemTime, stats: &TrainerStats) -> v1::Trainer {
    v1::Trainer {
        trainer_id: name.into(),
        last_seen: timestamp(last_seen),
        applied: stats.applied,
        stale: stats.stale,
        duplicate: stats.duplicate,
        expired: stats.expired,
        mean_staleness: stats.mean_staleness(),
        ..Default::default()
    }
}

fn announce(message: &mut v1::Trainer, known: &FleetTrainer<'_>) {
    let unserved = |Unserved { space, reason }: &Unserved| v1::UnservedSpace {
        space: space.clone(),
        reason: reason.clone(),
    };
    let set_aside = |(study, left): &(&SetAside, Option<Duration>)| v1::SetAsideStudy {
        study: study.study.clone(),
        study_id: study.id.to_string(),
        reason: study.reason.clone(),
        retry_after: left.and_then(duration),
    };
    message.spaces = known.spaces.to_vec();
    message.data_sets = known.data_sets.to_vec();
    message.unserved = known.unserved.iter().map(unserved).collect();
    message.set_aside = known.set_aside.iter().map(set_aside).collect();
    message.study = known.study.unwrap_or_default().into();
}

/// Reads what a trainer says of itself when it asks for a step; `spaces` and `data_sets` are sound. Studies set aside whose id is
/// none are left out.
pub(super) fn announcement(
    spaces: &[String],
    data_sets: &[String],
    unserved: Vec<v1::UnservedSpace>,
    set_aside: Vec<v1::SetAsideStudy>,
    violations: &mut Vec<Violation>,
) -> Announcement {
    for (field, count) in [("unserved", unserved.len()), ("set_aside", set_aside.len())] {
        if count > MAX_ANNOUNCED {
            let description = format!("{count} entries; at most {MAX_ANNOUNCED} are allowed");
            violations.push(Violation::new(field, description));
            return Announcement::default();
        }
    }
    let mut check = |here: String, named: &str, name: &str, reason: &str| {
        if !is_name(name) {
            violations.push(Violation::new(format!("{here}.{named}"), NAME_RULE));
        }
        if reason.chars().count() > MAX_REASON {
            let description = format!("must have at most {MAX_REASON} characters");
            violations.push(Violation::new(format!("{here}.reason"), description));
        }
    };
    for (i, entry) in unserved.iter().enumerate() {
        check(format!("unserved[{i}]"), "space", &entry.space, &entry.reason);
    }
    for (i, entry) in set_aside.iter().enumerate() {
        check(format!("set_aside[{i}]"), "study", &entry.study, &entry.reason);
    }
    let set_aside = set_aside.into_iter().enumerate().filter_map(|(i, entry)| {
        let retry_after = entry.retry_after.map(|after| {
            length_of(after).unwrap_or_else(|| {
                violations.push(Violation::new(format!("set_aside[{i}].retry_after"), LENGTH_RULE));
                Duration::ZERO
            })
        });
        let v1::SetAsideStudy { study, study_id, reason, .. } = entry;
        Some(SetAside { study, id: study_id.parse().ok()?, reason, retry_after })
    });
    Announcement {
        spaces: spaces.to_vec(),
        data_sets: data_sets.to_vec(),
        set_aside: set_aside.collect(),
        unserved: unserved
            .into_iter()
            .map(|v1::UnservedSpace { space, reason }| Unserved { space, reason })
            .collect(),
    }
}

/// Returns the next action of a trainer as a message. `about` is the study in question, if there is one.
pub(super) fn next(next: &Next, about: Option<&Study>) -> v1::LeaseStepResponse {
    use v1::lease_step_response::Next as Message;
    let message = match (next, about) {
        (Next::Step(id), Some(study)) => {
            study.step(*id).map(|step| Message::Step(step_message(study, step)))
        }
        (Next::Describe, Some(study)) => Some(Message::Describe(describe(study))),
        (Next::Finished, Some(about)) => {
            Some(Message::Finished(v1::StudyFinished { study: Some(study(about)) }))
        }
        (Next::NoWork(after), _) => {
            Some(Message::NoWork(v1::NoWork { retry_after: duration(*after) }))
        }
        (_, None) => None,
    };
    v1::LeaseStepResponse { next: message }
}

/// Asks for the description of a study.
pub(super) fn describe(study: &Study) -> v1::Describe {
    v1::Describe {
        study: study.name().into(),
        space: study.spec().space.clone(),
        settings: study.spec().settings.clone(),
        space_definition: study.spec().space_definition.clone(),
        direction: direction(study.spec()).into(),
        study_id: study.id().to_string(),
    }
}

/// A page token: where the page after the study of this age starts.
pub(super) fn page_token((created, id): (SystemTime, StudyId)) -> String {
    let since = created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{id}", since.as_millis())
}

/// Reads a page token.
pub(super) fn age(token: &str) -> Option<(SystemTime, StudyId)> {
    let (millis, id) = token.split_once('-')?;
    let since = Duration::from_millis(millis.parse().ok()?);
    let id = id.parse().ok()?;
    Some((SystemTime::UNIX_EPOCH.checked_add(since)?, id))
}

/// The wire's word for an outcome.
pub(super) fn outcome(outcome: Option<Outcome>) -> v1::ReportOutcome {
    match outcome {
        None => v1::ReportOutcome::Unspecified,
        Some(Outcome::Applied) => v1::ReportOutcome::Applied,
        Some(Outcome::Pending) => v1::ReportOutcome::Pending,
        Some(Outcome::Stale) => v1::ReportOutcome::Stale,
    }
}

/// A length of time that arrived; none if it is malformed. (The conversion of `prost_types` overflows for some.)
fn length_of(prost_types::Duration { seconds, nanos }: prost_types::Duration) -> Option<Duration> {
    let (seconds, nanos) = (u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

/// A length of time, as far as the wire can say it.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn step_message(study: &Study, step: &Step) -> v1::Step {
    let architectures = |all: &[Architecture]| all.iter().map(|a| architecture(study, a)).collect();
    v1::Step {
        study: study.name().into(),
        step_id: step.id.0,
        lease_id: study.lease_id(step).to_string(),
        lease: duration(study.spec().lease()),
        generation: step.generation,
        train: architectures(&step.train),
        rank: architectures(&step.rank),
        applied: step.applied,
        max_steps: study.spec().max_steps,
        study_id: study.id().to_string(),
    }
}

fn architecture(study: &Study, architecture: &Architecture) -> v1::Architecture {
    v1::Architecture { values: study.settle(architecture) }
}

/// Reads the states that studies are listed by.
pub(super) fn states(states: &[i32], violations: &mut Vec<Violation>) -> Vec<v1::StudyState> {
    let known = states.iter().enumerate().filter_map(|(i, &number)| {
        let state = v1::StudyState::try_from(number).ok();
        let state = state.filter(|state| *state != v1::StudyState::Unspecified);
        if state.is_none() {
            let description = format!("{number} is not a state of a study");
            violations.push(Violation::new(format!("states[{i}]"), description));
        }
        state
    });
    known.collect()
}

pub(super) fn state(state: &State) -> v1::StudyState {
    match state {
        State::Waiting => v1::StudyState::Waiting,
        State::Running => v1::StudyState::Running,
        State::Paused => v1::StudyState::Paused,
        State::Finished(_) => v1::StudyState::Finished,
        State::Stopped => v1::StudyState::Stopped,
        State::Failed(_) => v1::StudyState::Failed,
    }
}

fn stop_reason(state: &State) -> v1::StopReason {
    match state {
        State::Waiting | State::Running | State::Paused | State::Failed(_) => {
            v1::StopReason::Unspecified
        }
        State::Finished(StopRule::MaxSteps) => v1::StopReason::MaxSteps,
        State::Finished(StopRule::MaxDuration) => v1::StopReason::MaxDuration,
        State::Finished(StopRule::Convergence) => v1::StopReason::Convergence,
        State::Finished(StopRule::Target) => v1::StopReason::Target,
        State::Stopped => v1::StopReason::Request,
    }
}

fn direction(spec: &Spec) -> v1::Direction {
    match spec.direction {
        Direction::Minimize => v1::Direction::Minimize,
        Direction::Maximize => v1::Direction::Maximize,
    }
}

fn spec_message(spec: &Spec) -> v1::StudySpec {
    let algorithm = match spec.algorithm {
        None => v1::Algorithm::Unspecified,
        Some(asng::Algorithm::Asng) => v1::Algorithm::Asng,
        Some(asng::Algorithm::Sng) => v1::Algorithm::Sng,
        Some(asng::Algorithm::Random) => v1::Algorithm::Random,
    };
    let rule = |CostRule { cost, weight, limit }| v1::CostRule { cost, weight, limit };
    v1::StudySpec {
        space: spec.space.clone(),
        settings: spec.settings.clone(),
        variables: spec.variables.iter().map(variable).collect(),
        algorithm: Some(v1::AlgorithmSettings {
            algorithm: algorithm.into(),
            alpha: spec.alpha,
            delta_init: spec.delta_init,
            delta_max: spec.delta_max,
            lambda_x: spec.lambda_x,
            lambda_theta: spec.lambda_theta,
            steps_per_update: spec.steps_per_update,
            max_staleness: spec.max_staleness,
            seed: spec.seed,
            warmup_steps: spec.warmup_steps,
        }),
        stop: Some(v1::StopRules {
            max_steps: spec.max_steps,
            max_duration: spec.max_duration.and_then(duration),
            convergence: spec.convergence,
            target: spec.target.clone().map(|Target { metric, value, at_least }| v1::Target {
                metric,
                value,
                at_least,
            }),
        }),
        lease: spec.lease.and_then(duration),
        start: spec.start.clone().map(|start| {
            use v1::start::From;
            let from = match start {
                Start::Study(study) => From::Study(study),
                Start::Distribution(marginals) => {
                    From::Distribution(v1::Distribution { marginals: marginal_messages(marginals) })
                }
            };
            v1::Start { from: Some(from) }
        }),
        fixed: spec.fixed.clone(),
        labels: spec.labels.clone(),
        owner: spec.owner.clone(),
        retention: spec.retention.map(|retention| {
            use v1::retention::Keep;
            let keep = match retention {
                Retention::Every(every) => Keep::Every(every),
                Retention::Last(last) => Keep::Last(last),
            };
            v1::Retention { keep: Some(keep) }
        }),
        costs: spec.costs.iter().cloned().map(rule).collect(),
        space_definition: spec.space_definition.clone(),
        direction: direction(spec).into(),
    }
}

fn variable(variable: &Variable) -> v1::Variable {
    let kind = match variable.kind.clone() {
        Kind::Categorical { choices } => {
            v1::variable::Kind::Categorical(v1::Categorical { choices })
        }
        Kind::Integer { low, high } => v1::variable::Kind::Integer(v1::Integer { low, high }),
    };
    v1::Variable { name: variable.name.clone(), kind: Some(kind) }
}

fn violation_message(violation: &Violation) -> v1::FieldViolation {
    let Violation { field, description } = violation.clone();
    v1::FieldViolation { field, description }
}

fn timestamp(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}
