//! The trainer's program: arguments, logs, signals, exit code.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::ensure;
use asng_client::{Options, environment, telemetry};
use asng_datasets::DataSet;
use asng_trainer::{
    client, compare, computing, datasets, engine, evaluate, export, retrain, serving,
    space_command, supernet::Precision,
};
use clap::{Args, Parser, Subcommand};
use tch::Device;
use tracing::error;

/// Trains the shared weights of a supernet for a neural architecture search, and what the search has found.
#[derive(Debug, Parser)]
#[command(name = "asng-trainer", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    controller: Options,
    /// Directory of the trainer's files: its id, and each study's weights. One running trainer for each directory
    #[arg(
        long,
        global = true,
        env = "ASNG_WORK_DIR",
        default_value = "asng-work",
        value_name = "DIR"
    )]
    work_dir: PathBuf,
    /// Directory of CIFAR-10's binary files, as `asng-trainer data fetch cifar10` makes it; must exist if it is given. Without
    /// CIFAR-10, enas-micro is not served [default: data/cifar-10-batches-bin]
    #[arg(long, global = true, env = "ASNG_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory of photos, JPEG and PNG, flat or in a folder for each class (`asng-trainer data fetch photos` brings some); must
    /// exist if it is given. Without photos, inpaint-cat and inpaint-int are not served [default: data/photos]
    #[arg(long, global = true, env = "ASNG_PHOTOS", value_name = "DIR")]
    photos: Option<PathBuf>,
    /// What computes: auto (a GPU if there is one), cpu, or cuda:N
    #[arg(long, global = true, env = "ASNG_DEVICE", default_value = "auto", value_parser = engine::device)]
    device: Device,
    /// Threads of one operation on a CPU [default: one for each core]
    #[arg(long, global = true, env = "ASNG_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    #[command(flatten)]
    telemetry: telemetry::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work for a controller: train shared weights, report losses
    Serve(Serve),
    /// How good an architecture is on the test images, with a study's shared weights or its own
    Evaluate(evaluate::Arguments),
    /// Train one architecture alone, from scratch; after an interruption the same command goes on
    Retrain(retrain::Arguments),
    /// What the search buys: ASNG, SNG and random search with the same steps and seeds, each result retrained
    Compare(compare::Arguments),
    /// A retrained network for other programs: TorchScript, safetensors, JSON, Graphviz
    Export(export::Arguments),
    /// Fetch data sets, or look at a directory of images
    #[command(subcommand)]
    Data(datasets::Command),
    /// List, check and draw search spaces: TOML files
    #[command(subcommand)]
    Space(space_command::Command),
}

#[derive(Debug, Args)]
#[command(
    after_help = "On SIGTERM or SIGINT it finishes and reports its step, saves the weights and ends with 0. \
    Started again with the same --work-dir it goes on from the weights last saved."
)]
struct Serve {
    /// Work on this study until it ends [default: any study of a space served here, for ever]
    #[arg(long)]
    study: Option<String>,
    /// Write a checkpoint of weights and momentum this often: what a crash can cost
    #[arg(long, env = "ASNG_CHECKPOINT_EVERY", default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration)]
    checkpoint_every: Duration,
    /// Let go of the lease of a step that takes longer, so that another trainer gets it
    #[arg(long, env = "ASNG_STEP_LIMIT", default_value = "30m", value_name = "TIME", value_parser = humantime::parse_duration)]
    step_limit: Duration,
    #[command(flatten)]
    computing: computing::Options,
    #[command(flatten)]
    serving: serving::Options,
}

// One thread is enough for the network: what computes has a thread of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { command, common } = environment::parse();
    let telemetry = match common.telemetry.clone().start("asng-trainer") {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("asng-trainer: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(command, common).await;
    if let Err(error) = &result {
        error!("{error:#}");
    }
    telemetry.flush().await;
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(command: Command, common: Common) -> anyhow::Result<()> {
    let Common { controller, work_dir, data, photos, device, threads, .. } = common;
    // `data` fetches what may not be there yet, and `space` reads none.
    let named = !matches!(command, Command::Data(_) | Command::Space(_));
    let data = directory(data.filter(|_| named), "--data", "ASNG_DATA", DataSet::Cifar10)?;
    let photos = directory(photos.filter(|_| named), "--photos", "ASNG_PHOTOS", DataSet::Photos)?;
    match command {
        Command::Serve(Serve { study, checkpoint_every, step_limit, computing, serving }) => {
            computing.apply(device)?;
            let precision = computing.precision;
            let engine = engine::Config { data, photos, device, threads, precision };
            let config =
                client::Config { controller, study, work_dir, checkpoint_every, step_limit };
            client::serve(config, engine, serving.open().await?, client::asked_to_end()?).await
        }
        Command::Evaluate(arguments) => {
            set_threads(threads);
            evaluate::run(arguments, &controller, &work_dir, (&data, &photos), device).await
        }
        Command::Compare(arguments) => {
            set_threads(threads);
            let precision = Precision::default();
            let engine = engine::Config { data, photos, device, threads, precision };
            compare::run(arguments, compare::Place { controller, work_dir, engine }).await
        }
        Command::Export(arguments) => export::run(&arguments),
        Command::Retrain(arguments) => {
            set_threads(threads);
            retrain::run(arguments, &controller, &data, &photos, device).await
        }
        Command::Data(command) => datasets::run(command),
        Command::Space(command) => space_command::run(command),
    }
}

/// Returns the directory that was given, which must exist, or else the default one, which may be missing.
fn directory(
    given: Option<PathBuf>,
    option: &str,
    variable: &str,
    default: DataSet,
) -> anyhow::Result<PathBuf> {
    let Some(given) = given else { return Ok(default.directory()) };
    ensure!(
        given.exists(),
        "{option} {}: there is no such directory; name one that exists with {option} or {variable}, or leave it out",
        given.display()
    );
    Ok(given)
}

fn set_threads(threads: Option<u16>) {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.into());
    }
}
