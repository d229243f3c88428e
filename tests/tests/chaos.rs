//! Three trainers and thirty studies, a third of which can never be served, while disks fill and processes are killed: every other
//! study is finished, and those that are not say why.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use asng_proto::v1::{self, ReportOutcome, StudyState};
use asng_tests::{
    Controller, Disk, ServedTrainer, applied, asngctl, categoricals, describe, limit, retry,
    study_when, terminate, tiny_search,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep, timeout};

const STUDIES: usize = 30;
const TRAINERS: usize = 3;
/// Studies that are left over when the disturbances end are finished in this time.
const CALM: Duration = Duration::from_secs(600);

/// The reason why a study can never be served.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Poison {
    UnknownCost,
    WrongSetting,
    UnknownFixedVariable,
    OtherVariables,
    DescribedDifferently,
    DamagedCheckpoints,
    FileInPlaceOfDirectory,
    UnknownSpace,
}

const POISONS: [Poison; 8] = [
    Poison::UnknownCost,
    Poison::WrongSetting,
    Poison::UnknownFixedVariable,
    Poison::OtherVariables,
    Poison::DescribedDifferently,
    Poison::DamagedCheckpoints,
    Poison::FileInPlaceOfDirectory,
    Poison::UnknownSpace,
];

impl Poison {
    /// The study's state for good, and a part of what is told of it.
    fn outcome(self) -> (StudyState, &'static str) {
        match self {
            Poison::UnknownCost => (StudyState::Failed, "unknown cost \"parameters\""),
            Poison::WrongSetting => (StudyState::Failed, "settings.colour"),
            Poison::UnknownFixedVariable => (StudyState::Failed, "no variable of this name"),
            Poison::OtherVariables => (StudyState::Failed, "has 30 variables"),
            Poison::DescribedDifferently => (StudyState::Running, "has 30 variables"),
            Poison::DamagedCheckpoints => (StudyState::Running, "checkpoints.json is damaged"),
            Poison::FileInPlaceOfDirectory => (StudyState::Running, "not a directory"),
            Poison::UnknownSpace => (StudyState::Waiting, "serves space"),
        }
    }
}

/// A study and what is wrong with it.
struct Planned {
    name: String,
    poison: Option<Poison>,
}

/// Creates the studies; every third is poisoned, each in another way than the one before.
async fn create(controller: &Controller, disks: &[Disk], seconds: u64) -> Vec<Planned> {
    let mut planned = Vec::new();
    for i in 0..STUDIES {
        let poison = (i % 3 == 0).then(|| POISONS[i / 3 % POISONS.len()]);
        let name = format!("s{i}");
        let cells = poison.is_none() && i % 5 == 4;
        let mut request = tiny_search(&name, if cells { seconds } else { seconds * 20 });
        let spec = request.spec.as_mut().unwrap();
        if !cells {
            (spec.space, spec.settings) = ("toy".into(), Default::default());
        }
        match poison {
            Some(Poison::UnknownCost) => spec.costs = vec![limit(100.0)],
            Some(Poison::WrongSetting) => {
                spec.settings.insert("colour".into(), "red".into());
            }
            Some(Poison::UnknownFixedVariable) => {
                spec.fixed.insert("nothing".into(), "1".into());
            }
            Some(Poison::OtherVariables) => spec.variables = categoricals(2),
            Some(Poison::UnknownSpace) => spec.space = "nobody-serves-this".into(),
            _ => {}
        }
        let study = controller.studies().create_study(request).await.unwrap().into_inner().study;
        let study = study.unwrap();
        let directories = disks
            .iter()
            .map(|disk| disk.path().join("studies").join(format!("{name}-{}", study.study_id)));
        let directories: Vec<PathBuf> = directories.collect();
        match poison {
            Some(Poison::DescribedDifferently) => {
                describe(controller, &name, categoricals(2)).await;
            }
            Some(Poison::DamagedCheckpoints) => {
                for directory in directories {
                    fs::create_dir_all(&directory).unwrap();
                    fs::write(directory.join("checkpoints.json"), "[{").unwrap();
                }
            }
            Some(Poison::FileInPlaceOfDirectory) => {
                for directory in directories {
                    fs::create_dir_all(directory.parent().unwrap()).unwrap();
                    fs::write(directory, "").unwrap();
                }
            }
            _ => {}
        }
        planned.push(Planned { name, poison });
    }
    planned
}

fn start(controller: &Controller, work_dir: &Path) -> ServedTrainer {
    ServedTrainer::start(controller, work_dir, &["--checkpoint-every", "200ms"])
}

/// Everything that is told of a study to whoever asks.
fn told(controller: &Controller, study: &str) -> String {
    let mut command = Command::new(asngctl());
    command.args(["--controller", &controller.url(), "study", "show", study]);
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// Counts the reports that entered an update, of which no step has two.
async fn counted(controller: &Controller, study: &str) -> u64 {
    let mut request =
        v1::ListReportsRequest { study: study.into(), page_size: 1000, ..Default::default() };
    let (mut steps, mut counted) = (BTreeSet::new(), 0);
    loop {
        let studies = controller.studies();
        let page = retry(|| {
            let (mut studies, request) = (studies.clone(), request.clone());
            async move { studies.list_reports(request).await }
        });
        let page = page.await.into_inner();
        for report in page.reports {
            assert!(steps.insert(report.step_id), "step {} of {study} twice", report.step_id);
            counted += u64::from(report.outcome() == ReportOutcome::Applied);
        }
        if page.next_page_token.is_empty() {
            return counted;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn every_study_that_can_be_served_is_finished_whatever_happens() {
    let seconds: u64 = env::var("ASNG_CHAOS_SECONDS").map_or(30, |s| s.parse().unwrap());
    let disks: Option<Vec<Disk>> = (0..TRAINERS).map(|_| Disk::mount(64)).collect();
    let Some(disks) = disks else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    let planned = create(&controller, &disks, seconds).await;
    let mut trainers: Vec<_> = disks.iter().map(|d| start(&controller, d.path())).collect();

    let mut random = ChaCha8Rng::seed_from_u64(15);
    let mut full = [false; TRAINERS];
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        sleep(Duration::from_millis(random.random_range(200..2000))).await;
        let i = random.random_range(0..TRAINERS);
        assert!(trainers[i].runs(), "trainer {i} has ended by itself");
        match random.random_range(0..4) {
            0 => {
                controller.kill();
                controller.restart();
            }
            1 => {
                trainers[i].trainer.0.kill().unwrap();
                trainers[i].wait();
                trainers[i] = start(&controller, disks[i].path());
            }
            _ if full[i] => {
                disks[i].empty();
                full[i] = false;
            }
            _ => {
                disks[i].fill();
                full[i] = true;
            }
        }
    }
    for (disk, _) in disks.iter().zip(full).filter(|(_, full)| *full) {
        disk.empty();
    }

    let calm = async {
        for Planned { name, poison } in &planned {
            let (state, why) = poison.map_or((StudyState::Finished, ""), Poison::outcome);
            let study = study_when(&controller, name, |study| study.state() == state).await;
            if poison.is_none() {
                let max_steps = study.progress.unwrap().max_steps;
                assert_eq!(
                    (applied(&study), counted(&controller, name).await),
                    (max_steps, max_steps)
                );
                continue;
            }
            assert_eq!(applied(&study), 0, "{name} {poison:?}");
            // A trainer that was just started, or has just tried it again, has yet to say so.
            loop {
                let told = told(&controller, name);
                if told.contains(why) {
                    break;
                }
                eprintln!("{name} {poison:?}: {told}");
                sleep(Duration::from_millis(500)).await;
            }
        }
        for trainer in &trainers {
            trainer.status_when(|status| status.checkpoint_error.is_empty()).await;
        }
    };
    timeout(CALM, calm).await.expect("every study comes to its end");
    for trainer in &mut trainers {
        assert!(trainer.runs() && terminate(&mut trainer.trainer.0).success());
    }
}
