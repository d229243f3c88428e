//! `asng-trainer retrain`: trains one architecture alone, from scratch.
//!
//! The directory decides what is trained: a retraining that has begun there is resumed with its own settings, without a
//! controller, and ends with the same weights as one without interruption.

mod events;
mod log;
pub(crate) mod record;
mod training;

use std::{
    collections::BTreeMap,
    fs::{self, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use tch::Device;
use tracing::info;

use self::{
    record::{BEST, LAST, RECORD, Record},
    training::Training,
};
use crate::{
    computing, engine, files,
    images::{Catalogue, DataSet},
    study::{self, Choice, Found, Subject},
    tasks::settings::{Given, Preset},
    torch::{self, Precision},
};

/// The files of the architecture.
const ARCHITECTURE: &str = "architecture.json";
const GRAPH: &str = "architecture.dot";

/// The options of `retrain`.
#[derive(Debug, Args)]
#[group(skip)]
#[command(
    after_help = "On SIGTERM or SIGINT it writes a checkpoint and ends with 1. After that, or a crash, the same command, or \
    `asng-trainer retrain --out DIR` alone, resumes, and ends with the weights of a run without interruption. What lies in --out decides: \
    the recorded architecture and settings are used and no controller is asked; a flag with another value is an error. \
    `asng-trainer evaluate --retrained DIR` and `asng-trainer export --retrained DIR` use the network."
)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    space: study::SpaceArguments,
    #[command(flatten)]
    how: How,
    /// Seed of the weights and of the order and augmentation of the images [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for the results, made if it is not there; a retraining that lies there is resumed
    #[arg(long, default_value = "retrained", value_name = "DIR", help_heading = "Results")]
    out: PathBuf,
    /// Print the results as one line of JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// The options of every retraining. Those of the network and of its training are settings of the task, and are checked there.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct How {
    /// Source of all settings that are not given: the paper's (days on a GPU), or minutes on two cores [default: paper]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Images in a minibatch [paper: 80, autoencoders 16]
    #[arg(long, value_name = "N")]
    batch_size: Option<String>,
    /// Learning rate at the start of the schedule [paper: 0.025, autoencoders 0.001]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<String>,
    /// Height and width that images are brought to [default: the study's]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<String>,
    /// Use only the first N training images
    #[arg(long, value_name = "N")]
    train_images: Option<i64>,
    /// Use only the first N test images
    #[arg(long, value_name = "N")]
    test_images: Option<i64>,
    #[command(flatten)]
    pub(crate) computing: computing::Options,
    /// Passes over the training images [paper: 600]
    #[arg(long, value_name = "N", help_heading = CLASSIFIERS)]
    epochs: Option<String>,
    /// Cells of the network, in spaces of cells [paper: 20]
    #[arg(long, value_name = "N", help_heading = CLASSIFIERS)]
    cells: Option<String>,
    /// Channels of the first cells [default: as many as --max-parameters allows]
    #[arg(long, value_name = "N", help_heading = CLASSIFIERS)]
    channels: Option<String>,
    /// Factor on all channels, in spaces that are chains [default: the study's]
    #[arg(long, value_name = "FACTOR", help_heading = CLASSIFIERS)]
    width: Option<String>,
    /// Largest number of trainable parameters, without the auxiliary head [paper: 4000000]
    #[arg(long, value_name = "N", conflicts_with = "channels", help_heading = CLASSIFIERS)]
    max_parameters: Option<String>,
    /// Probability of dropping an operation's output, reached at the end [paper: 0.3]
    #[arg(long, value_name = "P", help_heading = CLASSIFIERS)]
    drop_path: Option<String>,
    /// Side of the square cut out of each training image, in pixels [paper: 16]
    #[arg(long, value_name = "PIXELS", help_heading = CLASSIFIERS)]
    cutout: Option<String>,
    /// Minibatches in all [paper: 500000]
    #[arg(long, value_name = "N", help_heading = AUTOENCODERS)]
    iterations: Option<String>,
    /// Minibatches between two evaluations [paper: 5000]
    #[arg(long, value_name = "N", help_heading = AUTOENCODERS)]
    evaluate_every: Option<String>,
    /// The hidden part of each image: center, pixel or half [default: the study's]
    #[arg(long, value_name = "MASK", help_heading = AUTOENCODERS)]
    mask: Option<String>,
    /// Use batch normalisation after the convolutions of the nodes [default: the study's]
    #[arg(long, value_name = "BOOL", help_heading = AUTOENCODERS)]
    batch_norm: Option<String>,
    /// Write a checkpoint this often, and after each evaluation: what a crash can cost
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Results")]
    checkpoint_every: Duration,
}

const CLASSIFIERS: &str = "Classifiers";
const AUTOENCODERS: &str = "Autoencoders (inpaint-cat, inpaint-int)";

impl How {
    pub(crate) fn preset(&self) -> Preset {
        self.preset.unwrap_or_default()
    }

    /// Returns the settings of the task that were given.
    fn given(&self, seed: Option<u64>) -> Given {
        let settings = [
            ("batch_size", &self.batch_size),
            ("learning_rate", &self.learning_rate),
            ("image_size", &self.image_size),
            ("epochs", &self.epochs),
            ("cells", &self.cells),
            ("channels", &self.channels),
            ("width", &self.width),
            ("max_parameters", &self.max_parameters),
            ("drop_path", &self.drop_path),
            ("cutout", &self.cutout),
            ("iterations", &self.iterations),
            ("evaluate_every", &self.evaluate_every),
            ("mask", &self.mask),
            ("batch_norm", &self.batch_norm),
        ];
        let seed = seed.map(|seed| ("seed".to_owned(), seed.to_string()));
        let given =
            |(name, value): (&str, &Option<String>)| Some((name.to_owned(), value.clone()?));
        settings.into_iter().filter_map(given).chain(seed).collect()
    }

    /// Errors if a flag that was given has another value in the retraining in `out`.
    pub(crate) fn check(
        &self,
        seed: Option<u64>,
        record: &Record,
        out: &Path,
    ) -> anyhow::Result<()> {
        let other = |flag: &str, given: &str, recorded: &str| {
            bail!("{}", differs(&format!("--{}", flag.replace('_', "-")), given, out, recorded))
        };
        if let Some(preset) = self.preset.filter(|preset| *preset != record.preset) {
            return other("preset", preset.name(), record.preset.name());
        }
        for (flag, given, recorded) in [
            ("train_images", self.train_images, record.train_images),
            ("test_images", self.test_images, record.test_images),
        ] {
            if let Some(given) = given.filter(|given| *given != recorded) {
                return other(flag, &given.to_string(), &recorded.to_string());
            }
        }
        let given = self.given(seed);
        // As the task prints them, so that 0.0250 is 0.025.
        let mut settings = record.settings.clone();
        settings.extend(given.clone());
        let printed = record.task_with(&settings)?.settings();
        for (name, text) in &given {
            if printed.get(name) != record.settings.get(name) {
                let recorded = record.settings.get(name).map_or("none", String::as_str);
                return other(name, text, recorded);
            }
        }
        Ok(())
    }
}

/// Returns the reason why a retraining is not resumed: `given` on the command line is not what it was begun with.
fn differs(flag: &str, given: &str, out: &Path, recorded: &str) -> String {
    format!(
        "{flag} {given}: the retraining in {} has {recorded}; leave it out to resume, or give another --out",
        out.display()
    )
}

/// The results of a retraining.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    space: String,
    pub(crate) parameters: i64,
    iterations: u64,
    #[serde(flatten)]
    pub(crate) metrics: BTreeMap<String, f64>,
    weights: PathBuf,
    best: PathBuf,
    log: PathBuf,
    record: PathBuf,
    architecture: PathBuf,
    graph: PathBuf,
}

impl Arguments {
    /// Finds the architecture that is meant.
    async fn find(&self, controller: &Options, work_dir: &Path) -> anyhow::Result<Found> {
        let space = self.space.space()?;
        let study = match &self.subject.study {
            Some(name) => {
                ensure!(
                    space.is_none(),
                    "a study has a space of its own: leave --space or --study out"
                );
                let connection = controller.connect()?;
                Some(study::get_within(study::PATIENCE, &connection, name).await?)
            }
            None => None,
        };
        self.subject.find(study.as_ref().map(|study| (study, work_dir)), space)
    }

    /// Errors if the command line names another retraining than the one in `out`, as far as that can be told without a
    /// controller.
    fn check(&self, record: &Record) -> anyhow::Result<()> {
        let out = &self.out;
        self.how.check(self.seed, record, out)?;
        let other = |flag: &str, given: &str, recorded: &str| {
            bail!("{}", differs(flag, given, out, recorded))
        };
        let space = self.space.space()?;
        if let Some(space) = &space
            && (&space.name, &space.definition) != (&record.space.name, &record.space.definition)
        {
            let recorded = if record.space.definition.is_empty() {
                &record.space.name
            } else {
                "another space file"
            };
            return match &self.space.space_file {
                Some(file) => other("--space-file", &file.display().to_string(), recorded),
                None => other("--space", &space.name, recorded),
            };
        }
        let source = &record.source;
        if let Some(study) = &self.subject.study
            && source.study.as_ref() != Some(study)
        {
            let none = format!("none, but {source}");
            return other("--study", study, source.study.as_ref().unwrap_or(&none));
        }
        for (name, value) in space.iter().flat_map(|space| &space.settings) {
            let recorded = record.space.settings.get(name);
            if recorded != Some(value) {
                let recorded = recorded.map_or("none".into(), |value| format!("{name}={value}"));
                return other("--set", &format!("{name}={value}"), &recorded);
            }
        }
        let Some(choice) = &self.subject.architecture else { return Ok(()) };
        let same = source.architecture == choice.to_string();
        let found = match choice {
            Choice::Random(_) if space.is_some() => self.subject.find(None, space)?,
            // Its own copy is in the directory, so a file may be gone.
            Choice::File(file) if !same || file.exists() => self.subject.find(None, None)?,
            _ if same => return Ok(()),
            _ => return other("--architecture", &choice.to_string(), &record.architecture()),
        };
        if record.values != found.values {
            let given = format!("{choice} ({})", study::list(&found.values));
            return other("--architecture", &given, &record.architecture());
        }
        Ok(())
    }
}

/// A retraining in a directory.
pub(crate) enum Begin {
    /// A new one, of this architecture.
    New(Found),
    /// The one that lies there.
    Resume(Record),
}

/// Trains, writes and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    work_dir: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<()> {
    let begin = match Record::find(&arguments.out)? {
        Some(record) => {
            arguments.check(&record)?;
            Begin::Resume(record)
        }
        None => Begin::New(arguments.find(controller, work_dir).await?),
    };
    let stop = stop_on_signals()?;
    let Arguments { how, seed, out, .. } = &arguments;
    how.computing.apply(device)?;
    let results = retrain(how, begin, *seed, out, catalogue, device, &stop)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
        return Ok(());
    }
    println!("space          {}", results.space);
    println!("parameters     {}", results.parameters);
    for (name, metric) in &results.metrics {
        println!("{:14} {metric:.4}", name.replace('_', " "));
    }
    for (name, file) in [
        ("weights", &results.weights),
        ("best weights", &results.best),
        ("log", &results.log),
        ("record", &results.record),
        ("architecture", &results.architecture),
        ("graph", &results.graph),
    ] {
        println!("{name:14} {}", file.display());
    }
    Ok(())
}

/// Becomes true with the first SIGINT or SIGTERM; the second one ends the program at once.
pub(crate) fn stop_on_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Trains the architecture into the directory `out`. Returns the results again if it is trained already.
pub(crate) fn retrain(
    how: &How,
    begin: Begin,
    seed: Option<u64>,
    out: &Path,
    catalogue: &Catalogue,
    device: Device,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    let (shown, on) = (out.display(), engine::device_name(device));
    let new = matches!(begin, Begin::New(_));
    let (record, data) = match begin {
        Begin::Resume(record) => {
            let data = record.data(catalogue)?;
            (record, data)
        }
        Begin::New(found) => {
            let given = how.given(seed);
            Record::new(
                found,
                how.preset(),
                &given,
                [how.train_images, how.test_images],
                catalogue,
            )?
        }
    };
    let architecture = record.architecture();
    match new {
        false => info!("resuming the retraining in {shown} on {on}; architecture {architecture}"),
        true => info!(
            "retraining into {shown} on {on}, preset {}, data set {}; architecture {architecture}",
            record.preset.name(),
            record.data.name
        ),
    }
    let parameters = record.parameters()?;
    info!("{}, {}", record.length()?, in_words(parameters));
    let precision = how.computing.precision;
    let compute = || train(how, &record, &data, parameters, device, precision, out, stop);
    torch::attempt(compute)?
}

/// Returns a number of parameters as text.
fn in_words(parameters: i64) -> String {
    match parameters {
        0..100_000 => format!("{parameters} parameters"),
        _ => format!("{:.1} M parameters", parameters as f64 / 1e6),
    }
}

/// Writes what decides the training, trains, and returns the results.
#[expect(clippy::too_many_arguments, reason = "all of them decide one call")]
fn train(
    how: &How,
    record: &Record,
    data: &DataSet,
    parameters: i64,
    device: Device,
    precision: Precision,
    out: &Path,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    // First, so that what cannot be trained leaves no retraining in the directory.
    let mut training = Training::new(record, data, device, precision)?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let file = |name: &str| out.join(name);
    let _lock = files::lock(out).map_err(|error| match error {
        TryLockError::WouldBlock => {
            anyhow::anyhow!("{} is in use by another retraining; give another --out", out.display())
        }
        TryLockError::Error(error) => {
            anyhow::Error::new(error).context(format!("cannot use {}", out.display()))
        }
    })?;
    match Record::find(out)? {
        None => files::write(&file(RECORD), &serde_json::to_string_pretty(record)?)?,
        Some(other) => ensure!(
            other == *record,
            "another retraining has begun in {} meanwhile; give another --out",
            out.display()
        ),
    }
    let architecture = study::describe(&record.space, &record.values)?;
    files::write(&file(ARCHITECTURE), &serde_json::to_string_pretty(&architecture)?)?;
    files::write(&file(GRAPH), record.task()?.dot(&record.values))?;
    let mut advice = String::from("; interrupted at any time, the same command resumes it");
    if record.preset != Preset::Quick {
        advice += "; a network in minutes instead: --preset quick and another --out";
    }
    let metrics = training.run(out, how.checkpoint_every, &advice, stop)?;
    Ok(Results {
        space: record.space.name.clone(),
        parameters,
        iterations: training.iterations(),
        metrics: metrics.into_iter().collect(),
        weights: file(LAST),
        best: file(BEST),
        log: file(log::LOG),
        record: file(RECORD),
        architecture: file(ARCHITECTURE),
        graph: file(GRAPH),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{record::tests::example, *};
    use crate::tasks::{Length, Training};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(typed: &[&str]) -> Arguments {
        Program::parse_from([&["retrain"], typed].concat()).arguments
    }

    /// The retraining that begins with these flags.
    fn begun(space: &str, typed: &[&str]) -> Record {
        let Arguments { how, seed, .. } = arguments(typed);
        example(space, how.preset(), &how.given(seed))
    }

    fn check(typed: &[&str], record: &Record) -> Result<(), String> {
        arguments(&[typed, &["--out", "d"]].concat()).check(record).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_preset() {
        let typed = ["--preset", "quick", "--epochs", "5", "--learning-rate", "0.1", "--seed", "3"];
        let task = begun("enas-micro", &typed).task().unwrap();
        let Training { length, learning_rate, seed, drop_path, .. } = task.training();
        assert_eq!((length, learning_rate, seed), (Length::Epochs(5), 0.1, 3));
        assert_eq!(drop_path, 0.0, "it is the preset's");
        let record = begun("enas-micro", &["--channels", "9"]);
        assert_eq!((record.preset, &*record.settings["channels"]), (Preset::Paper, "9"));

        let typed = ["--preset", "quick", "--iterations", "9", "--mask", "center"];
        let record = begun("inpaint-cat", &typed);
        let length = Length::Batches { total: 9, evaluate_every: 200 };
        assert_eq!(record.task().unwrap().training().length, length);
        assert_eq!(record.settings["mask"], "center");
        assert_eq!(begun("inpaint-cat", &[]).settings["mask"], "half", "it is the study's");
    }

    #[test]
    fn flags_that_were_given_must_be_those_of_the_retraining_that_is_resumed() {
        let classifier = begun("enas-micro", &["--channels", "9"]);
        let autoencoder = begun("inpaint-cat", &["--mask", "center"]);
        for typed in [
            &[][..],
            &["--preset", "paper", "--epochs", "600", "--learning-rate", "0.0250", "--seed=0"],
            &["--channels", "9", "--drop-path", "0.3", "--study", "a", "--checkpoint-every=1s"],
            &["--train-images", "8", "--test-images", "4"],
        ] {
            assert_eq!(check(typed, &classifier), Ok(()));
        }
        assert_eq!(check(&["--mask", "center", "--batch-norm", "true"], &autoencoder), Ok(()));
        let another = |flag: &str, recorded: &str| {
            let rest = "leave it out to resume, or give another --out";
            Err(format!("{flag}: the retraining in d has {recorded}; {rest}"))
        };
        for (flag, recorded) in [
            ("--epochs 5", "600"),
            ("--preset quick", "paper"),
            ("--seed 7", "0"),
            ("--batch-size 8", "80"),
            ("--channels 10", "9"),
            ("--max-parameters 10", "4000000"),
            ("--learning-rate 0.1", "0.025"),
            ("--train-images 3", "8"),
            ("--test-images 3", "4"),
        ] {
            let typed: Vec<_> = flag.split(' ').collect();
            assert_eq!(check(&typed, &classifier), another(flag, recorded));
        }
        assert_eq!(check(&["--mask", "half"], &autoencoder), another("--mask half", "center"));
        let refused = check(&["--epochs", "5"], &autoencoder).unwrap_err();
        assert!(
            refused.starts_with("--epochs is unknown; the settings of a retraining of the space "),
            "{refused}"
        );
    }

    #[test]
    fn another_architecture_is_refused_as_far_as_it_is_known_without_a_controller() {
        let record = begun("inpaint-cat", &[]);
        let check = |typed: &[&str]| check(typed, &record).err().unwrap_or_default();
        for typed in [&["--study", "a"][..], &["--study", "a", "--architecture", "mode"]] {
            assert_eq!(check(typed), "");
        }
        assert!(check(&["--study", "b"]).starts_with("--study b: the retraining in d has a;"));
        let text = check(&["--study", "a", "--architecture", "chosen"]);
        let expected = "--architecture chosen: the retraining in d has mode of study a: 3,2,";
        assert!(text.starts_with(expected), "{text}");
        let space = ["--space", "inpaint-cat", "--architecture", "random:1"];
        let text = check(&space);
        assert!(text.starts_with("--architecture random:1 ("), "{text}");
        let text = check(&[&space[..], &["--set", "mask=center"]].concat());
        assert!(
            text.starts_with("--set mask=center: the retraining in d has mask=half;"),
            "{text}"
        );
        assert!(check(&["--space", "inpaint-int"]).starts_with("--space inpaint-int: "));
        let text = check(&["--architecture", "nowhere.json"]);
        assert!(text.starts_with("cannot read nowhere.json"), "{text}");
    }
}
