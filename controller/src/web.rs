//! HTTP beside gRPC, on a port of its own: probes, and metrics in the OpenMetrics text that Prometheus reads. It only
//! looks: nothing here changes a study.

mod metrics;
mod studies;

use std::{future::Future, io, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use crate::{store::Reader, studies::Studies};

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

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug)]
struct Address(Option<SocketAddr>);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if text == "off" {
            return Ok(Address(None));
        }
        let address = text.parse();
        let address = address.map_err(|_| "say an address such as 127.0.0.1:50052, or off")?;
        Ok(Address(Some(address)))
    }
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
    registry: Arc<Registry>,
}

/// Serves on `listener` until `shutdown` is ready. Readiness ends before that, when `stopping` turns true.
pub async fn serve(
    listener: TcpListener,
    studies: Studies,
    reader: Reader,
    stopping: watch::Receiver<bool>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let registry = Arc::new(metrics::registry());
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Sight { studies, reader, stopping, registry });
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// Whether the process should go on living.
async fn healthz(State(sight): State<Sight>) -> Result<&'static str, Unavailable> {
    if sight.studies.have_ended() {
        return Err(Unavailable("the thread that owns the studies has ended".into()));
    }
    Ok("ok\n")
}

/// Whether requests are of use here.
async fn readyz(State(sight): State<Sight>) -> Result<&'static str, Unavailable> {
    if *sight.stopping.borrow() {
        return Err(Unavailable("the controller is shutting down".into()));
    }
    let answers = async {
        sight.reader.check().await.map_err(|error| error.to_string())?;
        sight.studies.run(|_, _| Ok(())).await.map_err(|error| error.to_string())
    };
    match timeout(PATIENCE, answers).await {
        Ok(answer) => answer.map(|()| "ok\n").map_err(Unavailable),
        Err(_) => Err(Unavailable(format!("the studies have not answered within {PATIENCE:?}"))),
    }
}

async fn metrics(State(sight): State<Sight>) -> impl IntoResponse {
    // Without the studies the rest is worth the more.
    let snapshot = timeout(PATIENCE, sight.studies.run(studies::snapshot)).await;
    let snapshot = snapshot.ok().and_then(Result::ok);
    let text = metrics::text(&sight.registry, snapshot);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// 503 with a sentence that says why.
struct Unavailable(String);

impl IntoResponse for Unavailable {
    fn into_response(self) -> axum::response::Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0 + "\n").into_response()
    }
}
