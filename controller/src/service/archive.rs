//! Between a study's history and archive and the wire: what ListReports, ExportStudy and ImportStudy carry.

use std::time::{Duration, SystemTime};

use asng_proto::v1;

use super::convert;
use crate::{
    asng::{self, Architecture, Value},
    study::{
        Candidate, ClosedReport, ClosedStep, Costs, Incumbent, LossBand, Pending, Point, Progress,
        Record, Selection, State, Step, StepId, StopRule, Study, StudyId, TracePoint, Violation,
        are_costs, elapsed_since,
    },
};

/// Version of the archive.
const FORMAT: u32 = 1;
/// The last second of the year 9999, after which the wire has no times.
const MAX_SECONDS: u64 = 253_402_300_799;

/// A step of the past.
pub(super) fn report(past: &ClosedStep) -> v1::Report {
    let ClosedStep { step, report } = past;
    let message = step_message(step);
    match report {
        None => message,
        Some(report) => {
            let outcome = if report.update.is_some() {
                v1::ReportOutcome::Applied
            } else {
                v1::ReportOutcome::Stale
            };
            v1::Report {
                outcome: outcome.into(),
                losses: report.losses.clone(),
                costs: report.costs.iter().cloned().map(costs_message).collect(),
                metrics: report.metrics.clone(),
                trainer_id: report.trainer.clone(),
                staleness: report.staleness,
                update: report.update.unwrap_or(0),
                report_time: Some(report.at.into()),
                ..message
            }
        }
    }
}

/// A study without its steps.
pub(super) fn archive(study: &Study, fork: bool) -> v1::StudyArchive {
    let start = study.start().to_vec();
    v1::StudyArchive {
        format: FORMAT,
        theta: study.asng().map_or_else(Vec::new, |asng| asng.state().to_bytes()),
        sampled: study.progress().sampled,
        start_time: study.started().map(Into::into),
        elapsed: study.started().and_then(|_| study.elapsed().try_into().ok()),
        start: (!start.is_empty())
            .then(|| v1::Distribution { marginals: convert::marginal_messages(start) }),
        fork,
        candidates: study.selection().candidates().iter().map(convert::candidate).collect(),
        study: Some(convert::study(study)),
    }
}

/// The steps of a study that are not in its history.
pub(super) fn open_steps(study: &Study) -> Vec<v1::OpenStep> {
    let Record { live, pending, .. } = study.record();
    let live = live
        .iter()
        .map(|step| v1::OpenStep { report: Some(step_message(step)), attempt: step.attempt });
    let pending = pending.into_iter().map(|pending| v1::OpenStep {
        report: Some(v1::Report {
            outcome: v1::ReportOutcome::Pending.into(),
            losses: pending.losses,
            costs: pending.costs.into_iter().map(costs_message).collect(),
            metrics: pending.metrics,
            trainer_id: pending.trainer,
            staleness: pending.staleness,
            report_time: Some(pending.at.into()),
            ..step_message(&pending.step)
        }),
        attempt: pending.step.attempt,
    });
    live.chain(pending).collect()
}

/// The study in an archive, as it is to be stored: PAUSED if it had not ended, its steps in nobody's hands.
pub(super) fn record(archive: v1::StudyArchive) -> Result<Record, Vec<Violation>> {
    let refuse =
        |field: &str, what: &str| vec![Violation::new(format!("part.archive.{field}"), what)];
    let v1::StudyArchive {
        format,
        study,
        theta,
        sampled,
        start_time,
        start,
        candidates,
        elapsed,
        ..
    } = archive;
    if format != FORMAT {
        let what = format!("is {format}; this release reads {FORMAT}");
        return Err(refuse("format", &what));
    }
    let study = study.ok_or_else(|| refuse("study", "is missing"))?;
    let spec = convert::spec(study.spec.clone().unwrap_or_default())?;
    let mut violations = spec.violations();
    let variables = convert::variables("part.archive.study.variables", study.variables.clone())?;
    if !variables.is_empty() {
        violations.extend(spec.variable_violations("part.archive.study.variables", &variables));
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    let described = !variables.is_empty();
    let asng = described.then(|| asng::State::from_bytes(&theta)).transpose();
    let asng = asng.map_err(|error| refuse("theta", &error.to_string()))?;
    let shapes = if described { spec.shapes(&variables)? } else { Vec::new() };
    let progress = study.progress.unwrap_or_default();
    let incumbent = study.incumbent.as_ref().map(|incumbent| {
        let architecture = incumbent.architecture.clone().unwrap_or_default();
        let values = architecture.values.iter().map(|&value| value as f64).collect();
        Some(Incumbent {
            architecture: draw(&shapes, v1::Draw { values })?,
            loss: incumbent.loss,
            step: StepId(incumbent.step_id),
            costs: incumbent.costs.clone(),
        })
    });
    let started = described.then(|| time(start_time));
    let elapsed = match elapsed {
        Some(elapsed) => {
            Duration::try_from(elapsed).map_err(|_| refuse("elapsed", "is less than 0"))?
        }
        // Earlier releases have not written it.
        None => elapsed_since(started),
    };
    let selection = Selection::new(
        candidates.into_iter().map(candidate).collect(),
        study.fronts.iter().map(front).collect(),
    );
    Ok(Record {
        id: StudyId(u64::from_str_radix(&study.study_id, 16).unwrap_or(0)),
        name: study.name.clone(),
        seed: study.seed,
        owner: study.owner.clone(),
        start: start
            .map_or(Ok(Vec::new()), |start| convert::marginals("part.archive.start", start))
            .map_err(|violation| vec![violation])?,
        created: time(study.create_time),
        state: state(&study, described),
        state_since: time(study.state_time),
        started,
        elapsed,
        variables: described.then_some(variables),
        asng,
        progress: Progress {
            generation: progress.generation,
            applied: progress.applied,
            stale: progress.stale,
            duplicate: progress.duplicate,
            diverged: progress.diverged,
            over_limit: progress.over_limit,
            expired: progress.expired,
            sampled,
        },
        incumbent: match incumbent {
            Some(None) => return Err(refuse("study.incumbent", "does not fit the variables")),
            Some(found) => found,
            None => None,
        },
        selection: selection.into(),
        live: Vec::new(),
        pending: Vec::new(),
        spec,
    })
}

/// Adds an open step that was written out to `record`; none if it does not fit `shapes`.
pub(super) fn add_open_step(
    record: &mut Record,
    shapes: &[asng::Variable],
    step: v1::OpenStep,
) -> Option<()> {
    let report = step.report?;
    let is_pending = report.outcome() == v1::ReportOutcome::Pending;
    let mut past = past(shapes, report)?;
    past.step.attempt = step.attempt;
    match past.report {
        Some(report) if is_pending => record.pending.push(Pending {
            step: past.step,
            trainer: report.trainer,
            losses: report.losses,
            costs: report.costs,
            metrics: report.metrics,
            staleness: report.staleness,
            at: report.at,
        }),
        _ => record.live.push(past.step),
    }
    Some(())
}

fn state(study: &v1::Study, described: bool) -> State {
    match (study.state(), study.stop_reason()) {
        (v1::StudyState::Finished, v1::StopReason::MaxDuration) => {
            State::Finished(StopRule::MaxDuration)
        }
        (v1::StudyState::Finished, v1::StopReason::Convergence) => {
            State::Finished(StopRule::Convergence)
        }
        (v1::StudyState::Finished, v1::StopReason::Target) => State::Finished(StopRule::Target),
        (v1::StudyState::Finished, _) => State::Finished(StopRule::MaxSteps),
        (v1::StudyState::Stopped, _) => State::Stopped,
        (v1::StudyState::Failed, _) => {
            let failure = study.failure.iter();
            State::Failed(
                failure.map(|f| Violation::new(f.field.clone(), f.description.clone())).collect(),
            )
        }
        _ if described => State::Paused,
        // Without variables there is nothing to hand out anyway.
        _ => State::Waiting,
    }
}

/// A step of the past that was written out; none if it does not fit `shapes`.
pub(super) fn past(shapes: &[asng::Variable], report: v1::Report) -> Option<ClosedStep> {
    let outcome = report.outcome();
    let draws = |draws: Vec<v1::Draw>| {
        draws.into_iter().map(|d| draw(shapes, d)).collect::<Option<Vec<Architecture>>>()
    };
    let step = Step {
        id: StepId(report.step_id),
        generation: report.generation,
        applied: report.applied,
        train: draws(report.train)?.into(),
        rank: draws(report.rank)?.into(),
        attempt: 1,
        lease: None,
    };
    if outcome == v1::ReportOutcome::Unspecified {
        return Some(ClosedStep { step, report: None });
    }
    let costs: Vec<Costs> = report.costs.into_iter().map(|costs| costs.figures).collect();
    let count = step.rank.len();
    if report.losses.len() != count
        || ![0, count].contains(&costs.len())
        || !costs.iter().all(are_costs)
    {
        return None;
    }
    let report = ClosedReport {
        trainer: report.trainer_id,
        losses: report.losses,
        costs,
        metrics: report.metrics,
        staleness: report.staleness,
        at: time(report.report_time),
        update: (outcome == v1::ReportOutcome::Applied).then_some(report.update),
    };
    Some(ClosedStep { step, report: Some(report) })
}

/// A window of a search.
pub(super) fn trace_point(point: TracePoint) -> v1::TracePoint {
    let band = |LossBand { low, median, high }| v1::LossBand { low, median, high };
    v1::TracePoint {
        applied: point.applied,
        generation: point.generation,
        time: Some(point.time.into()),
        convergence: point.convergence,
        entropy: point.entropy,
        delta: point.delta,
        signal_to_noise: point.signal_to_noise,
        losses: point.losses.map(band),
        diverged: point.diverged,
        metrics: point.metrics,
    }
}

/// A window of a search that was written out; none if it makes no sense.
pub(super) fn window(point: v1::TracePoint) -> Option<TracePoint> {
    let band = |v1::LossBand { low, median, high }| LossBand { low, median, high };
    let point = TracePoint {
        applied: point.applied,
        generation: point.generation,
        time: time(point.time),
        convergence: point.convergence,
        entropy: point.entropy,
        delta: point.delta,
        signal_to_noise: point.signal_to_noise,
        losses: point.losses.map(band),
        diverged: point.diverged,
        metrics: point.metrics,
    };
    point.is_sound().then_some(point)
}

fn costs_message(figures: Costs) -> v1::Costs {
    v1::Costs { figures }
}

fn candidate(candidate: v1::Candidate) -> Candidate {
    let v1::Candidate { architecture, costs } = candidate;
    Candidate { values: architecture.unwrap_or_default().values.into(), costs: costs.into() }
}

fn front(front: &v1::Front) -> (String, Vec<Point>) {
    let point = |point: &v1::FrontPoint| Point {
        cost: point.cost,
        loss: point.loss,
        values: point.architecture.clone().unwrap_or_default().values.into(),
        step: StepId(point.step_id),
    };
    (front.cost.clone(), front.points.iter().map(point).collect())
}

fn step_message(step: &Step) -> v1::Report {
    v1::Report {
        step_id: step.id.0,
        generation: step.generation,
        applied: step.applied,
        train: step.train.iter().map(draw_message).collect(),
        rank: step.rank.iter().map(draw_message).collect(),
        ..Default::default()
    }
}

fn draw_message(architecture: &Architecture) -> v1::Draw {
    let number = |value: &Value| match *value {
        Value::Choice(choice) => choice.into(),
        Value::Real(real) => real,
    };
    v1::Draw { values: architecture.0.iter().map(number).collect() }
}

fn draw(shapes: &[asng::Variable], draw: v1::Draw) -> Option<Architecture> {
    if draw.values.len() != shapes.len() {
        return None;
    }
    let value = |(&number, shape): (&f64, &asng::Variable)| match shape {
        asng::Variable::Integer { .. } => Value::Real(number),
        // Saturates, and then does not fit.
        asng::Variable::Categorical { .. } | asng::Variable::Fixed { .. } => {
            Value::Choice(number as u32)
        }
    };
    let architecture = Architecture(draw.values.iter().zip(shapes).map(value).collect());
    architecture.fits(shapes).then_some(architecture)
}

/// A time that was written out, to the millisecond; the beginning of 1970 if it is missing or odd.
fn time(timestamp: Option<prost_types::Timestamp>) -> SystemTime {
    let prost_types::Timestamp { seconds, nanos } = timestamp.unwrap_or_default();
    let seconds = u64::try_from(seconds).unwrap_or(0).min(MAX_SECONDS);
    let millis = u64::try_from(nanos / 1_000_000).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis)
}
