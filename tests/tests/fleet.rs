//! Trainers that serve many studies: which they set aside, which spaces they cannot serve, which data sets they have, and who knows of
//! it.

use asng_proto::v1::{self, describe_space_request::Answer, lease_step_response::Next};
use asng_tests::{Controller, categoricals, create_request, limit, report};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Creates a study of the space "mine", whose variables a trainer is to describe.
async fn create_waiting(controller: &Controller, name: &str, space: &str) -> v1::Study {
    let mut request = create_request(name, 100);
    let spec = request.spec.as_mut().unwrap();
    spec.variables.clear();
    spec.space = space.into();
    create(controller, request).await
}

/// Creates a study of the space "mine" that runs at once.
async fn create_running(controller: &Controller, name: &str) -> v1::Study {
    let mut request = create_request(name, 100);
    request.spec.as_mut().unwrap().space = "mine".into();
    create(controller, request).await
}

async fn create(controller: &Controller, request: v1::CreateStudyRequest) -> v1::Study {
    controller.studies().create_study(request).await.unwrap().into_inner().study.unwrap()
}

/// A request for a step of any study of the space "mine" that is not set aside.
fn any_but(trainer: &str, set_aside: &[&v1::Study]) -> v1::LeaseStepRequest {
    let set_aside = set_aside.iter().map(|study| v1::SetAsideStudy {
        study: study.name.clone(),
        study_id: study.study_id.clone(),
        reason: "no such network".into(),
        retry_after: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
    });
    v1::LeaseStepRequest {
        trainer_id: trainer.into(),
        spaces: vec!["mine".into()],
        set_aside: set_aside.collect(),
        ..Default::default()
    }
}

async fn lease(controller: &Controller, request: v1::LeaseStepRequest) -> Next {
    controller.search().lease_step(request).await.unwrap().into_inner().next.unwrap()
}

async fn trainers(controller: &Controller, study: &str) -> Vec<v1::Trainer> {
    let request = v1::ListTrainersRequest { name: study.into() };
    controller.studies().list_trainers(request).await.unwrap().into_inner().trainers
}

/// Fields that a request is refused for.
fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let request = status.get_details_bad_request().unwrap();
    request.field_violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test]
async fn a_study_that_is_set_aside_is_left_out_of_every_answer() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let waits = create_waiting(&controller, "waits", "mine").await;
    let older = create_running(&controller, "older").await;
    let newer = create_running(&controller, "newer").await;
    let about =
        async |set_aside: &[&v1::Study]| match lease(&controller, any_but("t", set_aside)).await {
            Next::Step(step) => step.study,
            Next::Describe(describe) => describe.study,
            Next::NoWork(_) => "none".into(),
            Next::Finished(finished) => finished.study.unwrap().name,
        };
    assert_eq!(about(&[]).await, "waits");
    assert_eq!(about(&[&waits]).await, "older");
    // The trainer held a step of that study, under the same request id.
    assert_eq!(about(&[&waits, &older]).await, "newer");
    assert_eq!(about(&[&waits, &older, &newer]).await, "none");
    // The id decides: a study of the same name that came later is another.
    let gone = v1::Study { study_id: "0000000000000001".into(), ..older.clone() };
    let malformed = v1::Study { study_id: "no id".into(), ..older.clone() };
    assert_eq!(about(&[&waits, &gone, &malformed]).await, "older");

    let stop = v1::StopStudyRequest { name: "older".into() };
    controller.studies().stop_study(stop).await.unwrap();
    for study in [&waits, &older, &newer] {
        let named =
            v1::LeaseStepRequest { study: study.name.clone(), ..any_but("t", &[&waits, &older]) };
        match (study.name.as_str(), lease(&controller, named).await) {
            ("newer", Next::Step(_)) | ("waits" | "older", Next::NoWork(_)) => {}
            (name, other) => panic!("{name}: {other:?}"),
        }
    }
}

/// Creates a study of the space "mine" about a data set; it runs at once if it is given its variables.
async fn create_about(controller: &Controller, name: &str, data_set: &str, runs: bool) {
    let mut request = create_request(name, 3);
    let spec = request.spec.as_mut().unwrap();
    spec.space = "mine".into();
    spec.settings.insert("dataset".into(), data_set.into());
    if !runs {
        spec.variables.clear();
    }
    create(controller, request).await;
}

/// A request of trainer "t", which has these data sets.
fn with_data_sets(study: &str, data_sets: &[&str]) -> v1::LeaseStepRequest {
    v1::LeaseStepRequest {
        study: study.into(),
        data_sets: data_sets.iter().map(ToString::to_string).collect(),
        ..any_but("t", &[])
    }
}

#[tokio::test]
async fn a_trainer_is_offered_only_studies_about_data_sets_that_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    create_about(&controller, "waits", "flowers", false).await;
    create_about(&controller, "runs", "flowers", true).await;
    create_running(&controller, "about-nothing").await;
    let about = async |study: &str, data_sets: &[&str]| match lease(
        &controller,
        with_data_sets(study, data_sets),
    )
    .await
    {
        Next::Step(step) => step.study,
        Next::Describe(describe) => describe.study,
        Next::NoWork(_) => "none".into(),
        Next::Finished(finished) => format!("the end of {}", finished.study.unwrap().name),
    };
    assert_eq!(about("", &["cifar10", "flowers"]).await, "waits");
    assert_eq!(about("", &[]).await, "waits", "it says nothing about data sets");
    assert_eq!(about("", &["cifar10"]).await, "about-nothing");
    for study in ["waits", "runs"] {
        assert_eq!(about(study, &["cifar10"]).await, "none");
        assert_eq!(about(study, &["flowers"]).await, study);
    }
    let listed = &trainers(&controller, "").await[0];
    assert_eq!((&*listed.trainer_id, &*listed.data_sets), ("t", &["flowers".to_string()][..]));

    // A report leases, and asks for descriptions, by the same rule.
    let runs = with_data_sets("runs", &["flowers"]);
    let Next::Step(step) = lease(&controller, runs).await else { panic!("no step") };
    let report_with = async |step: &v1::Step, data_sets: &[&str]| {
        let report = v1::ReportStepRequest {
            spaces: vec!["mine".into()],
            data_sets: data_sets.iter().map(ToString::to_string).collect(),
            ..report(step, "t")
        };
        controller.search().report_step(report).await.unwrap().into_inner()
    };
    let answer = report_with(&step, &["cifar10"]).await;
    assert_eq!(answer.outcome(), v1::ReportOutcome::Applied, "what was computed counts");
    assert!(matches!(answer.next.unwrap().next, Some(Next::NoWork(_))));
    assert_eq!(answer.describe, None);
    let Next::Step(step) = lease(&controller, with_data_sets("runs", &[])).await else { panic!() };
    let answer = report_with(&step, &["flowers"]).await;
    assert!(matches!(answer.next.unwrap().next, Some(Next::Step(_))));
    assert_eq!(answer.describe.unwrap().study, "waits");

    // Nothing fails for it, and an end is told to everybody.
    let state = async |name: &str| {
        let get = v1::GetStudyRequest { name: name.into() };
        controller.studies().get_study(get).await.unwrap().into_inner().study.unwrap().state()
    };
    assert_eq!(state("waits").await, v1::StudyState::Waiting);
    assert_eq!(state("runs").await, v1::StudyState::Running);
    controller.studies().stop_study(v1::StopStudyRequest { name: "runs".into() }).await.unwrap();
    assert_eq!(about("runs", &["cifar10"]).await, "the end of runs");
}

#[tokio::test]
async fn what_a_trainer_says_of_itself_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let refused = async |change: fn(&mut v1::LeaseStepRequest)| {
        let mut request = any_but("t", &[]);
        change(&mut request);
        fields(&controller.search().lease_step(request).await.unwrap_err())
    };
    let many = refused(|request| {
        request.set_aside = vec![v1::SetAsideStudy::default(); 101];
        request.unserved = vec![v1::UnservedSpace::default(); 101];
    });
    assert_eq!(many.await, ["unserved"]);
    let many = refused(|request| request.set_aside = vec![v1::SetAsideStudy::default(); 101]).await;
    assert_eq!(many, ["set_aside"]);
    let many = refused(|request| request.data_sets = vec!["flowers".into(); 101]).await;
    assert_eq!(many, ["data_sets"]);
    let bad = refused(|request| request.data_sets = vec!["flowers".into(), "a\nb".into()]).await;
    assert_eq!(bad, ["data_sets[1]"]);
    let long = refused(|request| {
        request.spaces.push("no name".into());
        request.unserved = vec![
            v1::UnservedSpace { space: "photos".into(), reason: "é".repeat(1000) },
            v1::UnservedSpace { space: "photos".into(), reason: "é".repeat(1001) },
        ];
        request.set_aside = vec![v1::SetAsideStudy {
            study: "no name".into(),
            study_id: "1".into(),
            reason: "x".repeat(1001),
            retry_after: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        }];
    });
    assert_eq!(
        long.await,
        [
            "spaces[1]",
            "unserved[1].reason",
            "set_aside[0].study",
            "set_aside[0].reason",
            "set_aside[0].retry_after"
        ]
    );
    assert_eq!(trainers(&controller, "").await, [], "what is refused is not remembered");
}

#[tokio::test]
async fn the_controller_knows_every_trainer_and_what_it_said_of_itself() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let waits = create_waiting(&controller, "waits", "mine").await;
    create_running(&controller, "a").await;
    create_running(&controller, "b").await;
    let mut request = any_but("busy", &[&waits]);
    let unserved =
        v1::UnservedSpace { space: "photos".into(), reason: "no photos in data/photos".into() };
    request.unserved = vec![unserved.clone()];
    let Next::Step(step) = lease(&controller, request).await else { panic!("no step") };
    // One step of each study.
    let once = v1::ReportStepRequest { lease_next: false, ..report(&step, "busy") };
    controller.search().report_step(once.clone()).await.unwrap();
    controller.search().report_step(once).await.unwrap();
    let of_b = v1::LeaseStepRequest { study: "b".into(), ..any_but("busy", &[&waits]) };
    let of_b = v1::LeaseStepRequest { unserved: vec![unserved.clone()], ..of_b };
    let Next::Step(step) = lease(&controller, of_b).await else { panic!("no step") };
    controller.search().report_step(report(&step, "busy")).await.unwrap();
    let idle = v1::LeaseStepRequest { spaces: vec!["other".into()], ..any_but("idle", &[]) };
    assert!(matches!(lease(&controller, idle).await, Next::NoWork(_)));

    let all = trainers(&controller, "").await;
    let names: Vec<_> = all.iter().map(|trainer| &*trainer.trainer_id).collect();
    assert_eq!(names, ["idle", "busy"], "the latest heard of first");
    assert_eq!((&*all[0].spaces, &*all[0].study), (&["other".to_string()][..], ""));
    let busy = &all[1];
    assert_eq!((busy.applied, busy.stale, busy.duplicate), (2, 0, 1), "both studies together");
    assert_eq!((&*busy.study, &busy.unserved, &busy.holds), ("b", &vec![unserved], &vec![]));
    assert_eq!((&*busy.spaces, busy.set_aside.len()), (&["mine".to_string()][..], 1));
    let set_aside = &busy.set_aside[0];
    assert_eq!((&*set_aside.study, &set_aside.study_id), ("waits", &waits.study_id));
    assert_eq!(set_aside.reason, "no such network");
    let left = set_aside.retry_after.unwrap().seconds;
    assert!((500..=600).contains(&left), "the time that is left: {left}");

    let of_b = &trainers(&controller, "b").await[0];
    assert_eq!((of_b.applied, &*of_b.holds, &*of_b.study), (1, &[2][..], "b"));
    assert_eq!((&of_b.spaces, &of_b.unserved), (&busy.spaces, &busy.unserved));
    assert_eq!(of_b.set_aside.len(), 1);

    // Its work on a study ends by giving the step back, setting the study aside, and the study's end.
    let works_on = async || {
        let all = trainers(&controller, "").await;
        all.into_iter().find(|trainer| trainer.trainer_id == "busy").unwrap().study
    };
    let work_on_b = async || {
        let request = v1::LeaseStepRequest { study: "b".into(), ..any_but("busy", &[&waits]) };
        match lease(&controller, request).await {
            Next::Step(step) => assert_eq!((step.study.as_str(), &*works_on().await), ("b", "b")),
            other => panic!("{other:?}"),
        }
    };
    let release = v1::ReleaseStepRequest {
        study: "b".into(),
        step_id: 2,
        lease_id: step.lease_id.replace("-1-1", "-2-1"),
        ..Default::default()
    };
    controller.search().release_step(release).await.unwrap();
    assert_eq!(works_on().await, "");
    work_on_b().await;
    let mut b = waits.clone();
    (b.name, b.study_id) = ("b".into(), step.study_id.clone());
    assert!(matches!(lease(&controller, any_but("busy", &[&b, &waits])).await, Next::Step(_)));
    assert_eq!(works_on().await, "a");
    controller.studies().stop_study(v1::StopStudyRequest { name: "a".into() }).await.unwrap();
    assert_eq!(works_on().await, "");
}

fn description(study: &str, costs: Option<&[&str]>) -> v1::DescribeSpaceRequest {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let costs = costs.map(|costs| v1::ReportedCosts { names: names(costs) });
    v1::DescribeSpaceRequest {
        study: study.into(),
        trainer_id: "t".into(),
        answer: Some(Answer::Description(v1::SpaceDescription {
            variables: categoricals(3),
            costs,
        })),
    }
}

async fn describe(
    controller: &Controller,
    request: v1::DescribeSpaceRequest,
) -> Result<v1::Study, Status> {
    let answer = controller.search().describe_space(request).await?;
    Ok(answer.into_inner().study.unwrap())
}

#[tokio::test]
async fn a_busy_trainer_is_asked_for_descriptions_with_the_replies_to_its_reports() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    create_running(&controller, "runs").await;
    let runs = |set_aside: &[&v1::Study]| v1::LeaseStepRequest {
        study: "runs".into(),
        ..any_but("t", set_aside)
    };
    let Next::Step(mut step) = lease(&controller, runs(&[])).await else { panic!("no step") };
    let ask = async |controller: &Controller, step: &mut v1::Step, spaces: &[&str]| {
        let spaces = spaces.iter().map(ToString::to_string).collect();
        let report = v1::ReportStepRequest { spaces, ..report(step, "t") };
        let answer = controller.search().report_step(report).await.unwrap().into_inner();
        match answer.next.unwrap().next {
            Some(Next::Step(next)) => *step = next,
            other => panic!("the search goes on: {other:?}"),
        }
        answer.describe.map(|describe| (describe.study, describe.space))
    };
    let name = |study: &str, space: &str| Some((study.to_string(), space.to_string()));
    assert_eq!(ask(&controller, &mut step, &["mine", "other"]).await, None, "nothing waits");
    // No tick has to pass.
    create_waiting(&controller, "first", "other").await;
    create_waiting(&controller, "second", "mine").await;
    assert_eq!(ask(&controller, &mut step, &[]).await, None, "it did not say what it serves");
    assert_eq!(ask(&controller, &mut step, &["mine"]).await, name("second", "mine"));
    assert_eq!(ask(&controller, &mut step, &["mine", "other"]).await, name("first", "other"));
    controller.kill();
    controller.restart();
    let both = &["mine", "other"];
    let again = asng_tests::retry(|| {
        let (mut search, report) = (controller.search(), report(&step, "t"));
        async move { search.report_step(report).await }
    });
    let Some(Next::Step(next)) = again.await.into_inner().next.unwrap().next else { panic!() };
    step = next;
    assert_eq!(ask(&controller, &mut step, both).await, name("first", "other"));

    let described = describe(&controller, description("first", None)).await.unwrap();
    assert_eq!(described.state(), v1::StudyState::Running);
    assert_eq!(ask(&controller, &mut step, both).await, name("second", "mine"));
    // One that the trainer cannot describe is not asked for in every reply.
    let second = v1::GetStudyRequest { name: "second".into() };
    let second = controller.studies().get_study(second).await.unwrap().into_inner().study.unwrap();
    lease(&controller, runs(&[&second])).await;
    assert_eq!(ask(&controller, &mut step, both).await, None);
    lease(&controller, runs(&[])).await;
    assert_eq!(ask(&controller, &mut step, both).await, name("second", "mine"));
    controller.studies().stop_study(v1::StopStudyRequest { name: "second".into() }).await.unwrap();
    assert_eq!(ask(&controller, &mut step, both).await, None);

    let spaces = vec!["no name".to_string(); 2];
    let report = v1::ReportStepRequest { spaces, ..report(&step, "t") };
    let refused = controller.search().report_step(report).await.unwrap_err();
    assert_eq!(fields(&refused), ["spaces[0]"]);
}

#[tokio::test]
async fn a_description_says_which_costs_are_reported_and_a_rule_about_another_fails_the_study() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    for (name, cost) in [("known", "parameters"), ("unknown", "params")] {
        let mut request = create_request(name, 100);
        let spec = request.spec.as_mut().unwrap();
        spec.variables.clear();
        spec.space = "mine".into();
        spec.costs = vec![v1::CostRule { cost: cost.into(), ..limit(1000.0) }];
        create(&controller, request).await;
    }
    let reported = Some(&["parameters", "macs"][..]);
    let known = describe(&controller, description("known", reported)).await.unwrap();
    assert_eq!(known.state(), v1::StudyState::Running);
    let malformed = describe(&controller, description("unknown", Some(&["", "macs"]))).await;
    assert_eq!(fields(&malformed.unwrap_err()), ["description.costs.names[0]"]);
    let many = describe(&controller, description("unknown", Some(&["cost"; 11]))).await;
    assert_eq!(fields(&many.unwrap_err()), ["description.costs.names"]);
    let unknown = describe(&controller, description("unknown", reported)).await.unwrap();
    let description = "unknown cost \"params\"; this space reports parameters, macs".into();
    let failure = v1::FieldViolation { field: "spec.costs[0].cost".into(), description };
    assert_eq!((unknown.state(), unknown.failure), (v1::StudyState::Failed, vec![failure]));
}

#[tokio::test]
async fn a_study_with_given_variables_that_is_rejected_ends_for_all_its_trainers() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let reason = v1::FieldViolation {
        field: "spec.variables".into(),
        description: "this trainer has no network for them".into(),
    };
    let reject = |study: &str| v1::DescribeSpaceRequest {
        study: study.into(),
        trainer_id: "t".into(),
        answer: Some(Answer::Rejection(v1::Rejection { violations: vec![reason.clone()] })),
    };
    create_running(&controller, "given").await;
    let named = |study: &str, trainer: &str, request_id: &str| v1::LeaseStepRequest {
        study: study.into(),
        request_id: request_id.into(),
        ..any_but(trainer, &[])
    };
    let Next::Step(step) = lease(&controller, named("given", "other", "1")).await else { panic!() };
    let rejected = describe(&controller, reject("given")).await.unwrap();
    assert_eq!(
        (rejected.state(), &rejected.failure),
        (v1::StudyState::Failed, &vec![reason.clone()])
    );
    assert_eq!(rejected.progress.unwrap().outstanding, 0);

    controller.kill();
    controller.restart();
    let get = v1::GetStudyRequest { name: "given".into() };
    let stored = asng_tests::retry(|| {
        let (mut studies, get) = (controller.studies(), get.clone());
        async move { studies.get_study(get).await }
    });
    assert_eq!(stored.await.into_inner().study.unwrap(), rejected);
    let extend = v1::ExtendLeaseRequest {
        study: "given".into(),
        step_id: step.step_id,
        lease_id: step.lease_id.clone(),
    };
    let lost = controller.search().extend_lease(extend).await.unwrap_err();
    assert_eq!(lost.code(), Code::FailedPrecondition);
    let late = controller.search().report_step(report(&step, "other")).await.unwrap().into_inner();
    assert_eq!(late.outcome(), v1::ReportOutcome::Stale);
    let Some(Next::Finished(finished)) = late.next.unwrap().next else { panic!("it has ended") };
    assert_eq!(finished.study.unwrap().state(), v1::StudyState::Failed);
    let next = lease(&controller, named("given", "other", "2")).await;
    assert!(matches!(next, Next::Finished(_)), "{next:?}");

    create_running(&controller, "counted").await;
    let Next::Step(step) = lease(&controller, named("counted", "t", "1")).await else { panic!() };
    controller.search().report_step(report(&step, "t")).await.unwrap();
    let refused = describe(&controller, reject("counted")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "study \"counted\": 1 of its reports counted, so it can no longer be rejected; stop it instead"
    );
}
