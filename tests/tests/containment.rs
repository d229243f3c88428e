//! A fault of one study or of a disk ends no trainer: other studies are served meanwhile, and the reason is shown.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use asng_proto::v1::{self, StudyState};
use asng_tests::{
    Controller, Disk, ServedTrainer, applied, categoricals, describe, get_page, limit, study_when,
    tiny_search,
};
use tokio::time::sleep;
use tonic::Code;

/// Longer than any test takes.
const ENDLESS: u64 = 1_000_000_000;

fn toy(name: &str, max_steps: u64) -> v1::CreateStudyRequest {
    let mut request = tiny_search(name, max_steps);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.settings) = ("toy".into(), Default::default());
    request
}

async fn create(controller: &Controller, request: v1::CreateStudyRequest) -> v1::Study {
    let answer = controller.studies().create_study(request).await.unwrap();
    answer.into_inner().study.unwrap()
}

/// Waits until the study has FAILED, and returns why: "field: description".
async fn failure(controller: &Controller, name: &str) -> Vec<String> {
    let study = study_when(controller, name, |study| study.state() == StudyState::Failed).await;
    study.failure.into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect()
}

async fn is_finished(controller: &Controller, name: &str) {
    study_when(controller, name, |study| study.state() == StudyState::Finished).await;
}

/// The directory of a study's files in a trainer's work directory.
fn directory_of(work_dir: &Path, study: &v1::Study) -> PathBuf {
    work_dir.join("studies").join(format!("{}-{}", study.name, study.study_id))
}

/// Trainers that the controller has heard of.
async fn trainers(controller: &Controller) -> Vec<v1::Trainer> {
    let request = v1::ListTrainersRequest::default();
    controller.studies().list_trainers(request).await.unwrap().into_inner().trainers
}

#[tokio::test]
async fn a_rule_about_an_unknown_cost_fails_the_study_and_no_trainer() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let start = |name: &str| ServedTrainer::start(&controller, &directory.path().join(name), &[]);
    let mut idle = [start("a"), start("b")];
    let mut without_costs = toy("without-costs", 100);
    without_costs.spec.as_mut().unwrap().costs = vec![limit(100.0)];
    let mut misspelt = tiny_search("misspelt", 100);
    let rule = v1::CostRule { cost: "params".into(), ..limit(100_000.0) };
    misspelt.spec.as_mut().unwrap().costs = vec![rule];
    create(&controller, without_costs).await;
    create(&controller, misspelt).await;
    let why = failure(&controller, "without-costs").await;
    assert_eq!(
        why,
        ["spec.costs[0].cost: unknown cost \"parameters\"; this space reports no costs"]
    );
    let why = failure(&controller, "misspelt").await;
    let unknown = "unknown cost \"params\"; this space reports parameters, macs";
    assert_eq!(why, [format!("spec.costs[0].cost: {unknown}")]);
    let log = controller.log_with("this space reports parameters, macs");
    assert!(log.contains("state=\"FAILED\" reason=\"spec.costs[0].cost: unknown cost"), "{log}");
    create(&controller, toy("good", 100)).await;
    is_finished(&controller, "good").await;
    assert!(idle.iter_mut().all(ServedTrainer::runs));
}

#[tokio::test]
async fn variables_that_are_not_the_space_s_fail_the_study_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let mut request = toy("bad", 100);
    request.spec.as_mut().unwrap().variables = categoricals(2);
    create(&controller, request).await;
    create(&controller, toy("good", 100)).await;
    let mut trainer = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    let why = failure(&controller, "bad").await;
    assert_eq!(why.len(), 1);
    let text = "spec.variables: space toy has 30 variables with these settings, not 2";
    assert!(why[0].starts_with(text), "{why:?}");
    is_finished(&controller, "good").await;
    let bad = study_when(&controller, "bad", |_| true).await;
    assert_eq!(bad.progress.unwrap().outstanding, 0);
    let log = trainer.log();
    assert!(
        log.contains("study rejected study=\"bad\" reason=\"spec.variables: space toy"),
        "{log}"
    );
    assert!(trainer.runs());
}

#[tokio::test]
async fn studies_that_maximize_fail_with_and_without_variables_and_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    for (name, variables) in [("waits", Vec::new()), ("given", categoricals(2))] {
        let mut request = toy(name, 100);
        let spec = request.spec.as_mut().unwrap();
        (spec.direction, spec.variables) = (v1::Direction::Maximize.into(), variables);
        create(&controller, request).await;
    }
    create(&controller, toy("good", 100)).await;
    let mut trainer = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    for name in ["waits", "given"] {
        let why = failure(&controller, name).await;
        assert!(
            why[0].starts_with("spec.direction: is MAXIMIZE, and this trainer reports losses"),
            "{why:?}"
        );
    }
    is_finished(&controller, "good").await;
    assert!(trainer.runs());
}

#[tokio::test]
async fn a_study_that_others_described_differently_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let bad = create(&controller, toy("bad", ENDLESS)).await;
    describe(&controller, "bad", categoricals(2)).await;
    create(&controller, toy("good", 100)).await;
    let mut trainer = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    is_finished(&controller, "good").await;
    let status = trainer.status_when(|status| !status.set_aside.is_empty()).await;
    let set_aside = &status.set_aside[0];
    assert_eq!((&set_aside.study, &set_aside.study_id), (&bad.name, &bad.study_id));
    assert!(set_aside.reason.contains("has 30 variables with these settings, not 2"), "{status:?}");
    let bad = study_when(&controller, "bad", |_| true).await;
    assert_eq!((bad.state(), applied(&bad)), (StudyState::Running, 0));
    assert!(trainer.runs());
}

#[tokio::test]
async fn a_study_whose_checkpoints_are_damaged_is_set_aside_and_goes_on_when_they_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    let bad = create(&controller, toy("bad", ENDLESS)).await;
    let mut trainer = ServedTrainer::start(&controller, &work_dir, &[]);
    study_when(&controller, "bad", |study| applied(study) >= 10).await;
    assert!(asng_tests::terminate(&mut trainer.trainer.0).success());
    let checkpoints = directory_of(&work_dir, &bad);
    for file in fs::read_dir(&checkpoints).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            let half = fs::read(&file).unwrap().split_off(100);
            fs::write(&file, half).unwrap();
        }
    }
    create(&controller, toy("good", 100)).await;
    let mut trainer = ServedTrainer::start(&controller, &work_dir, &[]);
    is_finished(&controller, "good").await;
    let damaged = "none of the 1 checkpoints in";
    let status = trainer.status_when(|status| !status.set_aside.is_empty()).await;
    assert!(status.set_aside[0].reason.starts_with(damaged), "{status:?}");
    // The controller shows it, too.
    let heard = loop {
        let trainers = trainers(&controller).await;
        let heard = trainers.into_iter().find(|trainer| trainer.trainer_id == status.trainer_id);
        if let Some(heard) = heard.filter(|trainer| !trainer.set_aside.is_empty()) {
            break heard;
        }
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(heard.set_aside[0].study, "bad");
    assert!(heard.set_aside[0].reason.starts_with(damaged), "{heard:?}");
    let (_, metrics) = get_page(trainer.http, "/metrics");
    assert!(metrics.contains("asng_trainer_study_set_aside{study=\"bad\"} 1"), "{metrics}");
    assert!(trainer.log().contains("study is set aside: none of the 1 checkpoints in"));

    // The remedy that the message names: new weights.
    fs::rename(&checkpoints, directory.path().join("away")).unwrap();
    let before = applied(&study_when(&controller, "bad", |_| true).await);
    study_when(&controller, "bad", |study| applied(study) > before).await;
    trainer.status_when(|status| status.set_aside.is_empty() && status.study == "bad").await;
    assert!(trainer.runs());
}

#[tokio::test]
async fn a_study_whose_first_step_kills_the_process_is_set_aside_by_the_one_after() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    // Its first step takes long enough to be killed in.
    let mut request = tiny_search("killer", 100);
    request.spec.as_mut().unwrap().algorithm.as_mut().unwrap().lambda_theta = Some(1024);
    create(&controller, request).await;
    for _ in 0..2 {
        let mut trainer = ServedTrainer::start(&controller, &work_dir, &[]);
        trainer.status_when(|status| status.study == "killer").await;
        trainer.trainer.0.kill().unwrap();
        trainer.wait();
    }
    create(&controller, toy("good", 100)).await;
    let trainer = ServedTrainer::start(&controller, &work_dir, &[]);
    is_finished(&controller, "good").await;
    let log = trainer.log();
    let reason = "2 processes of this trainer ended in its first step, which may need more memory";
    assert!(log.contains(&format!("study is set aside: {reason}")), "{log}");
    // The study is tried again.
    trainer.status_when(|status| status.study == "killer").await;
    assert_eq!(get_page(trainer.http, "/healthz").0, 200);
}

#[tokio::test]
async fn a_full_disk_costs_no_step_and_no_weights() {
    let Some(disk) = Disk::mount(32) else { return };
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let every = ["--checkpoint-every", "50ms"];
    let mut trainer = ServedTrainer::start(&controller, disk.path(), &every);
    let study = create(&controller, tiny_search("cells", 100_000)).await;
    let checkpoints = directory_of(disk.path(), &study);
    trainer.status_when(|status| status.checkpoint.is_some()).await;
    assert_eq!(get_page(trainer.http, "/readyz").0, 200);

    disk.fill();
    let status = trainer.status_when(|status| !status.checkpoint_error.is_empty()).await;
    let error = &status.checkpoint_error;
    assert!(error.starts_with("cannot write checkpoint "), "{error}");
    assert!(error.ends_with(".safetensors: no space left on device"), "{error}");
    let (code, why) = get_page(trainer.http, "/readyz");
    assert!(code == 503 && why.contains("no space left on device"), "{code} {why}");
    let (_, metrics) = get_page(trainer.http, "/metrics");
    assert!(metrics.contains("asng_trainer_unwritten_studies 1"), "{metrics}");
    // The search goes on, and ends.
    let before = applied(&study_when(&controller, "cells", |_| true).await);
    study_when(&controller, "cells", |study| applied(study) >= before + 20).await;
    controller.studies().stop_study(v1::StopStudyRequest { name: "cells".into() }).await.unwrap();
    trainer.status_when(|status| status.study.is_empty()).await;
    let status = trainer.status_when(|status| !status.checkpoint_error.is_empty()).await;
    assert_eq!(status.steps, status.steps.max(before + 20));
    // Others are served meanwhile.
    create(&controller, toy("good", 100)).await;
    is_finished(&controller, "good").await;

    disk.empty();
    trainer.status_when(|status| status.checkpoint_error.is_empty()).await;
    assert_eq!(get_page(trainer.http, "/readyz").0, 200);
    let list = fs::read_to_string(checkpoints.join("checkpoints.json")).unwrap();
    let newest = format!("step-{}.safetensors", last_step(&controller, "cells").await);
    assert!(list.contains(&newest), "{newest} is not in {list}");
    let left: Vec<_> = fs::read_dir(&checkpoints).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(left.iter().all(|file| file.extension().unwrap() != "tmp"), "{left:?}");
    let warnings = trainer.log().matches("no space left on device; the weights are kept").count();
    assert_eq!(warnings, 1, "not one for each try");
    assert!(asng_tests::terminate(&mut trainer.trainer.0).success());
}

/// The number of the last step of a study that was reported.
async fn last_step(controller: &Controller, study: &str) -> u64 {
    let request = v1::ListReportsRequest {
        study: study.into(),
        newest_first: true,
        page_size: 10,
        ..Default::default()
    };
    let reports = controller.studies().list_reports(request).await.unwrap().into_inner().reports;
    reports.iter().find(|report| !report.losses.is_empty()).unwrap().step_id
}

#[tokio::test]
async fn a_work_directory_that_was_deleted_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    let mut trainer = ServedTrainer::start(&controller, &work_dir, &[]);
    let study = create(&controller, toy("s", ENDLESS)).await;
    study_when(&controller, "s", |study| applied(study) >= 10).await;
    let id = fs::read_to_string(work_dir.join("trainer-id")).unwrap();
    fs::remove_dir_all(&work_dir).unwrap();
    let before = applied(&study_when(&controller, "s", |_| true).await);
    study_when(&controller, "s", |study| applied(study) >= before + 10).await;
    assert_eq!(fs::read_to_string(work_dir.join("trainer-id")).unwrap(), id);
    let mut second = asng_tests::trainer_command(&controller, &work_dir);
    let output = second.args(["serve", "--listen", "off", "--http", "off"]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("in use by another trainer"), "{log}");
    assert!(asng_tests::terminate(&mut trainer.trainer.0).success());
    assert!(directory_of(&work_dir, &study).join("checkpoints.json").exists());
}

#[tokio::test]
async fn a_trainer_that_cannot_write_until_its_end_says_what_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    let mut trainer = ServedTrainer::start(&controller, &work_dir, &[]);
    let study = create(&controller, toy("s", ENDLESS)).await;
    study_when(&controller, "s", |study| applied(study) >= 10).await;
    // A file where the study's directory is to be.
    fs::create_dir_all(work_dir.join("studies")).unwrap();
    fs::write(directory_of(&work_dir, &study), "").unwrap();
    assert_eq!(asng_tests::terminate(&mut trainer.trainer.0).code(), Some(1));
    let log = trainer.log();
    let text =
        "the newest weights are lost, and only older checkpoints are left: cannot make directory";
    assert!(log.contains(text), "{log}");
}

#[tokio::test]
async fn a_busy_trainer_describes_new_studies_between_two_steps() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    create(&controller, toy("long", ENDLESS)).await;
    let trainer = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    study_when(&controller, "long", |study| applied(study) >= 10).await;
    create(&controller, tiny_search("good", 100)).await;
    let mut wrong = tiny_search("wrong", 100);
    wrong.spec.as_mut().unwrap().settings.insert("colour".into(), "red".into());
    create(&controller, wrong).await;
    let why = failure(&controller, "wrong").await;
    assert!(why[0].starts_with("settings.colour: is unknown"), "{why:?}");
    study_when(&controller, "good", |study| study.state() == StudyState::Running).await;
    let status = trainer.status_when(|_| true).await;
    assert_eq!(status.study, "long", "it stays with its study");
}

#[tokio::test]
async fn a_trainer_that_was_named_a_study_ends_with_the_reason_why_it_cannot_work_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    let study = create(&controller, toy("s", ENDLESS)).await;
    let checkpoints = directory_of(&work_dir, &study);
    fs::create_dir_all(&checkpoints).unwrap();
    fs::write(checkpoints.join("checkpoints.json"), "[{").unwrap();
    let mut trainer = ServedTrainer::start(&controller, &work_dir, &["--study", "s"]);
    assert_eq!(trainer.wait().code(), Some(1));
    let log = trainer.log();
    assert!(log.contains("checkpoints.json is damaged"), "{log}");
    let status = trainer.client().get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    // Its step went back.
    let study = study_when(&controller, "s", |_| true).await;
    let request = v1::LeaseStepRequest {
        study: study.name,
        trainer_id: "another".into(),
        spaces: vec!["toy".into()],
        ..Default::default()
    };
    let next = controller.search().lease_step(request).await.unwrap().into_inner().next;
    let Some(v1::lease_step_response::Next::Step(step)) = next else { panic!("{next:?}") };
    assert_eq!(step.step_id, 1);
}
