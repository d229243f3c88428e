//! Damaged checkpoints: the real trainer takes the one before, and never starts with new weights without a word.

use std::{
    fs,
    path::{Path, PathBuf},
};

use asng_proto::v1::{Algorithm, StudyState};
use asng_tests::{
    Controller, Trainer, applied, study_when, terminate, toy::request, trainer_program,
};
use serde_json::Value;
use tempfile::TempDir;

/// Enough that no search ends before it is stopped.
const STEPS: u64 = 500;

/// A search that was stopped twice, and so has two checkpoints.
struct Stopped {
    directory: TempDir,
    controller: Controller,
    /// Of the study's checkpoints.
    study: PathBuf,
    /// The newest first.
    checkpoints: [PathBuf; 2],
}

impl Stopped {
    async fn new() -> Stopped {
        let directory = tempfile::tempdir().unwrap();
        let controller = Controller::start(&directory.path().join("state"));
        let mut request = request("toy", 1, Algorithm::Asng, 1.0);
        let stop = request.spec.as_mut().unwrap().stop.as_mut().unwrap();
        (stop.max_steps, stop.target) = (STEPS, None);
        controller.studies().create_study(request).await.unwrap();
        for _ in 0..2 {
            let before = applied(&study_when(&controller, "toy", |_| true).await);
            let mut trainer = Trainer(command(&controller, directory.path()).spawn().unwrap());
            study_when(&controller, "toy", |study| applied(study) >= before + 10).await;
            assert!(terminate(&mut trainer.0).success());
            let study = study_when(&controller, "toy", |_| true).await;
            assert_eq!(study.state(), StudyState::Running);
        }
        let studies = directory.path().join("work/studies");
        let study = fs::read_dir(studies).unwrap().next().unwrap().unwrap().path();
        let list = fs::read(study.join("checkpoints.json")).unwrap();
        let list: Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 2);
        let checkpoints = [0, 1].map(|place| study.join(list[place]["file"].as_str().unwrap()));
        Stopped { directory, controller, study, checkpoints }
    }

    /// Starts the trainer again, to the end of the search or its own; whether it succeeded, and its log.
    fn resume(&self) -> (bool, String) {
        let output = command(&self.controller, self.directory.path()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code < 2), "{log}");
        (output.status.success(), log)
    }

    async fn has_ended(&self) {
        let study = study_when(&self.controller, "toy", |_| true).await;
        assert_eq!((study.state(), applied(&study)), (StudyState::Finished, STEPS));
    }

    /// The trainer refuses to start for this reason, gives its step back, changes nothing, and starts with new weights when a
    /// person has done as it says.
    async fn is_refused(&self, reason: &str) {
        let before = files(&self.study);
        let (success, log) = self.resume();
        assert!(!success && log.contains(reason), "{log}");
        assert!(log.contains("move the directory away to start with new weights"), "{log}");
        assert!(
            log.contains(self.study.to_str().unwrap()) && log.contains("step given back"),
            "{log}"
        );
        assert_eq!(files(&self.study), before);
        let study = study_when(&self.controller, "toy", |_| true).await;
        assert_eq!(study.state(), StudyState::Running);

        fs::rename(&self.study, self.directory.path().join("away")).unwrap();
        let (success, log) = self.resume();
        assert!(success && log.contains("continued=false"), "{log}");
        self.has_ended().await;
    }
}

fn command(controller: &Controller, directory: &Path) -> std::process::Command {
    // The space needs no images, which would lie below the present directory; loading them takes time.
    let mut command = std::process::Command::new(trainer_program());
    command.current_dir(directory).args(["--controller", &controller.url(), "--work-dir"]);
    command.arg(directory.join("work")).args(["serve", "--study", "toy"]);
    command
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let file = |entry: Result<fs::DirEntry, _>| {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        // What the process did, written when it ends.
        (path.file_name().unwrap() != "trainer.json").then_some((path, bytes))
    };
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().filter_map(file).collect();
    files.sort();
    files
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn truncate(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

#[tokio::test]
async fn a_damaged_checkpoint_is_named_and_the_one_before_is_taken() {
    for damage in [flip_a_bit, truncate] {
        let stopped = Stopped::new().await;
        damage(&stopped.checkpoints[0]);
        let (success, log) = stopped.resume();
        let warning = log.lines().find(|line| line.contains("checkpoint is damaged"));
        let warning = warning.unwrap_or_else(|| panic!("no warning: {log}"));
        assert!(warning.contains("WARN"), "{warning}");
        assert!(warning.contains(stopped.checkpoints[0].to_str().unwrap()), "{warning}");
        assert!(success && log.contains("continued=true"), "{log}");
        stopped.has_ended().await;
    }
}

#[tokio::test]
async fn without_a_whole_checkpoint_nothing_starts_until_a_person_says_so() {
    let stopped = Stopped::new().await;
    flip_a_bit(&stopped.checkpoints[0]);
    truncate(&stopped.checkpoints[1]);
    stopped.is_refused("none of the 2 checkpoints").await;
}

#[tokio::test]
async fn without_the_list_nothing_starts_until_a_person_says_so() {
    let stopped = Stopped::new().await;
    truncate(&stopped.study.join("checkpoints.json"));
    stopped.is_refused("checkpoints.json is damaged").await;
}
