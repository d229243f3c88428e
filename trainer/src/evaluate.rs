//! `asng-trainer evaluate`: test loss and accuracy of architectures with the shared weights of a study.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use asng_client::Options;
use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind};

use crate::{
    checkpoints,
    data::{Cifar10, Images, Preprocess, cifar10},
    space::enas_micro::{Architecture, Settings},
    study::{self, Choice},
    supernet::{Batch, Evaluation, Supernet},
};

/// Images in one forward pass. The supernet normalises with the statistics of these images.
const BATCH: i64 = 250;

/// What to evaluate.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The study whose shared weights are used; it need not have ended
    #[arg(long)]
    study: String,
    /// The architecture: "mode" (the most likely one), "incumbent" (the smallest loss reported), or a JSON file
    #[arg(long, default_value = "mode")]
    architecture: Choice,
    /// Evaluate this many architectures drawn uniformly as well, to compare with
    #[arg(long, default_value_t = 0, value_name = "N")]
    random: usize,
    /// Seed of the random architectures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many test images to use, the first ones of the test set: 250 to 10000, in steps of 250
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    images: i64,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Results {
    study: String,
    /// Whose weights were used.
    weights: PathBuf,
    images: i64,
    architecture: Vec<i64>,
    loss: f64,
    accuracy: f64,
    random: Option<Random>,
}

/// Accuracies of the random architectures.
#[derive(Debug, Serialize)]
struct Random {
    count: usize,
    mean: f64,
    min: f64,
    max: f64,
}

/// Evaluates and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    work_dir: PathBuf,
    data: PathBuf,
    device: Device,
) -> anyhow::Result<()> {
    let study = study::get(&controller.connect()?, &arguments.study).await?;
    let settings = study::settings(&study)?;
    let architecture = arguments.architecture.of(&study, &settings)?;
    let directory = study::directory(&work_dir, &study);
    let weights = checkpoints::newest(&directory)?.with_context(|| {
        format!(
            "there are no weights of study {:?} in {}: a trainer writes them every --checkpoint-every and when it ends; \
             give the --work-dir of one that has",
            arguments.study,
            directory.display()
        )
    })?;
    let results = evaluate(&arguments, settings, architecture, weights, data, device)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!("study     {}", results.study);
    println!("weights   {}", results.weights.display());
    println!("images    {} of the test set", results.images);
    println!("loss      {:.4}", results.loss);
    println!("accuracy  {:.4}", results.accuracy);
    if let Some(Random { count, mean, min, max }) = results.random {
        println!("random    {mean:.4} on average of {count}, from {min:.4} to {max:.4}");
    }
    Ok(())
}

fn evaluate(
    arguments: &Arguments,
    settings: Settings,
    architecture: Architecture,
    weights: PathBuf,
    data: PathBuf,
    device: Device,
) -> anyhow::Result<Results> {
    let images = arguments.images;
    ensure!(
        images % BATCH == 0 && (BATCH..=10_000).contains(&images),
        "--images must be a multiple of {BATCH}, up to 10000"
    );
    let mut supernet = Supernet::new(&settings, 3, cifar10::CLASSES, device)?;
    supernet.load(&weights)?;
    let batches = test_batches(&data, images, device)?;
    let evaluate = |architecture: &Architecture| {
        mean(batches.iter().map(|batch| supernet.evaluate(batch, architecture)))
            .context("evaluation failed")
    };
    let found = evaluate(&architecture)?;
    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
    let mut accuracies = Vec::new();
    for _ in 0..arguments.random {
        let variables = settings.variables();
        let values: Vec<i64> = variables
            .iter()
            .map(|variable| random.random_range(0..variable.choices.len() as i64))
            .collect();
        let architecture = Architecture::decode(settings.nodes as usize, &values)?;
        accuracies.push(evaluate(&architecture)?.accuracy);
    }
    let random = (!accuracies.is_empty()).then(|| Random {
        count: accuracies.len(),
        mean: accuracies.iter().sum::<f64>() / accuracies.len() as f64,
        min: accuracies.iter().copied().fold(f64::INFINITY, f64::min),
        max: accuracies.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    });
    Ok(Results {
        study: arguments.study.clone(),
        weights,
        images,
        architecture: architecture.values(),
        loss: found.loss,
        accuracy: found.accuracy,
        random,
    })
}

/// The first `images` of the test set in batches on the device, not augmented.
pub(crate) fn test_batches(
    data: &std::path::Path,
    images: i64,
    device: Device,
) -> anyhow::Result<Vec<Batch>> {
    let test: Images = Cifar10::load(data)?.test.to_device(device)?;
    let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
    let starts = (0..images).step_by(BATCH as usize);
    starts
        .map(|start| {
            let images = test.narrow(start, BATCH)?;
            Ok(Batch { images: preprocess.plain(&images.pixels)?, labels: images.labels })
        })
        .collect()
}

/// The mean over batches of the same size.
pub(crate) fn mean<E>(
    evaluations: impl ExactSizeIterator<Item = Result<Evaluation, E>>,
) -> Result<Evaluation, E> {
    let count = evaluations.len() as f64;
    let mut sum = Evaluation { loss: 0.0, accuracy: 0.0 };
    for evaluation in evaluations {
        let Evaluation { loss, accuracy } = evaluation?;
        sum.loss += loss / count;
        sum.accuracy += accuracy / count;
    }
    Ok(sum)
}
