//! The trainer's program: arguments, logs, signals, exit code.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::ensure;
use asng_client::{Options, Prefetch, environment, telemetry};
use asng_trainer::{
    compare, computing, datasets, engine, evaluate, export,
    images::Catalogue,
    retrain, select, spaces,
    torch::Precision,
    worker::{self, serving},
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
    /// A data set by the name that studies have for it; may be repeated. DIR has a folder of image files for each class, or
    /// train/ and test/ with such folders [default: cifar10, cifar100, fashion-mnist and photos below ./data]
    #[arg(long, global = true, env = "ASNG_IMAGES", value_name = "NAME=DIR", value_delimiter = ',', value_parser = data_set)]
    images: Vec<(String, PathBuf)>,
    /// Directory of CIFAR-10's binary files, as `asng-trainer data fetch cifar10` makes it: short for --images cifar10=DIR
    /// [default: data/cifar-10-batches-bin]
    #[arg(long, global = true, env = "ASNG_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory of photos to fill in, in folders or not (`asng-trainer data fetch photos` brings some): short for --images
    /// photos=DIR [default: data/photos]
    #[arg(long, global = true, env = "ASNG_PHOTOS", value_name = "DIR")]
    photos: Option<PathBuf>,
    /// Device: auto (a GPU if there is one), cpu, or cuda:N
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
    /// Evaluate an architecture on the test images, with a study's shared weights or its own
    Evaluate(evaluate::Arguments),
    /// Choose an architecture of a study to retrain: compare the most likely one and others with the shared weights
    Select(select::Arguments),
    /// Train one architecture alone, from scratch; after an interruption the same command goes on
    Retrain(retrain::Arguments),
    /// Compare ASNG, SNG and random search with the same steps and seeds, each result retrained
    Compare(compare::Arguments),
    /// Export a retrained network for other programs: TorchScript, ONNX, safetensors, JSON, Graphviz
    Export(export::Arguments),
    /// Fetch data sets, or look at a directory of images
    #[command(subcommand)]
    Data(datasets::Command),
    /// List the spaces that ship, check a space file, draw an architecture
    #[command(subcommand)]
    Space(spaces::Command),
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
    /// Lease steps ahead to hide the round trip to a distant controller: a number from 0 to 64, or auto, by measured times. Reports are
    /// as many updates stale; with 0 and one trainer a search can be repeated bit for bit
    #[arg(long, env = "ASNG_PREFETCH", default_value_t, value_name = "STEPS")]
    prefetch: Prefetch,
    /// Measure the latency of one image through each ranked architecture, and report it as the cost latency_ms
    #[arg(long, env = "ASNG_MEASURE_LATENCY")]
    measure_latency: bool,
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
    let Common { controller, work_dir, images, data, photos, device, threads, .. } = common;
    if !matches!(command, Command::Serve(_) | Command::Compare(_)) {
        // A reader that has seen enough, such as `head`, ends the command without a panic.
        sigpipe::reset();
    }
    let mut given = images;
    for (name, option, variable, directory) in
        [("cifar10", "--data", "ASNG_DATA", data), ("photos", "--photos", "ASNG_PHOTOS", photos)]
    {
        // `data fetch` brings what may not be there yet.
        let Some(directory) = directory.filter(|_| !matches!(command, Command::Data(_))) else {
            continue;
        };
        ensure!(
            directory.exists(),
            "{option} {}: there is no such directory; name one that exists with {option} or {variable}, or leave it out",
            directory.display()
        );
        given.push((name.to_owned(), directory));
    }
    // Decoded images are kept with the trainer's other files.
    let catalogue = Arc::new(Catalogue::new(&given, &work_dir.join("images"))?);
    let engine = |precision, measure_latency| {
        let catalogue = catalogue.clone();
        engine::Config { catalogue, device, threads, precision, measure_latency }
    };
    if let Some(threads) = threads {
        tch::set_num_threads(threads.into());
    }
    match command {
        Command::Serve(serve) => {
            let Serve { study, checkpoint_every, step_limit, prefetch, measure_latency, .. } =
                serve;
            serve.computing.apply(device)?;
            let engine = engine(serve.computing.precision, measure_latency);
            let config = worker::Config {
                controller,
                study,
                work_dir,
                checkpoint_every,
                step_limit,
                prefetch,
            };
            let listeners = serve.serving.open().await?;
            worker::serve(config, engine, listeners, worker::asked_to_end()?).await
        }
        Command::Evaluate(arguments) => {
            evaluate::run(arguments, &controller, &work_dir, &catalogue, device).await
        }
        Command::Select(arguments) => {
            select::run(arguments, &controller, &work_dir, &catalogue, device).await
        }
        Command::Compare(arguments) => {
            let engine = engine(Precision::default(), false);
            compare::run(arguments, compare::Place { controller, work_dir, engine }).await
        }
        Command::Export(arguments) => export::run(&arguments),
        Command::Retrain(arguments) => {
            retrain::run(arguments, &controller, &work_dir, &catalogue, device).await
        }
        Command::Data(command) => datasets::run(command),
        Command::Space(command) => spaces::run(command),
    }
}

fn data_set(text: &str) -> Result<(String, PathBuf), String> {
    let (name, directory) =
        text.split_once('=').ok_or("write NAME=DIR, such as flowers=/data/flowers")?;
    Ok((name.to_owned(), directory.into()))
}
