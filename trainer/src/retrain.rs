//! `asng-trainer retrain`: trains one architecture alone, from scratch, and writes it down.
//!
//! The same command goes on after an interruption, and ends with the same weights as one that had none.

mod classification;
mod events;
mod inpainting;
mod log;
pub(crate) mod recipe;
mod training;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::{Args, ValueEnum};
use serde::Serialize;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use tch::Device;

use self::{
    classification::Classification,
    inpainting::Inpainting,
    recipe::{BEST, LAST, RECIPE, Recipe},
    training::Training,
};
use crate::{
    data::{Cifar10, Images},
    evaluate::Pictures,
    space::{Space, enas_micro, inpaint},
    study::{Found, Subject},
};

/// How to train.
#[derive(Debug, Args)]
#[group(skip)]
#[command(
    after_help = "On SIGTERM or SIGINT it writes a checkpoint and ends with 1. After that, or a crash, the same command \
    goes on, and ends with the weights of a run without interruption. `asng-trainer evaluate --retrained DIR` and `asng-trainer export --retrained DIR` use what it made."
)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Where all that is not given comes from: the paper, or what two cores do in minutes
    #[arg(long, value_enum, default_value = "paper")]
    preset: Preset,
    /// Images in a minibatch [paper: 80, autoencoders 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch_size: Option<u16>,
    /// Learning rate at the start of the schedule [paper: 0.025, autoencoders 0.001]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Seed of the weights and of the order and augmentation of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use only the first N training images
    #[arg(long, value_name = "N")]
    images: Option<i64>,
    /// Use only the first N test images
    #[arg(long, value_name = "N")]
    test_images: Option<i64>,
    #[command(flatten)]
    classification: classification::Flags,
    #[command(flatten)]
    inpainting: inpainting::Flags,
    /// Directory for the results, made if it is not there
    #[arg(long, default_value = "retrained", value_name = "DIR", help_heading = "Results")]
    out: PathBuf,
    /// Write a checkpoint this often, and after each evaluation: what a crash can cost
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Results")]
    checkpoint_every: Duration,
    /// Print the results as one line of JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// Where defaults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// Akimoto et al., ICML 2019: days on a GPU
    Paper,
    /// A small network, or a short training: minutes on two cores
    Quick,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Results {
    space: String,
    parameters: i64,
    iterations: u64,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, f64>,
    weights: PathBuf,
    best: PathBuf,
    log: PathBuf,
    recipe: PathBuf,
    architecture: PathBuf,
    graph: PathBuf,
}

/// Trains, writes and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    data: &Path,
    photos: &Path,
    device: Device,
) -> anyhow::Result<()> {
    let found = arguments.subject.find(controller).await?;
    let stop = stop_on_signals()?;
    let results = retrain(&arguments, &found, (data, photos), device, &stop)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!("space          {}", results.space);
    println!("parameters     {}", results.parameters);
    for (name, figure) in &results.figures {
        println!("{:14} {figure:.4}", name.replace('_', " "));
    }
    for (name, file) in [
        ("weights", &results.weights),
        ("best weights", &results.best),
        ("log", &results.log),
        ("recipe", &results.recipe),
        ("architecture", &results.architecture),
        ("graph", &results.graph),
    ] {
        println!("{name:14} {}", file.display());
    }
    Ok(())
}

/// Becomes true with the first SIGINT or SIGTERM; the second one ends the program at once.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn retrain(
    arguments: &Arguments,
    found: &Found,
    (data, photos): (&Path, &Path),
    device: Device,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    match &found.space {
        Space::EnasMicro(settings) => {
            refuse(arguments.inpainting.given(), enas_micro::NAME)?;
            let nodes = settings.nodes as usize;
            let architecture = enas_micro::Architecture::decode(nodes, &found.values)?;
            let data = Cifar10::load(data)?;
            let recipe = arguments.classification.recipe(arguments, &architecture, &data)?;
            let parameters = architecture.parameters(&recipe.size()?, true);
            let drawn = Drawn {
                space: enas_micro::NAME,
                json: serde_json::to_string_pretty(&recipe.architecture)?,
                dot: architecture.dot(),
                parameters,
            };
            let mut training = Classification::new(&recipe, &data, device)?;
            train(arguments, Recipe::Classification(recipe), &drawn, &mut training, stop)
        }
        Space::Inpaint(coding, settings) => {
            refuse(arguments.classification.given(), coding.name())?;
            let architecture =
                inpaint::Architecture::decode(&settings.space(*coding), &found.values)?;
            let pictures = Pictures::load(photos, arguments.inpainting.side(settings))?;
            let recipe =
                arguments.inpainting.recipe(arguments, settings, &architecture, &pictures)?;
            let drawn = Drawn {
                space: coding.name(),
                json: serde_json::to_string_pretty(&recipe.architecture)?,
                dot: architecture.dot(),
                parameters: architecture.parameters(recipe.image, recipe.batch_norm),
            };
            let mut training = Inpainting::new(&recipe, &pictures, device)?;
            train(arguments, Recipe::Inpainting(recipe), &drawn, &mut training, stop)
        }
        Space::Toy(_) => bail!("an architecture of the space toy is no network to retrain"),
    }
}

/// Refuses a flag that means nothing to a space.
fn refuse(flag: Option<&str>, space: &str) -> anyhow::Result<()> {
    match flag {
        Some(flag) => bail!("{flag} means nothing to networks of space {space}; leave it out"),
        None => Ok(()),
    }
}

/// The first `count` of the images.
fn first(images: &Images, count: i64) -> anyhow::Result<Images> {
    let all = images.len();
    ensure!((1..=all).contains(&count), "--images: there are {all} training images, not {count}");
    Ok(images.narrow(0, count)?)
}

/// An architecture for files and people.
struct Drawn {
    space: &'static str,
    json: String,
    dot: String,
    parameters: i64,
}

/// Writes what decides the training, trains, and says what came out.
fn train(
    arguments: &Arguments,
    recipe: Recipe,
    drawn: &Drawn,
    training: &mut dyn Training,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    let directory = &arguments.out;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let file = |name: &str| directory.join(name);
    if file(RECIPE).exists() {
        ensure!(
            Recipe::read(directory)? == recipe,
            "{} is of another retraining; give another --out, or remove that directory",
            file(RECIPE).display()
        );
    } else {
        write(&file(RECIPE), &serde_json::to_string_pretty(&recipe)?)?;
    }
    write(&file("architecture.json"), &drawn.json)?;
    write(&file("architecture.dot"), &drawn.dot)?;
    let reached = training::run(training, directory, arguments.checkpoint_every, stop)?;
    Ok(Results {
        space: drawn.space.to_owned(),
        parameters: drawn.parameters,
        iterations: training.iterations(),
        figures: reached.into_iter().collect(),
        weights: file(LAST),
        best: file(BEST),
        log: file(log::LOG),
        recipe: file(RECIPE),
        architecture: file("architecture.json"),
        graph: file("architecture.dot"),
    })
}

/// Writes a small file, whole or not at all.
pub(crate) fn write(file: &Path, content: &str) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, content)
        .and_then(|()| fs::rename(&part, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
