//! `asng-trainer evaluate`: how good an architecture is on the test images, with the shared weights of a study or with
//! weights of its own.

mod sheet;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Tensor};

use crate::{
    checkpoints,
    data::cifar10,
    held_out::{BATCH, Pictures, TestImages, TestPhotos, is_fashion},
    retrain::recipe::{self, Recipe},
    space::{
        Space, enas_micro,
        inpaint::{self, Mask},
    },
    study::{self, Found, Subject},
    supernet::{
        self, Supernet,
        inpaint::{Batch, Evaluation},
    },
};

/// What to evaluate.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Evaluate the network in this directory, which `retrain` made, rather than a study's shared weights
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "study",
        conflicts_with_all = ["study", "architecture", "random"]
    )]
    retrained: Option<PathBuf>,
    /// Which weights of a retrained network
    #[arg(long, value_enum, default_value = "last", requires = "retrained")]
    weights: Weights,
    /// Evaluate this many architectures drawn uniformly as well, to compare with
    #[arg(long, default_value_t = 0, value_name = "N")]
    random: usize,
    /// Seed of the random architectures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many test images to use, the first ones [default: all]. With shared weights of cells, in steps of 250
    #[arg(long, value_name = "N")]
    images: Option<i64>,
    /// Write a picture, PNG or JPEG: what the autoencoder sees, what it makes of it, and the truth, side by side
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Photos on the sheet, spread over the test images
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rows: u16,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Which of the weights that a retraining keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// The newest, in the end those that the retraining is about
    Last,
    /// Those that were best on the test images, which flatters them
    Best,
}

impl Weights {
    /// Their file in the directory of a retraining, which must be there.
    pub(crate) fn file(self, directory: &Path) -> anyhow::Result<PathBuf> {
        let file = directory.join(match self {
            Weights::Last => recipe::LAST,
            Weights::Best => recipe::BEST,
        });
        ensure!(
            file.exists(),
            "{} is not there yet: `retrain` writes it as it goes",
            file.display()
        );
        Ok(file)
    }
}

/// What came out.
#[derive(Debug, Default, Serialize)]
struct Results {
    #[serde(skip_serializing_if = "Option::is_none")]
    study: Option<String>,
    /// Whose weights were used.
    weights: PathBuf,
    /// Test images.
    images: i64,
    architecture: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<Mask>,
    #[serde(flatten)]
    figures: Figures,
    /// The same figures of what the network sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    masked: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    random: Option<Random>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sheet: Option<PathBuf>,
}

/// Figures by name.
type Figures = BTreeMap<&'static str, f64>;

/// A figure of the random architectures.
#[derive(Debug, Serialize)]
struct Random {
    figure: &'static str,
    count: usize,
    mean: f64,
    min: f64,
    max: f64,
}

/// Evaluates and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    work_dir: &Path,
    (data, photos): (&Path, &Path),
    device: Device,
) -> anyhow::Result<()> {
    let results = match (&arguments.retrained, &arguments.subject.study) {
        (Some(directory), _) => retrained(&arguments, directory, (data, photos), device)?,
        (None, Some(name)) => {
            let study = study::get(&controller.connect()?, name).await?;
            let found = arguments.subject.find(Some(&study), None)?;
            let directory = study::directory(work_dir, &study);
            let weights = checkpoints::newest(&directory)?.with_context(|| {
                format!(
                    "there are no weights of study {name:?} in {}: a trainer writes them every --checkpoint-every and \
                     when it ends; give the --work-dir of one that has",
                    directory.display()
                )
            })?;
            let results = match &found.space {
                Space::EnasMicro(settings) => {
                    shared_cells(&arguments, settings, &found, weights, data, device)?
                }
                Space::Inpaint(coding, settings) => {
                    let space = settings.space(*coding);
                    shared_autoencoder(
                        &arguments, settings, &space, &found, weights, photos, device,
                    )?
                }
                Space::Toy(_) => bail!(
                    "study {name:?} is of the space toy, whose architectures are no networks; the loss of its \
                     incumbent says it all"
                ),
            };
            Results { study: Some(name.clone()), ..results }
        }
        (None, None) => bail!("name the --study or the --retrained network that is meant"),
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    print(&results);
    Ok(())
}

fn print(results: &Results) {
    if let Some(study) = &results.study {
        println!("study     {study}");
    }
    println!("weights   {}", results.weights.display());
    println!("images    {} of the test set", results.images);
    for (name, figure) in &results.figures {
        match results.masked.as_ref().and_then(|masked| masked.get(name)) {
            Some(masked) => println!("{name:9} {figure:.4} (of what it sees: {masked:.4})"),
            None => println!("{name:9} {figure:.4}"),
        }
    }
    if let Some(Random { figure, count, mean, min, max }) = results.random {
        println!("random    {figure} {mean:.4} on average of {count}, from {min:.4} to {max:.4}");
    }
    if let Some(sheet) = &results.sheet {
        println!("sheet     {}", sheet.display());
    }
}

fn shared_cells(
    arguments: &Arguments,
    settings: &enas_micro::Settings,
    found: &Found,
    weights: PathBuf,
    data: &Path,
    device: Device,
) -> anyhow::Result<Results> {
    ensure!(arguments.sheet.is_none(), "--sheet is for autoencoders, not for classifiers");
    let images = TestImages::load(data, arguments.images, device)?;
    ensure!(
        images.len() % BATCH == 0,
        "--images must be a multiple of {}, over which shared weights are normalised",
        BATCH
    );
    let mut supernet = Supernet::new(settings, 3, cifar10::CLASSES, device)?;
    supernet.load(&weights)?;
    let evaluate = |values: &[i64]| {
        let architecture = enas_micro::Architecture::decode(settings.nodes as usize, values)?;
        images.mean(|batch| supernet.evaluate(batch, &architecture))
    };
    let figures = of_classifier(evaluate(&found.values)?);
    let random =
        random(arguments, &found.space, "accuracy", |values| Ok(evaluate(values)?.accuracy))?;
    let (images, architecture) = (images.len(), found.values.clone());
    Ok(Results { weights, images, architecture, figures, random, ..Results::default() })
}

fn shared_autoencoder(
    arguments: &Arguments,
    settings: &inpaint::Settings,
    space: &inpaint::Space,
    found: &Found,
    weights: PathBuf,
    photos: &Path,
    device: Device,
) -> anyhow::Result<Results> {
    let pictures = Pictures::load(photos, settings.image_size)?;
    ensure!(
        !is_fashion(pictures.shape()),
        "studies are of photos; {} is Fashion-MNIST",
        photos.display()
    );
    let photos = TestPhotos::of(&pictures.test, arguments.images, settings.mask, device)?;
    let mut supernet = supernet::inpaint::Supernet::new(settings, 3, device)?;
    supernet.load(&weights)?;
    let decode = |values: &[i64]| inpaint::Architecture::decode(space, values);
    let architecture = decode(&found.values)?;
    let fill_in = |batch: &Batch| supernet.fill_in(batch, &architecture);
    let results = of_photos(arguments, weights, &found.values, (&photos, settings.mask), fill_in)?;
    let random = random(arguments, &found.space, "psnr", |values| {
        let architecture = decode(values)?;
        Ok(photos.mean(|batch| supernet.evaluate(batch, &architecture))?.psnr)
    })?;
    Ok(Results { random, ..results })
}

fn retrained(
    arguments: &Arguments,
    directory: &Path,
    (data, photos): (&Path, &Path),
    device: Device,
) -> anyhow::Result<Results> {
    let recipe = Recipe::read(directory)?;
    let weights = arguments.weights.file(directory)?;
    match recipe {
        Recipe::Classification(recipe) => {
            ensure!(arguments.sheet.is_none(), "--sheet is for autoencoders, not for classifiers");
            let mut network = recipe.network(device)?;
            network.load_weights(&weights)?;
            let images = TestImages::load(data, arguments.images, device)?;
            let figures = of_classifier(images.mean(|batch| network.evaluate(batch))?);
            let (images, architecture) = (images.len(), recipe.architecture.values);
            Ok(Results { weights, images, architecture, figures, ..Results::default() })
        }
        Recipe::Inpainting(recipe) => {
            let mut network = recipe.network(device)?;
            network.load_weights(&weights)?;
            let pictures = Pictures::load(photos, recipe.image[1])?;
            recipe.check(&pictures, photos)?;
            let test = TestPhotos::of(&pictures.test, arguments.images, recipe.mask, device)?;
            let values = &recipe.architecture.values;
            of_photos(arguments, weights, values, (&test, recipe.mask), |batch| {
                network.fill_in(batch)
            })
        }
    }
}

/// What an autoencoder makes of test photos.
fn of_photos(
    arguments: &Arguments,
    weights: PathBuf,
    architecture: &[i64],
    (photos, mask): (&TestPhotos, Mask),
    fill_in: impl Fn(&Batch) -> Result<Tensor, supernet::Error>,
) -> anyhow::Result<Results> {
    let reached = photos.mean(|batch| Evaluation::of(&fill_in(batch)?, batch))?;
    if let Some(file) = &arguments.sheet {
        let batch = photos.sample(arguments.rows.into())?;
        let seen = batch.images.f_mul(&batch.mask)?;
        sheet::write(file, &[seen, fill_in(&batch)?, batch.images])?;
    }
    Ok(Results {
        weights,
        images: photos.len(),
        architecture: architecture.to_vec(),
        mask: Some(mask),
        figures: of_autoencoder(reached),
        masked: Some(of_autoencoder(photos.masked()?)),
        sheet: arguments.sheet.clone(),
        ..Results::default()
    })
}

fn of_classifier(evaluation: supernet::Evaluation) -> Figures {
    let supernet::Evaluation { loss, accuracy } = evaluation;
    [("loss", loss), ("accuracy", accuracy)].into()
}

fn of_autoencoder(evaluation: Evaluation) -> Figures {
    let Evaluation { loss, psnr, ssim } = evaluation;
    [("loss", loss), ("psnr", psnr), ("ssim", ssim)].into()
}

/// Evaluates as many random architectures as are asked for.
fn random(
    arguments: &Arguments,
    space: &Space,
    figure: &'static str,
    evaluate: impl Fn(&[i64]) -> anyhow::Result<f64>,
) -> anyhow::Result<Option<Random>> {
    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
    let mut figures = Vec::new();
    for _ in 0..arguments.random {
        figures.push(evaluate(&space.draw(&mut random))?);
    }
    Ok((!figures.is_empty()).then(|| Random {
        figure,
        count: figures.len(),
        mean: figures.iter().sum::<f64>() / figures.len() as f64,
        min: figures.iter().copied().fold(f64::INFINITY, f64::min),
        max: figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }))
}
