//! The controller's daemon: arguments, logs, signals, exit code.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use asng_controller::store::Location;
use clap::Parser;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Owns the studies of a neural architecture search: hands out steps to trainers, takes their reports, moves the
/// distributions.
#[derive(Debug, Parser)]
#[command(
    name = "asng-controller",
    version,
    after_help = "\
Example:
  asng-controller --state-dir ./asng-state
  asngctl study create first --space enas-micro --max-steps 1000

Everything is kept in the state directory; a report that was acknowledged survives a crash at any moment."
)]
struct Arguments {
    /// Address to serve gRPC on. Port 0 takes any free port and logs it. There is no authentication: keep it on
    /// loopback or inside a network you trust
    #[arg(long, env = "ASNG_LISTEN", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Directory of the database, made if it is not there; one controller at a time
    #[arg(long, env = "ASNG_STATE_DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// What to log, as in RUST_LOG: a level, or "asng_controller=debug,h2=warn"
    #[arg(long, env = "ASNG_LOG", default_value = "info")]
    log: EnvFilter,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match serve(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(Arguments { listen, state_dir, log }: Arguments) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    info!(address = %listener.local_addr()?, state_dir = %state_dir.display(), "serving gRPC");
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => info!("interrupted"),
            _ = terminate.recv() => info!("terminated"),
        }
    };
    asng_controller::run(Location::Directory(state_dir), listener, shutdown).await?;
    Ok(())
}
