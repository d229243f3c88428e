//! The controller is killed with SIGKILL at random moments: no acknowledged report is lost, none counts twice, and with
//! one trainer the search ends bit for bit where an undisturbed one does.

use std::{collections::HashSet, sync::Arc, time::Duration};

use asng_proto::v1::{GetStudyRequest, ReportOutcome, StudyState};
use asng_tests::{Controller, create_request, theta, train};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Semaphore;

const STEPS: u64 = 600;

/// Kills a search of `STEPS` steps `kills` times, and returns the final theta.
async fn search_with_kills(kills: usize, steps_per_update: u32) -> Vec<u64> {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    let mut request = create_request("killed", STEPS);
    let algorithm = request.spec.as_mut().unwrap().algorithm.as_mut().unwrap();
    algorithm.steps_per_update = Some(steps_per_update);
    studies.create_study(request).await.unwrap();

    // The trainer gives a permit for each acknowledged report; between two kills the killer takes some.
    let acknowledgements = Arc::new(Semaphore::new(0));
    let search = controller.search();
    let trainer = tokio::spawn({
        let acknowledgements = acknowledgements.clone();
        async move {
            let mut counted = HashSet::new();
            train(search, "killed", "only", |step, answer| {
                acknowledgements.add_permits(1);
                match answer.outcome() {
                    ReportOutcome::Applied | ReportOutcome::Pending => {
                        assert!(counted.insert(step.step_id), "step {} twice", step.step_id);
                    }
                    // The first answer was lost with the process that gave it.
                    ReportOutcome::Duplicate => assert!(counted.insert(step.step_id)),
                    other => panic!("{other:?}"),
                }
            })
            .await;
            counted.len() as u64
        }
    });
    let mut random = ChaCha8Rng::seed_from_u64(kills as u64);
    for _ in 0..kills {
        let reports = random.random_range(1..STEPS as u32 / (kills as u32 + 1));
        acknowledgements.acquire_many(reports).await.unwrap().forget();
        // Any moment within a step: not a wait for anything.
        tokio::time::sleep(Duration::from_micros(random.random_range(0..3000))).await;
        controller.kill();
        controller.restart();
    }
    assert_eq!(trainer.await.unwrap(), STEPS, "every step was acknowledged once");

    let request = GetStudyRequest { name: "killed".into() };
    let study = studies.get_study(request).await.unwrap().into_inner().study.unwrap();
    let progress = study.progress.unwrap();
    assert_eq!(study.state, StudyState::Finished as i32);
    assert_eq!((progress.applied, progress.pending, progress.outstanding), (STEPS, 0, 0));
    theta(&mut studies, "killed").await
}

#[tokio::test]
async fn twenty_kills_leave_no_trace_in_theta() {
    let (disturbed, undisturbed) = tokio::join!(search_with_kills(20, 1), search_with_kills(0, 1));
    assert_eq!(disturbed, undisturbed);
}

#[tokio::test]
async fn kills_leave_no_trace_when_steps_are_gathered() {
    let (disturbed, undisturbed) = tokio::join!(search_with_kills(5, 4), search_with_kills(0, 4));
    assert_eq!(disturbed, undisturbed);
}
