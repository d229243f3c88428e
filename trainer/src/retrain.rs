//! `asng-trainer retrain`: trains one architecture alone, from scratch, and writes it down.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tch::{Device, Kind};

use crate::{
    data::{Augment, Batches, Cifar10, Preprocess, cifar10},
    engine::{WEIGHTS_FILE, cosine},
    evaluate::{mean, test_batches},
    space::enas_micro::{Architecture, Size},
    study::{self, Choice},
    supernet::{Batch, Retrained, sgd::Rates},
};

/// How to train. The defaults are the paper's.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The study whose architecture is trained. Not needed when --architecture is a file
    #[arg(long, required_unless_present = "architecture")]
    study: Option<String>,
    /// The architecture: "mode" (the most likely one), "incumbent" (the smallest loss reported), or a JSON file
    #[arg(long, default_value = "mode")]
    architecture: Choice,
    /// Passes over the training images
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Cells of the network, two of which are reductions
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(3..=100))]
    cells: u16,
    /// Channels of the first cells. By default as many as --max-parameters allows
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    channels: Option<u16>,
    /// Largest number of trainable parameters, without the auxiliary head, when --channels is not given
    #[arg(long, default_value_t = 4_000_000, value_name = "N")]
    max_parameters: i64,
    /// Images in a minibatch
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(2..))]
    batch_size: u16,
    /// Learning rate at the start of the cosine schedule
    #[arg(long, default_value_t = 0.025)]
    learning_rate: f64,
    /// Probability of dropping an operation's output, reached at the end
    #[arg(long, default_value_t = 0.3)]
    drop_path: f64,
    /// Side of the square cut out of each training image, in pixels
    #[arg(long, default_value_t = 16)]
    cutout: u16,
    /// Seed of the weights and of the order and augmentation of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use only the first N training images
    #[arg(long, value_name = "N")]
    images: Option<i64>,
    /// Directory for the results, made if it is not there
    #[arg(long, default_value = "retrained", value_name = "DIR")]
    out: PathBuf,
    /// Print one line of JSON at the end, and no progress
    #[arg(long)]
    json: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Results {
    epochs: u32,
    cells: usize,
    channels: i64,
    parameters: i64,
    test_loss: f64,
    test_accuracy: f64,
    weights: PathBuf,
    architecture: PathBuf,
    graph: PathBuf,
}

/// Trains, writes and prints.
pub async fn run(
    arguments: Arguments,
    controller: &str,
    data: PathBuf,
    device: Device,
) -> anyhow::Result<()> {
    let architecture = match (&arguments.architecture, &arguments.study) {
        (Choice::File(path), _) => study::read_architecture(path)?,
        (choice, Some(study)) => {
            let study = study::get(&study::connect(controller)?, study).await?;
            choice.of(&study, &study::settings(&study)?)?
        }
        (_, None) => bail!("name the --study whose architecture is meant"),
    };
    let results = retrain(&arguments, architecture, data, device)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!(
        "parameters     {} ({} cells, {} channels)",
        results.parameters, results.cells, results.channels
    );
    println!("test loss      {:.4}", results.test_loss);
    println!("test accuracy  {:.4}", results.test_accuracy);
    println!("weights        {}", results.weights.display());
    println!("architecture   {}", results.architecture.display());
    println!("graph          {}", results.graph.display());
    Ok(())
}

fn retrain(
    arguments: &Arguments,
    architecture: Architecture,
    data: PathBuf,
    device: Device,
) -> anyhow::Result<Results> {
    let mut size = Size {
        nodes: architecture.normal.nodes.len(),
        cells: arguments.cells.into(),
        channels: 1,
        image_channels: 3,
        classes: cifar10::CLASSES,
    };
    size.channels = match arguments.channels {
        Some(channels) => channels.into(),
        None => architecture
            .widest(&size, arguments.max_parameters)
            .context("--max-parameters is too small for this many cells")?,
    };
    let parameters = architecture.parameters(&size, true);
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let write = |name: &str, content: String| {
        let file = arguments.out.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        anyhow::Ok(file)
    };
    // First of all, so that a wrong directory is noticed before hours of work.
    let description = serde_json::to_string_pretty(&architecture.describe())?;
    let architecture_file = write("architecture.json", description)?;
    let graph = write("architecture.dot", architecture.dot())?;

    let rates = Rates { momentum: 0.9, weight_decay: 3e-4, grad_clip: 5.0 };
    let mut network = Retrained::new(&size, architecture, rates, arguments.seed, device)?;
    let train = Cifar10::load(&data)?.train;
    let count = arguments.images.unwrap_or(train.len());
    let train = train.narrow(0, count).context("--images")?.to_device(device)?;
    let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
    let augment = Augment { cutout: arguments.cutout, ..Augment::PAPER };
    let mut batches = Batches::new(arguments.seed, count as usize, arguments.batch_size.into())?;
    let total = u64::from(arguments.epochs) * batches.per_epoch();
    let bar = if arguments.json { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} batches  {per_sec}  ETA {eta}  {msg}",
    )?);
    for number in 0..total {
        let images = train.select(batches.get(number))?;
        let pixels = preprocess.augmented(&images.pixels, augment, arguments.seed, number)?;
        let batch = Batch { images: pixels, labels: images.labels };
        // Both schedules move once an epoch, as the authors' do.
        let epoch = number / batches.per_epoch();
        let progress = epoch as f64 / f64::from(arguments.epochs);
        let learning_rate = cosine(arguments.learning_rate, progress);
        let outcome = network.train_step(&batch, learning_rate, arguments.drop_path * progress)?;
        bar.set_message(format!("epoch {} loss {:.3}", epoch + 1, outcome.loss));
        bar.inc(1);
    }
    bar.finish();
    let weights = arguments.out.join(WEIGHTS_FILE);
    network.save(&weights)?;
    let batches = test_batches(&data, 10_000, device)?;
    let test = mean(batches.iter().map(|batch| network.evaluate(batch)))?;
    Ok(Results {
        epochs: arguments.epochs,
        cells: size.cells,
        channels: size.channels,
        parameters,
        test_loss: test.loss,
        test_accuracy: test.accuracy,
        weights,
        architecture: architecture_file,
        graph,
    })
}
