//! The paper's artificial problem, through the real services: as many steps to success as the authors' own code takes.

use asng_proto::v1::{self, StopReason, StudyState};
use asng_tests::{Controller, Trainer, applied, study_when, trainer_command};

/// Steps to success of the authors' code (github.com/shirakawas/ASNG-NAS, PyTorch 2.13), of 29 seeds, in order.
const AUTHORS: [u64; 29] = [
    1277, 2044, 2481, 2979, 3355, 3358, 5692, 6018, 7071, 7717, 8154, 8508, 8969, 9308, 9450, 9635,
    9844, 9936, 12218, 12507, 12567, 13387, 15923, 16212, 16917, 18452, 20678, 24398, 25304,
];
/// Of the standard normal distribution, one-sided, at 1 %.
const CRITICAL: f64 = 2.326;

/// The paper's settings: 30 variables of 5 choices, at most 100,000 steps, and success at a cost of 1/5 without noise.
fn request(seed: usize) -> v1::CreateStudyRequest {
    let target = v1::Target { metric: "best_noiseless".into(), value: 1.0 / 5.0, at_least: false };
    v1::CreateStudyRequest {
        name: format!("toy-{seed}"),
        spec: Some(v1::StudySpec {
            space: "toy".into(),
            settings: [("seed".into(), seed.to_string())].into(),
            algorithm: Some(v1::AlgorithmSettings {
                seed: Some(seed as u64),
                // The paper's own sequential algorithm; further trainers go to further studies.
                max_staleness: Some(0),
                ..Default::default()
            }),
            stop: Some(v1::StopRules {
                max_steps: 100_000,
                target: Some(target),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

/// How many deviations the ranks of `ours` lie above what they would be if both came from one distribution (Mann and
/// Whitney, 1947, by the normal approximation).
fn mann_whitney(ours: &[u64], theirs: &[u64]) -> f64 {
    let above = |x: &u64| -> f64 {
        theirs.iter().map(|y| f64::from(u8::from(x > y)) + f64::from(u8::from(x == y)) / 2.0).sum()
    };
    let (n, m) = (ours.len() as f64, theirs.len() as f64);
    let u: f64 = ours.iter().map(above).sum();
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

#[tokio::test]
async fn the_toy_takes_no_more_steps_than_the_authors_code() {
    let seeds = std::env::var("ASNG_TOY_SEEDS").map_or(1, |seeds| seeds.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    for seed in 0..seeds {
        controller.studies().create_study(request(seed)).await.unwrap();
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
    steps.sort();
    let deviations = mann_whitney(&steps, &AUTHORS);
    println!("steps to success: {steps:?}, {deviations:.2} deviations above the authors'");
    assert!(deviations < CRITICAL, "{steps:?} is worse than {AUTHORS:?}: {deviations:.2}");
}

#[test]
fn the_test_itself_tells_better_from_worse() {
    let worse = AUTHORS.map(|steps| 2 * steps);
    assert!(mann_whitney(&worse, &AUTHORS) > CRITICAL);
    assert!(mann_whitney(&AUTHORS, &worse) < -CRITICAL);
    assert_eq!(mann_whitney(&AUTHORS, &AUTHORS), 0.0);
}
