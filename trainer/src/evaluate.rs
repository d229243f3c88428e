//! `asng-trainer evaluate`: how good an architecture is on the test images, with the shared weights of a study or with
//! weights of its own.

mod sheet;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::{Args, ValueEnum};
use indicatif::HumanDuration;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Tensor};
use tracing::info;

use crate::{
    checkpoints,
    data::cifar10,
    held_out::{BATCH, Pictures, TestImages, TestPhotos, is_fashion},
    progress::Progress,
    retrain::recipe::{self, Recipe, Record},
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

/// An evaluation that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(30);

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
            "{} is not there yet: `asng-trainer retrain --out {}` writes it as it goes",
            file.display(),
            directory.display()
        );
        Ok(file)
    }
}

/// What came out.
#[derive(Debug, Default, Serialize)]
struct Results {
    /// The study whose architecture it is, if it is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    study: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    study_id: Option<String>,
    /// "chosen", "mode", "incumbent", "random:SEED" or a file; none if a retraining has not recorded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    which: Option<String>,
    /// Directory of the trainer whose shared weights were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    work_dir: Option<PathBuf>,
    /// The last step of the search that is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    /// Directory of the retrained network, and how far it has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    retrained: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<recipe::Progress>,
    /// The file of the weights.
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
            let connection = controller.connect()?;
            let study = study::get_within(study::PATIENCE, &connection, name).await?;
            let found = arguments.subject.find(Some(&study), None)?;
            let directory = study::directory(work_dir, &study);
            let weights = checkpoints::newest(&directory)?.with_context(|| {
                format!(
                    "there are no weights of study {name:?} in {}: give the --work-dir of a trainer that has worked on it, \
                     `asng-trainer evaluate --study {name} --work-dir DIR`; one that works on it now writes them every \
                     --checkpoint-every, when it ends, and on `asngctl trainer checkpoint`",
                    directory.display()
                )
            })?;
            let step = checkpoints::step(&weights);
            info!(
                "evaluating architecture {} with {}",
                recipe::architecture(Some(&found.source), &found.values),
                shared(step, name, work_dir)
            );
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
            let source = found.source;
            Results {
                study: source.study,
                study_id: source.study_id,
                which: Some(source.architecture),
                work_dir: Some(work_dir.into()),
                step,
                ..results
            }
        }
        (None, None) => bail!(
            "say what to evaluate: `asng-trainer evaluate --study NAME --work-dir DIR` with the shared weights of the trainer in \
             DIR, or `asng-trainer evaluate --retrained DIR`"
        ),
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    print(&results);
    Ok(())
}

/// Returns whose shared weights are meant.
fn shared(step: Option<u64>, study: &str, work_dir: &Path) -> String {
    let step = step.map_or_else(String::new, |step| format!(" after step {step}"));
    format!("the shared weights of study {study}{step}, of the trainer in {}", work_dir.display())
}

fn print(results: &Results) {
    let values = study::list(&results.architecture);
    match (&results.which, &results.study) {
        (Some(which), Some(study)) => println!("architecture  {which} of study {study}: {values}"),
        (Some(which), None) => println!("architecture  {which}: {values}"),
        (None, _) => println!("architecture  {values}"),
    }
    if let (Some(directory), Some(progress)) = (&results.retrained, &results.progress) {
        println!("weights       retrained in {}, {progress}", directory.display());
    }
    if let (Some(study), Some(work_dir)) = (&results.study, &results.work_dir) {
        println!("weights       {}", shared(results.step, study, work_dir));
    }
    println!("file          {}", results.weights.display());
    println!("images        {} of the test set", results.images);
    for (name, figure) in &results.figures {
        match results.masked.as_ref().and_then(|masked| masked.get(name)) {
            Some(masked) => println!("{name:13} {figure:.4} (of what it sees: {masked:.4})"),
            None => println!("{name:13} {figure:.4}"),
        }
    }
    if let Some(Random { figure, count, mean, min, max }) = results.random {
        println!(
            "random        {figure} {mean:.4} on average of {count}, from {min:.4} to {max:.4}"
        );
    }
    if let Some(sheet) = &results.sheet {
        println!("sheet         {}", sheet.display());
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
    let shown = Progress::new(0, images.batches() * (1 + arguments.random as u64))?;
    let evaluate = |values: &[i64]| {
        let architecture = enas_micro::Architecture::decode(settings.nodes as usize, values)?;
        images.mean(|batch| counted(&shown, supernet.evaluate(batch, &architecture)))
    };
    let figures = of_classifier(evaluate(&found.values)?);
    let random =
        random(arguments, &found.space, "accuracy", |values| Ok(evaluate(values)?.accuracy))?;
    shown.finish();
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
    let shown = Progress::new(0, photos.batches() * (1 + arguments.random as u64))?;
    let fill_in = |batch: &Batch| supernet.fill_in(batch, &architecture);
    let test = (&photos, settings.mask);
    let results = of_photos(arguments, weights, &found.values, test, &shown, fill_in)?;
    let random = random(arguments, &found.space, "psnr", |values| {
        let architecture = decode(values)?;
        let mean = photos.mean(|batch| counted(&shown, supernet.evaluate(batch, &architecture)));
        Ok(mean?.psnr)
    })?;
    shown.finish();
    Ok(Results { random, ..results })
}

fn retrained(
    arguments: &Arguments,
    directory: &Path,
    (data, photos): (&Path, &Path),
    device: Device,
) -> anyhow::Result<Results> {
    let record = Record::read(directory)?;
    let progress = record.recipe.progress(directory)?;
    let weights = arguments.weights.file(directory)?;
    info!(
        "evaluating the network in {}, {progress}; architecture {}",
        directory.display(),
        record.architecture()
    );
    let results = match record.recipe {
        Recipe::Classification(recipe) => {
            ensure!(arguments.sheet.is_none(), "--sheet is for autoencoders, not for classifiers");
            let mut network = recipe.network(device)?;
            network.load_weights(&weights)?;
            let images = TestImages::load(data, arguments.images, device)?;
            let shown = Progress::new(0, images.batches())?;
            let mean = images.mean(|batch| counted(&shown, network.evaluate(batch)))?;
            shown.finish();
            let (images, architecture) = (images.len(), recipe.architecture.values);
            let figures = of_classifier(mean);
            Results { weights, images, architecture, figures, ..Results::default() }
        }
        Recipe::Inpainting(recipe) => {
            let mut network = recipe.network(device)?;
            network.load_weights(&weights)?;
            let pictures = Pictures::load(photos, recipe.image[1])?;
            recipe.check(&pictures, photos)?;
            let test = TestPhotos::of(&pictures.test, arguments.images, recipe.mask, device)?;
            let shown = Progress::new(0, test.batches())?;
            let (values, test) = (&recipe.architecture.values, (&test, recipe.mask));
            let fill_in = |batch: &Batch| network.fill_in(batch);
            let results = of_photos(arguments, weights, values, test, &shown, fill_in)?;
            shown.finish();
            results
        }
    };
    let source = record.source;
    Ok(Results {
        study: source.as_ref().and_then(|source| source.study.clone()),
        study_id: source.as_ref().and_then(|source| source.study_id.clone()),
        which: source.map(|source| source.architecture),
        retrained: Some(directory.into()),
        finished: Some(progress.finished()),
        progress: Some(progress),
        ..results
    })
}

/// Counts a batch that was evaluated.
fn counted<T>(shown: &Progress, evaluated: T) -> T {
    if let Some(left) = shown.advance(|| "evaluating".into()).filter(|left| *left > LONG) {
        shown.print(|| info!("it takes about {}", HumanDuration(left)));
    }
    evaluated
}

/// What an autoencoder makes of test photos.
fn of_photos(
    arguments: &Arguments,
    weights: PathBuf,
    architecture: &[i64],
    (photos, mask): (&TestPhotos, Mask),
    shown: &Progress,
    fill_in: impl Fn(&Batch) -> Result<Tensor, supernet::Error>,
) -> anyhow::Result<Results> {
    let evaluate = |batch: &Batch| Evaluation::of(&fill_in(batch)?, batch);
    let reached = photos.mean(|batch| counted(shown, evaluate(batch)))?;
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
