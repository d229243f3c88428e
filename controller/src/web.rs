//! HTTP beside gRPC, on a port of its own: probes, and metrics in the OpenMetrics text that Prometheus reads. It only
//! looks: nothing here changes a study.

mod studies;

use std::{future::Future, io, time::Duration};

use anyhow::Context;
use asng_serving::{Address, http};
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use crate::{metrics, store::Reader, studies::Studies};

/// How long the studies may take to answer a probe or a scrape.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a person decides about HTTP.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Address to serve HTTP on: /metrics for Prometheus, /healthz and /readyz for probes; or off. There is no
    /// authentication, and whoever reads the metrics learns the names of studies
    #[arg(long, env = "ASNG_HTTP", default_value = "127.0.0.1:50052", value_name = "ADDRESS|off")]
    http: Address,
}

impl Options {
    /// Binds the port; none when it is off.
    pub async fn listen(&self) -> anyhow::Result<Option<TcpListener>> {
        let Address(Some(address)) = self.http else { return Ok(None) };
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for HTTP; give another address with --http, or off")
        })?;
        Ok(Some(listener))
    }
}

/// What the pages look at.
#[derive(Clone)]
struct Sight {
    studies: Studies,
    reader: Reader,
    stopping: watch::Receiver<bool>,
}

/// Serves on `listener` until `shutdown` is ready. Readiness ends before that, when `stopping` turns true.
pub async fn serve(
    listener: TcpListener,
    studies: Studies,
    reader: Reader,
    stopping: watch::Receiver<bool>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut registry = asng_serving::registry();
    metrics::register(&mut registry);
    http::serve(listener, registry, Sight { studies, reader, stopping }, shutdown).await
}

impl http::Sight for Sight {
    fn alive(&self) -> Result<(), String> {
        if self.studies.have_ended() {
            return Err("the thread that owns the studies has ended".into());
        }
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        if *self.stopping.borrow() {
            return Err("the controller is shutting down".into());
        }
        let answers = async {
            self.reader.check().await.map_err(|error| error.to_string())?;
            self.studies.run(|_, _| Ok(())).await.map_err(|error| error.to_string())
        };
        match timeout(PATIENCE, answers).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("the studies have not answered within {PATIENCE:?}")),
        }
    }

    /// The studies, if they answer: without them the rest is worth the more.
    async fn look(&self) -> Registry {
        let mut registry = Registry::default();
        let snapshot = timeout(PATIENCE, self.studies.run(studies::snapshot)).await;
        if let Ok(Ok(snapshot)) = snapshot {
            registry.register_collector(Box::new(snapshot));
        }
        registry
    }
}
