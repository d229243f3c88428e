//! Starting, asking after and ending the controller's process.

use std::process::Output;

use asng_proto::v1::{GetStudyRequest, ReportOutcome};
use asng_tests::{Controller, controller_command, create_request, train};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn run(state_dir: &std::path::Path) -> Output {
    controller_command(state_dir, "127.0.0.1:0".parse().unwrap()).output().unwrap()
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut health = HealthClient::new(controller.channel());
    for service in ["", "asng.v1.StudyService", "asng.v1.SearchService"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(controller.channel());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["asng.v1.StudyService", "asng.v1.SearchService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

// Several threads, so that the connection takes the server's farewell while the test waits for the process.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_process_with_0_and_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", 10)).await.unwrap();
    let study = train(controller.search(), "s", "t", |_, answer| {
        assert_eq!(answer.outcome(), ReportOutcome::Applied);
    })
    .await;
    assert!(controller.terminate().success());
    controller.restart();
    let request = GetStudyRequest { name: "s".into() };
    let again = controller.studies().get_study(request).await.unwrap().into_inner().study;
    assert_eq!(again.unwrap(), study);
}

#[tokio::test]
async fn health_says_that_the_controller_is_ending() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start_with(directory.path(), &["--grace", "100ms"]);
    for service in ["", "asng.v1.SearchService"] {
        let mut health = HealthClient::new(controller.channel());
        let request = HealthCheckRequest { service: service.into() };
        let mut answers = health.watch(request).await.unwrap().into_inner();
        let mut next = async || answers.message().await.unwrap().unwrap().status();
        assert_eq!(next().await, ServingStatus::Serving);
        controller.signal("TERM");
        assert_eq!(next().await, ServingStatus::NotServing);
        // The one who watches does not keep it.
        assert!(controller.wait().success());
        controller.restart();
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start_with(directory.path(), &["--grace", "1h"]);
    let mut health = HealthClient::new(controller.channel());
    let _watched = health.watch(HealthCheckRequest::default()).await.unwrap();
    controller.signal("TERM");
    controller.log_with("shutting down");
    controller.signal("INT");
    assert_eq!(controller.wait().code(), Some(1));
}

#[test]
fn a_second_controller_on_the_same_state_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Controller::start(directory.path());
    let second = run(directory.path());
    let log = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && log.contains("in use by another controller"), "{log}");
}

#[test]
fn the_reason_why_a_state_directory_cannot_be_used_is_told_once() {
    let output = run(std::path::Path::new("/dev/null/state"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(log.matches("Not a directory").count(), 1, "{log}");
}

#[test]
fn a_state_directory_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = run(file.path());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("cannot use state directory"), "{log}");
}
