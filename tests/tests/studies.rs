//! The spec of a study: its start, fixed variables, stop rules, retention and owner.

use std::collections::BTreeMap;

use asng_proto::v1::{self, lease_step_response::Next, marginal::Kind, start::From, variable};
use asng_tests::{Controller, applied, create_request, report, study_when, train};
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt;

/// A study of `name` whose spec is changed by `change`.
async fn create(
    controller: &Controller,
    name: &str,
    change: impl FnOnce(&mut v1::StudySpec),
) -> Result<v1::Study, tonic::Status> {
    let mut request = create_request(name, 100);
    change(request.spec.as_mut().unwrap());
    let answer = controller.studies().create_study(request).await?;
    Ok(answer.into_inner().study.unwrap())
}

async fn distribution(controller: &Controller, name: &str) -> Vec<v1::Marginal> {
    let request = v1::GetDistributionRequest { name: name.into() };
    controller.studies().get_distribution(request).await.unwrap().into_inner().marginals
}

async fn history(controller: &Controller, study: &str) -> Vec<v1::Report> {
    let request =
        v1::ListReportsRequest { study: study.into(), page_size: 1000, ..Default::default() };
    controller.studies().list_reports(request).await.unwrap().into_inner().reports
}

#[tokio::test]
async fn theta_starts_where_another_study_ended_or_where_a_table_says() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    create(&controller, "source", |_| {}).await.unwrap();
    train(controller.search(), "source", "t", |_, _| {}).await;
    let learnt = distribution(&controller, "source").await;
    let from = |from| Some(v1::Start { from: Some(from) });
    create(&controller, "next", |spec| spec.start = from(From::Study("source".into())))
        .await
        .unwrap();
    let started = distribution(&controller, "next").await;
    for (started, learnt) in started.iter().zip(&learnt) {
        match (started.kind.as_ref().unwrap(), learnt.kind.as_ref().unwrap()) {
            (Kind::Categorical(a), Kind::Categorical(b)) => {
                let pairs = a.probabilities.iter().zip(&b.probabilities);
                assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-12), "{pairs:?}");
            }
            (a, b) => assert_eq!(a, b),
        }
    }
    // The source may go; what was taken from it stays.
    let request = v1::DeleteStudyRequest { name: "source".into() };
    controller.studies().delete_study(request).await.unwrap();
    create(&controller, "next", |spec| spec.start = from(From::Study("source".into())))
        .await
        .expect("the same words, the same study");
    let gone = create(&controller, "other", |spec| spec.start = from(From::Study("source".into())));
    assert!(gone.await.unwrap_err().message().contains("there is no study \"source\""));

    let table = v1::Distribution { marginals: vec![learnt[0].clone()] };
    create(&controller, "table", |spec| spec.start = from(From::Distribution(table.clone())))
        .await
        .unwrap();
    let wrong = v1::Marginal { name: "nobody".into(), ..learnt[0].clone() };
    let wrong = v1::Distribution { marginals: vec![wrong] };
    let refused = create(&controller, "wrong", |spec| spec.start = from(From::Distribution(wrong)));
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("spec.start[\"nobody\"]"), "{refused}");
}

#[tokio::test]
async fn a_fixed_variable_keeps_its_value_in_every_step() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let fixed: BTreeMap<_, _> = [("v3".into(), "c4".into()), ("width".into(), "17".into())].into();
    let study = create(&controller, "fixed", |spec| spec.fixed = fixed).await.unwrap();
    assert!(matches!(study.variables[3].kind, Some(variable::Kind::Categorical(_))));
    let finished = train(controller.search(), "fixed", "t", |step, _| {
        for architecture in step.train.iter().chain(&step.rank) {
            assert_eq!((architecture.values[3], architecture.values[10]), (4, 17));
        }
    })
    .await;
    assert_eq!(finished.mode.unwrap().values[3], 4);
    let all = (0..10).map(|i| (format!("v{i}"), "c0".into()));
    let all: BTreeMap<_, _> = all.chain([("width".into(), "8".into())]).collect();
    let refused = create(&controller, "all", |spec| spec.fixed = all).await.unwrap_err();
    assert!(refused.message().contains("leaves no variable free"), "{refused}");
}

#[tokio::test]
async fn any_stop_rule_ends_a_study_and_says_which() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    create(&controller, "steps", |_| {}).await.unwrap();
    create(&controller, "target", |spec| {
        let target = v1::Target { metric: "steps".into(), value: 20.0, at_least: true };
        spec.stop.as_mut().unwrap().target = Some(target);
    })
    .await
    .unwrap();
    create(&controller, "convergence", |spec| spec.stop.as_mut().unwrap().convergence = Some(0.2))
        .await
        .unwrap();
    for (name, reason, least, most) in [
        ("steps", v1::StopReason::MaxSteps, 100, 100),
        ("target", v1::StopReason::Target, 20, 20),
        ("convergence", v1::StopReason::Convergence, 1, 100),
    ] {
        let study = train(controller.search(), name, "t", |_, _| {}).await;
        assert_eq!(study.stop_reason(), reason, "{name}");
        assert!((least..=most).contains(&applied(&study)), "{name}: {}", applied(&study));
    }
    // Nobody works on this one: time alone ends it.
    create(&controller, "time", |spec| {
        let second = prost_types::Duration { seconds: 1, nanos: 0 };
        spec.stop.as_mut().unwrap().max_duration = Some(second);
    })
    .await
    .unwrap();
    let ended = |study: &v1::Study| study.state() == v1::StudyState::Finished;
    let study = study_when(&controller, "time", ended).await;
    assert_eq!(study.stop_reason(), v1::StopReason::MaxDuration);
    let request = v1::StopStudyRequest { name: "time".into() };
    let stopped = controller.studies().stop_study(request).await.unwrap().into_inner().study;
    assert_eq!(stopped.unwrap().stop_reason(), v1::StopReason::MaxDuration, "it had ended");
}

#[tokio::test]
async fn a_history_keeps_what_it_was_asked_to_and_late_reports_are_duplicates_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let keep = |keep| Some(v1::Retention { keep: Some(keep) });
    create(&controller, "every", |spec| spec.retention = keep(v1::retention::Keep::Every(10)))
        .await
        .unwrap();
    create(&controller, "last", |spec| {
        spec.stop.as_mut().unwrap().max_steps = 500;
        spec.retention = keep(v1::retention::Keep::Last(50));
    })
    .await
    .unwrap();
    let mut first = None;
    for name in ["every", "last"] {
        train(controller.search(), name, "t", |step, _| {
            if name == "every" && step.step_id == 1 {
                first = Some(step.clone());
            }
        })
        .await;
    }
    let steps: Vec<_> = history(&controller, "every").await.iter().map(|r| r.step_id).collect();
    assert_eq!(steps, (10..=100).step_by(10).collect::<Vec<_>>());
    let steps: Vec<_> = history(&controller, "last").await.iter().map(|r| r.step_id).collect();
    assert_eq!(*steps.last().unwrap(), 500);
    assert!((50..=200).contains(&steps.len()), "{}", steps.len());

    let before = controller.studies();
    let get = || v1::GetStudyRequest { name: "every".into() };
    let study = before.clone().get_study(get()).await.unwrap().into_inner().study.unwrap();
    let request = asng_tests::report(&first.unwrap(), "late");
    let answer = controller.search().report_step(request).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), v1::ReportOutcome::Duplicate);
    assert_eq!(answer.first_outcome(), v1::ReportOutcome::Unspecified);
    let after = before.clone().get_study(get()).await.unwrap().into_inner().study.unwrap();
    assert_eq!(after.progress.unwrap().duplicate, study.progress.unwrap().duplicate + 1);
    assert_eq!((after.mode, after.state), (study.mode, study.state));
}

#[tokio::test]
async fn studies_are_listed_by_owner_and_labels() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    for (name, owner, team) in
        [("a", "ann", "vision"), ("b", "bob", "vision"), ("c", "ann", "text")]
    {
        let study = create(&controller, name, |spec| {
            spec.owner = owner.into();
            spec.labels = [("team".into(), team.into())].into();
        });
        assert_eq!(study.await.unwrap().owner, owner);
    }
    let list = async |owner: &str, labels: &[(&str, &str)]| -> Vec<String> {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let request = v1::ListStudiesRequest { owner: owner.into(), labels, ..Default::default() };
        let answer = controller.studies().list_studies(request).await.unwrap();
        answer.into_inner().studies.into_iter().map(|study| study.name).collect()
    };
    assert_eq!(list("", &[]).await, ["a", "b", "c"]);
    assert_eq!(list("ann", &[]).await, ["a", "c"]);
    assert_eq!(list("", &[("team", "vision")]).await, ["a", "b"]);
    assert_eq!(list("ann", &[("team", "vision")]).await, ["a"]);
    assert!(list("", &[("team", "vision"), ("x", "")]).await.is_empty());
}

/// The default limit of gRPC's libraries for one message, which the generated clients here have.
const MESSAGE: usize = 4 << 20;

#[tokio::test]
async fn pages_of_large_studies_and_reports_stay_small() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let choices: Vec<_> = (0..500).map(|i| format!("{i:0>200}")).collect();
    let large = |i| v1::Variable {
        name: format!("v{i}"),
        kind: Some(variable::Kind::Categorical(v1::Categorical { choices: choices.clone() })),
    };
    for i in 0..6 {
        create(&controller, &format!("s{i}"), |spec| spec.variables = (0..10).map(large).collect())
            .await
            .unwrap();
    }
    let mut request = v1::ListStudiesRequest::default();
    let (mut studies, mut pages) = (controller.studies(), Vec::new());
    loop {
        let page = studies.list_studies(request.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() < MESSAGE && page.total_size == 6);
        pages.push(page.studies.len());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [3, 3]);

    create(&controller, "costly", |spec| {
        spec.algorithm.as_mut().unwrap().lambda_theta = Some(64);
        spec.stop.as_mut().unwrap().max_steps = 40;
    })
    .await
    .unwrap();
    let figures: BTreeMap<_, _> = (0..10).map(|i| (format!("{i:0>200}"), f64::from(i))).collect();
    for i in 0..40 {
        let request = v1::LeaseStepRequest {
            study: "costly".into(),
            trainer_id: "t".into(),
            request_id: i.to_string(),
            ..Default::default()
        };
        let answer = controller.search().lease_step(request).await.unwrap().into_inner();
        let Some(Next::Step(step)) = answer.next else { panic!("{answer:?}") };
        let costs = vec![v1::Costs { figures: figures.clone() }; step.rank.len()];
        let report = v1::ReportStepRequest { costs, lease_next: false, ..report(&step, "t") };
        controller.search().report_step(report).await.unwrap();
    }
    let mut request =
        v1::ListReportsRequest { study: "costly".into(), page_size: 1000, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = studies.list_reports(request.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() < MESSAGE);
        seen.extend(page.reports.iter().map(|report| report.step_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert!(seen.is_sorted() && seen.len() == 40, "{seen:?}");
}

#[tokio::test]
async fn studies_are_listed_by_state_and_name_and_counted_on_all_pages() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    for name in ["Cats-1", "cats-2", "dogs", "concatenated"] {
        create(&controller, name, |_| {}).await.unwrap();
    }
    controller.studies().pause_study(v1::PauseStudyRequest { name: "dogs".into() }).await.unwrap();
    controller.studies().stop_study(v1::StopStudyRequest { name: "cats-2".into() }).await.unwrap();
    let list = async |states: &[i32], name_contains: &str, page_size: u32| {
        let mut request = v1::ListStudiesRequest {
            states: states.to_vec(),
            name_contains: name_contains.into(),
            page_size,
            ..Default::default()
        };
        let mut pages = Vec::new();
        loop {
            let page = controller.studies().list_studies(request.clone()).await?.into_inner();
            let names: Vec<_> = page.studies.iter().map(|study| &*study.name).collect();
            pages.push((names.join(" "), page.total_size));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok::<_, tonic::Status>(pages);
            }
        }
    };
    let pages = |pages: &[&str], total: u32| -> Vec<(String, u32)> {
        pages.iter().map(|page| (page.to_string(), total)).collect()
    };
    let [running, paused, stopped] =
        [v1::StudyState::Running, v1::StudyState::Paused, v1::StudyState::Stopped].map(i32::from);
    assert_eq!(list(&[], "", 3).await.unwrap(), pages(&["Cats-1 cats-2 dogs", "concatenated"], 4));
    assert_eq!(list(&[], "CAT", 2).await.unwrap(), pages(&["Cats-1 cats-2", "concatenated"], 3));
    assert_eq!(list(&[running], "cat", 1).await.unwrap(), pages(&["Cats-1", "concatenated"], 2));
    assert_eq!(list(&[paused, stopped], "", 9).await.unwrap(), pages(&["cats-2 dogs"], 2));
    assert_eq!(list(&[], &"é".repeat(100), 9).await.unwrap(), pages(&[""], 0));
    let refused = list(&[running, 0, 99], &"x".repeat(101), 9).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let found = refused.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = found.iter().map(|found| &*found.field).collect();
    assert_eq!(fields, ["states[1]", "states[2]", "name_contains"]);
}

/// Rejects the study "s", as a trainer does.
async fn reject(controller: &Controller) {
    let reason = v1::FieldViolation { field: "spec".into(), description: "cannot be".into() };
    let rejection = v1::Rejection { violations: vec![reason] };
    let request = v1::DescribeSpaceRequest {
        study: "s".into(),
        trainer_id: "t".into(),
        answer: Some(v1::describe_space_request::Answer::Rejection(rejection)),
    };
    controller.search().describe_space(request).await.unwrap();
}

#[tokio::test]
async fn a_failed_study_is_replaced_when_that_is_asked_for_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let replace = async |controller: &Controller, max_steps| {
        let request =
            v1::CreateStudyRequest { replace_failed: true, ..create_request("s", max_steps) };
        let answer = controller.studies().create_study(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().study.unwrap())
    };
    let first = replace(&controller, 10).await.expect("there is nothing to be replaced");
    assert_eq!(replace(&controller, 10).await.unwrap(), first, "a request that is sent again");
    let status = replace(&controller, 11).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let running = "study \"s\" exists with another spec: stop.max_steps is 10 there and 11 here; \
        it is RUNNING, and only a FAILED study is replaced";
    assert_eq!(status.message(), running);

    let held = lease(&controller, "t", None).await;
    reject(&controller).await;
    let status = controller.studies().create_study(create_request("s", 11)).await.unwrap_err();
    let failed = "study \"s\" exists with another spec: stop.max_steps is 10 there and 11 here; \
        it has FAILED, and --replace (replace_failed) replaces it";
    assert_eq!(status.message(), failed);
    let malformed = replace(&controller, 0).await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument);
    let get = v1::GetStudyRequest { name: "s".into() };
    let kept = controller.studies().get_study(get).await.unwrap().into_inner().study;
    assert_eq!(kept.unwrap().study_id, first.study_id, "nothing was deleted");

    let second = replace(&controller, 11).await.unwrap();
    assert_ne!(second.study_id, first.study_id);
    assert_eq!((second.state(), applied(&second)), (v1::StudyState::Running, 0));
    let late = controller.search().report_step(asng_tests::report(&held, "t")).await.unwrap_err();
    assert_eq!(late.code(), Code::NotFound, "the step was of another study");
    reject(&controller).await;
    let third = replace(&controller, 11).await.expect("the same spec may do with another trainer");
    assert_ne!(third.study_id, second.study_id);
    controller.kill();
    controller.restart();
    let same = |study: &v1::Study| study.study_id == third.study_id;
    assert_eq!(study_when(&controller, "s", same).await, third);
    let list = controller.studies().list_studies(v1::ListStudiesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().studies.len(), 1);
}

async fn trace(controller: &Controller, name: &str) -> Vec<v1::TracePoint> {
    let request = v1::GetTraceRequest { name: name.into() };
    controller.studies().get_trace(request).await.unwrap().into_inner().points
}

async fn trainers(controller: &Controller, name: &str) -> Vec<v1::Trainer> {
    let request = v1::ListTrainersRequest { name: name.into() };
    controller.studies().list_trainers(request).await.unwrap().into_inner().trainers
}

/// Asks for a step, or reports one and asks for the next.
async fn lease(controller: &Controller, trainer: &str, held: Option<&v1::Step>) -> v1::Step {
    use v1::lease_step_response::Next;
    let mut search = controller.search();
    let next = match held {
        Some(step) => {
            let report = asng_tests::report(step, trainer);
            search.report_step(report).await.unwrap().into_inner().next.unwrap()
        }
        None => {
            let (study, trainer_id) = ("s".into(), trainer.into());
            let request = v1::LeaseStepRequest { study, trainer_id, ..Default::default() };
            search.lease_step(request).await.unwrap().into_inner()
        }
    };
    let Some(Next::Step(step)) = next.next else { panic!("no step: {next:?}") };
    step
}

#[tokio::test]
async fn how_a_search_went_survives_a_crash_and_who_works_on_it_is_seen_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    create(&controller, "s", |spec| {
        spec.retention = Some(v1::Retention { keep: Some(v1::retention::Keep::Last(10)) });
        spec.stop.as_mut().unwrap().max_steps = 300;
        spec.algorithm.as_mut().unwrap().max_staleness = Some(5000);
        spec.lease = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    })
    .await
    .unwrap();
    assert!(trace(&controller, "s").await.is_empty());
    assert!(trainers(&controller, "s").await.is_empty());
    let slow = lease(&controller, "slow", None).await;
    let mut held = lease(&controller, "fast", None).await;
    for _ in 1..299 {
        held = lease(&controller, "fast", Some(&held)).await;
    }
    let last = v1::ReportStepRequest { lease_next: false, ..asng_tests::report(&held, "fast") };
    controller.search().report_step(last).await.unwrap();

    let points = trace(&controller, "s").await;
    let ends: Vec<_> = points.iter().map(|point| point.applied).collect();
    assert_eq!(ends, (2..299).step_by(2).chain([299]).collect::<Vec<_>>(), "the last is of now");
    let [first, .., before, now] = &points[..] else { unreachable!("there are 150") };
    assert!(now.convergence > first.convergence && now.entropy < first.entropy);
    let band = before.losses.unwrap();
    assert!(band.low <= band.median && band.median <= band.high, "{band:?}");
    assert_eq!((before.metrics["steps"], now.metrics["steps"]), (298.5, 300.0));
    let known = trainers(&controller, "s").await;
    let told: Vec<_> = known.iter().map(|t| (&*t.trainer_id, t.applied, &*t.holds)).collect();
    assert_eq!(told, [("fast", 299, &[][..]), ("slow", 0, &[slow.step_id])]);

    controller.kill();
    controller.restart();
    assert!(trainers(&controller, "s").await.is_empty());
    let stored = &points[..points.len() - 1];
    assert_eq!(trace(&controller, "s").await, stored);
    let last = v1::ReportStepRequest { lease_next: false, ..asng_tests::report(&slow, "slow") };
    controller.search().report_step(last).await.unwrap();
    let ended = trace(&controller, "s").await;
    assert_eq!(&ended[..stored.len()], stored);
    assert_eq!((ended.len(), ended[stored.len()].applied), (150, 300));
    let known = trainers(&controller, "s").await;
    assert_eq!((&*known[0].trainer_id, known[0].applied), ("slow", 1));
    assert_eq!(known[0].mean_staleness, 299.0);
}
