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
    fs::{self, File, TryLockError},
    io,
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
    computing,
    data::{Cifar10, Images},
    held_out::Pictures,
    space::{Space, enas_micro, inpaint},
    study::{self, Found, Subject},
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
    /// The space of a random architecture that is of no study
    #[arg(long, conflicts_with = "study")]
    space: Option<String>,
    /// A setting of that space, as of a study; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting, requires = "space")]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    how: How,
    /// Seed of the weights and of the order and augmentation of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory for the results, made if it is not there
    #[arg(long, default_value = "retrained", value_name = "DIR", help_heading = "Results")]
    out: PathBuf,
    /// Print the results as one line of JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// How any network is trained.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct How {
    /// Where all that is not given comes from: the paper, or what two cores do in minutes
    #[arg(long, value_enum, default_value = "paper")]
    pub(crate) preset: Preset,
    /// Images in a minibatch [paper: 80, autoencoders 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch_size: Option<u16>,
    /// Learning rate at the start of the schedule [paper: 0.025, autoencoders 0.001]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Use only the first N training images
    #[arg(long, value_name = "N")]
    images: Option<i64>,
    /// Use only the first N test images
    #[arg(long, value_name = "N")]
    test_images: Option<i64>,
    #[command(flatten)]
    pub(crate) computing: computing::Options,
    #[command(flatten)]
    classification: classification::Flags,
    #[command(flatten)]
    inpainting: inpainting::Flags,
    /// Write a checkpoint this often, and after each evaluation: what a crash can cost
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Results")]
    checkpoint_every: Duration,
}

pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("say NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where defaults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// Akimoto et al., ICML 2019: days on a GPU
    Paper,
    /// A small network, or a short training: minutes on two cores
    Quick,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    space: String,
    pub(crate) parameters: i64,
    iterations: u64,
    #[serde(flatten)]
    pub(crate) figures: BTreeMap<&'static str, f64>,
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
    let study = match &arguments.subject.study {
        Some(name) => Some(study::get(&controller.connect()?, name).await?),
        None => None,
    };
    let space = match &arguments.space {
        Some(name) => Some(study::named(name, &arguments.settings.iter().cloned().collect())?),
        None => None,
    };
    let found = arguments.subject.find(study.as_ref(), space)?;
    let stop = stop_on_signals()?;
    let Arguments { how, seed, out, .. } = &arguments;
    how.computing.apply(device)?;
    let results = retrain(how, &found, *seed, out, (data, photos), device, &stop)?;
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
pub(crate) fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Trains the architecture into the directory `out`, or says what an earlier run made of it there.
pub(crate) fn retrain(
    how: &How,
    found: &Found,
    seed: u64,
    out: &Path,
    (data, photos): (&Path, &Path),
    device: Device,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    let precision = how.computing.precision;
    match &found.space {
        Space::EnasMicro(settings) => {
            refuse(how.inpainting.given(), enas_micro::NAME)?;
            let nodes = settings.nodes as usize;
            let architecture = enas_micro::Architecture::decode(nodes, &found.values)?;
            let data = Cifar10::load(data)?;
            let recipe = how.classification.recipe(how, seed, &architecture, &data)?;
            let parameters = architecture.parameters(&recipe.size()?, true);
            let drawn = Drawn {
                space: enas_micro::NAME,
                json: serde_json::to_string_pretty(&recipe.architecture)?,
                dot: architecture.dot(),
                parameters,
            };
            let mut training = Classification::new(&recipe, &data, device, precision)?;
            train(
                out,
                how.checkpoint_every,
                Recipe::Classification(recipe),
                &drawn,
                &mut training,
                stop,
            )
        }
        Space::Inpaint(coding, settings) => {
            refuse(how.classification.given(), coding.name())?;
            let architecture =
                inpaint::Architecture::decode(&settings.space(*coding), &found.values)?;
            let pictures = Pictures::load(photos, how.inpainting.side(settings))?;
            let recipe = how.inpainting.recipe(how, seed, settings, &architecture, &pictures)?;
            let drawn = Drawn {
                space: coding.name(),
                json: serde_json::to_string_pretty(&recipe.architecture)?,
                dot: architecture.dot(),
                parameters: architecture.parameters(recipe.image, recipe.batch_norm),
            };
            let mut training = Inpainting::new(&recipe, &pictures, device, precision)?;
            train(
                out,
                how.checkpoint_every,
                Recipe::Inpainting(recipe),
                &drawn,
                &mut training,
                stop,
            )
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
    directory: &Path,
    checkpoint_every: Duration,
    recipe: Recipe,
    drawn: &Drawn,
    training: &mut dyn Training,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let file = |name: &str| directory.join(name);
    let _lock = lock(directory)?;
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
    let reached = training::run(training, directory, checkpoint_every, stop)?;
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

/// Keeps a second retraining out of the directory, as long as the file is open.
fn lock(directory: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot use {}", directory.display());
    let file = File::create(directory.join("lock")).with_context(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another retraining; give another --out", directory.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

/// Writes a small file, whole or not at all.
pub(crate) fn write(file: &Path, content: &str) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, content)
        .and_then(|()| fs::rename(&part, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tch::{Kind, Tensor};

    use super::*;
    use crate::{data::Augment, space::inpaint::Mask, supernet::AUXILIARY_WEIGHT};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(typed: &[&str]) -> Arguments {
        Program::parse_from([&["retrain"], typed].concat()).arguments
    }

    fn images(count: i64, side: i64) -> Images {
        let options = (Kind::Uint8, Device::Cpu);
        Images {
            pixels: Tensor::zeros([count, 3, side, side], options),
            labels: Tensor::zeros([count], (Kind::Int64, Device::Cpu)),
        }
    }

    fn cells(typed: &[&str]) -> recipe::Classification {
        let data = Cifar10 { train: images(7, 32), test: images(3, 32) };
        let architecture = enas_micro::Architecture::decode(5, &[0; 40]).unwrap();
        let arguments = arguments(typed);
        arguments
            .how
            .classification
            .recipe(&arguments.how, arguments.seed, &architecture, &data)
            .unwrap()
    }

    fn autoencoder(typed: &[&str]) -> recipe::Inpainting {
        let pictures = Pictures { train: images(7, 64), test: images(3, 64) };
        let settings = inpaint::Settings { mask: Mask::Half, ..inpaint::Settings::default() };
        let space = settings.space(inpaint::Coding::Categorical);
        let mut values = vec![0; space.variables().len()];
        values[0] = 1;
        let architecture = inpaint::Architecture::decode(&space, &values).unwrap();
        let arguments = arguments(typed);
        arguments
            .how
            .inpainting
            .recipe(&arguments.how, arguments.seed, &settings, &architecture, &pictures)
            .unwrap()
    }

    #[test]
    fn without_flags_it_is_the_paper_s() {
        let recipe = cells(&[]);
        assert_eq!(recipe.schedule, enas_micro::Retraining::PAPER);
        assert_eq!((recipe.images, recipe.test_images, recipe.seed), (7, 3, 0));
        let architecture = recipe.architecture.architecture().unwrap();
        let size = recipe.size().unwrap();
        assert!(architecture.parameters(&size, true) <= 4_000_000);
        let wider = enas_micro::Size { channels: size.channels + 1, ..size };
        assert!(size.channels == 127 || architecture.parameters(&wider, true) > 4_000_000);
        assert_eq!(AUXILIARY_WEIGHT, 0.4);
        assert_eq!(Augment::PAPER, Augment { padding: 4, flip: true, cutout: 16 });

        let recipe = autoencoder(&[]);
        assert_eq!(recipe.schedule, inpaint::Retraining::PAPER);
        assert_eq!(
            (recipe.image, recipe.mask, recipe.batch_norm),
            ([3, 64, 64], Mask::Half, false)
        );
    }

    #[test]
    fn flags_win_over_the_preset() {
        let recipe = cells(&["--preset", "quick", "--epochs", "5", "--learning-rate", "0.1"]);
        let quick = enas_micro::Retraining::QUICK;
        let expected = enas_micro::Retraining { epochs: 5, learning_rate: 0.1, ..quick };
        assert_eq!(recipe.schedule, expected);
        assert_eq!(cells(&["--channels", "9"]).channels, 9);

        let typed = ["--preset", "quick", "--iterations", "9", "--mask", "center"];
        let recipe = autoencoder(&typed);
        let expected = inpaint::Retraining { iterations: 9, ..inpaint::Retraining::QUICK };
        assert_eq!((recipe.schedule, recipe.mask), (expected, Mask::Center));
    }

    #[test]
    fn a_recipe_is_read_back_from_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let recipes = [Recipe::Classification(cells(&[])), Recipe::Inpainting(autoencoder(&[]))];
        for recipe in recipes {
            let text = serde_json::to_string_pretty(&recipe).unwrap();
            write(&directory.path().join(RECIPE), &text).unwrap();
            assert_eq!(Recipe::read(directory.path()).unwrap(), recipe);
        }
    }
}
