//! The gRPC services: decode, one operation on the studies, encode. No rule of a study is decided here.

mod archive;
mod convert;
mod gate;
mod moving;
mod status;

use std::{collections::BTreeSet, time::Duration};

use asng_proto::v1::{
    self, search_service_server::SearchService, study_service_server::StudyService,
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::gate::Gate;
use self::status::{denied, invalid, status};
use crate::{
    access::Identity,
    store::{Page, Reader},
    studies::{Error, Shelf, Studies},
    study::{
        self, LeaseId, Next, Now, Origin, Report, StepId, Study, StudyId, Violation, is_label,
    },
};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
const MAX_METRICS: usize = 50;
/// When to ask again if the controller is shutting down: it, or another one, may be there by then.
const RETRY_WHEN_CLOSING: Duration = Duration::from_secs(1);

/// Both services, on the same studies, behind the [`Gate`].
#[derive(Clone)]
pub(crate) struct Api {
    /// The studies.
    pub(crate) studies: Studies,
    /// Their history, and those of other controllers on the same database.
    pub(crate) reader: Reader,
    /// Becomes true when the controller is shutting down: no more work is handed out.
    pub(crate) closing: watch::Receiver<bool>,
}

impl Api {
    /// Runs `operation` on the studies that `caller` may see.
    async fn run<T: Send + 'static>(
        &self,
        caller: &Identity,
        operation: impl FnOnce(&mut Shelf, Now) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let scope = caller.scope();
        let operation = move |shelf: &mut Shelf, now| shelf.within(scope, |s| operation(s, now));
        self.studies.run(operation).await.map_err(|error| status(&error))
    }

    /// Reads from the study `name`, whichever controller owns it.
    async fn read<T: Send + 'static>(
        &self,
        caller: &Identity,
        name: String,
        read: impl Fn(&Study) -> Result<T, study::Error> + Clone + Send + 'static,
    ) -> Result<T, Status> {
        let refused = |name: &str, source: study::Error| Error::Refused {
            name: name.into(),
            source: source.into(),
        };
        let scope = caller.scope();
        let own = self
            .studies
            .run({
                let (scope, name, read) = (scope.clone(), name.clone(), read.clone());
                move |shelf, _| {
                    shelf.within(scope, |shelf| {
                        read(shelf.get(&name)?).map_err(|source| refused(&name, source))
                    })
                }
            })
            .await;
        let result = match own {
            Err(Error::NotOwner { .. }) => match self.reader.studies(Some(&name)).await {
                Ok(studies) => match studies.first() {
                    Some(study) if scope.holds(study.owner(), &study.spec().labels) => {
                        read(study).map_err(|source| refused(&name, source))
                    }
                    _ => Err(Error::UnknownStudy(name)),
                },
                Err(error) => Err(Error::Storage(error.into())),
            },
            own => own,
        };
        result.map_err(|error| status(&error))
    }

    async fn history(&self, study: StudyId, after: StepId, limit: usize) -> Result<Page, Status> {
        let page = self.reader.history(study, after, limit).await;
        page.map_err(|error| status(&Error::Storage(error.into())))
    }

    /// Changes the study `name` and returns it as it is then.
    async fn change(
        &self,
        caller: &Identity,
        name: String,
        change: impl FnOnce(&mut Study, Now) -> Result<(), study::Error> + Send + 'static,
    ) -> Result<Option<v1::Study>, Status> {
        self.run(caller, move |shelf, now| {
            shelf.change(&name, |study| change(study, now))?;
            Ok(Some(convert::study(shelf.get(&name)?)))
        })
        .await
    }
}

#[tonic::async_trait]
impl StudyService for Api {
    async fn create_study(
        &self,
        request: Request<v1::CreateStudyRequest>,
    ) -> Result<Response<v1::CreateStudyResponse>, Status> {
        let (caller, v1::CreateStudyRequest { name, spec }) = open(request)?;
        let spec = convert::spec(spec.unwrap_or_default()).map_err(|found| invalid(&found))?;
        let owner = if spec.owner.is_empty() { caller.owner() } else { &spec.owner }.to_owned();
        caller.check_new(&owner, &spec.labels).map_err(|refused| denied(&refused))?;
        let study = self
            .run(&caller, move |shelf, now| {
                Ok(Some(convert::study(shelf.create(&name, spec, &owner, now)?)))
            })
            .await?;
        Ok(Response::new(v1::CreateStudyResponse { study }))
    }

    async fn get_study(
        &self,
        request: Request<v1::GetStudyRequest>,
    ) -> Result<Response<v1::GetStudyResponse>, Status> {
        let (caller, v1::GetStudyRequest { name }) = open(request)?;
        let study = self.read(&caller, name, |study| Ok(Some(convert::study(study)))).await?;
        Ok(Response::new(v1::GetStudyResponse { study }))
    }

    async fn list_studies(
        &self,
        request: Request<v1::ListStudiesRequest>,
    ) -> Result<Response<v1::ListStudiesResponse>, Status> {
        let (caller, request) = open(request)?;
        let v1::ListStudiesRequest { page_size, page_token, owner, labels } = request;
        let size = page_length(page_size);
        let after = match page_token.as_str() {
            "" => None,
            token => Some(convert::age(token).ok_or_else(|| foreign_token("ListStudies"))?),
        };
        let scope = caller.scope();
        let listed = move |study: &Study| {
            Some(study.age()) > after
                && scope.holds(study.owner(), &study.spec().labels)
                && (owner.is_empty() || owner == study.owner())
                && labels.iter().all(|(key, value)| study.spec().labels.get(key) == Some(value))
        };
        let summary = |study: &Study| {
            let variables = Vec::new();
            (study.age(), v1::Study { variables, ..convert::study(study) })
        };
        let found = self.reader.studies(None).await;
        let foreign = found.map_err(|error| status(&Error::Storage(error.into())))?;
        let mut studies = self
            .run(&caller, move |shelf, _| {
                let own: BTreeSet<_> = shelf.all().map(Study::id).collect();
                let foreign = foreign.iter().filter(|study| !own.contains(&study.id()));
                let mut all: Vec<_> = shelf.all().chain(foreign).filter(|s| listed(s)).collect();
                all.sort_by_key(|study| study.age());
                Ok(all.into_iter().take(size + 1).map(summary).collect::<Vec<_>>())
            })
            .await?;
        let more = studies.len() > size;
        studies.truncate(size);
        let last = studies.last().filter(|_| more);
        Ok(Response::new(v1::ListStudiesResponse {
            next_page_token: last.map_or_else(String::new, |(age, _)| convert::page_token(*age)),
            studies: studies.into_iter().map(|(_, study)| study).collect(),
        }))
    }

    async fn pause_study(
        &self,
        request: Request<v1::PauseStudyRequest>,
    ) -> Result<Response<v1::PauseStudyResponse>, Status> {
        let (caller, request) = open(request)?;
        let study = self.change(&caller, request.name, Study::pause).await?;
        Ok(Response::new(v1::PauseStudyResponse { study }))
    }

    async fn resume_study(
        &self,
        request: Request<v1::ResumeStudyRequest>,
    ) -> Result<Response<v1::ResumeStudyResponse>, Status> {
        let (caller, request) = open(request)?;
        let study = self.change(&caller, request.name, Study::resume).await?;
        Ok(Response::new(v1::ResumeStudyResponse { study }))
    }

    async fn stop_study(
        &self,
        request: Request<v1::StopStudyRequest>,
    ) -> Result<Response<v1::StopStudyResponse>, Status> {
        let (caller, request) = open(request)?;
        let stop = |study: &mut Study, now| {
            study.stop(now);
            Ok(())
        };
        let study = self.change(&caller, request.name, stop).await?;
        Ok(Response::new(v1::StopStudyResponse { study }))
    }

    async fn delete_study(
        &self,
        request: Request<v1::DeleteStudyRequest>,
    ) -> Result<Response<v1::DeleteStudyResponse>, Status> {
        let (caller, v1::DeleteStudyRequest { name }) = open(request)?;
        self.run(&caller, move |shelf, _| shelf.delete(&name)).await?;
        Ok(Response::new(v1::DeleteStudyResponse {}))
    }

    async fn get_distribution(
        &self,
        request: Request<v1::GetDistributionRequest>,
    ) -> Result<Response<v1::GetDistributionResponse>, Status> {
        let (caller, v1::GetDistributionRequest { name }) = open(request)?;
        let response = self
            .read(&caller, name, |study| {
                convert::distribution(study).ok_or(study::Error::NotDescribed)
            })
            .await?;
        Ok(Response::new(response))
    }

    type WatchStudyStream = ReceiverStream<Result<v1::WatchStudyResponse, Status>>;

    async fn watch_study(
        &self,
        request: Request<v1::WatchStudyRequest>,
    ) -> Result<Response<Self::WatchStudyStream>, Status> {
        let (caller, v1::WatchStudyRequest { name }) = open(request)?;
        Ok(Response::new(moving::watch(self.clone(), caller, name).await?))
    }

    async fn list_reports(
        &self,
        request: Request<v1::ListReportsRequest>,
    ) -> Result<Response<v1::ListReportsResponse>, Status> {
        let (caller, request) = open(request)?;
        let v1::ListReportsRequest { study, page_size, page_token } = request;
        let after = match page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| foreign_token("ListReports"))?,
        };
        let id = self.read(&caller, study, |study| Ok(study.id())).await?;
        let page = self.history(id, StepId(after), page_length(page_size)).await?;
        let last = page.steps.last().filter(|_| page.more);
        Ok(Response::new(v1::ListReportsResponse {
            next_page_token: last.map_or_else(String::new, |past| past.step.id.to_string()),
            reports: page.steps.iter().map(archive::report).collect(),
        }))
    }

    type ExportStudyStream = ReceiverStream<Result<v1::ExportStudyResponse, Status>>;

    async fn export_study(
        &self,
        request: Request<v1::ExportStudyRequest>,
    ) -> Result<Response<Self::ExportStudyStream>, Status> {
        let (caller, v1::ExportStudyRequest { name, fork }) = open(request)?;
        Ok(Response::new(moving::export(self.clone(), caller, name, fork).await?))
    }

    async fn import_study(
        &self,
        request: Request<Streaming<v1::ImportStudyRequest>>,
    ) -> Result<Response<v1::ImportStudyResponse>, Status> {
        // In a task of its own, which cleans up also when the caller is gone.
        let (caller, parts) = open(request)?;
        let import = tokio::spawn(moving::import(self.clone(), caller, parts));
        let study = import.await.map_err(|_| Status::internal("the import has failed"))??;
        Ok(Response::new(v1::ImportStudyResponse { study: Some(study) }))
    }
}

#[tonic::async_trait]
impl SearchService for Api {
    async fn lease_step(
        &self,
        request: Request<v1::LeaseStepRequest>,
    ) -> Result<Response<v1::LeaseStepResponse>, Status> {
        let (caller, request) = open(request)?;
        let v1::LeaseStepRequest { study, trainer_id, spaces, request_id, fresh_start } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if request_id.chars().count() > 100 {
            violations.push(Violation::new("request_id", "has up to 100 characters"));
        }
        if spaces.len() > 100 {
            violations.push(Violation::new("spaces", "names up to 100 spaces"));
        }
        if study.is_empty() && spaces.is_empty() {
            violations.push(Violation::new("study", "name a study, or the spaces you serve"));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        if *self.closing.borrow() {
            return Err(status(&Error::ShuttingDown));
        }
        let response = self
            .run(&caller, move |shelf, now| {
                if fresh_start {
                    shelf.forget_trainer(&trainer_id)?;
                }
                let origin = Origin::Request(request_id);
                let (next, about) = shelf.lease(&study, &spaces, &trainer_id, &origin, now)?;
                let about = about.map(|name| shelf.get(&name)).transpose()?;
                Ok(convert::next(&next, about))
            })
            .await?;
        Ok(Response::new(response))
    }

    async fn describe_space(
        &self,
        request: Request<v1::DescribeSpaceRequest>,
    ) -> Result<Response<v1::DescribeSpaceResponse>, Status> {
        use v1::describe_space_request::Answer;
        let (caller, v1::DescribeSpaceRequest { study, trainer_id, answer }) = open(request)?;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if answer.is_none() {
            violations.push(Violation::new("answer", "describe the space, or reject it"));
        }
        if matches!(&answer, Some(Answer::Rejection(rejection)) if rejection.violations.is_empty())
        {
            violations.push(Violation::new("rejection.violations", "say at least one reason"));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        let study = match answer {
            Some(Answer::Description(description)) => {
                let variables = convert::variables("description.variables", description.variables)
                    .map_err(|found| invalid(&found))?;
                self.change(&caller, study, |study, now| study.describe(variables, now)).await?
            }
            Some(Answer::Rejection(rejection)) => {
                let reasons = rejection
                    .violations
                    .into_iter()
                    .map(|reason| Violation::new(reason.field, reason.description))
                    .collect();
                self.change(&caller, study, |study, now| study.reject(reasons, now)).await?
            }
            None => None,
        };
        Ok(Response::new(v1::DescribeSpaceResponse { study }))
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        let (caller, request) = open(request)?;
        let v1::ReportStepRequest {
            study,
            step_id,
            lease_id,
            trainer_id,
            losses,
            metrics,
            lease_next,
        } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if metrics.len() > MAX_METRICS || !metrics.keys().all(|name| is_label(name)) {
            let rule = format!("up to {MAX_METRICS} metrics, names of 1 to 200 characters");
            violations.push(Violation::new("metrics", rule));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        let closing = *self.closing.borrow();
        let response = self
            .run(&caller, move |shelf, now| {
                let report = Report { lease, trainer: trainer_id.clone(), losses, metrics };
                let receipt = shelf.report(&study, report, now)?;
                let next = if lease_next && closing {
                    Some(convert::next(&Next::NoWork(RETRY_WHEN_CLOSING), None))
                } else if lease_next {
                    // The study knows this trainer's space already.
                    let spaces = [shelf.get(&study)?.spec().space.clone()];
                    let origin = Origin::Report(lease);
                    let (next, _) = shelf.lease(&study, &spaces, &trainer_id, &origin, now)?;
                    Some(convert::next(&next, Some(shelf.get(&study)?)))
                } else {
                    None
                };
                let first = convert::outcome(receipt.outcome);
                let (outcome, first_outcome) = if receipt.duplicate {
                    (v1::ReportOutcome::Duplicate, first)
                } else {
                    (first, v1::ReportOutcome::Unspecified)
                };
                Ok(v1::ReportStepResponse {
                    outcome: outcome.into(),
                    first_outcome: first_outcome.into(),
                    staleness: receipt.staleness,
                    next,
                })
            })
            .await?;
        Ok(Response::new(response))
    }

    async fn extend_lease(
        &self,
        request: Request<v1::ExtendLeaseRequest>,
    ) -> Result<Response<v1::ExtendLeaseResponse>, Status> {
        let (caller, v1::ExtendLeaseRequest { study, step_id, lease_id }) = open(request)?;
        let mut violations = Vec::new();
        let Some(lease) = check_lease(&lease_id, step_id, &mut violations) else {
            return Err(invalid(&violations));
        };
        let lease = self
            .run(&caller, move |shelf, now| shelf.change(&study, |study| study.extend(lease, now)))
            .await?;
        Ok(Response::new(v1::ExtendLeaseResponse { lease: convert::duration(lease) }))
    }

    async fn release_step(
        &self,
        request: Request<v1::ReleaseStepRequest>,
    ) -> Result<Response<v1::ReleaseStepResponse>, Status> {
        let (caller, v1::ReleaseStepRequest { study, step_id, lease_id, reason }) = open(request)?;
        let mut violations = Vec::new();
        if reason.chars().count() > 1000 {
            violations.push(Violation::new("reason", "has up to 1000 characters"));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        tracing::info!(study, step_id, reason, "trainer gives a step back");
        self.run(&caller, move |shelf, now| {
            shelf.change(&study, |study| study.release(lease, now))
        })
        .await?;
        Ok(Response::new(v1::ReleaseStepResponse {}))
    }
}

/// A request and its sender.
fn open<T>(mut request: Request<T>) -> Result<(Identity, T), Status> {
    let caller = request.extensions_mut().remove::<Identity>();
    let caller = caller.ok_or_else(|| Status::internal("this request did not pass the gate"))?;
    Ok((caller, request.into_inner()))
}

fn page_length(page_size: u32) -> usize {
    match page_size as usize {
        0 => DEFAULT_PAGE,
        size => size.min(MAX_PAGE),
    }
}

fn foreign_token(method: &str) -> Status {
    let description = format!("is not one that {method} returned");
    invalid(&[Violation::new("page_token", description)])
}

fn check_trainer(trainer_id: &str, violations: &mut Vec<Violation>) {
    if !is_label(trainer_id) {
        let rule = "has 1 to 200 characters, none of them a control character";
        violations.push(Violation::new("trainer_id", rule));
    }
}

/// Reads the lease id of a request about step `step_id`.
fn check_lease(lease_id: &str, step_id: u64, violations: &mut Vec<Violation>) -> Option<LeaseId> {
    let lease = lease_id.parse::<LeaseId>().ok();
    let lease = lease.filter(|lease| lease.step == StepId(step_id));
    if lease.is_none() {
        let rule =
            format!("is not a lease of step {step_id}: send the one that came with the step");
        violations.push(Violation::new("lease_id", rule));
    }
    lease
}
