//! How good the searches are, through the real service, on problems whose answers are known. Started by `cargo xtask bench
//! quality`, which builds everything for release.
//!
//! The tables of docs/quality.md are written anew between their marks, the curves beside it. The last line on standard
//! output is JSON.

use std::{path::PathBuf, sync::Arc};

use asng_proto::v1;
use asng_tests::{
    Controller,
    document::{Document, Table},
    draw::{Axes, Curve, draw},
    quality::{Algorithm, DataSet, Mode, NasBench201, Point, Problem, Search, scale},
};
use clap::Parser;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// The algorithms that are compared.
const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("ASNG", Algorithm::Service(v1::Algorithm::Asng)),
    ("SNG", Algorithm::Service(v1::Algorithm::Sng)),
    ("random search", Algorithm::Service(v1::Algorithm::Random)),
    ("regularised evolution", Algorithm::Evolution),
];
/// Evaluations after which it is said how far a search has come; those in tables and those in curves alone.
const AT: [u64; 12] = [10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000];
const IN_TABLES: [u64; 5] = [50, 100, 200, 500, 1000];
const TRAINERS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Evaluations after which a search with many trainers has failed.
const LIMIT: u64 = 100_000;
/// Accuracy in percent of CIFAR-10 that solves NAS-Bench-201 for many trainers: of the best 0.3 % of its cells.
const SOLVED: f64 = 91.2;
/// Searches at a time.
const AT_ONCE: usize = 32;

/// Measures how good searches are.
#[derive(Parser)]
struct Arguments {
    /// Searches of each algorithm on each data set of NAS-Bench-201
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Searches for each number of trainers
    #[arg(long, default_value_t = 20)]
    scaling_runs: u64,
    /// The document whose tables are written anew; the curves are written beside it
    #[arg(long, default_value = "docs/quality.md")]
    document: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir()?;
    let controller = Controller::start(&directory.path().join("state"));
    let channel = controller.channel();
    let mut document = Document::open(arguments.document)?;
    let mut figures = serde_json::Map::new();

    let mut table = Table::new(["data set", "algorithm", ""], IN_TABLES);
    let mut panels = Vec::new();
    for data_set in DataSet::ALL {
        let problem = Arc::new(NasBench201::load(data_set)?);
        let mut curves = Vec::new();
        for (name, algorithm) in ALGORITHMS {
            eprintln!("==> {}: {name}", data_set.title());
            let runs = nasbench201(&channel, data_set, &problem, algorithm, arguments.runs).await?;
            let incumbents = summaries(&runs, |point| Some(point.incumbent));
            // All choices stay equally likely for random search.
            let sure = !matches!(algorithm, Algorithm::Service(v1::Algorithm::Random));
            let modes = summaries(&runs, |point| point.mode.filter(|_| sure));
            for (what, at) in [("incumbent", &incumbents), ("mode", &modes)] {
                if !at.is_empty() {
                    let cells = IN_TABLES.map(|evaluations| {
                        at.iter().find(|one| one.at == evaluations).map_or("".into(), |one| {
                            format!("{:.2} ± {:.2}", one.mean, one.deviation)
                        })
                    });
                    table.row([data_set.title(), name, what], cells);
                }
                let at500 = at.iter().find(|one| one.at == 500);
                if let (DataSet::Cifar10, Some(one)) = (data_set, at500) {
                    let key = format!("cifar10_{}_{what}_at_500", name.replace(' ', "_"));
                    figures.insert(key.to_lowercase(), one.mean.into());
                }
            }
            let curve = |label: String, at: &[Summary]| Curve {
                label,
                points: at.iter().map(|one| (one.at as f64, one.mean)).collect(),
            };
            curves.push(curve(format!("{name}, incumbent"), &incumbents));
            if !modes.is_empty() {
                curves.push(curve(format!("{name}, mode"), &modes));
            }
        }
        panels.push((data_set.title().to_owned(), curves));
    }
    document.replace("nasbench201", &table.text)?;
    let axes = Axes { x: "evaluations", base: Some(10.0), y: "accuracy, %", bottom: None };
    draw(&document.beside("quality-nasbench201.svg"), &axes, &panels)?;

    let cifar10 = Arc::new(NasBench201::load(DataSet::Cifar10)?);
    let problems = ["noisy function", "NAS-Bench-201, CIFAR-10"];
    let mut table = Table::new(["problem", "mode", "trainers"], ["evaluations", "ratio", "rounds"]);
    let mut panels = Vec::new();
    for (place, title) in problems.into_iter().enumerate() {
        let mut curves = Vec::new();
        for (label, mode) in
            [("asynchronous", Mode::Asynchronous), ("synchronous", Mode::Synchronous)]
        {
            let mut points = Vec::new();
            for trainers in TRAINERS {
                eprintln!("==> {title}, {label}: {trainers} trainers");
                let mut running = JoinSet::new();
                for seed in 0..arguments.scaling_runs {
                    let (channel, cifar10) = (channel.clone(), cifar10.clone());
                    let name = format!("scaling-{place}-{label}-{trainers}-{seed}");
                    running.spawn(async move {
                        let problem = match place {
                            0 => Problem::Separable,
                            _ => Problem::NasBench201(&cifar10, SOLVED),
                        };
                        scale(&problem, mode, trainers, &channel, &name, seed, LIMIT).await
                    });
                }
                let mut took = Vec::new();
                while let Some(ended) = running.join_next().await {
                    took.push(ended??.unwrap_or(LIMIT) as f64);
                }
                let mean = took.iter().sum::<f64>() / took.len() as f64;
                points.push((trainers as f64, mean));
                let ratio = mean / points[0].1;
                let rounds = mean / (2 * trainers) as f64;
                table.row(
                    [title, label, &trainers.to_string()],
                    [format!("{mean:.0}"), format!("{ratio:.2}"), format!("{rounds:.0}")],
                );
                if (place, trainers) == (0, 8) {
                    figures.insert(format!("noisy_8_trainers_{label}_ratio"), ratio.into());
                }
            }
            curves.push(Curve { label: label.into(), points });
        }
        panels.push((title.to_owned(), curves));
    }
    document.replace("scaling", &table.text)?;
    let axes = Axes { x: "trainers", base: Some(2.0), y: "evaluations", bottom: Some(0.0) };
    draw(&document.beside("quality-scaling.svg"), &axes, &panels)?;
    println!("{}", serde_json::Value::Object(figures));
    Ok(())
}

/// So many searches with seeds from 0.
async fn nasbench201(
    channel: &Channel,
    data_set: DataSet,
    problem: &Arc<NasBench201>,
    algorithm: Algorithm,
    runs: u64,
) -> anyhow::Result<Vec<Vec<Point>>> {
    let mut ended = Vec::new();
    let mut running = JoinSet::new();
    for seed in 0..runs {
        if running.len() == AT_ONCE {
            ended.extend(running.join_next().await);
        }
        let (channel, problem) = (channel.clone(), problem.clone());
        let name = format!("nb-{data_set:?}-{algorithm:?}-{seed}").replace(['(', ')'], ".");
        running.spawn(async move {
            let variables = NasBench201::variables();
            let last = AT[AT.len() - 1];
            let search = Search::start(algorithm, &channel, &name, variables, last, seed).await?;
            problem.run(search, &AT).await
        });
    }
    while let Some(run) = running.join_next().await {
        ended.push(run);
    }
    ended.into_iter().map(|run| run?).collect()
}

/// Of many searches after so many evaluations.
struct Summary {
    at: u64,
    mean: f64,
    /// That of a sample.
    deviation: f64,
}

fn summaries(runs: &[Vec<Point>], figure: impl Fn(&Point) -> Option<f64>) -> Vec<Summary> {
    let at = |place: usize| {
        let figures: Option<Vec<f64>> = runs.iter().map(|run| figure(&run[place])).collect();
        let figures = figures?;
        let count = figures.len() as f64;
        let mean = figures.iter().sum::<f64>() / count;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Some(Summary { at: AT[place], mean, deviation: (squares / (count - 1.0)).sqrt() })
    };
    (0..AT.len()).filter_map(at).collect()
}
