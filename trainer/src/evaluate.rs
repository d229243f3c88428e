//! `asng-trainer evaluate`: metrics of an architecture on the test images, with the shared weights of a study or with
//! weights of its own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use asng_proto::v1;
use clap::{Args, ValueEnum};
use indicatif::HumanDuration;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind, Tensor};
use tracing::info;

use crate::{
    engine::{check_images, checkpoints, supernet::Supernet},
    files,
    images::{Catalogue, DataSet, Images},
    progress::Progress,
    retrain::record::{self, Record},
    study::{self, Source, Subject},
    tasks::{
        self, Batch, Task,
        classification::report::Report,
        inpainting::sheet,
        network::Mode,
        settings::Given,
        space::Space,
        test_split::{Metrics, TestSplit},
    },
    torch::{self, Precision},
};

/// An evaluation that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(30);

/// The options of `evaluate`.
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
    /// Weights of a retrained network to use
    #[arg(long, value_enum, default_value = "last", requires = "retrained")]
    weights: Weights,
    /// Evaluate this many architectures drawn uniformly as well, to compare with
    #[arg(long, default_value_t = 0, value_name = "N")]
    random: usize,
    /// Seed of the random architectures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of test images to use, the first ones [default: all]
    #[arg(long, value_name = "N")]
    test_images: Option<i64>,
    /// Write a report of a classifier: accuracy by class, confusion matrix, images that were classified wrongly
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a picture, PNG or JPEG, of an autoencoder: its input, its output, and the truth, side by side
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Images on the sheet, spread over the test images
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rows: u16,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// The weights that a retraining keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// The newest, in the end those that the retraining is about
    Last,
    /// The weights that were best on the test images, which overestimates them
    Best,
}

impl Weights {
    /// Returns their file in the directory of a retraining. Errors if it is not there.
    pub(crate) fn file(self, directory: &Path) -> anyhow::Result<PathBuf> {
        let file = directory.join(match self {
            Weights::Last => record::LAST,
            Weights::Best => record::BEST,
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

/// The results of an evaluation.
#[derive(Debug, Default, Serialize)]
struct Results {
    /// The origin of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    study: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    study_id: Option<String>,
    /// "chosen", "mode", "incumbent", "selected", "random:SEED" or a file.
    which: String,
    /// Directory of the trainer whose shared weights were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    work_dir: Option<PathBuf>,
    /// The last step of the search that is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    /// Directory of the retrained network, and its progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    retrained: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<record::Progress>,
    /// The file of the weights.
    weights: PathBuf,
    /// Test images.
    images: i64,
    /// The data set that they are from.
    dataset: String,
    /// The settings of the task.
    settings: Given,
    architecture: Vec<i64>,
    #[serde(flatten)]
    metrics: BTreeMap<&'static str, f64>,
    /// The same metrics of what one gets without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<BTreeMap<&'static str, f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    random: Option<Random>,
    /// Accuracy by class and the confusion matrix, of a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sheet: Option<PathBuf>,
}

/// The random architectures: their first metric, and all that was measured.
#[derive(Debug, Serialize)]
struct Random {
    metric: &'static str,
    count: usize,
    mean: f64,
    min: f64,
    max: f64,
    architectures: Vec<Drawn>,
}

/// A random architecture.
#[derive(Debug, Serialize)]
struct Drawn {
    architecture: Vec<i64>,
    #[serde(flatten)]
    metrics: BTreeMap<&'static str, f64>,
}

/// Evaluates and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    work_dir: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<()> {
    let results = match (&arguments.retrained, &arguments.subject.study) {
        (Some(directory), _) => {
            torch::attempt(|| retrained(&arguments, directory, catalogue, device))??
        }
        (None, Some(name)) => {
            let connection = controller.connect()?;
            let study = study::get_within(study::PATIENCE, &connection, name).await?;
            let found = arguments.subject.find(Some((&study, work_dir)), None)?;
            let weights = newest_weights("evaluate", &study, work_dir)?;
            let step = checkpoints::step(&weights);
            info!(
                "evaluating architecture {}: {} with {}",
                found.source,
                study::list(&found.values),
                shared_weights(step, name, work_dir)
            );
            let shared =
                || shared(&arguments, &found.space, &found.values, weights, catalogue, device);
            let results = torch::attempt(shared)??;
            let Source { architecture: which, study, study_id } = found.source;
            Results { study, study_id, which, work_dir: Some(work_dir.into()), step, ..results }
        }
        (None, None) => bail!(
            "name what to evaluate: `asng-trainer evaluate --study NAME --work-dir DIR` with the shared weights of the trainer in \
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

/// Returns the file of the newest shared weights of a study. Errors with what to do, of which `command` is a part, if there are none.
pub(crate) fn newest_weights(
    command: &str,
    study: &v1::Study,
    work_dir: &Path,
) -> anyhow::Result<PathBuf> {
    let (name, directory) = (&study.name, study::directory(work_dir, study));
    checkpoints::newest(&directory)?.with_context(|| {
        format!(
            "there are no weights of study {name:?} in {}: give the --work-dir of a trainer that has worked on it, \
             `asng-trainer {command} --study {name} --work-dir DIR`; one that works on it now writes them every \
             --checkpoint-every, when it ends, and on `asngctl trainer checkpoint`",
            directory.display()
        )
    })
}

/// Returns whose shared weights are meant.
pub(crate) fn shared_weights(step: Option<u64>, study: &str, work_dir: &Path) -> String {
    let step = step.map_or_else(String::new, |step| format!(" after step {step}"));
    format!("the shared weights of study {study}{step}, of the trainer in {}", work_dir.display())
}

fn print(results: &Results) {
    let values = study::list(&results.architecture);
    match &results.study {
        Some(study) => println!("architecture  {} of study {study}: {values}", results.which),
        None => println!("architecture  {}: {values}", results.which),
    }
    if let (Some(directory), Some(progress)) = (&results.retrained, &results.progress) {
        println!("weights       retrained in {}, {progress}", directory.display());
    }
    if let (Some(study), Some(work_dir)) = (&results.study, &results.work_dir) {
        println!("weights       {}", shared_weights(results.step, study, work_dir));
    }
    println!("file          {}", results.weights.display());
    println!("test images   {} of {}", results.images, results.dataset);
    for (name, metric) in &results.metrics {
        println!("{name:13} {metric:.4}");
    }
    if let Some(baseline) = &results.baseline {
        let metrics = baseline.iter().map(|(name, metric)| format!("{name} {metric:.4}"));
        println!("no network    {}", metrics.collect::<Vec<_>>().join(", "));
    }
    if let Some(Random { metric, count, mean, min, max, .. }) = &results.random {
        println!(
            "random        {metric} of {count} architectures: mean {mean:.4}, from {min:.4} to {max:.4}"
        );
    }
    for (name, file) in [("report", &results.html), ("sheet", &results.sheet)] {
        if let Some(file) = file {
            println!("{name:13} {}", file.display());
        }
    }
}

/// The shared weights of a study, and the images that its architectures are evaluated on.
pub(crate) struct Shared {
    pub(crate) task: Box<dyn Task>,
    pub(crate) data: DataSet,
    pub(crate) supernet: Supernet,
    pub(crate) images: TestSplit,
}

impl Shared {
    /// Loads the weights in a file and takes the images that `split` returns. Errors if the space is none of networks, or the
    /// weights were trained on other images.
    pub(crate) fn load(
        space: &Space,
        weights: &Path,
        split: impl FnOnce(&dyn Task, &DataSet) -> Result<TestSplit, String>,
        catalogue: &Catalogue,
        device: Device,
    ) -> anyhow::Result<Shared> {
        let task = study::task(space)?;
        let none = "the architectures of the space toy are no networks; the loss of the study's incumbent is its metric";
        let data = catalogue.open(&task.images().context(none)?)?;
        check_images(weights.parent().unwrap_or(Path::new(".")), &data.info)?;
        let mut supernet = Supernet::new(&*task, &data.info, device, Precision::F32);
        supernet.load(weights)?;
        let images = split(&*task, &data).map_err(anyhow::Error::msg)?;
        Ok(Shared { task, data, supernet, images })
    }

    /// Returns the metrics of an architecture, and counts its batches.
    pub(crate) fn evaluate(&self, values: &[i64], shown: &Progress) -> Metrics {
        let forward = |batch: &Batch| self.supernet.forward(&batch.input, values);
        self.images.evaluate(&*self.task, forward, |_, _, _| counted(shown))
    }
}

/// Evaluates an architecture of a study, and random ones, with the shared weights in a file.
fn shared(
    arguments: &Arguments,
    space: &Space,
    values: &[i64],
    weights: PathBuf,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<Results> {
    let split =
        |task: &dyn Task, data: &DataSet| TestSplit::new(task, data, arguments.test_images, device);
    let shared = Shared::load(space, &weights, split, catalogue, device)?;
    let Shared { task, data, supernet, images: test } = &shared;
    let variables = task.variables();
    tasks::check(&variables, values)?;
    let shown = Progress::new(0, test.batches() * (1 + arguments.random as u64))?;
    let forward = |batch: &Batch| supernet.forward(&batch.input, values);
    let title = format!("{} with shared weights", space.name);
    let results = evaluate(arguments, &**task, data, test, &shown, &title, forward)?;
    let mut generator = ChaCha8Rng::seed_from_u64(arguments.seed);
    let (mut first, mut architectures) = (Vec::new(), Vec::new());
    for _ in 0..arguments.random {
        let architecture = tasks::draw(&variables, &mut generator);
        let metrics = shared.evaluate(&architecture, &shown);
        first.push(metrics[0].1);
        architectures.push(Drawn { architecture, metrics: metrics.into_iter().collect() });
    }
    shown.finish();
    let random = (!first.is_empty()).then(|| Random {
        metric: task.test_metrics()[0],
        count: first.len(),
        mean: tasks::mean(&first),
        min: first.iter().copied().fold(f64::INFINITY, f64::min),
        max: first.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        architectures,
    });
    Ok(Results { weights, architecture: values.to_vec(), random, ..results })
}

/// Evaluates a retrained network.
fn retrained(
    arguments: &Arguments,
    directory: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<Results> {
    let record = Record::read(directory)?;
    let progress = record.progress(directory)?;
    let weights = arguments.weights.file(directory)?;
    info!(
        "evaluating the network in {}, {progress}; architecture {}",
        directory.display(),
        record.architecture()
    );
    let (task, data) = (record.task()?, record.data(catalogue)?);
    let network = record.trained(&weights, device)?;
    let test =
        TestSplit::new(&*task, &data, arguments.test_images, device).map_err(anyhow::Error::msg)?;
    let shown = Progress::new(0, test.batches())?;
    let forward =
        |batch: &Batch| network.forward(&batch.input, &record.values, Mode::Evaluate).main;
    let title = format!("the network in {}", directory.display());
    let results = evaluate(arguments, &*task, &data, &test, &shown, &title, forward)?;
    shown.finish();
    let Source { architecture: which, study, study_id } = record.source;
    Ok(Results {
        study,
        study_id,
        which,
        weights,
        architecture: record.values,
        retrained: Some(directory.into()),
        finished: Some(progress.finished()),
        progress: Some(progress),
        ..results
    })
}

/// Evaluates one network, and writes what was asked for.
fn evaluate(
    arguments: &Arguments,
    task: &dyn Task,
    data: &DataSet,
    test: &TestSplit,
    shown: &Progress,
    title: &str,
    forward: impl Fn(&Batch) -> Tensor,
) -> anyhow::Result<Results> {
    let classifies = task.images().is_some_and(|request| request.labels);
    ensure!(
        arguments.sheet.is_none() || !classifies,
        "--sheet is for autoencoders, not for classifiers"
    );
    ensure!(
        arguments.html.is_none() || classifies,
        "--html is for classifiers, not for autoencoders"
    );
    for file in arguments.html.iter().chain(&arguments.sheet) {
        let parent = file.parent().filter(|parent| *parent != Path::new(""));
        ensure!(
            parent.is_none_or(Path::is_dir),
            "cannot write {}: there is no such directory",
            file.display()
        );
    }
    let mut report = classifies.then(|| Report::new(&data.info.classes));
    let metrics: Metrics = test.evaluate(task, &forward, |images, _, output| {
        counted(shown);
        if let Some(report) = &mut report {
            add(report, images, output);
        }
    });
    let baseline = test.baseline(task);
    if let (Some(file), Some(report)) = (&arguments.html, &report) {
        let facts = metrics.iter().map(|(name, value)| ((*name).to_owned(), format!("{value:.4}")));
        let facts: Vec<_> = [
            ("data set".to_owned(), data.info.name.clone()),
            ("test images".to_owned(), test.count().to_string()),
        ]
        .into_iter()
        .chain(facts)
        .collect();
        files::write(file, report.html(title, &facts))?;
    }
    if let Some(file) = &arguments.sheet {
        let batch = test.sample(task, arguments.rows.into());
        let output = tch::no_grad(|| forward(&batch));
        sheet::write(file, &[batch.input, output, batch.target])?;
    }
    Ok(Results {
        images: test.count(),
        dataset: data.info.name.clone(),
        settings: task.settings(),
        metrics: metrics.into_iter().collect(),
        baseline: baseline.map(|baseline| baseline.into_iter().collect()),
        report,
        html: arguments.html.clone(),
        sheet: arguments.sheet.clone(),
        ..Results::default()
    })
}

/// Adds a batch to a report.
fn add(report: &mut Report, images: &Images, logits: &Tensor) {
    let labels = Vec::<i64>::try_from(&images.labels).expect("labels are int64");
    let logits = Vec::<Vec<f32>>::try_from(logits.to_device(Device::Cpu).to_kind(Kind::Float));
    let logits = logits.expect("logits have two dimensions");
    for (i, (label, logits)) in labels.into_iter().zip(logits).enumerate() {
        report.add(label as usize, &logits, || {
            let pixels = images.pixels.get(i as i64); // [channels, height, width]
            let (_, height, width) = pixels.size3().expect("an image has three dimensions");
            let rgb = pixels.expand([3, height, width], false).permute([1, 2, 0]).contiguous();
            let bytes = Vec::try_from(rgb.to_device(Device::Cpu).flatten(0, -1));
            (height as u32, width as u32, bytes.expect("pixels are bytes"))
        });
    }
}

/// Counts a batch that was evaluated.
fn counted(shown: &Progress) {
    if let Some(left) = shown.advance(|| "evaluating".into()).filter(|left| *left > LONG) {
        shown.print(|| info!("it takes about {}", HumanDuration(left)));
    }
}
