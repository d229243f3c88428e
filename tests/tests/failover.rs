//! Several controllers, one database: each study has one owner at a time, another takes over when that one is gone, one
//! that was paused cannot write, and trainers find the owner by themselves.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::{Ready, ready},
    path::Path,
    task::{Context, Poll},
};

use asng_client::Options;
use asng_proto::v1::{self, ReportOutcome, StudyState, search_service_client::SearchServiceClient};
use asng_tests::{
    Controller, Postgres, Trainer, applied, create_request, report, retry, study_when, theta,
    tiny_search, train, trainer_command,
};
use http::{Request, Response};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, body::Body, server::NamedService, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;

/// A controller that owns nothing, and knows who does.
#[derive(Clone)]
struct Bystander {
    owner: String,
}

impl NamedService for Bystander {
    const NAME: &'static str = "asng.v1.SearchService";
}

impl Service<Request<Body>> for Bystander {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let address = [("address".to_string(), self.owner.clone())];
        let details = ErrorDetails::with_error_info("NOT_OWNER", "asng", address);
        let status = Status::with_error_details(Code::Unavailable, "not the owner", details);
        ready(Ok(status.into_http()))
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_passes_a_dead_controller_and_follows_another_to_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Controller::start(&directory.path().join("state"));
    owner.studies().create_study(tiny_search("tiny", 2)).await.unwrap();
    let (listener, bystander) = listen().await;
    let bystander_of_owner = Bystander { owner: owner.address.to_string() };
    let server = Server::builder().add_service(bystander_of_owner);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    // Nobody listens there any more.
    let (_, dead) = listen().await;

    let mut trainer = trainer_command(&owner, &directory.path().join("work"));
    trainer.args(["serve", "--study", "tiny", "--controller", &format!("{dead},{bystander}")]);
    let mut trainer = Trainer(trainer.spawn().unwrap());
    let study = study_when(&owner, "tiny", |study| study.state() == StudyState::Finished).await;
    assert_eq!(applied(&study), 2);
    assert!(trainer.0.wait().unwrap().success());
}

const STEPS: u64 = 400;

/// A controller on the database at `store`.
fn controller(directory: &Path, store: &str) -> Controller {
    Controller::start_with(directory, &["--store", store])
}

/// Searches the study `s` to its end through a connection that knows both controllers, and takes note of each step when
/// its report is acknowledged.
async fn search(controllers: [&Controller; 2], acknowledged: watch::Sender<u64>) -> v1::Study {
    let controller = controllers.map(Controller::url).to_vec();
    let connection = Options { controller, ..Options::default() }.connect().unwrap();
    let mut counted = BTreeSet::new();
    let study = train(SearchServiceClient::new(connection), "s", "only", |step, answer| {
        let outcome = answer.outcome();
        assert!(matches!(outcome, ReportOutcome::Applied | ReportOutcome::Duplicate));
        assert!(counted.insert(step.step_id), "step {} twice", step.step_id);
        acknowledged.send_replace(step.step_id);
    })
    .await;
    assert_eq!(counted.len() as u64, STEPS, "every step was acknowledged once");
    study
}

/// Theta at the end of the same search, undisturbed.
async fn undisturbed() -> Vec<u64> {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", STEPS)).await.unwrap();
    train(controller.search(), "s", "only", |_, _| {}).await;
    theta(&mut controller.studies(), "s").await
}

/// The address that an answer names as the owner's.
fn owner(status: &Status) -> String {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(info.reason, "NOT_OWNER");
    info.metadata["address"].clone()
}

#[tokio::test]
async fn any_controller_serves_reads_and_names_the_owner_for_the_rest() {
    let Some(postgres) = Postgres::start() else { return };
    let (store, directory) = (postgres.url("reads"), tempfile::tempdir().unwrap());
    let mut first = controller(directory.path(), &store);
    let second = controller(directory.path(), &store);
    first.studies().create_study(create_request("s", STEPS)).await.unwrap();
    let request = v1::GetStudyRequest { name: "s".into() };
    let there = first.studies().get_study(request.clone()).await.unwrap().into_inner();
    let here = second.studies().get_study(request).await.unwrap().into_inner();
    assert_eq!(here, there);
    assert_eq!(theta(&mut second.studies(), "s").await, theta(&mut first.studies(), "s").await);
    let listed = second.studies().list_studies(v1::ListStudiesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().studies.len(), 1);

    first.studies().create_study(create_request("done", 8)).await.unwrap();
    train(first.search(), "done", "t", |_, _| {}).await;
    let request = v1::GetTraceRequest { name: "done".into() };
    let there = first.studies().get_trace(request.clone()).await.unwrap().into_inner();
    assert_eq!(there.points.len(), 8);
    assert_eq!(second.studies().get_trace(request).await.unwrap().into_inner(), there);
    let (study, newest_first) = ("done".into(), true);
    let request =
        v1::ListReportsRequest { study, newest_first, page_size: 3, ..Default::default() };
    let newest = second.studies().list_reports(request).await.unwrap().into_inner().reports;
    assert_eq!(newest.iter().map(|report| report.step_id).collect::<Vec<_>>(), [8, 7, 6]);
    let request = v1::ListTrainersRequest { name: "done".into() };
    let there = first.studies().list_trainers(request.clone()).await.unwrap().into_inner();
    let here = second.studies().list_trainers(request).await.unwrap().into_inner();
    assert_eq!((there.trainers.len(), here.trainers.len()), (1, 0), "the owner alone knows them");

    let request = v1::PauseStudyRequest { name: "s".into() };
    let refused = second.studies().pause_study(request.clone()).await.unwrap_err();
    assert_eq!(owner(&refused), first.url());
    let taken = second.studies().create_study(create_request("s", STEPS)).await.unwrap_err();
    assert_eq!(owner(&taken), first.url(), "a name is one study's on all of them");

    // Work elsewhere is named to trainers that have its data set alone.
    let mut about = create_request("about", STEPS);
    let spec = about.spec.as_mut().unwrap();
    (spec.space, spec.space_definition) = ("chain".into(), "family = \"chain\"".into());
    spec.variables.clear();
    spec.settings = [("dataset".into(), "flowers".into())].into();
    let created = first.studies().create_study(about).await.unwrap().into_inner().study;
    let get = v1::GetStudyRequest { name: "about".into() };
    assert_eq!(second.studies().get_study(get).await.unwrap().into_inner().study, created);
    let lease = async |data_set: &str| {
        let request = v1::LeaseStepRequest {
            trainer_id: "t".into(),
            spaces: vec!["chain".into()],
            data_sets: vec![data_set.into()],
            ..Default::default()
        };
        second.search().lease_step(request).await
    };
    assert_eq!(owner(&lease("flowers").await.unwrap_err()), first.url());
    let next = lease("cifar10").await.unwrap().into_inner().next;
    assert!(matches!(next, Some(v1::lease_step_response::Next::NoWork(_))), "{next:?}");

    // One that ends by itself lets the other take over at once.
    assert!(first.terminate().success());
    retry(|| {
        let (mut studies, request) = (second.studies(), request.clone());
        async move { studies.pause_study(request).await }
    })
    .await;
}

#[tokio::test]
async fn when_the_owner_is_killed_the_other_takes_over_and_nothing_is_lost() {
    let Some(postgres) = Postgres::start() else { return };
    let (store, directory) = (postgres.url("killed"), tempfile::tempdir().unwrap());
    let first = controller(directory.path(), &store);
    let second = controller(directory.path(), &store);
    first.studies().create_study(create_request("s", STEPS)).await.unwrap();
    let (sender, mut acknowledged) = watch::channel(0);
    let kill = async {
        acknowledged.wait_for(|step| *step == STEPS / 2).await.unwrap();
        first.signal("KILL");
    };
    let (study, ()) = tokio::join!(search([&first, &second], sender), kill);
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, STEPS));
    assert_eq!(theta(&mut second.studies(), "s").await, undisturbed().await);
}

#[tokio::test]
async fn an_owner_that_was_paused_and_wakes_up_cannot_write() {
    let Some(postgres) = Postgres::start() else { return };
    let (store, directory) = (postgres.url("paused"), tempfile::tempdir().unwrap());
    let first = controller(directory.path(), &store);
    let second = controller(directory.path(), &store);
    first.studies().create_study(create_request("s", STEPS)).await.unwrap();
    let lease = v1::LeaseStepRequest {
        study: "s".into(),
        trainer_id: "stray".into(),
        request_id: "r".into(),
        ..Default::default()
    };
    let next = first.search().lease_step(lease).await.unwrap().into_inner().next;
    let Some(v1::lease_step_response::Next::Step(stray)) = next else { panic!("{next:?}") };

    first.signal("STOP");
    let (sender, mut acknowledged) = watch::channel(0);
    let wake = async {
        // The other owns the study, and has gone on with it.
        acknowledged.wait_for(|step| *step == STEPS / 2).await.unwrap();
        first.signal("CONT");
        let mut search = first.search();
        let refused = search.report_step(report(&stray, "stray")).await.unwrap_err();
        assert_eq!(owner(&refused), second.url());
        // The report is welcome where the study is now.
        let request = v1::ReportStepRequest { lease_next: false, ..report(&stray, "stray") };
        let answer = second.search().report_step(request).await.unwrap();
        let outcome = answer.into_inner().outcome();
        assert_eq!(outcome, ReportOutcome::Stale, "it is {} steps late", STEPS / 2);
    };
    let (study, ()) = tokio::join!(search([&second, &first], sender), wake);
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, STEPS));
    let request = v1::GetStudyRequest { name: "s".into() };
    let read = first.studies().get_study(request).await.unwrap().into_inner().study.unwrap();
    assert_eq!(read.mode, study.mode, "it reads what the other wrote");
}
