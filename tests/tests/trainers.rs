//! Several trainers on one study, and several studies for one trainer.

use std::sync::{Arc, Mutex};

use asng_proto::v1::{self, ReportOutcome, StudyState, lease_step_response::Next};
use asng_tests::{Controller, categoricals, create_request, report, train};

#[tokio::test]
async fn two_trainers_share_a_study_and_every_step_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("shared", 200)).await.unwrap();
    let reported = Arc::new(Mutex::new(Vec::new()));
    let run = |trainer: &'static str| {
        let (search, reported) = (controller.search(), reported.clone());
        async move {
            train(search, "shared", trainer, |step, answer| {
                assert_eq!(answer.outcome(), ReportOutcome::Applied);
                reported.lock().unwrap().push((step.step_id, trainer));
            })
            .await
        }
    };
    let (study, _) = tokio::join!(run("a"), run("b"));
    assert_eq!(study.state(), StudyState::Finished);
    let mut reported = reported.lock().unwrap().clone();
    assert!(reported.iter().any(|(_, trainer)| *trainer == "a"));
    assert!(reported.iter().any(|(_, trainer)| *trainer == "b"));
    reported.sort_unstable();
    let steps: Vec<_> = reported.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_trainer_with_no_study_describes_what_waits_and_then_searches_it() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let (mut studies, mut search) = (controller.studies(), controller.search());
    let mut request = create_request("waits", 3);
    let spec = request.spec.as_mut().unwrap();
    spec.variables.clear();
    spec.space = "mine".into();
    spec.settings = [("depth".to_string(), "3".to_string())].into();
    studies.create_study(request).await.unwrap();

    let mut lease = async |spaces: &[&str]| {
        let request = v1::LeaseStepRequest {
            trainer_id: "t".into(),
            spaces: spaces.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        search.lease_step(request).await.unwrap().into_inner().next.unwrap()
    };
    assert!(matches!(lease(&["other"]).await, Next::NoWork(_)));
    let Next::Describe(describe) = lease(&["other", "mine"]).await else { panic!() };
    assert_eq!((describe.study.as_str(), describe.settings["depth"].as_str()), ("waits", "3"));

    let description = v1::SpaceDescription { variables: categoricals(3), costs: None };
    let request = v1::DescribeSpaceRequest {
        study: "waits".into(),
        trainer_id: "t".into(),
        answer: Some(v1::describe_space_request::Answer::Description(description)),
    };
    let study = controller.search().describe_space(request).await.unwrap().into_inner().study;
    assert_eq!(study.unwrap().state(), StudyState::Running);
    let Next::Step(step) = lease(&["mine"]).await else { panic!() };
    assert_eq!((step.study.as_str(), step.rank.len(), step.train.len()), ("waits", 2, 2));
}

#[tokio::test]
async fn a_rejected_study_fails_with_the_trainers_reasons() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut request = create_request("bad", 3);
    let spec = request.spec.as_mut().unwrap();
    spec.variables.clear();
    spec.space = "mine".into();
    controller.studies().create_study(request).await.unwrap();
    let reason = v1::FieldViolation {
        field: "settings.depth".into(),
        description: "must be in 1..=9".into(),
    };
    let rejection = v1::Rejection { violations: vec![reason.clone()] };
    let request = v1::DescribeSpaceRequest {
        study: "bad".into(),
        trainer_id: "t".into(),
        answer: Some(v1::describe_space_request::Answer::Rejection(rejection)),
    };
    let study = controller.search().describe_space(request).await.unwrap().into_inner().study;
    let study = study.unwrap();
    assert_eq!((study.state(), study.failure), (StudyState::Failed, vec![reason]));
}

#[tokio::test]
async fn a_trainer_that_starts_again_gets_its_step_back_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", 10)).await.unwrap();
    let mut search = controller.search();
    let mut lease = async |request_id: &str, fresh_start: bool| {
        let request = v1::LeaseStepRequest {
            study: "s".into(),
            trainer_id: "t".into(),
            request_id: request_id.into(),
            fresh_start,
            ..Default::default()
        };
        match search.lease_step(request).await.unwrap().into_inner().next {
            Some(Next::Step(step)) => step,
            other => panic!("{other:?}"),
        }
    };
    let held = lease("before", true).await;
    let again = lease("after", true).await;
    assert_eq!((again.step_id, &again.train, &again.rank), (1, &held.train, &held.rank));
    let answer = controller.search().report_step(report(&held, "t")).await.unwrap().into_inner();
    assert_eq!(
        answer.outcome(),
        ReportOutcome::Applied,
        "the first report counts, under any lease"
    );
    let late = controller.search().report_step(report(&again, "t")).await.unwrap().into_inner();
    assert_eq!(late.outcome(), ReportOutcome::Duplicate);
    assert_eq!(late.first_outcome(), ReportOutcome::Applied);
}
