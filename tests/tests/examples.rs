//! The example of a trainer in Rust finds what it searches, through a restart of the controller.

use std::{
    io,
    process::{Command, Stdio},
};

use asng_proto::v1::GetStudyRequest;
use asng_tests::{Controller, Trainer, example};
use tokio::time::{Duration, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_of_ones_own_does_not_notice_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let mut command = Command::new(example("asng-client", "black_box"));
    command.args(["--controller", &controller.url()]).stdout(Stdio::piped());
    let mut trainer = Trainer(command.spawn().unwrap());
    let mut studies = controller.studies();
    let request = GetStudyRequest { name: "rust-black-box".into() };
    let applied = loop {
        if let Ok(answer) = studies.get_study(request.clone()).await
            && let Some(progress) = answer.into_inner().study.unwrap().progress
            && progress.applied >= 100
        {
            break progress.applied;
        }
        sleep(Duration::from_millis(5)).await;
    };
    assert!(applied < 500, "too fast to be killed in the middle");
    controller.kill();
    controller.restart();
    let found = io::read_to_string(trainer.0.stdout.take().unwrap()).unwrap();
    assert!(trainer.0.wait().unwrap().success());
    assert!(found.starts_with("conv5, width "), "{found}");
    let study = studies.get_study(request).await.unwrap().into_inner().study.unwrap();
    assert_eq!(study.progress.unwrap().applied, 500);
}
