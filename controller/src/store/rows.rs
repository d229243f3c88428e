//! The rows of the database, the same in every kind of it, and how studies and steps become rows and come back.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Error;
use crate::{
    asng::{self, Architecture, Asng},
    study::{
        self, ClosedOutcome, ClosedReport, ClosedStep, Costs, Evaluation, Lease, Outcome, Pending,
        Progress, Record, Selection, Spec, Step, StepId, Study, StudyId, TracePoint, Variable,
        learn,
    },
};

#[derive(Clone)]
pub(super) struct StudyRow {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) spec: String,
    pub(super) seed: i64,
    pub(super) start: String,
    pub(super) created_ms: i64,
    pub(super) variables: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StateRow {
    pub(super) study: i64,
    pub(super) state: String,
    pub(super) state_ms: i64,
    pub(super) started_ms: Option<i64>,
    /// Not in the journal.
    #[serde(skip)]
    pub(super) theta: Option<Vec<u8>>,
    pub(super) progress: String,
    pub(super) incumbent: Option<String>,
    /// None in what earlier releases have written.
    #[serde(default)]
    pub(super) elapsed_ms: Option<i64>,
    /// Not in the journal. None if it is empty.
    #[serde(skip)]
    pub(super) selection: Option<Arc<Selection>>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StepRow {
    pub(super) study: i64,
    pub(super) step: i64,
    pub(super) generation: i64,
    pub(super) applied: i64,
    pub(super) train: Arc<[Architecture]>,
    pub(super) rank: Arc<[Architecture]>,
    pub(super) attempt: i64,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct OpenRow {
    pub(super) step: StepRow,
    pub(super) trainer: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) report: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PastRow {
    pub(super) step: StepRow,
    pub(super) report: Option<ReportRow>,
    /// In the journal only, for the theta that follows from it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) dropped: bool,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ReportRow {
    pub(super) trainer: String,
    pub(super) losses: String,
    pub(super) metrics: String,
    pub(super) staleness: i64,
    pub(super) reported_ms: i64,
    pub(super) generation_made: Option<i64>,
    /// None if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) costs: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PointRow {
    pub(super) study: i64,
    pub(super) applied: i64,
    pub(super) point: String,
    /// In the journal only: whether the trace is full with this, and to be thinned.
    pub(super) full: bool,
}

/// A report that waits for its batch, as JSON.
#[derive(Serialize, Deserialize)]
struct Waiting {
    trainer: String,
    losses: Vec<Option<f64>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    costs: Vec<Costs>,
    metrics: BTreeMap<String, Option<f64>>,
    staleness: u64,
    reported_ms: i64,
}

impl StudyRow {
    pub(super) fn new(study: &Study) -> StudyRow {
        StudyRow {
            id: study.id().0.cast_signed(),
            name: study.name().into(),
            owner: study.owner().into(),
            spec: json(study.spec()),
            seed: study.seed().cast_signed(),
            start: json(study.start()),
            created_ms: to_ms(study.created()),
            variables: study.variables().map(json),
        }
    }
}

impl StateRow {
    pub(super) fn new(study: &Study) -> StateRow {
        StateRow {
            study: study.id().0.cast_signed(),
            state: json(study.state()),
            state_ms: to_ms(study.state_since()),
            started_ms: study.started().map(to_ms),
            theta: study.asng().map(|asng| asng.state().to_bytes()),
            progress: json(study.progress()),
            incumbent: study.incumbent().map(json),
            elapsed_ms: Some(to_whole_ms(study.elapsed())),
            selection: Some(study.selection()).filter(|selection| !selection.is_empty()),
        }
    }
}

impl StepRow {
    pub(super) fn key(&self) -> (i64, i64) {
        (self.study, self.step)
    }

    fn new(study: StudyId, step: &Step) -> StepRow {
        StepRow {
            study: study.0.cast_signed(),
            step: step.id.0.cast_signed(),
            generation: step.generation.cast_signed(),
            applied: step.applied.cast_signed(),
            train: step.train.clone(),
            rank: step.rank.clone(),
            attempt: step.attempt.into(),
        }
    }

    fn step(&self, lease: Option<Lease>) -> Step {
        Step {
            id: StepId(self.step.cast_unsigned()),
            generation: self.generation.cast_unsigned(),
            applied: self.applied.cast_unsigned(),
            train: self.train.clone(),
            rank: self.rank.clone(),
            attempt: u32::try_from(self.attempt).unwrap_or(u32::MAX),
            lease,
        }
    }
}

impl OpenRow {
    pub(super) fn live(study: StudyId, step: &Step) -> OpenRow {
        let lease = step.lease.as_ref();
        OpenRow {
            trainer: lease.map(|lease| lease.trainer.clone()),
            origin: lease.map(|lease| json(&lease.origin)),
            report: None,
            step: StepRow::new(study, step),
        }
    }

    pub(super) fn pending(study: StudyId, pending: &Pending) -> OpenRow {
        let finite = |number: &f64| number.is_finite().then_some(*number);
        let waiting = Waiting {
            trainer: pending.trainer.clone(),
            losses: pending.losses.iter().map(finite).collect(),
            costs: pending.costs.clone(),
            metrics: pending.metrics.iter().map(|(k, v)| (k.clone(), finite(v))).collect(),
            staleness: pending.staleness,
            reported_ms: to_ms(pending.at),
        };
        OpenRow {
            trainer: None,
            origin: None,
            report: Some(json(&waiting)),
            step: StepRow::new(study, &pending.step),
        }
    }
}

impl PastRow {
    pub(super) fn new(study: StudyId, past: &ClosedStep, dropped: bool) -> PastRow {
        let report = past.report.as_ref().map(ReportRow::new);
        PastRow { step: StepRow::new(study, &past.step), report, dropped }
    }

    /// How large it is, by its parts of any size.
    pub(super) fn bytes(&self) -> usize {
        let architectures = self.step.train.iter().chain(self.step.rank.iter());
        let values: usize = architectures.map(|architecture| architecture.0.len()).sum();
        let texts = self.report.iter().flat_map(|report| {
            [&*report.losses, &*report.metrics, report.costs.as_deref().unwrap_or("")]
        });
        size_of::<f64>() * values + texts.map(str::len).sum::<usize>()
    }

    /// Returns the outcome of the step.
    pub(super) fn closed(&self) -> ClosedOutcome {
        let made = self.report.as_ref().and_then(|report| report.generation_made);
        closed(self.step.generation, self.step.applied, self.report.is_some(), made)
    }

    pub(super) fn past(&self) -> Result<ClosedStep, Error> {
        let report =
            self.report.as_ref().map(|report| report.report(self.step.study)).transpose()?;
        Ok(ClosedStep { step: self.step.step(None), report })
    }
}

impl ReportRow {
    pub(super) fn new(report: &ClosedReport) -> ReportRow {
        ReportRow {
            trainer: report.trainer.clone(),
            losses: json(&report.losses),
            metrics: json(&report.metrics),
            staleness: report.staleness.cast_signed(),
            reported_ms: to_ms(report.at),
            generation_made: report.update.map(u64::cast_signed),
            costs: (!report.costs.is_empty()).then(|| json(&report.costs)),
        }
    }

    fn report(&self, study: i64) -> Result<ClosedReport, Error> {
        let losses: Vec<Option<f64>> = parse(study, "losses", &self.losses)?;
        let metrics: BTreeMap<String, Option<f64>> = parse(study, "metrics", &self.metrics)?;
        let costs = self.costs.as_deref().map(|costs| parse(study, "costs", costs)).transpose()?;
        Ok(ClosedReport {
            trainer: self.trainer.clone(),
            losses: losses.into_iter().map(or_nan).collect(),
            costs: costs.unwrap_or_default(),
            metrics: metrics.into_iter().map(|(name, value)| (name, or_nan(value))).collect(),
            staleness: self.staleness.cast_unsigned(),
            at: from_ms(self.reported_ms),
            update: self.generation_made.map(i64::cast_unsigned),
        })
    }
}

impl PointRow {
    pub(super) fn new(study: StudyId, point: &TracePoint, full: bool) -> PointRow {
        let (study, applied) = (study.0.cast_signed(), point.applied.cast_signed());
        PointRow { study, applied, point: json(point), full }
    }
}

/// A trace, of which a database has `points`.
pub(super) fn trace(study: StudyId, points: &[String]) -> Result<Vec<TracePoint>, Error> {
    let study = study.0.cast_signed();
    points.iter().map(|point| parse(study, "point", point)).collect()
}

/// Returns the points of a full trace after it is thinned.
pub(super) fn thinned(study: i64, points: &[String]) -> Result<Vec<PointRow>, Error> {
    let study = StudyId(study.cast_unsigned());
    let points = study::thin(trace(study, points)?);
    Ok(points.iter().map(|point| PointRow::new(study, point, false)).collect())
}

/// Returns the outcome of a step from its row in the history.
pub(super) fn closed(
    generation: i64,
    applied: i64,
    reported: bool,
    generation_made: Option<i64>,
) -> ClosedOutcome {
    let outcome = if generation_made.is_some() { Outcome::Applied } else { Outcome::Stale };
    ClosedOutcome {
        outcome: reported.then_some(outcome),
        generation: generation.cast_unsigned(),
        applied: applied.cast_unsigned(),
    }
}

/// Puts a study together. Its leases run their full time from `now`.
pub(super) fn study(
    row: StudyRow,
    state: StateRow,
    open: Vec<OpenRow>,
    now: Instant,
) -> Result<Study, Error> {
    let id = row.id;
    let damaged = |what: String| Error::Damaged { study: id, what };
    let started = state.started_ms.map(from_ms);
    let elapsed = state.elapsed_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    let mut record = Record {
        id: StudyId(id.cast_unsigned()),
        name: row.name,
        owner: row.owner,
        spec: parse(id, "spec", &row.spec)?,
        seed: row.seed.cast_unsigned(),
        start: parse(id, "start", &row.start)?,
        created: from_ms(row.created_ms),
        state: parse(id, "state", &state.state)?,
        state_since: from_ms(state.state_ms),
        started,
        elapsed: elapsed.unwrap_or_else(|| study::elapsed_since(started)),
        variables: row.variables.map(|text| parse(id, "variables", &text)).transpose()?,
        asng: state
            .theta
            .map(|bytes| asng::State::from_bytes(&bytes))
            .transpose()
            .map_err(|error| damaged(error.to_string()))?,
        progress: parse(id, "progress", &state.progress)?,
        incumbent: state.incumbent.map(|text| parse(id, "incumbent", &text)).transpose()?,
        selection: state.selection.unwrap_or_default(),
        live: Vec::new(),
        pending: Vec::new(),
    };
    let until = now + record.spec.lease();
    for row in open {
        if let Some(report) = &row.report {
            let waiting: Waiting = parse(id, "report", report)?;
            record.pending.push(Pending {
                step: row.step.step(None),
                trainer: waiting.trainer,
                losses: waiting.losses.into_iter().map(or_nan).collect(),
                costs: waiting.costs,
                metrics: waiting.metrics.into_iter().map(|(k, v)| (k, or_nan(v))).collect(),
                staleness: waiting.staleness,
                at: from_ms(waiting.reported_ms),
            });
            continue;
        }
        let origin = row.origin.as_deref().map(|text| parse(id, "origin", text)).transpose()?;
        let lease =
            row.trainer.zip(origin).map(|(trainer, origin)| Lease { trainer, origin, until });
        record.live.push(row.step.step(lease));
    }
    Study::restore(record).map_err(damaged)
}

/// Theta, and what is remembered of costs.
pub(super) type Learnt = (Option<Vec<u8>>, Option<Arc<Selection>>);

/// Rebuilds theta and the selection from the reports of `past` that were applied after `state` was saved.
pub(super) fn replay<'a>(
    row: &StudyRow,
    state: &StateRow,
    past: impl Iterator<Item = &'a PastRow>,
) -> Result<Learnt, Error> {
    let damaged = |what: String| Error::Damaged { study: row.id, what };
    let (Some(variables), Some(theta)) = (&row.variables, &state.theta) else {
        return Ok((None, None));
    };
    let spec: Spec = parse(row.id, "spec", &row.spec)?;
    let variables: Vec<Variable> = parse(row.id, "variables", variables)?;
    let known: Progress = parse(row.id, "progress", &state.progress)?;
    let shapes = spec.shapes(&variables).map_err(|found| damaged(found[0].to_string()))?;
    let asng = asng::State::from_bytes(theta)
        .and_then(|state| Asng::from_state(&shapes, spec.optimiser(), state));
    let mut asng = asng.map_err(|error| damaged(error.to_string()))?;
    let mut selection = state.selection.clone().unwrap_or_default();
    let mut batches: BTreeMap<u64, Vec<ClosedStep>> = BTreeMap::new();
    for row in past {
        let past = row.past()?;
        if let Some(update) = past.report.as_ref().and_then(|report| report.update)
            && update > known.generation
        {
            batches.entry(update).or_default().push(past);
        }
    }
    for batch in batches.values() {
        let reports = batch.iter().filter_map(|ClosedStep { step, report }| {
            let ClosedReport { losses, costs, .. } = report.as_ref()?;
            Some(Evaluation { step, losses, costs })
        });
        let reports: Vec<_> = reports.collect();
        let learnt = learn(&mut asng, &mut selection, &spec, &reports);
        learnt.map_err(|error| damaged(error.to_string()))?;
    }
    let selection = Some(selection).filter(|selection| !selection.is_empty());
    Ok((Some(asng.state().to_bytes()), selection))
}

fn is_false(value: &bool) -> bool {
    !value
}

fn or_nan(number: Option<f64>) -> f64 {
    number.unwrap_or(f64::NAN)
}

/// JSON for people who look into the database. Numbers keep all their bits; one that is not finite becomes null.
pub(super) fn json(value: &(impl Serialize + ?Sized)) -> String {
    // Unwrap safety: the types stored here have text keys and no failing serializers.
    serde_json::to_string(value).unwrap()
}

fn parse<T: DeserializeOwned>(study: i64, column: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::Damaged { study, what: format!("{column}: {error}") })
}

/// Unix time in milliseconds; a clock set before 1970 counts as 1970.
fn to_ms(time: SystemTime) -> i64 {
    to_whole_ms(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn to_whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_in_the_journal_of_an_earlier_release_has_no_elapsed_time() {
        let earlier = (1, "\"running\"", 2, Some(3), "{}", None::<String>);
        let row: StateRow = rmp_serde::from_slice(&rmp_serde::to_vec(&earlier).unwrap()).unwrap();
        assert_eq!((row.started_ms, row.elapsed_ms), (Some(3), None));
        let row = StateRow { elapsed_ms: Some(4), ..row };
        let row: StateRow = rmp_serde::from_slice(&rmp_serde::to_vec(&row).unwrap()).unwrap();
        assert_eq!(row.elapsed_ms, Some(4));
    }

    /// In MessagePack a row is an array, whose first byte says how long it is.
    #[test]
    fn what_has_no_costs_is_in_the_journal_as_before_there_were_any() {
        let report = ReportRow {
            trainer: "t".into(),
            losses: "[1.0,2.0]".into(),
            metrics: "{}".into(),
            staleness: 0,
            reported_ms: 1,
            generation_made: Some(3),
            costs: None,
        };
        let bytes = rmp_serde::to_vec(&report).unwrap();
        assert_eq!(bytes[0], 0x90 | 6);
        let read: ReportRow = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!((read.generation_made, read.costs), (Some(3), None));
        let step = StepRow {
            study: 1,
            step: 2,
            generation: 0,
            applied: 0,
            train: [].into(),
            rank: [].into(),
            attempt: 1,
        };
        let past = PastRow { step, report: Some(report), dropped: false };
        let bytes = rmp_serde::to_vec(&past).unwrap();
        assert_eq!(bytes[0], 0x90 | 2);
        let read: PastRow = rmp_serde::from_slice(&bytes).unwrap();
        assert!(!read.dropped);

        let costs = Some(r#"[{"size":1.0},{"size":2.0}]"#.to_owned());
        let report = past.report.map(|report| ReportRow { costs: costs.clone(), ..report });
        let past = PastRow { report, dropped: true, ..past };
        let read: PastRow = rmp_serde::from_slice(&rmp_serde::to_vec(&past).unwrap()).unwrap();
        assert_eq!((read.dropped, read.report.unwrap().costs), (true, costs));
    }
}
