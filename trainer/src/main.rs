//! The trainer's program: arguments, logs, signals, exit code.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use asng_client::Options;
use asng_trainer::{client, engine, evaluate, retrain};
use clap::{Args, Parser, Subcommand};
use tch::Device;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

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
    /// Directory of CIFAR-10's binary files, as `cargo xtask setup` makes it
    #[arg(
        long,
        global = true,
        env = "ASNG_DATA",
        default_value = "data/cifar-10-batches-bin",
        value_name = "DIR"
    )]
    data: PathBuf,
    /// What computes: auto (a GPU if there is one), cpu, or cuda:N
    #[arg(long, global = true, env = "ASNG_DEVICE", default_value = "auto", value_parser = engine::device)]
    device: Device,
    /// Threads of one operation on a CPU [default: one for each core]
    #[arg(long, global = true, env = "ASNG_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// What to log, as in RUST_LOG: a level, or "asng_trainer=debug,h2=warn"
    #[arg(long, global = true, env = "ASNG_LOG", default_value = "info")]
    log: EnvFilter,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work for a controller: train shared weights, report losses
    Serve(Serve),
    /// Test loss and accuracy of an architecture with a study's shared weights
    Evaluate(evaluate::Arguments),
    /// Train one architecture alone, from scratch; after an interruption the same command goes on
    Retrain(retrain::Arguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "On SIGTERM or SIGINT it gives its step back, saves the weights and ends with 0. \
    Started again with the same --work-dir it goes on from the weights last saved."
)]
struct Serve {
    /// Work on this study until it ends [default: any study of a space served here, for ever]
    #[arg(long)]
    study: Option<String>,
    /// Save weights and momentum after this many steps
    #[arg(long, default_value_t = 500, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
}

// One thread is enough for the network: what computes has a thread of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { command, common } = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(common.log.clone())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(command, common).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, common: Common) -> anyhow::Result<()> {
    let Common { controller, work_dir, data, device, threads, .. } = common;
    match command {
        Command::Serve(Serve { study, save_every }) => {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let stop = async move {
                tokio::select! {
                    _ = interrupt.recv() => info!("interrupted"),
                    _ = terminate.recv() => info!("terminated"),
                }
            };
            let engine = engine::Config { data, device, threads };
            let config = client::Config { controller, study, work_dir, save_every };
            client::serve(config, engine, stop).await
        }
        Command::Evaluate(arguments) => {
            set_threads(threads);
            evaluate::run(arguments, &controller, work_dir, data, device).await
        }
        Command::Retrain(arguments) => {
            set_threads(threads);
            retrain::run(arguments, &controller, data, device).await
        }
    }
}

fn set_threads(threads: Option<u16>) {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.into());
    }
}
