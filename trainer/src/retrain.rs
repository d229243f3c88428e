//! `asng-trainer retrain`: trains one architecture alone, from scratch, and writes it down.
//!
//! The directory decides what is trained: a retraining that has begun there is resumed with its own recipe, without a
//! controller, and ends with the same weights as one without interruption.

mod classification;
mod events;
mod inpainting;
mod log;
pub(crate) mod recipe;
mod training;

use std::{
    collections::BTreeMap,
    fs::TryLockError,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use tch::Device;
use tracing::info;

use self::{
    classification::Classification,
    inpainting::Inpainting,
    recipe::{BEST, LAST, RECIPE, Recipe, Record, name},
    training::Training,
};
use crate::{
    computing,
    data::{Cifar10, Images},
    engine, files,
    held_out::Pictures,
    space::{Space, enas_micro, inpaint},
    study::{self, Choice, Found, Subject},
};

/// How to train.
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
    /// The space of a random architecture that is of no study
    #[arg(long, conflicts_with = "study")]
    space: Option<String>,
    /// A setting of that space, as of a study; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting, requires = "space")]
    settings: Vec<(String, String)>,
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

/// How any network is trained.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct How {
    /// Where all settings come from that are not given: the paper, days of work, or what two cores do in minutes [default:
    /// paper]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
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

/// A flag with its value as text, if it was given.
type Flag = (&'static str, Option<String>);

fn flag(name: &'static str, value: Option<impl ToString>) -> Flag {
    (name, value.map(|value| value.to_string()))
}

impl How {
    pub(crate) fn preset(&self) -> Preset {
        self.preset.unwrap_or(Preset::Paper)
    }

    /// Returns the flags that were given. Errors if one means nothing to networks of `space`.
    fn given(&self, space: &str, seed: Option<u64>) -> anyhow::Result<Vec<(&'static str, String)>> {
        let given = |flags: &[Flag]| -> Vec<_> {
            flags.iter().filter_map(|(flag, value)| Some((*flag, value.clone()?))).collect()
        };
        let mut all = given(&[
            flag("--preset", self.preset.as_ref().map(name)),
            flag("--batch-size", self.batch_size),
            flag("--learning-rate", self.learning_rate),
            flag("--images", self.images),
            flag("--test-images", self.test_images),
            flag("--seed", seed),
        ]);
        let classification = given(&self.classification.flags());
        let inpainting = given(&self.inpainting.flags());
        let (own, other) = match space == enas_micro::NAME {
            true => (classification, inpainting),
            false => (inpainting, classification),
        };
        if let Some((flag, _)) = other.first() {
            bail!("{flag} means nothing to networks of space {space}; leave it out");
        }
        all.extend(own);
        Ok(all)
    }

    /// Errors if a flag that was given is another than that of the retraining in `out`.
    pub(crate) fn check(
        &self,
        seed: Option<u64>,
        record: &Record,
        out: &Path,
    ) -> anyhow::Result<()> {
        let recorded = record.flags();
        for (flag, given) in self.given(record.recipe.space(), seed)? {
            match recorded.get(flag) {
                Some(recorded) if *recorded != given => {
                    bail!("{}", differs(flag, &given, out, recorded))
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns why a retraining is not resumed: `given` on the command line is not what it was begun with.
fn differs(flag: &str, given: &str, out: &Path, recorded: &str) -> String {
    format!(
        "{flag} {given}: the retraining in {} has {recorded}; leave it out to resume, or give another --out",
        out.display()
    )
}

pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("say NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where defaults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

impl Arguments {
    /// Finds the architecture that is meant.
    async fn find(&self, controller: &Options) -> anyhow::Result<Found> {
        let study = match &self.subject.study {
            Some(name) => {
                let connection = controller.connect()?;
                Some(study::get_within(study::PATIENCE, &connection, name).await?)
            }
            None => None,
        };
        let mut found = self.subject.find(study.as_ref(), self.space()?)?;
        found.source.settings.extend(self.settings.iter().cloned());
        Ok(found)
    }

    /// The space that was named.
    fn space(&self) -> anyhow::Result<Option<Space>> {
        let Some(name) = &self.space else { return Ok(None) };
        study::named(name, &self.settings.iter().cloned().collect()).map(Some)
    }

    /// Errors if the command line names another retraining than the one in `out`, as far as that can be told without a
    /// controller.
    fn check(&self, record: &Record) -> anyhow::Result<()> {
        let out = &self.out;
        self.how.check(self.seed, record, out)?;
        let other = |flag: &str, given: &str, recorded: &str| {
            bail!("{}", differs(flag, given, out, recorded))
        };
        if let Some(space) = self.space.as_ref().filter(|space| **space != record.recipe.space()) {
            return other("--space", space, record.recipe.space());
        }
        let source = record.source.as_ref();
        if let (Some(study), Some(source)) = (&self.subject.study, source)
            && source.study.as_ref() != Some(study)
        {
            let none = format!("none, but {source}");
            return other("--study", study, source.study.as_ref().unwrap_or(&none));
        }
        for (name, value) in &self.settings {
            let recorded = source.and_then(|source| source.settings.get(name));
            if source.is_some() && recorded != Some(value) {
                let recorded = recorded.map_or("none".into(), |value| format!("{name}={value}"));
                return other("--set", &format!("{name}={value}"), &recorded);
            }
        }
        let Some(choice) = &self.subject.architecture else { return Ok(()) };
        let same = source.is_some_and(|source| source.architecture == choice.to_string());
        let found = match choice {
            Choice::Random(_) if self.space.is_some() => self.subject.find(None, self.space()?)?,
            // Its own copy is in the directory, so a file may be gone.
            Choice::File(file) if !same || file.exists() => self.subject.find(None, None)?,
            _ if same || source.is_none() => return Ok(()),
            _ => return other("--architecture", &choice.to_string(), &record.architecture()),
        };
        if record.recipe.values() != found.values {
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
    data: &Path,
    photos: &Path,
    device: Device,
) -> anyhow::Result<()> {
    let begin = match Record::find(&arguments.out)? {
        Some(record) => {
            arguments.check(&record)?;
            Begin::Resume(record)
        }
        None => Begin::New(arguments.find(controller).await?),
    };
    let stop = stop_on_signals()?;
    let Arguments { how, seed, out, .. } = &arguments;
    how.computing.apply(device)?;
    let results = retrain(how, begin, seed.unwrap_or(0), out, (data, photos), device, &stop)?;
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
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Trains the architecture into the directory `out`. Of one that is trained already, returns the results again.
pub(crate) fn retrain(
    how: &How,
    begin: Begin,
    seed: u64,
    out: &Path,
    (data, photos): (&Path, &Path),
    device: Device,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    let (shown, on) = (out.display(), engine::device_name(device));
    let precision = how.computing.precision;
    let (record, mut training): (Record, Box<dyn Training>) = match begin {
        Begin::Resume(record) => {
            info!(
                "resuming the retraining in {shown} on {on}; architecture {}",
                record.architecture()
            );
            let training: Box<dyn Training> = match &record.recipe {
                Recipe::Classification(recipe) => {
                    let data = Cifar10::load(data)?;
                    Box::new(Classification::new(recipe, &data, device, precision)?)
                }
                Recipe::Inpainting(recipe) => {
                    let pictures = Pictures::load(photos, recipe.image[1])?;
                    recipe.check(&pictures, photos)?;
                    Box::new(Inpainting::new(recipe, &pictures, device, precision)?)
                }
            };
            (record, training)
        }
        Begin::New(Found { space, values, source }) => {
            let preset = how.preset();
            let architecture = recipe::architecture(Some(&source), &values);
            info!(
                "retraining into {shown} on {on}, preset {}; architecture {architecture}",
                name(&preset)
            );
            let (recipe, training): (_, Box<dyn Training>) = match &space {
                Space::EnasMicro(settings) => {
                    how.given(enas_micro::NAME, None)?;
                    let nodes = settings.nodes as usize;
                    let architecture = enas_micro::Architecture::decode(nodes, &values)?;
                    let data = Cifar10::load(data)?;
                    let recipe = how.classification.recipe(how, seed, &architecture, &data)?;
                    let training = Classification::new(&recipe, &data, device, precision)?;
                    (Recipe::Classification(recipe), Box::new(training))
                }
                Space::Inpaint(coding, settings) => {
                    how.given(coding.name(), None)?;
                    let space = settings.space(*coding);
                    let architecture = inpaint::Architecture::decode(&space, &values)?;
                    let pictures = Pictures::load(photos, how.inpainting.side(settings))?;
                    let recipe =
                        how.inpainting.recipe(how, seed, settings, &architecture, &pictures)?;
                    let training = Inpainting::new(&recipe, &pictures, device, precision)?;
                    (Recipe::Inpainting(recipe), Box::new(training))
                }
                Space::Toy(_) => bail!("an architecture of the space toy is no network to retrain"),
            };
            (Record { recipe, preset: Some(preset), source: Some(source) }, training)
        }
    };
    let drawn = Drawn::of(&record.recipe)?;
    info!("{}, {}", record.recipe.length(), parameters(drawn.parameters));
    train(out, how.checkpoint_every, &record, &drawn, &mut *training, stop)
}

/// Returns a number of parameters as text.
fn parameters(count: i64) -> String {
    match count {
        0..100_000 => format!("{count} parameters"),
        _ => format!("{:.1} M parameters", count as f64 / 1e6),
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
    json: String,
    dot: String,
    parameters: i64,
}

impl Drawn {
    fn of(recipe: &Recipe) -> anyhow::Result<Drawn> {
        Ok(match recipe {
            Recipe::Classification(recipe) => {
                let architecture = recipe.architecture.architecture()?;
                Drawn {
                    json: serde_json::to_string_pretty(&recipe.architecture)?,
                    dot: architecture.dot(),
                    parameters: architecture.parameters(&recipe.size()?, true),
                }
            }
            Recipe::Inpainting(recipe) => {
                let architecture = recipe.architecture.architecture()?;
                Drawn {
                    json: serde_json::to_string_pretty(&recipe.architecture)?,
                    dot: architecture.dot(),
                    parameters: architecture.parameters(recipe.image, recipe.batch_norm),
                }
            }
        })
    }
}

/// Writes what decides the training, trains, and says what came out.
fn train(
    directory: &Path,
    checkpoint_every: Duration,
    record: &Record,
    drawn: &Drawn,
    training: &mut dyn Training,
    stop: &AtomicBool,
) -> anyhow::Result<Results> {
    let file = |name: &str| directory.join(name);
    let _lock = match files::lock(directory) {
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another retraining; give another --out", directory.display())
        }
        lock => lock.with_context(|| format!("cannot use {}", directory.display()))?,
    };
    match Record::find(directory)? {
        None => files::write(&file(RECIPE), serde_json::to_string_pretty(record)?)?,
        Some(other) => ensure!(
            other == *record,
            "another retraining has begun in {} meanwhile; give another --out",
            directory.display()
        ),
    }
    files::write(&file("architecture.json"), &drawn.json)?;
    files::write(&file("architecture.dot"), &drawn.dot)?;
    let mut advice = String::from("; interrupted at any time, the same command resumes it");
    if record.preset != Some(Preset::Quick) {
        advice += "; a network in minutes instead: --preset quick and another --out";
    }
    let reached = training::run(training, directory, checkpoint_every, &advice, stop)?;
    Ok(Results {
        space: record.recipe.space().to_owned(),
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
            .recipe(&arguments.how, arguments.seed.unwrap_or(0), &architecture, &data)
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
            .recipe(&arguments.how, 0, &settings, &architecture, &pictures)
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

    fn record(recipe: Recipe) -> Record {
        Record { recipe, preset: Some(Preset::Paper), source: None }
    }

    #[test]
    fn a_record_is_read_back_from_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let source = study::Source { architecture: "chosen".into(), ..Default::default() };
        for recipe in [Recipe::Classification(cells(&[])), Recipe::Inpainting(autoencoder(&[]))] {
            let record = Record { source: Some(source.clone()), ..record(recipe) };
            let text = serde_json::to_string_pretty(&record).unwrap();
            files::write(&directory.path().join(RECIPE), &text).unwrap();
            assert_eq!(Record::read(directory.path()).unwrap(), record);
        }
    }

    #[test]
    fn flags_that_were_given_must_be_those_of_the_retraining_that_is_resumed() {
        let check = |typed: &[&str], recipe: &Recipe| {
            let arguments = arguments(&[typed, &["--out", "d"]].concat());
            arguments.check(&record(recipe.clone())).map_err(|error| error.to_string())
        };
        let classifier = Recipe::Classification(cells(&["--channels", "9"]));
        let autoencoder = Recipe::Inpainting(autoencoder(&["--mask", "center"]));
        for typed in [
            &[][..],
            &["--preset", "paper", "--epochs", "600", "--learning-rate", "0.0250", "--seed=0"],
            &["--channels", "9", "--drop-path", "0.3", "--study", "s", "--checkpoint-every=1s"],
        ] {
            assert_eq!(check(typed, &classifier), Ok(()));
        }
        assert_eq!(check(&["--mask", "center", "--batch-norm", "false"], &autoencoder), Ok(()));
        let another = |flag: &str, recorded: &str| {
            let rest = "leave it out to resume, or give another --out";
            Err(format!("{flag}: the retraining in d has {recorded}; {rest}"))
        };
        let classifier_has = [
            ("--epochs 5", "600"),
            ("--preset quick", "paper"),
            ("--seed 7", "0"),
            ("--batch-size 8", "80"),
            ("--channels 10", "9"),
            ("--learning-rate 0.1", "0.025"),
            ("--images 3", "7"),
        ];
        for (flag, recorded) in classifier_has {
            let typed: Vec<_> = flag.split(' ').collect();
            assert_eq!(check(&typed, &classifier), another(flag, recorded));
        }
        assert_eq!(check(&["--mask", "half"], &autoencoder), another("--mask half", "center"));
        let refused = check(&["--epochs", "5"], &autoencoder).unwrap_err();
        assert!(refused.starts_with("--epochs means nothing to networks of space inpaint-cat"));
    }

    #[test]
    fn another_architecture_is_refused_as_far_as_it_is_known_without_a_controller() {
        let recipe = Recipe::Inpainting(autoencoder(&[]));
        let source = study::Source {
            architecture: "mode".into(),
            study: Some("a".into()),
            study_id: None,
            settings: [("mask".to_owned(), "half".to_owned())].into(),
        };
        let record = Record { source: Some(source), ..record(recipe) };
        let check = |typed: &[&str]| {
            arguments(typed).check(&record).map_or_else(|error| error.to_string(), |()| "".into())
        };
        for typed in [&["--study", "a"][..], &["--study", "a", "--architecture", "mode"]] {
            assert_eq!(check(typed), "");
        }
        assert!(
            check(&["--study", "b"]).starts_with("--study b: the retraining in retrained has a;")
        );
        let text = check(&["--study", "a", "--architecture", "chosen"]);
        assert!(text.contains(
            "--architecture chosen: the retraining in retrained has mode of study a: 1,0,"
        ));
        let space = ["--space", "inpaint-cat", "--architecture", "random:1"];
        let text = check(&space);
        assert!(text.starts_with("--architecture random:1 ("), "{text}");
        let text = check(&[&space[..], &["--set", "mask=center"]].concat());
        assert!(
            text.contains("--set mask=center: the retraining in retrained has mask=half;"),
            "{text}"
        );
        assert!(check(&["--space", "inpaint-int"]).contains("--space inpaint-int: "));
        let text = check(&["--architecture", "nowhere.json"]);
        assert!(text.starts_with("cannot read nowhere.json"), "{text}");
    }
}
