//! The paper's artificial problem, through the real services: as many steps to success as the authors' own code takes.

use asng_proto::v1::{self, Algorithm, StopReason, StudyState};
use asng_tests::{
    Controller, Trainer, applied, study_when,
    toy::{AUTHORS, CRITICAL, mann_whitney, request},
    trainer_command,
};

#[tokio::test]
async fn the_toy_takes_no_more_steps_than_the_authors_code() {
    let seeds = std::env::var("ASNG_TOY_SEEDS").map_or(1, |seeds| seeds.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    for seed in 0..seeds {
        let request = request(&format!("toy-{seed}"), seed, Algorithm::Asng, 1.0);
        controller.studies().create_study(request).await.unwrap();
    }
    let _trainers = ["one", "other"].map(|name| {
        let mut command = trainer_command(&controller, &directory.path().join(name));
        Trainer(command.arg("serve").spawn().unwrap())
    });
    let mut steps = Vec::new();
    for seed in 0..seeds {
        let ended = |study: &v1::Study| study.state() == StudyState::Finished;
        let study = study_when(&controller, &format!("toy-{seed}"), ended).await;
        assert_eq!(study.stop_reason(), StopReason::Target, "seed {seed}");
        steps.push(applied(&study));
    }
    let deviations = mann_whitney(&steps, &AUTHORS);
    assert!(deviations < CRITICAL, "{steps:?} is worse than {AUTHORS:?}: {deviations:.2}");
}
