//! `asng-trainer retrain`: trains one architecture alone, from scratch, and writes it down.
//!
//! After each epoch weights and progress are written; the same command goes on from there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{
    data::{Augment, Batches, Cifar10, Preprocess, cifar10},
    engine::cosine,
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
    /// Print the results as one line of JSON
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

/// What decides a retraining, and how far it has come: the file `progress.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Progress {
    architecture: Vec<i64>,
    epochs: u32,
    cells: usize,
    channels: i64,
    batch_size: u16,
    learning_rate: f64,
    drop_path: f64,
    cutout: u16,
    seed: u64,
    images: i64,
    /// Epochs whose weights are in the weights' file, or a few more.
    epochs_done: u32,
}

impl Progress {
    /// Reads how far an earlier run of the same training came; `self` if there was none.
    fn resume(self, file: &Path) -> anyhow::Result<Progress> {
        let Ok(text) = fs::read_to_string(file) else { return Ok(self) };
        let earlier: Progress = serde_json::from_str(&text)
            .with_context(|| format!("{} makes no sense", file.display()))?;
        let epochs_done = earlier.epochs_done;
        ensure!(
            earlier == Progress { epochs_done, ..self },
            "{} is of another retraining; give another --out, or remove that directory",
            file.display()
        );
        Ok(earlier)
    }
}

/// Trains, writes and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    data: PathBuf,
    device: Device,
) -> anyhow::Result<()> {
    let architecture = match (&arguments.architecture, &arguments.study) {
        (Choice::File(path), _) => study::read_architecture(path)?,
        (choice, Some(study)) => {
            let study = study::get(&controller.connect()?, study).await?;
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
        let (part, file) = (arguments.out.join(".part"), arguments.out.join(name));
        fs::write(&part, content)
            .and_then(|()| fs::rename(&part, &file))
            .with_context(|| format!("cannot write {}", file.display()))?;
        anyhow::Ok(file)
    };
    let train = Cifar10::load(&data)?.train;
    let images = arguments.images.unwrap_or(train.len());
    let train = train.narrow(0, images).context("--images")?.to_device(device)?;
    let mut progress = Progress {
        architecture: architecture.values(),
        epochs: arguments.epochs,
        cells: size.cells,
        channels: size.channels,
        batch_size: arguments.batch_size,
        learning_rate: arguments.learning_rate,
        drop_path: arguments.drop_path,
        cutout: arguments.cutout,
        seed: arguments.seed,
        images,
        epochs_done: 0,
    }
    .resume(&arguments.out.join("progress.json"))?;
    let description = serde_json::to_string_pretty(&architecture.describe())?;
    let architecture_file = write("architecture.json", description)?;
    let graph = write("architecture.dot", architecture.dot())?;

    let rates = Rates { momentum: 0.9, weight_decay: 3e-4, grad_clip: 5.0 };
    let mut network = Retrained::new(&size, architecture, rates, arguments.seed, device)?;
    let weights = arguments.out.join("weights.safetensors");
    if progress.epochs_done > 0 {
        network.load(&weights)?;
    }
    let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
    let augment = Augment { cutout: arguments.cutout, ..Augment::PAPER };
    let mut batches = Batches::new(arguments.seed, images as usize, arguments.batch_size.into())?;
    let bar = ProgressBar::new(u64::from(arguments.epochs) * batches.per_epoch());
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} batches  {per_sec}  ETA {eta}  {msg}",
    )?);
    bar.set_position(u64::from(progress.epochs_done) * batches.per_epoch());
    bar.reset_eta();
    for epoch in progress.epochs_done..arguments.epochs {
        // Both schedules move once an epoch, as the authors' do.
        let done = f64::from(epoch) / f64::from(arguments.epochs);
        let learning_rate = cosine(arguments.learning_rate, done);
        // Which paths are dropped is drawn by libtorch's own generator.
        tch::manual_seed(arguments.seed.wrapping_add(epoch.into()).cast_signed());
        for place in 0..batches.per_epoch() {
            let number = u64::from(epoch) * batches.per_epoch() + place;
            let images = train.select(batches.get(number))?;
            let pixels = preprocess.augmented(&images.pixels, augment, arguments.seed, number)?;
            let batch = Batch { images: pixels, labels: images.labels };
            let outcome = network.train_step(&batch, learning_rate, arguments.drop_path * done)?;
            bar.set_message(format!("epoch {} loss {:.3}", epoch + 1, outcome.loss));
            bar.inc(1);
        }
        // The weights first: an epoch done twice does less harm than one left out.
        network.save(&weights)?;
        progress.epochs_done = epoch + 1;
        write("progress.json", serde_json::to_string(&progress)?)?;
    }
    bar.finish();
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
