//! A network that delays, cuts, stalls and repeats what trainers send: the search ends, every report counts exactly
//! once, and with one trainer theta is bit for bit that of an undisturbed search.

use std::collections::BTreeMap;

use asng_proto::v1::{ReportOutcome, StudyState, search_service_client::SearchServiceClient};
use asng_tests::{Controller, FAULTS, Proxy, create_request, study_when, theta, train};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const STUDY: &str = "s";

async fn create(controller: &Controller, steps: u64, max_staleness: u32) {
    let mut request = create_request(STUDY, steps);
    let spec = request.spec.as_mut().unwrap();
    // A request that is repeated late may lease a step that no trainer knows of: it must come back soon.
    spec.lease = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    spec.algorithm.as_mut().unwrap().max_staleness = Some(max_staleness);
    controller.studies().create_study(request).await.unwrap();
}

/// Runs the study to its end as `trainer_id`, and returns how many reports of each step were acknowledged.
async fn search(search: SearchServiceClient<Channel>, trainer_id: String) -> BTreeMap<u64, u64> {
    let mut acknowledged = BTreeMap::new();
    train(search, STUDY, &trainer_id, |step, answer| {
        let outcome = match answer.outcome() {
            ReportOutcome::Duplicate => answer.first_outcome(),
            outcome => outcome,
        };
        assert_eq!(outcome, ReportOutcome::Applied, "step {}", step.step_id);
        *acknowledged.entry(step.step_id).or_default() += 1;
    })
    .await;
    acknowledged
}

async fn assert_all_counted(controller: &Controller, steps: u64) {
    let study = study_when(controller, STUDY, |_| true).await;
    let progress = study.progress.unwrap();
    assert_eq!(study.state, StudyState::Finished as i32);
    assert_eq!((progress.applied, progress.generation), (steps, steps));
    assert_eq!((progress.pending, progress.outstanding, progress.stale), (0, 0, 0));
}

fn assert_bad(network: &Proxy) {
    for fault in FAULTS {
        assert!(network.count(fault) > 0, "no connection was {fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_trainer_a_bad_network_leaves_no_trace_in_theta() {
    const STEPS: u64 = 300;
    let theta_through = async |disturbed: bool| {
        let directory = tempfile::tempdir().unwrap();
        let controller = Controller::start(directory.path());
        // One step at a time, so that a request that is repeated late cannot have one sampled ahead.
        create(&controller, STEPS, 0).await;
        let network = Proxy::start(controller.address, 1).await;
        let client = if disturbed { network.search() } else { controller.search() };
        let acknowledged = search(client, "only".into()).await;
        assert!(acknowledged.into_iter().eq((1..=STEPS).map(|step| (step, 1))));
        assert_all_counted(&controller, STEPS).await;
        if disturbed {
            assert_bad(&network);
        }
        theta(&mut controller.studies(), STUDY).await
    };
    let (disturbed, undisturbed) = tokio::join!(theta_through(true), theta_through(false));
    assert_eq!(disturbed, undisturbed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_loses_and_doubles_no_report_of_many_trainers() {
    const STEPS: u64 = 1000;
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    create(&controller, STEPS, 1_000_000).await;
    let network = Proxy::start(controller.address, 2).await;
    let mut trainers = JoinSet::new();
    for i in 0..5 {
        trainers.spawn(search(network.search(), format!("trainer-{i}")));
    }
    let mut acknowledged = BTreeMap::new();
    for (step, count) in trainers.join_all().await.into_iter().flatten() {
        *acknowledged.entry(step).or_default() += count;
    }
    assert!(acknowledged.into_iter().eq((1..=STEPS).map(|step| (step, 1))));
    assert_all_counted(&controller, STEPS).await;
    assert_bad(&network);
}
