//! The quality of searches on problems whose answers are known, through the real service; docs/quality.md has the same at
//! greater length. The thresholds are those of many searches by another implementation of the same formulas.

use std::sync::Arc;

use asng_proto::v1;
use asng_tests::{
    Controller,
    quality::{Algorithm, DataSet, Mode, NasBench201, Point, Problem, Search, scale},
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const SEEDS: u64 = 20;

/// Mean of the incumbents and of the modes after 500 evaluations.
async fn after_500(channel: &Channel, algorithm: Algorithm) -> (f64, f64) {
    let table = Arc::new(NasBench201::load(DataSet::Cifar10).unwrap());
    let run = |seed, table: Arc<NasBench201>, channel: Channel| async move {
        let name = format!("{seed}-{algorithm:?}").replace(['(', ')'], ".");
        let variables = NasBench201::variables();
        let search = Search::start(algorithm, &channel, &name, variables, 500, seed).await?;
        table.run(search, &[500]).await
    };
    let runs = (0..SEEDS).map(|seed| run(seed, table.clone(), channel.clone()));
    let points: Vec<Point> = runs
        .collect::<JoinSet<_>>()
        .join_all()
        .await
        .into_iter()
        .map(|run| run.unwrap()[0])
        .collect();
    let mean = |figure: fn(&Point) -> f64| points.iter().map(figure).sum::<f64>() / SEEDS as f64;
    (mean(|point| point.incumbent), mean(|point| point.mode.unwrap()))
}

#[tokio::test]
async fn asng_finds_the_best_cells_of_nasbench201() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let channel = controller.channel();
    let asng = Algorithm::Service(v1::Algorithm::Asng);
    let random = Algorithm::Service(v1::Algorithm::Random);
    let (incumbent, mode) = after_500(&channel, asng).await;
    let (of_chance, _) = after_500(&channel, random).await;
    assert!(incumbent >= 91.50, "{incumbent}");
    assert!(mode >= 91.40, "{mode}");
    assert!((of_chance - 91.33).abs() < 0.1, "{of_chance}");
}

#[tokio::test]
async fn eight_trainers_need_hardly_more_evaluations_than_one() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let channel = controller.channel();
    let mut taken = Vec::new();
    for (mode, trainers) in
        [(Mode::Synchronous, 1), (Mode::Synchronous, 8), (Mode::Asynchronous, 8)]
    {
        let run = |seed, channel: Channel| async move {
            let name = format!("{mode:?}-{trainers}-{seed}");
            scale(&Problem::Separable, mode, trainers, &channel, &name, seed, 20_000).await
        };
        let runs: JoinSet<_> = (0..SEEDS).map(|seed| run(seed, channel.clone())).collect();
        let took = runs.join_all().await.into_iter().map(|took| took.unwrap().expect("solved"));
        taken.push(took.sum::<u64>() as f64);
    }
    assert!(taken[1] <= taken[0], "synchronous: {taken:?}");
    assert!(taken[2] <= 1.2 * taken[0], "asynchronous: {taken:?}");
}
