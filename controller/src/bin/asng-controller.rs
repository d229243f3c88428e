//! The controller's daemon: arguments, logs, signals, exit code.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use asng_client::telemetry;
use asng_controller::{store::Location, web};
use clap::Parser;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info};

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
    #[command(flatten)]
    web: web::Options,
    #[command(flatten)]
    telemetry: telemetry::Options,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { listen, state_dir, web, telemetry } = Arguments::parse();
    let telemetry = match telemetry.start("asng-controller") {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("asng-controller: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = serve(listen, state_dir, web).await;
    if let Err(error) = &result {
        error!("{error:#}");
    }
    telemetry.flush().await;
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn serve(listen: SocketAddr, state_dir: PathBuf, web: web::Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let http = web.listen().await?;
    info!(
        address = %listener.local_addr()?,
        http = http.as_ref().map(TcpListener::local_addr).transpose()?.map(tracing::field::display),
        state_dir = %state_dir.display(),
        "serving"
    );
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => info!("interrupted"),
            _ = terminate.recv() => info!("terminated"),
        }
    };
    asng_controller::run(Location::Directory(state_dir), listener, http, shutdown).await?;
    Ok(())
}
