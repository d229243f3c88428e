//! The controller's daemon: configuration, logs, signals, exit code; and what makes its certificates and tokens.

mod backup;
mod certs;
mod config;
mod token;

use std::{
    io::{self, IsTerminal},
    process::{self, ExitCode},
    sync::Arc,
};

use anyhow::Context;
use clap::error::ErrorKind;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::{error, info, warn};

use self::config::{Cli, Command, Options};

#[tokio::main]
async fn main() -> ExitCode {
    let (Cli { command, serve: options }, in_effect) = config::parse();
    let result = match command {
        None => serve(options, &in_effect).await,
        Some(Command::Serve(options)) => serve(*options, &in_effect).await,
        Some(Command::Certs(options)) => certs::make(&options),
        Some(Command::Token(options)) => token::make(&options),
        Some(Command::Backup(options)) => backup::back_up(&options),
        Some(Command::Restore(options)) => backup::restore(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options, in_effect: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(options.log.clone())
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let (listen, reload) = (options.listen, Arc::new(Notify::new()));
    let config = match options.config(reload.clone()).await {
        Ok(config) => config,
        Err(error) => config::refuse(ErrorKind::ValueValidation, format!("{error:#}")),
    };
    info!("configuration: {in_effect}");
    let mut end = End::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            info!("hung up: certificates and tokens are read again if they have changed");
            reload.notify_one();
        }
    });
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let tls = config.tls.is_some();
    info!(address = %listener.local_addr()?, tls, "serving gRPC");
    let shutdown = async move {
        end.signal().await;
        tokio::spawn(async move {
            end.signal().await;
            warn!("ended at once, by a second signal");
            process::exit(1);
        });
    };
    let result = asng_controller::run(config, listener, shutdown).await;
    // In the log as well, where whoever looks for the reason will look.
    result.inspect_err(|error| error!("{error:#}"))?;
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
