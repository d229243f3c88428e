//! The gRPC services: decode, one operation on the studies, encode. No rule of a study is decided here.

mod archive;
mod convert;
mod status;
mod streams;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use asng_proto::v1::{
    self, search_service_server::SearchService, study_service_server::StudyService,
};
use asng_serving::{
    Rules,
    access::{Identity, Role},
};
use prost::Message as _;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::status::{invalid, not_in_turn, status};
use crate::{
    store::{Page, PageStart, Reader},
    studies::{Error, LeaseRequest, Studies, StudyRegistry},
    study::{
        self, COSTS_RULE, Costs, LeaseId, NAME_RULE, Next, Now, Origin, Report, StepId, Study,
        StudyId, TracePoint, Violation, are_costs, is_label, is_name,
    },
};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Bytes of studies after which a page of them ends. The reply then stays below the 4 MiB that gRPC's libraries take by default,
/// unless a single study is larger.
const PAGE_BYTES: usize = 2 << 20;
const MAX_METRICS: usize = 50;
/// Largest number of spaces, and of data sets, in a request.
const MAX_SPACES: usize = 100;
/// Longest part of a name that studies are listed by, in characters.
const MAX_NAME_PART: usize = 100;
/// The time after which trainers ask again if the controller is shutting down: it, or another one, may serve by then.
const RETRY_WHEN_CLOSING: Duration = Duration::from_secs(1);

/// Longest time for which a report waits for the one that counts before it: longer than calls of one connection overtake each
/// other. If that one is lost, its trainer repeats it.
const IN_TURN_WITHIN: Duration = Duration::from_secs(1);

/// The requirements for their callers.
pub(crate) const RULES: Rules =
    Rules { server: "controller", least_role, unhurried: &["/asng.v1.StudyService/ImportStudy"] };

fn least_role(path: &str) -> Role {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    match (service, method) {
        (
            "asng.v1.StudyService",
            "GetStudy" | "ListStudies" | "GetDistribution" | "ListReports" | "GetTrace"
            | "ListTrainers" | "WatchStudy" | "ExportStudy",
        ) => Role::Viewer,
        ("asng.v1.SearchService", _) => Role::Trainer,
        _ => Role::Admin,
    }
}

/// Both services, on the same studies.
#[derive(Clone)]
pub(crate) struct Api {
    /// The studies.
    pub(crate) studies: Studies,
    /// Their history, and the studies of other controllers.
    pub(crate) reader: Reader,
    /// Becomes true when the controller is shutting down: no more work is handed out, and streams end.
    pub(crate) closing: watch::Receiver<bool>,
    /// Notified when a report has been decided or a step released.
    returned: Arc<Notify>,
}

/// A request by somebody who has passed the gate.
pub(crate) fn asked<T>(identity: &Identity, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(identity.clone());
    request
}

impl Api {
    pub(crate) fn new(studies: Studies, reader: Reader, closing: watch::Receiver<bool>) -> Api {
        Api { studies, reader, closing, returned: Arc::default() }
    }

    /// A request, and its sender's view of the studies.
    fn open<T>(&self, mut request: Request<T>) -> Result<(Caller, T), Status> {
        let identity = request.extensions_mut().remove::<Identity>();
        let identity = identity.ok_or_else(|| Status::internal("the request is of nobody"))?;
        Ok((Caller { api: self.clone(), identity }, request.into_inner()))
    }

    /// The address of the controller that owns the study, if that is another: empty while it is none.
    pub(crate) async fn elsewhere(
        &self,
        request: Request<v1::GetStudyRequest>,
    ) -> Result<Option<String>, Status> {
        let (caller, v1::GetStudyRequest { name }) = self.open(request)?;
        match caller.run_within(move |registry, _| registry.get(&name).map(drop)).await {
            Ok(()) => Ok(None),
            Err(Error::NotOwner { address, .. }) => Ok(Some(address)),
            Err(error) => Err(status(&error)),
        }
    }

    /// Returns when the controller is shutting down.
    pub(crate) async fn closed(&self) {
        // An error means that the sender is gone, which comes to the same.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }
}

/// The sender of a request, with access to the studies in its scope.
#[derive(Clone)]
struct Caller {
    api: Api,
    identity: Identity,
}

impl Caller {
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut StudyRegistry, Now) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        self.run_within(operation).await.map_err(|error| status(&error))
    }

    async fn run_within<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut StudyRegistry, Now) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let scope = self.identity.scope();
        let operation =
            move |registry: &mut StudyRegistry, now| registry.within(scope, |s| operation(s, now));
        self.api.studies.run(operation).await
    }

    /// Reads from the study `name`, whichever controller owns it.
    async fn read<T: Send + 'static>(
        &self,
        name: String,
        read: impl Fn(&Study) -> Result<T, study::Error> + Clone + Send + 'static,
    ) -> Result<T, Status> {
        let refused = |name: &str, source: study::Error| Error::Refused {
            name: name.into(),
            source: source.into(),
        };
        let own = self
            .run_within({
                let (name, read) = (name.clone(), read.clone());
                move |registry, _| {
                    read(registry.get(&name)?).map_err(|source| refused(&name, source))
                }
            })
            .await;
        let result = match own {
            Err(Error::NotOwner { .. }) => {
                let found = self.api.reader.studies(Some(&name)).await;
                match found.map_err(|error| Error::Storage(error.into())) {
                    Ok(studies) => match studies.first().filter(|study| self.sees(study)) {
                        Some(study) => read(study).map_err(|source| refused(&name, source)),
                        None => Err(Error::UnknownStudy(name)),
                    },
                    Err(error) => Err(error),
                }
            }
            own => own,
        };
        result.map_err(|error| status(&error))
    }

    fn sees(&self, study: &Study) -> bool {
        self.identity.scope().holds(study.owner(), &study.spec().labels)
    }

    async fn history(
        &self,
        study: StudyId,
        start: PageStart,
        limit: usize,
    ) -> Result<Page, Status> {
        self.run(|registry, _| registry.settle()).await?;
        let page = self.api.reader.history(study, start, limit).await;
        page.map_err(|error| status(&Error::Storage(error.into())))
    }

    /// How a study went until `now`, a window that has not ended.
    async fn trace(
        &self,
        study: StudyId,
        now: Option<TracePoint>,
    ) -> Result<Vec<TracePoint>, Status> {
        self.run(|registry, _| registry.settle()).await?;
        let points = self.api.reader.trace(study).await;
        let mut points = points.map_err(|error| status(&Error::Storage(error.into())))?;
        // It may have ended meanwhile.
        let ended = points.last().map_or(0, |last| last.applied);
        points.extend(now.filter(|now| now.applied > ended));
        Ok(study::thin(points))
    }

    /// Waits until `trainer` no longer holds step `after`, whose report is to count before another one of its.
    async fn wait_in_turn(&self, study: &str, trainer: &str, after: u64) -> Result<(), Status> {
        let end = Instant::now() + IN_TURN_WITHIN;
        loop {
            // Made before the check, so that a report in between is not missed.
            let returned = self.api.returned.notified();
            let (study, trainer) = (study.to_owned(), trainer.to_owned());
            let is_held = move |registry: &mut StudyRegistry, now| {
                Ok(registry.get(&study)?.is_held_by(&trainer, StepId(after), now))
            };
            if !self.run(is_held).await? {
                return Ok(());
            }
            timeout_at(end, returned).await.map_err(|_| not_in_turn(after))?;
        }
    }

    /// Changes the study `name` and returns it as it is then.
    async fn change(
        &self,
        name: String,
        change: impl FnOnce(&mut Study, Now) -> Result<(), study::Error> + Send + 'static,
    ) -> Result<Option<v1::Study>, Status> {
        self.run(move |registry, now| {
            registry.change(&name, |study| change(study, now))?;
            Ok(Some(convert::study(registry.get(&name)?)))
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
        let (caller, v1::CreateStudyRequest { name, spec, replace_failed }) = self.open(request)?;
        let spec = convert::spec(spec.unwrap_or_default()).map_err(|found| invalid(&found))?;
        let creator = caller.identity.owner().to_owned();
        let study = caller
            .run(move |registry, now| {
                let study = registry.create(&name, spec, &creator, replace_failed, now)?;
                Ok(Some(convert::study(study)))
            })
            .await?;
        Ok(Response::new(v1::CreateStudyResponse { study }))
    }

    async fn get_study(
        &self,
        request: Request<v1::GetStudyRequest>,
    ) -> Result<Response<v1::GetStudyResponse>, Status> {
        let (caller, v1::GetStudyRequest { name }) = self.open(request)?;
        let study = caller.read(name, |study| Ok(Some(convert::study(study)))).await?;
        Ok(Response::new(v1::GetStudyResponse { study }))
    }

    async fn list_studies(
        &self,
        request: Request<v1::ListStudiesRequest>,
    ) -> Result<Response<v1::ListStudiesResponse>, Status> {
        let (
            caller,
            v1::ListStudiesRequest {
                page_size,
                page_token,
                owner,
                labels,
                newest_first,
                states,
                name_contains,
            },
        ) = self.open(request)?;
        let mut violations = Vec::new();
        let states = convert::states(&states, &mut violations);
        if name_contains.chars().count() > MAX_NAME_PART {
            let description = format!("must have at most {MAX_NAME_PART} characters");
            violations.push(Violation::new("name_contains", description));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        let size = page_length(page_size);
        let after = match page_token.as_str() {
            "" => None,
            token => Some(convert::age(token).ok_or_else(|| foreign_token("ListStudies"))?),
        };
        let scope = caller.identity.scope();
        let name_part = name_contains.to_lowercase();
        let listed = move |study: &Study| {
            (states.is_empty() || states.contains(&convert::state(study.state())))
                && (name_part.is_empty() || study.name().to_lowercase().contains(&name_part))
                && scope.holds(study.owner(), &study.spec().labels)
                && (owner.is_empty() || owner == study.owner())
                && labels.iter().all(|(key, value)| study.spec().labels.get(key) == Some(value))
        };
        let on_page = move |study: &Study| {
            after.is_none_or(|after| (study.age() < after) == newest_first && study.age() != after)
        };
        let found = self.reader.studies(None).await;
        let foreign = found.map_err(|error| status(&Error::Storage(error.into())))?;
        let (studies, last, total_size) = caller
            .run(move |registry, _| {
                let own: BTreeSet<_> = registry.all().map(Study::id).collect();
                let foreign = foreign.iter().filter(|study| !own.contains(&study.id()));
                let mut all: Vec<_> = registry.all().chain(foreign).filter(|s| listed(s)).collect();
                all.sort_by_key(|study| study.age());
                if newest_first {
                    all.reverse();
                }
                let total = all.len() as u32;
                let mut rest = all.into_iter().filter(|study| on_page(study)).peekable();
                let (mut page, mut bytes, mut last) = (Vec::new(), 0, None);
                while let Some(study) = rest.next_if(|_| page.len() < size && bytes < PAGE_BYTES) {
                    let summary = convert::summary(study);
                    bytes += summary.encoded_len();
                    page.push(summary);
                    last = Some(study.age());
                }
                Ok((page, last.filter(|_| rest.peek().is_some()), total))
            })
            .await?;
        let next_page_token = last.map_or_else(String::new, convert::page_token);
        Ok(Response::new(v1::ListStudiesResponse { studies, next_page_token, total_size }))
    }

    async fn pause_study(
        &self,
        request: Request<v1::PauseStudyRequest>,
    ) -> Result<Response<v1::PauseStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let study = caller.change(request.name, Study::pause).await?;
        Ok(Response::new(v1::PauseStudyResponse { study }))
    }

    async fn resume_study(
        &self,
        request: Request<v1::ResumeStudyRequest>,
    ) -> Result<Response<v1::ResumeStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let study = caller.change(request.name, Study::resume).await?;
        Ok(Response::new(v1::ResumeStudyResponse { study }))
    }

    async fn stop_study(
        &self,
        request: Request<v1::StopStudyRequest>,
    ) -> Result<Response<v1::StopStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let stop = |study: &mut Study, now| {
            study.stop(now);
            Ok(())
        };
        let study = caller.change(request.name, stop).await?;
        Ok(Response::new(v1::StopStudyResponse { study }))
    }

    async fn delete_study(
        &self,
        request: Request<v1::DeleteStudyRequest>,
    ) -> Result<Response<v1::DeleteStudyResponse>, Status> {
        let (caller, v1::DeleteStudyRequest { name }) = self.open(request)?;
        caller.run(move |registry, _| registry.delete(&name)).await?;
        Ok(Response::new(v1::DeleteStudyResponse {}))
    }

    async fn get_distribution(
        &self,
        request: Request<v1::GetDistributionRequest>,
    ) -> Result<Response<v1::GetDistributionResponse>, Status> {
        let (caller, v1::GetDistributionRequest { name }) = self.open(request)?;
        let response = caller
            .read(name, |study| convert::distribution(study).ok_or(study::Error::NotDescribed))
            .await?;
        Ok(Response::new(response))
    }

    type WatchStudyStream = ReceiverStream<Result<v1::WatchStudyResponse, Status>>;

    async fn watch_study(
        &self,
        request: Request<v1::WatchStudyRequest>,
    ) -> Result<Response<Self::WatchStudyStream>, Status> {
        let (caller, v1::WatchStudyRequest { name }) = self.open(request)?;
        Ok(Response::new(streams::watch(caller, name).await?))
    }

    async fn list_reports(
        &self,
        request: Request<v1::ListReportsRequest>,
    ) -> Result<Response<v1::ListReportsResponse>, Status> {
        let (caller, v1::ListReportsRequest { study, page_size, page_token, newest_first }) =
            self.open(request)?;
        let last = match page_token.as_str() {
            "" => None,
            token => Some(StepId(token.parse().map_err(|_| foreign_token("ListReports"))?)),
        };
        let start = if newest_first {
            PageStart::Before(last.unwrap_or(StepId::LAST))
        } else {
            PageStart::After(last.unwrap_or(StepId(0)))
        };
        let id = caller.read(study, |study| Ok(study.id())).await?;
        let page = caller.history(id, start, page_length(page_size)).await?;
        let last = page.steps.last().filter(|_| page.more);
        Ok(Response::new(v1::ListReportsResponse {
            next_page_token: last.map_or_else(String::new, |past| past.step.id.to_string()),
            reports: page.steps.iter().map(archive::report).collect(),
        }))
    }

    async fn get_trace(
        &self,
        request: Request<v1::GetTraceRequest>,
    ) -> Result<Response<v1::GetTraceResponse>, Status> {
        let (caller, v1::GetTraceRequest { name }) = self.open(request)?;
        let read = |study: &Study| Ok((study.id(), study.current_window()));
        let (id, now) = caller.read(name, read).await?;
        let points = caller.trace(id, now).await?;
        let points = points.into_iter().map(archive::trace_point).collect();
        Ok(Response::new(v1::GetTraceResponse { points }))
    }

    async fn list_trainers(
        &self,
        request: Request<v1::ListTrainersRequest>,
    ) -> Result<Response<v1::ListTrainersResponse>, Status> {
        let (caller, v1::ListTrainersRequest { name }) = self.open(request)?;
        if name.is_empty() {
            let trainers = caller.run(|registry, now| Ok(convert::fleet(registry, now))).await?;
            return Ok(Response::new(v1::ListTrainersResponse { trainers }));
        }
        let mut trainers = caller.read(name, |study| Ok(convert::trainers(study))).await?;
        let trainers = caller
            .run(|registry, now| {
                convert::add_fleet(registry, &mut trainers, now);
                Ok(trainers)
            })
            .await?;
        Ok(Response::new(v1::ListTrainersResponse { trainers }))
    }

    type ExportStudyStream = ReceiverStream<Result<v1::ExportStudyResponse, Status>>;

    async fn export_study(
        &self,
        request: Request<v1::ExportStudyRequest>,
    ) -> Result<Response<Self::ExportStudyStream>, Status> {
        let (caller, v1::ExportStudyRequest { name, fork }) = self.open(request)?;
        Ok(Response::new(streams::export(caller, name, fork).await?))
    }

    async fn import_study(
        &self,
        request: Request<Streaming<v1::ImportStudyRequest>>,
    ) -> Result<Response<v1::ImportStudyResponse>, Status> {
        // In a task of its own, which cleans up also when the caller is gone.
        let (caller, parts) = self.open(request)?;
        let import = tokio::spawn(streams::import(caller, parts));
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
        let (caller, request) = self.open(request)?;
        let v1::LeaseStepRequest {
            study,
            trainer_id,
            spaces,
            request_id,
            fresh_start,
            set_aside,
            unserved,
            data_sets,
        } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if request_id.chars().count() > 100 {
            violations.push(Violation::new("request_id", "must have at most 100 characters"));
        }
        check_spaces(&spaces, &mut violations);
        check_data_sets(&data_sets, &mut violations);
        let announcement =
            convert::announcement(&spaces, &data_sets, unserved, set_aside, &mut violations);
        if study.is_empty() && spaces.is_empty() {
            violations.push(Violation::new("study", "name a study, or the spaces you serve"));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        if *self.closing.borrow() {
            return Err(status(&Error::ShuttingDown));
        }
        let response = caller
            .run(move |registry, now| {
                let set_aside: Vec<_> = announcement.set_aside.iter().map(|s| s.id).collect();
                registry.announce(&trainer_id, announcement, now);
                if fresh_start {
                    registry.forget_trainer(&trainer_id)?;
                }
                let request = LeaseRequest {
                    study: &study,
                    trainer: &trainer_id,
                    spaces: &spaces,
                    data_sets: &data_sets,
                    set_aside: &set_aside,
                    origin: &Origin::Request(request_id),
                };
                let (next, about) = registry.lease(&request, now)?;
                let about = about.map(|name| registry.get(&name)).transpose()?;
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
        let (caller, v1::DescribeSpaceRequest { study, trainer_id, answer }) =
            self.open(request)?;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        let answer = match answer {
            Some(Answer::Description(description)) => {
                let costs = description.costs.map(|costs| costs.names);
                let names = costs.as_deref().unwrap_or_default();
                violations.extend(study::cost_name_violations("description.costs.names", names));
                let variables = convert::variables("description.variables", description.variables)
                    .unwrap_or_else(|found| {
                        violations.extend(found);
                        Vec::new()
                    });
                Ok((variables, costs))
            }
            Some(Answer::Rejection(rejection)) => {
                if rejection.violations.is_empty() {
                    let what = "give at least one violation";
                    violations.push(Violation::new("rejection.violations", what));
                }
                let reasons = rejection.violations.into_iter();
                Err(reasons.map(|r| Violation::new(r.field, r.description)).collect())
            }
            None => {
                violations.push(Violation::new("answer", "describe the space, or reject it"));
                Err(Vec::new())
            }
        };
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        let study = caller
            .run(move |registry, now| {
                registry.hear(&trainer_id, now);
                registry.change(&study, |study| match answer {
                    Ok((variables, costs)) => study.describe(variables, costs.as_deref(), now),
                    Err(reasons) => study.reject(reasons, now),
                })?;
                Ok(Some(convert::study(registry.get(&study)?)))
            })
            .await?;
        Ok(Response::new(v1::DescribeSpaceResponse { study }))
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let v1::ReportStepRequest {
            study,
            step_id,
            lease_id,
            trainer_id,
            losses,
            metrics,
            lease_next,
            costs,
            spaces,
            data_sets,
            after,
        } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if after != 0 && after == step_id {
            violations.push(Violation::new("after", "is another step than `step_id`, or 0"));
        }
        if metrics.len() > MAX_METRICS || !metrics.keys().all(|name| is_label(name)) {
            let rule = format!("up to {MAX_METRICS} metrics, names of 1 to 200 characters");
            violations.push(Violation::new("metrics", rule));
        }
        check_spaces(&spaces, &mut violations);
        check_data_sets(&data_sets, &mut violations);
        let costs: Vec<Costs> = costs.into_iter().map(|costs| costs.figures).collect();
        if let Some(i) = costs.iter().position(|costs| !are_costs(costs)) {
            violations.push(Violation::new(format!("costs[{i}]"), COSTS_RULE));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        if after != 0 {
            caller.wait_in_turn(&study, &trainer_id, after).await?;
        }
        let closing = *self.closing.borrow();
        let response = caller
            .run(move |registry, now| {
                let report = Report { lease, trainer: trainer_id.clone(), losses, costs, metrics };
                let receipt = registry.report(&study, report, now)?;
                let next = if lease_next && closing {
                    Some(convert::next(&Next::NoWork(RETRY_WHEN_CLOSING), None))
                } else if lease_next {
                    // The study knows this trainer's space already.
                    let own_space = [registry.get(&study)?.spec().space.clone()];
                    let request = LeaseRequest {
                        study: &study,
                        trainer: &trainer_id,
                        spaces: &own_space,
                        data_sets: &data_sets,
                        set_aside: &[],
                        origin: &Origin::Report(lease),
                    };
                    let (next, _) = registry.lease(&request, now)?;
                    Some(convert::next(&next, Some(registry.get(&study)?)))
                } else {
                    None
                };
                let undescribed = registry.find_undescribed(&trainer_id, &spaces, &data_sets);
                let describe = undescribed.filter(|_| !closing).map(convert::describe);
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
                    describe,
                })
            })
            .await?;
        self.returned.notify_waiters();
        Ok(Response::new(response))
    }

    async fn extend_lease(
        &self,
        request: Request<v1::ExtendLeaseRequest>,
    ) -> Result<Response<v1::ExtendLeaseResponse>, Status> {
        let (caller, v1::ExtendLeaseRequest { study, step_id, lease_id }) = self.open(request)?;
        let mut violations = Vec::new();
        let Some(lease) = check_lease(&lease_id, step_id, &mut violations) else {
            return Err(invalid(&violations));
        };
        let lease = caller.run(move |registry, now| registry.extend(&study, lease, now)).await?;
        Ok(Response::new(v1::ExtendLeaseResponse { lease: convert::duration(lease) }))
    }

    async fn release_step(
        &self,
        request: Request<v1::ReleaseStepRequest>,
    ) -> Result<Response<v1::ReleaseStepResponse>, Status> {
        let (caller, v1::ReleaseStepRequest { study, step_id, lease_id, reason }) =
            self.open(request)?;
        let mut violations = Vec::new();
        if reason.chars().count() > 1000 {
            violations.push(Violation::new("reason", "must have at most 1000 characters"));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        tracing::info!(study, step_id, reason, "trainer gives a step back");
        caller.run(move |registry, now| registry.release(&study, lease, now)).await?;
        self.returned.notify_waiters();
        Ok(Response::new(v1::ReleaseStepResponse {}))
    }
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

fn check_spaces(spaces: &[String], violations: &mut Vec<Violation>) {
    if spaces.len() > MAX_SPACES {
        violations.push(Violation::new("spaces", format!("names up to {MAX_SPACES} spaces")));
    } else if let Some(i) = spaces.iter().position(|space| !is_name(space)) {
        violations.push(Violation::new(format!("spaces[{i}]"), NAME_RULE));
    }
}

fn check_data_sets(data_sets: &[String], violations: &mut Vec<Violation>) {
    if data_sets.len() > MAX_SPACES {
        let description = format!("names up to {MAX_SPACES} data sets");
        violations.push(Violation::new("data_sets", description));
    } else if let Some(i) = data_sets.iter().position(|data_set| !is_label(data_set)) {
        violations.push(Violation::new(format!("data_sets[{i}]"), study::LABEL_RULE));
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

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use tonic::Code;
    use tonic_types::StatusExt;
    use v1::lease_step_response::Next as Answer;

    use super::*;
    use crate::{store::Location, studies::Limits};

    fn by_anybody<T>(message: T) -> Request<T> {
        asked(&Identity::anybody(), message)
    }

    /// Returns services with a study "s", what keeps them, and what closes them.
    async fn api_with_study() -> (tempfile::TempDir, watch::Sender<bool>, Api) {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let (studies, _ended) = Studies::start(location.clone(), Limits::default()).await.unwrap();
        let (close, closing) = watch::channel(false);
        let api = Api::new(studies, Reader::new(&location).unwrap(), closing);
        let choices = vec!["a".into(), "b".into()];
        let kind = v1::variable::Kind::Categorical(v1::Categorical { choices });
        let spec = v1::StudySpec {
            variables: vec![v1::Variable { name: "v".into(), kind: Some(kind) }],
            stop: Some(v1::StopRules { max_steps: 10, ..Default::default() }),
            ..Default::default()
        };
        let create =
            v1::CreateStudyRequest { name: "s".into(), spec: Some(spec), ..Default::default() };
        api.create_study(by_anybody(create)).await.unwrap();
        (directory, close, api)
    }

    fn lease(trainer: &str) -> v1::LeaseStepRequest {
        let (study, trainer_id) = ("s".into(), trainer.into());
        v1::LeaseStepRequest { study, trainer_id, ..Default::default() }
    }

    fn report(step: &v1::Step) -> v1::ReportStepRequest {
        v1::ReportStepRequest {
            study: "s".into(),
            step_id: step.step_id,
            lease_id: step.lease_id.clone(),
            trainer_id: "t".into(),
            losses: vec![1.0, 2.0],
            lease_next: true,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_controller_that_ends_takes_reports_and_hands_out_nothing() {
        let (_directory, close, api) = api_with_study().await;
        let lease = lease("t");
        let leased = api.lease_step(by_anybody(lease.clone())).await.unwrap().into_inner();
        let Some(Answer::Step(step)) = leased.next else { panic!("{leased:?}") };
        let watch = by_anybody(v1::WatchStudyRequest { name: "s".into() });
        let mut watched = api.watch_study(watch).await.unwrap().into_inner();

        close.send_replace(true);
        let status = api.lease_step(by_anybody(lease)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().is_some());
        let answer = api.report_step(by_anybody(report(&step))).await.unwrap().into_inner();
        assert_eq!(answer.outcome(), v1::ReportOutcome::Applied);
        assert!(matches!(answer.next.unwrap().next, Some(Answer::NoWork(_))));
        let status = loop {
            if let Err(status) = watched.next().await.unwrap() {
                break status;
            }
        };
        assert_eq!(status.code(), Code::Unavailable);
        assert!(watched.next().await.is_none());
    }

    #[tokio::test]
    async fn a_report_waits_for_the_one_before_it() {
        let (_directory, _close, api) = api_with_study().await;
        let mut steps = Vec::new();
        for request_id in ["1", "2", "3"] {
            let lease = v1::LeaseStepRequest { request_id: request_id.into(), ..lease("t") };
            let leased = api.lease_step(by_anybody(lease)).await.unwrap().into_inner();
            let Some(Answer::Step(step)) = leased.next else { panic!("{leased:?}") };
            steps.push(step);
        }
        let report = |i: usize, after: u64| {
            let request = v1::ReportStepRequest { after, ..report(&steps[i]) };
            api.report_step(by_anybody(request))
        };
        let applied = |answer: Result<Response<v1::ReportStepResponse>, Status>| {
            assert_eq!(answer.unwrap().into_inner().outcome(), v1::ReportOutcome::Applied);
        };

        let early = report(1, 1).await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable);
        assert!(early.get_details_retry_info().is_some());
        let wrong = report(1, 2).await.unwrap_err();
        assert_eq!(wrong.code(), Code::InvalidArgument);

        let (second, first) = tokio::join!(report(1, 1), report(0, 0));
        applied(first);
        applied(second);
        let history = v1::ListReportsRequest { study: "s".into(), ..Default::default() };
        let history = api.list_reports(by_anybody(history)).await.unwrap().into_inner().reports;
        assert_eq!(history.iter().map(|r| r.staleness).collect::<Vec<_>>(), [0, 1]);
        // A step that nobody knows delays nothing.
        applied(report(2, 99).await);
    }

    #[tokio::test]
    async fn a_request_that_did_not_pass_the_gate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let (studies, _ended) = Studies::start(location.clone(), Limits::default()).await.unwrap();
        let (_close, closing) = watch::channel(false);
        let api = Api::new(studies, Reader::new(&location).unwrap(), closing);
        let list = Request::new(v1::ListStudiesRequest::default());
        assert_eq!(api.list_studies(list).await.unwrap_err().code(), Code::Internal);
    }

    #[test]
    fn what_is_not_known_to_be_harmless_needs_an_admin() {
        assert_eq!(least_role("/asng.v1.StudyService/WatchStudy"), Role::Viewer);
        assert_eq!(least_role("/asng.v1.SearchService/LeaseStep"), Role::Trainer);
        for path in ["/asng.v1.StudyService/DeleteStudy", "/asng.v1.New/Method", "/", "x"] {
            assert_eq!(least_role(path), Role::Admin, "{path}");
        }
    }
}
