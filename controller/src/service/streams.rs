//! The calls that stream: following a study, writing it out, and taking it in.

use std::{collections::BTreeSet, time::Duration};

use asng_proto::v1::{self, study_part::Part};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Caller, archive, convert,
    status::{invalid, status},
};
use crate::{
    asng,
    store::PageStart,
    studies::{Error, StudyRegistry},
    study::{
        ClosedStep, MAX_POINTS, NAME_RULE, Record, StepId, StudyId, TracePoint, Violation,
        is_label, is_name,
    },
};

/// Least time between two messages about a study that is followed.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Steps in a part of a study that is written out.
const STEPS_PER_PART: usize = 500;
/// Points of a trace in a part.
const POINTS_PER_PART: usize = 100;

type Messages<T> = ReceiverStream<Result<T, Status>>;

/// Follows a study until it has ended or nobody listens.
pub(super) async fn watch(
    caller: Caller,
    name: String,
) -> Result<Messages<v1::WatchStudyResponse>, Status> {
    let (sender, receiver) = mpsc::channel(1);
    let (changed, study) = see(&caller, &name).await?;
    tokio::spawn(follow(caller, name, changed, study, sender));
    Ok(ReceiverStream::new(receiver))
}

/// A study, and what tells of changes that come after.
async fn see(caller: &Caller, name: &str) -> Result<(watch::Receiver<()>, v1::Study), Status> {
    let name = name.to_owned();
    caller
        .run(move |registry, _| Ok((registry.watch(&name)?, convert::study(registry.get(&name)?))))
        .await
}

async fn follow(
    caller: Caller,
    name: String,
    mut changed: watch::Receiver<()>,
    mut study: v1::Study,
    sender: mpsc::Sender<Result<v1::WatchStudyResponse, Status>>,
) {
    let id = study.study_id.clone();
    loop {
        let ended = convert::has_ended(&study);
        let response = v1::WatchStudyResponse { study: Some(study) };
        if sender.send(Ok(response)).await.is_err() || ended {
            return;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
        tokio::select! {
            // An error means that the study is gone, which is seen below.
            _ = changed.changed() => {}
            () = sender.closed() => return,
            () = caller.api.closed() => {
                let _ = sender.send(Err(status(&Error::ShuttingDown))).await;
                return;
            }
        }
        study = match see(&caller, &name).await {
            Ok((_, study)) if study.study_id == id => study,
            Ok(_) => {
                let _ = sender.send(Err(status(&Error::UnknownStudy(name)))).await;
                return;
            }
            Err(status) => {
                let _ = sender.send(Err(status)).await;
                return;
            }
        };
    }
}

/// Writes a study out, as it is at this moment.
pub(super) async fn export(
    caller: Caller,
    name: String,
    fork: bool,
) -> Result<Messages<v1::ExportStudyResponse>, Status> {
    let (id, archive, open_steps, now) = caller
        .run(move |registry, _| {
            let study = registry.get(&name)?;
            if !fork {
                let refused = |source| Error::Refused { name: name.clone(), source };
                study.goes_on().map_err(|error| refused(error.into()))?;
            }
            let (archive, open) = (archive::archive(study, fork), archive::open_steps(study));
            Ok((study.id(), archive, open, study.current_window()))
        })
        .await?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        if let Err(Stopped::Failed(status)) =
            write_parts(&caller, id, archive, open_steps, now, &sender).await
        {
            let _ = sender.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Why writing out ended early.
enum Stopped {
    Failed(Status),
    NobodyListens,
}

async fn write_parts(
    caller: &Caller,
    id: StudyId,
    archive: v1::StudyArchive,
    open_steps: Vec<v1::OpenStep>,
    now: Option<TracePoint>,
    sender: &mpsc::Sender<Result<v1::ExportStudyResponse, Status>>,
) -> Result<(), Stopped> {
    let send = async |part| {
        let part = Some(v1::StudyPart { part: Some(part) });
        let sent = sender.send(Ok(v1::ExportStudyResponse { part })).await;
        sent.map_err(|_| Stopped::NobodyListens)
    };
    let sampled = archive.sampled;
    let progress = archive.study.as_ref().and_then(|study| study.progress);
    let applied = progress.unwrap_or_default().applied;
    let open: BTreeSet<_> =
        open_steps.iter().flat_map(|step| &step.report).map(|report| report.step_id).collect();
    send(Part::Archive(archive)).await?;
    for open_step in open_steps {
        send(Part::OpenSteps(v1::OpenSteps { open_steps: vec![open_step] })).await?;
    }
    let mut points = caller.trace(id, now).await.map_err(Stopped::Failed)?;
    // As of the archive.
    points.retain(|point| point.applied <= applied);
    for points in points.chunks(POINTS_PER_PART) {
        let points = points.iter().cloned().map(archive::trace_point).collect();
        send(Part::Trace(v1::TraceBatch { points })).await?;
    }
    let (mut after, mut count) = (StepId(0), 0);
    loop {
        let page = caller.history(id, PageStart::After(after), STEPS_PER_PART).await;
        let page = page.map_err(Stopped::Failed)?;
        // The study may have gone on since the archive was made.
        let of_archive =
            |past: &&ClosedStep| past.step.id.0 <= sampled && !open.contains(&past.step.id.0);
        let reports: Vec<_> = page.steps.iter().filter(of_archive).map(archive::report).collect();
        count += reports.len() as u64;
        if !reports.is_empty() {
            send(Part::Reports(v1::ReportBatch { reports })).await?;
        }
        match page.steps.last() {
            Some(last) if page.more && last.step.id.0 < sampled => after = last.step.id,
            _ => break,
        }
    }
    send(Part::End(v1::StudyEnd { reports: count })).await
}

/// Takes a study in.
pub(super) async fn import(
    caller: Caller,
    mut requests: Streaming<v1::ImportStudyRequest>,
) -> Result<v1::Study, Status> {
    let first = requests.message().await?.unwrap_or_default();
    let Some(Part::Archive(archive)) = first.part.and_then(|part| part.part) else {
        return Err(refuse("part", "the first part must be the archive"));
    };
    let fork = archive.fork;
    let mut record = archive::record(archive).map_err(|found| invalid(&found))?;
    if !first.name.is_empty() {
        record.name = first.name;
    }
    if !is_name(&record.name) {
        return Err(refuse("name", NAME_RULE));
    }
    if !record.owner.is_empty() && !is_label(&record.owner) {
        return Err(refuse("part.archive.study.owner", "must have at most 200 characters"));
    }
    if fork || is_known(&caller, record.id).await? {
        record.id = StudyId(rand::rng().next_u64());
    }
    let (name, id) = (record.name.clone(), record.id);
    caller.run(move |registry, _| registry.begin_import(&name, id)).await?;
    let imported = match take_parts(&caller, &mut requests, &mut record).await {
        Ok(()) => {
            caller.run(move |registry, _| Ok(convert::study(registry.end_import(record)?))).await
        }
        Err(status) => Err(status),
    };
    if imported.is_err() {
        caller
            .run(move |registry, _| {
                registry.abandon_import(id);
                Ok(())
            })
            .await?;
    }
    imported
}

/// Returns true if a study of this id exists, or part of a deleted one is still stored.
async fn is_known(caller: &Caller, id: StudyId) -> Result<bool, Status> {
    // Also if the caller may not see it.
    let here =
        move |registry: &mut StudyRegistry, _| Ok(registry.all().any(|study| study.id() == id));
    let here = caller.api.studies.run(here).await.map_err(|error| status(&error))?;
    Ok(here || !caller.history(id, PageStart::After(StepId(0)), 1).await?.steps.is_empty())
}

/// Takes the parts after the archive: open steps into `record`, the history into the database.
async fn take_parts(
    caller: &Caller,
    requests: &mut Streaming<v1::ImportStudyRequest>,
    record: &mut Record,
) -> Result<(), Status> {
    let variables = record.variables.as_deref();
    let shapes = variables.map_or_else(|| Ok(Vec::new()), |known| record.spec.shapes(known));
    let shapes: Vec<asng::Variable> = shapes.map_err(|found| invalid(&found))?;
    let (mut last, mut count) = (StepId(0), 0);
    let (mut traced, mut points) = (0, 0);
    let mut open = BTreeSet::new();
    loop {
        let request = requests.message().await?;
        let part = request.and_then(|request| request.part).and_then(|part| part.part);
        match part {
            Some(Part::OpenSteps(v1::OpenSteps { open_steps })) if count == 0 => {
                for step in open_steps {
                    archive::add_open_step(record, &shapes, step)
                        .ok_or_else(|| refuse("part.open_steps", "does not fit the variables"))?;
                }
                let pending = record.pending.iter().map(|pending| pending.step.id);
                open = record.live.iter().map(|step| step.id).chain(pending).collect();
            }
            Some(Part::Trace(batch)) if count == 0 => {
                let mut trace = Vec::with_capacity(batch.points.len());
                for point in batch.points {
                    let point = archive::window(point)
                        .filter(|point| point.applied > traced)
                        .filter(|point| point.applied <= record.progress.applied)
                        .ok_or_else(|| refuse("part.trace", "does not fit the study"))?;
                    traced = point.applied;
                    trace.push(point);
                }
                points += trace.len();
                if points > MAX_POINTS {
                    let what = format!("has more than {MAX_POINTS} points");
                    return Err(refuse("part.trace", &what));
                }
                let id = record.id;
                caller
                    .run(move |registry, _| {
                        registry.import_trace(id, &trace);
                        Ok(())
                    })
                    .await?;
            }
            Some(Part::Reports(v1::ReportBatch { reports })) => {
                let mut history = Vec::with_capacity(reports.len());
                for report in reports {
                    let past = archive::past(&shapes, report)
                        .ok_or_else(|| refuse("part.reports", "does not fit the variables"))?;
                    let step = past.step.id;
                    if step <= last || step.0 > record.progress.sampled || open.contains(&step) {
                        let what = format!("step {step} is out of order");
                        return Err(refuse("part.reports", &what));
                    }
                    last = step;
                    history.push(past);
                }
                count += history.len() as u64;
                let id = record.id;
                caller
                    .run(move |registry, _| {
                        registry.import_history(id, &history);
                        Ok(())
                    })
                    .await?;
            }
            Some(Part::End(v1::StudyEnd { reports })) if reports == count => return Ok(()),
            Some(Part::End(v1::StudyEnd { reports })) => {
                let what = format!("{count} reports arrived of {reports}");
                return Err(refuse("part.end", &what));
            }
            Some(_) => return Err(refuse("part", "is out of order")),
            None => {
                return Err(refuse("part", "the export is incomplete: its end marker is missing"));
            }
        }
    }
}

fn refuse(field: &str, what: &str) -> Status {
    invalid(&[Violation::new(field, what)])
}
