//! `asng-trainer compare`: what the search buys. ASNG, SNG with a fixed step and random search get the same steps and
//! seeds; what each finds is trained alone, as is an architecture that nobody searched for.
//!
//! Every part goes on after an interruption, and is taken as it is when it is whole.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use asng_client::{Options, Prefetch, Preset};
use asng_proto::v1::{self, Algorithm, StudyState, study_service_client::StudyServiceClient};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tracing::info;

use crate::{
    engine::{self, checkpoints},
    evaluate::newest_weights,
    retrain::{self, Begin, How, record::Record},
    select,
    study::{self, Choice, Found, Selection, Source, Subject},
    tasks::{settings, space::Space},
    worker::{self, serving::Listeners},
};

const CHECKPOINT_EVERY: Duration = Duration::from_secs(10 * 60);
const STEP_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Time that it waits for a controller that does not answer: longer than other commands, as hours of work may be behind it.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The options of `compare`.
#[derive(Debug, Args)]
#[command(
    after_help = "It needs a controller, and computes all else itself: searches, and then trainings. After an interruption the same \
    command goes on. Studies are called NAME-ALGORITHM-SEED; networks lie in OUT/ORIGIN-SEED."
)]
pub struct Arguments {
    #[command(flatten)]
    space: study::SpaceArguments,
    /// Origins to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Origin::ALL, value_name = "ORIGIN,...")]
    origins: Vec<Origin>,
    /// Steps of each search [default: the preset's]
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// The step of SNG, and of ASNG at the start, as of a study [default: the preset's]. A small one leaves the weights
    /// more time before the search makes up its mind
    #[arg(long, value_name = "X")]
    delta_init: Option<f64>,
    /// Seeds: everything is done so often
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Prefix of the names of the studies
    #[arg(long, default_value = "compare")]
    name: String,
    #[command(flatten)]
    how: How,
    /// Directory for the networks, made if it is not there
    #[arg(long, default_value = "compared", value_name = "DIR", help_heading = "Results")]
    out: PathBuf,
    /// Print the results as one line of JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// The origin of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Origin {
    /// The architecture selected after a search by ASNG, as `select` does
    Asng,
    /// The one selected after a search with a fixed step
    Sng,
    /// The one with the smallest loss of those that a random search met
    Random,
    /// Drawn, without a search
    Drawn,
}

impl Origin {
    const ALL: [Origin; 4] = [Origin::Asng, Origin::Sng, Origin::Random, Origin::Drawn];

    /// In the names of studies and directories.
    fn name(self) -> &'static str {
        match self {
            Origin::Asng => "asng",
            Origin::Sng => "sng",
            Origin::Random => "random",
            Origin::Drawn => "drawn",
        }
    }

    /// For people.
    fn title(self) -> &'static str {
        match self {
            Origin::Asng => "ASNG",
            Origin::Sng => "SNG, fixed step",
            Origin::Random => "random search",
            Origin::Drawn => "drawn, no search",
        }
    }

    /// Returns the algorithm of the study, if there is one.
    fn algorithm(self) -> Option<Algorithm> {
        match self {
            Origin::Asng => Some(Algorithm::Asng),
            Origin::Sng => Some(Algorithm::Sng),
            Origin::Random => Some(Algorithm::Random),
            Origin::Drawn => None,
        }
    }
}

/// The results of one origin.
#[derive(Debug, Serialize)]
struct Row {
    origin: Origin,
    /// One of each seed.
    architectures: Vec<Vec<i64>>,
    /// Metrics of each seed, by name; `parameters` among them.
    metrics: BTreeMap<String, Vec<f64>>,
}

/// The controller, the data and the device.
pub struct Place {
    /// The options of the connection to the controller.
    pub controller: Options,
    /// Directory of the searches' weights.
    pub work_dir: PathBuf,
    /// Images and device.
    pub engine: engine::Config,
}

/// Searches, trains and prints.
pub async fn run(arguments: Arguments, mut place: Place) -> anyhow::Result<()> {
    let computing = arguments.how.computing;
    computing.apply(place.engine.device)?;
    place.engine.precision = computing.precision;
    let how = &arguments.how;
    let mut space = arguments.space.space()?.context("name the --space or the --space-file")?;
    space.settings.insert(settings::PRESET.into(), how.preset().name().into());
    let task = study::task(&space)?;
    let networks = task.images().with_context(|| {
        format!(
            "an architecture of the space {} is no network to retrain; see `cargo xtask bench toy`",
            space.name
        )
    })?;
    let preset = asng_client::preset(&space.name, how.preset().name())
        .with_context(|| format!("space {:?} has no presets", space.name))?;
    // Errors now and not after hours if the images are not there.
    place.engine.catalogue.open(&networks)?;
    let stop = retrain::stop_on_signals()?;
    let searched = arguments.origins.iter().filter(|origin| origin.algorithm().is_some()).count();
    let (searches, trainings) =
        (searched as u64 * arguments.seeds, arguments.origins.len() as u64 * arguments.seeds);
    info!(
        "{searches} searches of {} steps and {trainings} retrainings, preset {}; interrupted at any time, the same command \
         resumes them",
        arguments.max_steps.unwrap_or(preset.max_steps),
        how.preset().name()
    );
    let (mut search_number, mut training_number) = (0, 0);
    let mut rows = Vec::new();
    for origin in arguments.origins.iter().copied() {
        let mut row = Row { origin, architectures: Vec::new(), metrics: BTreeMap::new() };
        for seed in 0..arguments.seeds {
            let mut space = space.clone();
            space.settings.insert("seed".to_owned(), seed.to_string());
            let found = match origin.algorithm() {
                Some(algorithm) => {
                    let name = format!("{}-{}-{seed}", arguments.name, origin.name());
                    let request = request(&arguments, &preset, name, space, algorithm, seed);
                    search_number += 1;
                    info!("search {search_number} of {searches}: study {}", request.name);
                    search(request, algorithm, seed, &place, &stop).await?
                }
                None => drawn(space, seed)?,
            };
            let out = arguments.out.join(format!("{}-{seed}", origin.name()));
            training_number += 1;
            info!("retraining {training_number} of {trainings}: {}", out.display());
            let values = found.values.clone();
            let engine::Config { catalogue, device, .. } = &place.engine;
            let begin = begin(how, found, seed, &out)?;
            let results =
                retrain::retrain(how, begin, Some(seed), &out, catalogue, *device, &stop)?;
            row.architectures.push(values);
            row.metrics.entry("parameters".into()).or_default().push(results.parameters as f64);
            for (name, metric) in results.metrics {
                row.metrics.entry(name).or_default().push(metric);
            }
        }
        rows.push(row);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn drawn(space: Space, seed: u64) -> anyhow::Result<Found> {
    let values = study::draw(&space, seed)?;
    Ok(Found { space, values, source: Source::new(&Choice::Random(seed), None) })
}

/// Begins the retraining of what was found, or resumes it where it lies in `out` already.
fn begin(how: &How, found: Found, seed: u64, out: &Path) -> anyhow::Result<Begin> {
    let Some(record) = Record::find(out)? else { return Ok(Begin::New(found)) };
    how.check(Some(seed), &record, out)?;
    ensure!(
        record.space.name == found.space.name && record.values == found.values,
        "the retraining in {} is of another architecture ({}) than the one found ({}: {}); give another --out",
        out.display(),
        record.architecture(),
        found.source,
        study::list(&found.values)
    );
    Ok(Begin::Resume(record))
}

fn request(
    arguments: &Arguments,
    preset: &Preset,
    name: String,
    space: Space,
    algorithm: Algorithm,
    seed: u64,
) -> v1::CreateStudyRequest {
    let max_steps = arguments.max_steps.unwrap_or(preset.max_steps);
    let algorithm = v1::AlgorithmSettings {
        algorithm: algorithm.into(),
        delta_init: arguments.delta_init.or(preset.delta_init),
        warmup_steps: preset.warmup_steps(max_steps),
        seed: Some(seed),
        ..Default::default()
    };
    let stop = v1::StopRules { max_steps, ..Default::default() };
    let Space { name: space, definition: space_definition, settings } = space;
    let spec = v1::StudySpec {
        space,
        space_definition,
        settings,
        algorithm: Some(algorithm),
        stop: Some(stop),
        ..Default::default()
    };
    v1::CreateStudyRequest { name, spec: Some(spec), ..Default::default() }
}

/// Searches to the end, from where an earlier search came to; what it found.
async fn search(
    request: v1::CreateStudyRequest,
    algorithm: Algorithm,
    seed: u64,
    place: &Place,
    stop: &AtomicBool,
) -> anyhow::Result<Found> {
    let connection = place.controller.connect()?;
    let created = study::call_within(PATIENCE, &connection, &request, |request| {
        let mut studies = StudyServiceClient::new(connection.clone());
        async move { studies.create_study(request).await }
    });
    created.await?;
    let name = request.name;
    let finished = |study: &v1::Study| study.state() == StudyState::Finished;
    if !finished(&study::get_within(PATIENCE, &connection, &name).await?) {
        let config = worker::Config {
            controller: place.controller.clone(),
            study: Some(name.clone()),
            work_dir: place.work_dir.clone(),
            checkpoint_every: CHECKPOINT_EVERY,
            step_limit: STEP_LIMIT,
            prefetch: Prefetch::default(),
        };
        let end = worker::asked_to_end()?;
        worker::serve(config, place.engine.clone(), Listeners::NONE, end).await?;
    }
    let study = study::get_within(PATIENCE, &connection, &name).await?;
    ensure!(!stop.load(Ordering::Relaxed), "stopped; the same command goes on from there");
    ensure!(finished(&study), "study {name:?} is {}, not finished", study.state().as_str_name());
    let find = |choice| {
        let subject = Subject { study: Some(name.clone()), architecture: Some(choice) };
        subject.find(Some((&study, &place.work_dir)), None)
    };
    if algorithm == Algorithm::Random {
        return find(Choice::Incumbent);
    }
    // A selection with the final weights was made before an interruption.
    let weights = newest_weights("select", &study, &place.work_dir)?;
    let selection = Selection::read(&place.work_dir, &study);
    if !selection.is_ok_and(|selection| selection.step == checkpoints::step(&weights)) {
        let arguments = select::Arguments::of(name.clone(), seed);
        let engine::Config { catalogue, device, .. } = &place.engine;
        let selecting =
            select::select(&arguments, &place.controller, &place.work_dir, catalogue, *device);
        selecting.await?.check()?;
    }
    find(Choice::Selected)
}

fn print(rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    print!("{:18}", "");
    for name in first.metrics.keys() {
        print!(" {:>22}", name.replace('_', " "));
    }
    println!();
    for row in rows {
        print!("{:18}", row.origin.title());
        for (name, metrics) in &row.metrics {
            let digits = if name == "parameters" { 0 } else { 4 };
            let (mean, deviation) = mean_and_deviation(metrics);
            let deviation = deviation.map(|deviation| format!(" ± {deviation:.digits$}"));
            print!(" {:>22}", format!("{mean:.digits$}{}", deviation.unwrap_or_default()));
        }
        println!();
    }
}

/// The deviation is that of a sample; one alone has none.
fn mean_and_deviation(figures: &[f64]) -> (f64, Option<f64>) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    (mean, (count > 1.0).then(|| (squares / (count - 1.0)).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_a_sample_s() {
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(mean, 3.0);
        assert!((deviation.unwrap() - (14.0_f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_deviation(&[1.0]), (1.0, None));
    }
}
