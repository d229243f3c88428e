//! The controller's daemon: configuration, logs, signals, exit code; and what makes its certificates and tokens.

mod backup;
mod certs;
mod config;
mod token;

use std::{
    io,
    net::SocketAddr,
    process::{self, ExitCode},
    sync::Arc,
};

use anyhow::Context;
use asng_controller::{Config, store::Location, web};
use clap::error::ErrorKind;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::{error, info, warn};

use self::config::{Cli, Command, Options};

/// Every report allocates on one thread and frees on another, for which glibc's allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let (Cli { command, serve: options }, in_effect) = config::parse();
    let made = match command {
        None => return serve(options, &in_effect).await,
        Some(Command::Serve(options)) => return serve(*options, &in_effect).await,
        Some(Command::Certs(options)) => certs::make(&options),
        Some(Command::Token(options)) => token::make(&options),
        Some(Command::Backup(options)) => backup::back_up(&options),
        Some(Command::Restore(options)) => backup::restore(&options),
    };
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options, in_effect: &str) -> ExitCode {
    let telemetry = match options.telemetry.clone().start("asng-controller") {
        Ok(telemetry) => telemetry,
        Err(error) => config::refuse(ErrorKind::ValueValidation, format!("{error:#}")),
    };
    let (listen, web, insecure) = (options.listen, options.web.clone(), options.insecure);
    let reload = Arc::new(Notify::new());
    let config = match options.config(reload.clone()).await {
        Ok(config) => config,
        Err(error) => config::refuse(ErrorKind::ValueValidation, format!("{error:#}")),
    };
    info!("configuration: {in_effect}");
    let result = run(listen, web, insecure, config, reload).await;
    if let Err(error) = &result {
        error!("{error:#}");
    }
    telemetry.flush().await;
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves until a signal asks for an end.
async fn run(
    listen: SocketAddr,
    web: web::Options,
    insecure: bool,
    mut config: Config,
    reload: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut end = End::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            info!("SIGHUP: changed certificates and tokens are read again");
            reload.notify_one();
        }
    });
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let http = web.listen(insecure).await?;
    let (tls, address) = (config.serving.tls.is_some(), listener.local_addr()?);
    if let Location::Postgres { advertise, .. } = &mut config.location
        && advertise.is_empty()
    {
        *advertise = format!("{}://{address}", if tls { "https" } else { "http" });
    }
    let http_address = http.as_ref().map(web::Listener::address).transpose()?;
    info!(
        %address,
        tls,
        http = http_address.map(tracing::field::display),
        store = %config.location,
        "serving"
    );
    let shutdown = async move {
        end.signal().await;
        tokio::spawn(async move {
            end.signal().await;
            warn!("a second signal: ending at once");
            process::exit(1);
        });
    };
    asng_controller::run(config, listener, http, shutdown).await?;
    Ok(())
}

/// The signals that ask for an end.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> io::Result<End> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(End { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn signal(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => info!("interrupted"),
            _ = self.terminate.recv() => info!("terminated"),
        }
    }
}
