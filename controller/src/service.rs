//! The gRPC services: decode, one operation on the studies, encode. No rule of a study is decided here.

mod archive;
mod convert;
mod search;
mod status;
mod streams;
mod studies;

use std::sync::Arc;

use asng_proto::v1;
use asng_serving::{
    Rules,
    access::{Identity, Role},
};
use tokio::sync::{Notify, watch};
use tonic::{Request, Status};

use self::status::{invalid, status};
use crate::{
    store::{Page, PageStart, Reader},
    studies::{Error, Studies, StudyRegistry},
    study::{self, Now, Study, StudyId, TracePoint, Violation},
};

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

fn foreign_token(method: &str) -> Status {
    let description = format!("is not one that {method} returned");
    invalid(&[Violation::new("page_token", description)])
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{
        search_service_server::SearchService, study_service_server::StudyService,
    };
    use tokio_stream::StreamExt;
    use tonic::{Code, Response};
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
