//! A trainer far from its controller leases steps ahead: it need not wait, and nothing is lost or done twice.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use asng_proto::v1::{self, ReportOutcome, StudyState};
use asng_tests::{
    Controller, Proxy, Trainer, applied, line, study_when, terminate, trainer_command,
};
use tokio::net::TcpListener;

/// Longer than it takes to start a trainer.
const LEASE_SECONDS: i64 = 10;

/// A study whose steps take `step_ms`.
async fn create(controller: &Controller, name: &str, max_steps: u64, step_ms: u64) {
    let spec = v1::StudySpec {
        space: "toy".into(),
        settings: [("step_ms".into(), step_ms.to_string())].into(),
        algorithm: Some(v1::AlgorithmSettings { seed: Some(1), ..Default::default() }),
        stop: Some(v1::StopRules { max_steps, ..Default::default() }),
        lease: Some(prost_types::Duration { seconds: LEASE_SECONDS, nanos: 0 }),
        ..Default::default()
    };
    let request =
        v1::CreateStudyRequest { name: name.into(), spec: Some(spec), ..Default::default() };
    controller.studies().create_study(request).await.unwrap();
}

fn start(
    controller: &Controller,
    at: SocketAddr,
    study: &str,
    prefetch: &str,
    work: &Path,
) -> Trainer {
    let mut command = trainer_command(controller, work);
    command.env("ASNG_CONTROLLER", format!("http://{at}"));
    Trainer(command.args(["serve", "--study", study, "--prefetch", prefetch]).spawn().unwrap())
}

fn address(controller: &Controller) -> SocketAddr {
    controller.url().trim_start_matches("http://").parse().unwrap()
}

async fn history(controller: &Controller, study: &str) -> Vec<v1::Report> {
    let request =
        v1::ListReportsRequest { study: study.into(), page_size: 1000, ..Default::default() };
    controller.studies().list_reports(request).await.unwrap().into_inner().reports
}

#[tokio::test]
async fn a_long_line_is_hidden_by_steps_leased_ahead() {
    const STEPS: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = listener.local_addr().unwrap();
    tokio::spawn(line(listener, address(&controller), Duration::from_millis(100)));
    let mut took = Vec::new();
    for prefetch in ["0", "4"] {
        create(&controller, prefetch, STEPS, 30).await;
        let mut trainer =
            start(&controller, far, prefetch, prefetch, &directory.path().join(prefetch));
        study_when(&controller, prefetch, |study| applied(study) >= 10).await;
        let begun = Instant::now();
        study_when(&controller, prefetch, |study| study.state() == StudyState::Finished).await;
        took.push(begun.elapsed());
        let ended = tokio::task::spawn_blocking(move || trainer.0.wait()).await.unwrap();
        assert!(ended.unwrap().success());
        let reports = history(&controller, prefetch).await;
        assert!(reports.iter().all(|report| report.outcome() == ReportOutcome::Applied));
        let ahead: u64 = prefetch.parse().unwrap();
        // One more where replies overtook each other.
        assert!(reports.iter().all(|report| report.staleness <= ahead + ahead.min(1)));
        // Each further step takes a round trip at the start.
        let stale = reports.iter().filter(|report| report.staleness >= ahead).count();
        assert!(stale > 40, "{stale}");
    }
    // By the times alone 3.9 times as fast; a busy machine leaves less.
    assert!(took[1] * 3 < took[0] * 2, "{took:?}");
}

#[tokio::test]
async fn steps_that_wait_are_given_back_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    create(&controller, "s", 100, 200).await;
    let work = directory.path().join("work");
    let holds = async || {
        let request = v1::ListTrainersRequest { name: "s".into() };
        let trainers = controller.studies().list_trainers(request).await.unwrap().into_inner();
        trainers.trainers.iter().map(|trainer| trainer.holds.len()).sum::<usize>()
    };
    let mut trainer = start(&controller, address(&controller), "s", "3", &work);
    while holds().await < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(terminate(&mut trainer.0).success());
    assert_eq!(holds().await, 0, "all were given back");

    let mut trainer = start(&controller, address(&controller), "s", "3", &work);
    while holds().await < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    trainer.0.kill().unwrap();
    trainer.0.wait().unwrap();
    assert_eq!(holds().await, 4);
    // Its next process has them back at once, long before a lease ends.
    let _trainer = start(&controller, address(&controller), "s", "3", &work);
    study_when(&controller, "s", |study| applied(study) >= 12).await;
    let reports = history(&controller, "s").await;
    assert!(reports.iter().map(|report| report.step_id).eq(1..=reports.len() as u64));
}

#[tokio::test]
async fn the_sequential_algorithm_leaves_one_step_in_hand() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let spec = v1::StudySpec {
        space: "toy".into(),
        algorithm: Some(v1::AlgorithmSettings { max_staleness: Some(0), ..Default::default() }),
        stop: Some(v1::StopRules { max_steps: 50, ..Default::default() }),
        ..Default::default()
    };
    let request =
        v1::CreateStudyRequest { name: "s".into(), spec: Some(spec), ..Default::default() };
    controller.studies().create_study(request).await.unwrap();
    let work = directory.path().join("work");
    let mut trainer = start(&controller, address(&controller), "s", "4", &work);
    assert!(
        tokio::task::spawn_blocking(move || trainer.0.wait()).await.unwrap().unwrap().success()
    );
    let reports = history(&controller, "s").await;
    assert_eq!(reports.len(), 50);
    assert!(reports.iter().all(|report| report.staleness == 0));
}

#[tokio::test]
async fn a_hostile_network_loses_and_doubles_no_report() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let proxy = Proxy::start(address(&controller), 1).await;
    create(&controller, "s", 300, 1).await;
    let work = directory.path().join("work");
    let mut trainer = start(&controller, proxy.address, "s", "4", &work);
    assert!(
        tokio::task::spawn_blocking(move || trainer.0.wait()).await.unwrap().unwrap().success()
    );
    let study = study_when(&controller, "s", |study| study.state() == StudyState::Finished).await;
    assert_eq!(applied(&study), 300);
    // Calls that were sent twice may have leased steps that nobody did.
    let mut reports = history(&controller, "s").await;
    reports.retain(|report| report.outcome() == ReportOutcome::Applied);
    assert_eq!(reports.len(), 300);
    assert!(reports.is_sorted_by(|one, other| one.step_id < other.step_id));
}
