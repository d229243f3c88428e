//! A study can be followed, written out, and taken in elsewhere, where it goes on as if nothing had happened.

use std::time::{Duration, SystemTime};

use asng_proto::v1::{self, study_part::Part};
use asng_tests::{
    Controller, Postgres, applied, create_request, limit, report, study_when, theta, train,
};
use tokio_stream::StreamExt;
use tonic::Code;

const STEPS: u64 = 60;

/// Everything that a controller writes out of the study `name`.
async fn export(
    controller: &Controller,
    name: &str,
    fork: bool,
) -> Result<Vec<v1::StudyPart>, tonic::Status> {
    let request = v1::ExportStudyRequest { name: name.into(), fork };
    let mut stream = controller.studies().export_study(request).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(response) = stream.next().await {
        parts.push(response?.part.unwrap());
    }
    Ok(parts)
}

/// Has a controller take `parts` in, as `name` or under its own name.
async fn import(
    controller: &Controller,
    name: &str,
    parts: Vec<v1::StudyPart>,
) -> Result<v1::Study, tonic::Status> {
    let name = name.to_owned();
    let requests = parts
        .into_iter()
        .map(move |part| v1::ImportStudyRequest { name: name.clone(), part: Some(part) });
    let answer = controller.studies().import_study(tokio_stream::iter(requests)).await?;
    Ok(answer.into_inner().study.unwrap())
}

#[tokio::test]
async fn a_definition_survives_a_crash_moves_with_its_study_and_reaches_trainers() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut here, there) = (Controller::start(here.path()), Controller::start(there.path()));
    let definition = "# ü\n".repeat(8000);
    let mut request = create_request("defined", STEPS);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.space_definition) = ("cells".into(), definition.clone());
    spec.variables.clear();
    here.studies().create_study(request.clone()).await.unwrap();
    let mut other = request.clone();
    other.spec.as_mut().unwrap().space_definition += "#";
    let exists = here.studies().create_study(other).await.unwrap_err();
    assert_eq!(exists.code(), Code::AlreadyExists);
    assert!(exists.message().contains("space_definition is "), "{}", exists.message());

    here.kill();
    here.restart();
    let stored = study_when(&here, "defined", |_| true).await;
    assert_eq!(stored.spec.unwrap().space_definition, definition);
    let parts = export(&here, "defined", true).await.unwrap();
    let moved = import(&there, "moved", parts).await.unwrap();
    assert_eq!(moved.state(), v1::StudyState::Waiting);
    let lease = v1::LeaseStepRequest {
        trainer_id: "t".into(),
        spaces: vec!["cells".into()],
        ..Default::default()
    };
    let answer = there.search().lease_step(lease).await.unwrap().into_inner();
    let Some(v1::lease_step_response::Next::Describe(describe)) = answer.next else { panic!() };
    assert_eq!((&*describe.space, describe.space_definition), ("cells", definition));
}

/// Leases a step.
async fn lease(controller: &Controller, study: &str, trainer: &str) -> v1::Step {
    let request = v1::LeaseStepRequest {
        study: study.into(),
        trainer_id: trainer.into(),
        request_id: "r".into(),
        ..Default::default()
    };
    let answer = controller.search().lease_step(request).await.unwrap().into_inner();
    match answer.next {
        Some(v1::lease_step_response::Next::Step(step)) => step,
        other => panic!("no step: {other:?}"),
    }
}

/// A study with pending reports and open steps, half of it done, that does not go on by itself.
async fn half_done(controller: &Controller, warmup_steps: Option<u64>) -> v1::Study {
    let mut request = create_request("moved", STEPS);
    let algorithm = request.spec.as_mut().unwrap().algorithm.as_mut().unwrap();
    algorithm.steps_per_update = Some(4);
    algorithm.warmup_steps = warmup_steps;
    request.spec.as_mut().unwrap().costs = vec![limit(320.0)];
    controller.studies().create_study(request).await.unwrap();
    for step in 1..=STEPS / 2 {
        let leased = lease(controller, "moved", "t").await;
        assert_eq!(leased.step_id, step);
        let request = v1::ReportStepRequest { lease_next: false, ..report(&leased, "t") };
        controller.search().report_step(request).await.unwrap();
    }
    lease(controller, "moved", "gone").await;
    let request = v1::PauseStudyRequest { name: "moved".into() };
    controller.studies().pause_study(request).await.unwrap().into_inner().study.unwrap()
}

/// Lets the study end, by a trainer to whom the open step comes back.
async fn finish(controller: &Controller, name: &str) -> (v1::Study, Vec<u64>) {
    let request = v1::ResumeStudyRequest { name: name.into() };
    controller.studies().resume_study(request).await.unwrap();
    let fresh = v1::LeaseStepRequest {
        study: name.into(),
        trainer_id: "gone".into(),
        request_id: "fresh".into(),
        fresh_start: true,
        ..Default::default()
    };
    let next = controller.search().lease_step(fresh).await.unwrap().into_inner().next;
    let Some(v1::lease_step_response::Next::Step(step)) = next else { panic!("{next:?}") };
    let request = v1::ReportStepRequest { lease_next: false, ..report(&step, "gone") };
    controller.search().report_step(request).await.unwrap();
    let study = train(controller.search(), name, "t", |_, _| {}).await;
    (study, theta(&mut controller.studies(), name).await)
}

#[tokio::test]
async fn a_moved_study_keeps_its_id_and_ends_bit_for_bit_as_it_would_have() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (here, there) = (Controller::start(here.path()), Controller::start(there.path()));
    let before = half_done(&here, None).await;
    let progress = before.progress.unwrap();
    assert_eq!((progress.pending, progress.outstanding), (2, 1), "what is open moves as well");
    assert!(before.chosen.is_some() && before.fronts.len() == 2, "and what is known of costs");

    let parts = export(&here, "moved", false).await.unwrap();
    let after = import(&there, "", parts.clone()).await.unwrap();
    assert_eq!(
        v1::Study { state_time: None, ..after.clone() },
        v1::Study { state_time: None, ..before.clone() }
    );
    let again = import(&there, "", parts.clone()).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let copy = import(&there, "copy", parts).await.unwrap();
    assert_ne!(copy.study_id, before.study_id, "its id is taken by then");

    let (finished_here, theta_here) = finish(&here, "moved").await;
    for name in ["moved", "copy"] {
        let (finished_there, theta_there) = finish(&there, name).await;
        assert_eq!(theta_there, theta_here, "{name}");
        assert_eq!(finished_there.incumbent, finished_here.incumbent);
        assert_eq!(finished_there.chosen, finished_here.chosen);
        assert_eq!(finished_there.fronts, finished_here.fronts);
        assert_eq!(applied(&finished_there), STEPS);
    }
    let finished = export(&here, "moved", false).await.unwrap();
    let archived = import(&there, "archived", finished.clone()).await.unwrap();
    assert_eq!(archived.state(), v1::StudyState::Finished);
    let history = |parts: &[v1::StudyPart]| -> Vec<v1::Report> {
        let batches = parts.iter().filter_map(|part| match &part.part {
            Some(Part::Reports(batch)) => Some(batch.reports.clone()),
            _ => None,
        });
        batches.flatten().collect()
    };
    let trace = |parts: &[v1::StudyPart]| -> Vec<v1::TracePoint> {
        let batches = parts.iter().filter_map(|part| match &part.part {
            Some(Part::Trace(batch)) => Some(batch.points.clone()),
            _ => None,
        });
        batches.flatten().collect()
    };
    let exported_again = export(&there, "archived", false).await.unwrap();
    assert_eq!(trace(&exported_again), trace(&finished));
    assert_eq!(trace(&finished).len() as u64, STEPS / 4);
    assert_eq!(history(&exported_again), history(&finished));
    assert_eq!(history(&finished).len() as u64, STEPS);
}

#[tokio::test]
async fn a_study_moves_in_the_middle_of_its_warm_up_to_another_kind_of_store() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let here = Controller::start(here.path());
    let postgres = Postgres::start();
    let store = postgres.as_ref().map(|postgres| postgres.url("warm"));
    let arguments: Vec<&str> = store.iter().flat_map(|store| ["--store", store]).collect();
    let mut there = Controller::start_with(there.path(), &arguments);
    let before = half_done(&here, Some(40)).await;
    let progress = before.progress.unwrap();
    assert_eq!((progress.applied, progress.pending, progress.outstanding), (28, 2, 1));
    assert_eq!((&before.incumbent, before.fronts.len()), (&None, 0), "nothing was evaluated");
    let parts = export(&here, "moved", false).await.unwrap();
    let after = import(&there, "", parts).await.unwrap();
    assert_eq!(
        v1::Study { state_time: None, ..after },
        v1::Study { state_time: None, ..before.clone() }
    );
    there.kill();
    there.restart();

    let (finished_here, theta_here) = finish(&here, "moved").await;
    let (finished_there, theta_there) = finish(&there, "moved").await;
    assert_eq!(theta_there, theta_here);
    assert_eq!(finished_there.incumbent, finished_here.incumbent);
    assert!(finished_there.incumbent.is_some());
    let mut request = v1::ListReportsRequest { study: "moved".into(), ..Default::default() };
    request.page_size = 1000;
    let reports = there.studies().list_reports(request).await.unwrap().into_inner().reports;
    assert_eq!(reports.len() as u64, STEPS);
    for report in reports {
        let ranked = if report.applied < 40 { 0 } else { 2 };
        assert_eq!((report.rank.len(), report.losses.len()), (ranked, ranked), "{report:?}");
        assert_eq!(report.train.len(), 2);
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// An export of a paused study whose time is over after an hour.
async fn limited_to_an_hour(controller: &Controller) -> Vec<v1::StudyPart> {
    let mut request = create_request("hour", STEPS);
    let spec = request.spec.as_mut().unwrap();
    spec.stop.as_mut().unwrap().max_duration = seconds(3600);
    controller.studies().create_study(request).await.unwrap();
    lease(controller, "hour", "t").await;
    let request = v1::PauseStudyRequest { name: "hour".into() };
    controller.studies().pause_study(request).await.unwrap();
    export(controller, "hour", false).await.unwrap()
}

/// Returns the time that a study in `parts` has used.
fn elapsed(parts: &[v1::StudyPart]) -> i64 {
    let Some(Part::Archive(archive)) = &parts[0].part else { panic!("{:?}", parts[0]) };
    archive.elapsed.expect("it is written").seconds
}

#[tokio::test]
async fn the_time_of_a_study_moves_with_it_and_survives_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let parts = limited_to_an_hour(&controller).await;
    assert!(elapsed(&parts) < 60);
    let now = SystemTime::now();
    let with = |used: Option<prost_types::Duration>, started_hours_ago: u64| {
        let mut parts = parts.clone();
        let Some(Part::Archive(archive)) = &mut parts[0].part else { panic!("{:?}", parts[0]) };
        archive.elapsed = used;
        archive.start_time = Some((now - Duration::from_secs(3600 * started_hours_ago)).into());
        parts
    };
    // The last is of a release that did not write it.
    let cases = [
        ("half", with(seconds(1800), 2), None),
        ("over", with(seconds(3600), 0), Some(v1::StopReason::MaxDuration)),
        ("old", with(None, 2), Some(v1::StopReason::MaxDuration)),
    ];
    for (name, parts, _) in &cases {
        import(&controller, name, parts.clone()).await.unwrap();
    }
    let refused = import(&controller, "odd", with(seconds(-1), 0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("part.archive.elapsed"), "{refused}");

    controller.kill();
    controller.restart();
    for (name, _, ended) in cases.iter().rev() {
        let ends = |study: &v1::Study| study.state() == v1::StudyState::Finished;
        let study = study_when(&controller, name, |study| ended.is_none() || ends(study)).await;
        let expected = ended.unwrap_or(v1::StopReason::Unspecified);
        assert_eq!(study.stop_reason(), expected, "{name}");
    }
    let used = elapsed(&export(&controller, "half", false).await.unwrap());
    assert!((1800..1860).contains(&used), "{used}");
}

#[tokio::test]
async fn a_study_that_goes_on_is_exported_only_as_a_fork() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let original = half_done(&controller, None).await;
    let request = v1::ResumeStudyRequest { name: "moved".into() };
    controller.studies().resume_study(request).await.unwrap();
    let refused = export(&controller, "moved", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("pause it before it is exported"), "{refused}");
    let parts = export(&controller, "moved", true).await.unwrap();
    let fork = import(&controller, "fork", parts).await.unwrap();
    assert_ne!(fork.study_id, original.study_id);
    assert_eq!((fork.state(), fork.progress), (v1::StudyState::Paused, original.progress));
}

#[tokio::test]
async fn of_a_study_that_is_cut_short_or_spoilt_nothing_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    keeps_nothing_spoilt(Controller::start(directory.path())).await;
}

#[tokio::test]
async fn of_a_study_that_is_cut_short_or_spoilt_nothing_is_kept_in_postgresql() {
    let Some(postgres) = Postgres::start() else { return };
    let (store, directory) = (postgres.url("moving"), tempfile::tempdir().unwrap());
    let arguments = ["--store", &store];
    keeps_nothing_spoilt(Controller::start_with(directory.path(), &arguments)).await;
}

async fn keeps_nothing_spoilt(controller: Controller) {
    half_done(&controller, None).await;
    let parts = export(&controller, "moved", false).await.unwrap();
    let last = parts.len() - 1;
    let archive = |change: fn(&mut v1::StudyArchive)| {
        let mut parts = parts.clone();
        match &mut parts[0].part {
            Some(Part::Archive(archive)) => change(archive),
            other => panic!("{other:?}"),
        }
        parts
    };
    let traced = parts.iter().position(|part| matches!(part.part, Some(Part::Trace(_))));
    let traced = traced.expect("a part of the trace");
    for (spoilt, expected) in [
        ([&parts[..=traced], &parts[traced..]].concat(), "part.trace"),
        (parts[..last].to_vec(), "its end marker is missing"),
        (parts[1..].to_vec(), "the first part must be the archive"),
        ([&parts[..1], &parts[last..]].concat(), "0 reports arrived of"),
        (archive(|archive| archive.format = 2), "this release reads 1"),
        (archive(|archive| archive.sampled = 3), "out of order"),
        (archive(|archive| archive.theta.truncate(9)), "cut short"),
        (archive(|archive| archive.theta[23] ^= 0x80), "Delta"),
        (
            archive(|archive| {
                let study = archive.study.as_mut().unwrap();
                study.progress.as_mut().unwrap().generation = u64::MAX;
            }),
            "counters",
        ),
    ] {
        let refused = import(&controller, "spoilt", spoilt).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(expected), "{refused} lacks {expected:?}");
    }
    let whole = import(&controller, "whole", parts.clone()).await.unwrap();
    assert_eq!(export(&controller, "whole", false).await.unwrap()[1..], parts[1..]);
    assert_eq!(whole.state(), v1::StudyState::Paused);
    let studies = controller.studies().list_studies(v1::ListStudiesRequest::default()).await;
    assert_eq!(studies.unwrap().into_inner().studies.len(), 2);
}

#[tokio::test]
async fn a_follower_sees_a_study_at_once_then_its_changes_and_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("followed", STEPS)).await.unwrap();
    let request = || v1::WatchStudyRequest { name: "followed".into() };
    let mut followed = controller.studies().watch_study(request()).await.unwrap().into_inner();
    let first = followed.next().await.unwrap().unwrap().study.unwrap();
    assert_eq!(applied(&first), 0);
    train(controller.search(), "followed", "t", |_, _| {}).await;
    let mut seen = vec![0];
    while let Some(response) = followed.next().await {
        seen.push(applied(&response.unwrap().study.unwrap()));
    }
    assert!(seen.is_sorted() && seen.last() == Some(&STEPS), "{seen:?}");

    controller.studies().create_study(create_request("deleted", STEPS)).await.unwrap();
    let request = v1::WatchStudyRequest { name: "deleted".into() };
    let mut deleted = controller.studies().watch_study(request).await.unwrap().into_inner();
    deleted.next().await.unwrap().unwrap();
    let request = v1::DeleteStudyRequest { name: "deleted".into() };
    controller.studies().delete_study(request).await.unwrap();
    assert_eq!(deleted.next().await.unwrap().unwrap_err().code(), Code::NotFound);

    // One who follows does not keep the controller from ending.
    controller.studies().create_study(create_request("long", STEPS)).await.unwrap();
    let request = v1::WatchStudyRequest { name: "long".into() };
    let mut long = controller.studies().watch_study(request).await.unwrap().into_inner();
    long.next().await.unwrap().unwrap();
    assert!(controller.terminate().success());
}

#[tokio::test]
async fn a_history_is_listed_by_pages() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("listed", STEPS)).await.unwrap();
    train(controller.search(), "listed", "t", |_, _| {}).await;
    study_when(&controller, "listed", |study| study.state() == v1::StudyState::Finished).await;
    let mut request =
        v1::ListReportsRequest { study: "listed".into(), page_size: 7, ..Default::default() };
    let (mut pages, mut steps) = (0, Vec::new());
    loop {
        let page = controller.studies().list_reports(request.clone()).await.unwrap().into_inner();
        pages += 1;
        for report in page.reports {
            assert_eq!((report.trainer_id.as_str(), report.update), ("t", report.step_id));
            assert_eq!(report.outcome(), v1::ReportOutcome::Applied);
            assert_eq!(report.metrics["steps"], report.step_id as f64);
            assert!(report.rank.iter().any(|draw| draw.values[10].fract() != 0.0), "a real draw");
            steps.push(report.step_id);
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((pages, &steps), (STEPS.div_ceil(7), &(1..=STEPS).collect()));
    (request.page_token, request.newest_first) = (String::new(), true);
    let mut backwards = Vec::new();
    loop {
        let page = controller.studies().list_reports(request.clone()).await.unwrap().into_inner();
        backwards.extend(page.reports.iter().map(|report| report.step_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    steps.reverse();
    assert_eq!(backwards, steps);
    request.page_token = "x".into();
    let refused = controller.studies().list_reports(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
