//! The servers of a trainer: TrainerService over gRPC; probes and metrics over HTTP, on another port.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use asng_client::TRAINER_PORT;
use asng_proto::v1::trainer_service_server::{SERVICE_NAME, TrainerServiceServer};
use asng_serving::{Address, Exposure, Health, Services, http, limits::Limits};
use clap::Args;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{error, info};

use super::{
    service::{Api, RULES},
    state::State,
};
use crate::{engine::Engine, metrics};

const HTTP_PORT: u16 = 50054;
/// Time for running requests to finish when the trainer ends.
const GRACE: Duration = Duration::from_secs(2);
/// Limits for a few people and their tools.
const LIMITS: Limits = Limits {
    max_message_size: 1 << 20,
    max_connections: 256,
    max_streams: 100,
    request_timeout: Duration::from_secs(60),
    rate_limit: None,
};

/// Options of the servers.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(next_help_heading = "Serving")]
pub struct Options {
    /// Address to serve TrainerService on (status, evaluation, checkpoint, drain): HOST:PORT, HOST, PORT on loopback, or :PORT
    /// on every interface; or off [default: 127.0.0.1:50053, or any free port of this machine when that is taken]
    #[arg(long, env = "ASNG_TRAINER_LISTEN", value_name = "ADDRESS|off")]
    #[arg(value_parser = |text: &str| Address::parse(text, TRAINER_PORT))]
    listen: Option<Address>,
    /// Address to serve HTTP on: /metrics for Prometheus, /healthz and /readyz for probes; or off. There is no
    /// authentication [default: 127.0.0.1:50054, or any free port of this machine when that is taken]
    #[arg(long, env = "ASNG_TRAINER_HTTP", value_name = "ADDRESS|off")]
    #[arg(value_parser = |text: &str| Address::parse(text, HTTP_PORT))]
    http: Option<Address>,
    /// PEM file of the trainer's certificate as a server; read again when it changes, as are the other files here
    #[arg(long, env = "ASNG_SERVE_TLS_CERT", value_name = "FILE")]
    serve_tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "ASNG_SERVE_TLS_KEY", value_name = "FILE")]
    serve_tls_key: Option<PathBuf>,
    /// PEM file of the authority of the clients' certificates, which they must then have: mutual TLS
    #[arg(long, env = "ASNG_SERVE_TLS_CLIENT_CA", value_name = "FILE")]
    serve_tls_client_ca: Option<PathBuf>,
    /// TOML file of the tokens, one of which every client must then have; it may be the controller's own
    #[arg(long, env = "ASNG_SERVE_TOKEN_FILE", value_name = "FILE")]
    serve_token_file: Option<PathBuf>,
    /// Serve other machines also in plain text, or without knowing who they are
    #[arg(long, env = "ASNG_SERVE_INSECURE")]
    serve_insecure: bool,
}

/// The bound ports.
pub struct Listeners {
    grpc: Option<(TcpListener, asng_serving::Config)>,
    http: Option<TcpListener>,
}

impl Listeners {
    /// No ports: nothing is served.
    pub const NONE: Listeners = Listeners { grpc: None, http: None };
}

impl Options {
    /// Reads the files and binds the ports.
    pub async fn open(self) -> anyhow::Result<Listeners> {
        let grpc = Port::of(self.listen, TRAINER_PORT, "--listen");
        let exposure = Exposure {
            prefix: "serve-",
            tls_cert: self.serve_tls_cert,
            tls_key: self.serve_tls_key,
            tls_client_ca: self.serve_tls_client_ca,
            token_file: self.serve_token_file,
            insecure: self.serve_insecure,
        };
        let grpc = match grpc {
            Some(port) => {
                // Read before anybody can connect.
                let (tls, tokens) = exposure.read(port.address).await?;
                let (limits, reload) = (LIMITS, Arc::default());
                let config = asng_serving::Config { tls, tokens, limits, grace: GRACE, reload };
                Some((port.bind().await?, config))
            }
            None => None,
        };
        let http = match Port::of(self.http, HTTP_PORT, "--http") {
            Some(port) => Some(port.bind().await?),
            None => None,
        };
        Ok(Listeners { grpc, http })
    }
}

/// An address to listen on.
struct Port {
    address: SocketAddr,
    /// True if the address was given, and is not the default.
    named: bool,
    option: &'static str,
}

impl Port {
    /// Returns the address that was given, unless that is off, or else the default port of loopback.
    fn of(named: Option<Address>, default: u16, option: &'static str) -> Option<Port> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, default));
        let Address(address) = named.unwrap_or(Address(Some(loopback)));
        address.map(|address| Port { address, named: named.is_some(), option })
    }

    /// Binds the port. If the default is in use, any free port is bound instead.
    async fn bind(self) -> anyhow::Result<TcpListener> {
        let Port { mut address, named, option } = self;
        let mut bound = TcpListener::bind(address).await;
        if let Err(error) = &bound
            && error.kind() == io::ErrorKind::AddrInUse
            && !named
        {
            address.set_port(0);
            bound = TcpListener::bind(address).await;
        }
        bound.with_context(|| {
            format!("cannot listen on {address}; give another address with {option}, or off")
        })
    }
}

/// Serves until `end` is cancelled.
pub(super) async fn serve(
    listeners: Listeners,
    health: Health,
    api: Api,
    end: CancellationToken,
) -> anyhow::Result<()> {
    let Listeners { grpc, http } = listeners;
    let address = grpc.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
    let http_address = http.as_ref().map(TcpListener::local_addr).transpose()?;
    info!(
        address = address.map(tracing::field::display),
        tls = grpc.as_ref().is_some_and(|(_, config)| config.tls.is_some()),
        http = http_address.map(tracing::field::display),
        "serving"
    );
    if let Some(listener) = http {
        let source = TrainerHealth { engine: api.engine.clone(), state: api.state.clone() };
        let pages =
            http::serve(listener, metrics::registry(), source, end.clone().cancelled_owned());
        tokio::spawn(async {
            if let Err(error) = pages.await {
                error!(%error, "the HTTP server has failed");
            }
        });
    }
    let Some((listener, config)) = grpc else {
        end.cancelled().await;
        return Ok(());
    };
    let service = TrainerServiceServer::new(api).max_decoding_message_size(LIMITS.max_message_size);
    let services = Services { routes: Routes::new(service), health, gate: config.gate(RULES) };
    Ok(asng_serving::run(config, services, listener, end.cancelled_owned()).await?)
}

/// Returns a health service that reports TrainerService as SERVING.
pub(super) async fn health() -> Health {
    Health::new(&[SERVICE_NAME]).await
}

/// The source of the probes and metrics.
#[derive(Clone)]
struct TrainerHealth {
    engine: Engine,
    state: watch::Receiver<State>,
}

impl http::HealthSource for TrainerHealth {
    fn alive(&self) -> Result<(), String> {
        if self.engine.has_died() {
            return Err("the engine's thread has ended".into());
        }
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        self.alive()?;
        if self.state.borrow().draining {
            return Err("the trainer is draining".into());
        }
        match self.engine.checkpoint_problems().into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    async fn look(&self) -> Registry {
        let mut registry = Registry::default();
        let state = self.state.borrow().clone();
        let unwritten = self.engine.checkpoint_problems().len();
        registry.register_collector(Box::new(StateMetrics { state, unwritten }));
        registry
    }
}

/// Metrics that are read off the status when they are scraped.
#[derive(Debug)]
struct StateMetrics {
    state: State,
    /// Studies whose weights cannot be written.
    unwritten: usize,
}

impl Collector for StateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let unwritten = encoder.encode_descriptor(
            "asng_trainer_unwritten_studies",
            "Studies whose weights cannot be written and are kept in memory.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.unwritten as i64).encode(unwritten)?;
        let set_aside = self.state.set_aside.at(Instant::now());
        if !set_aside.is_empty() {
            let (name, help) = ("asng_trainer_study_set_aside", "1 while a study is set aside.");
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for study in set_aside {
                let labels = [("study", study.study.as_str())];
                ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let Some(open) = &self.state.open else { return Ok(()) };
        let last = open.last.as_ref();
        let smallest = last.and_then(|last| last.losses.iter().copied().reduce(f64::min));
        let learning_rate = last.and_then(|last| last.metrics.get("learning_rate").copied());
        for (name, help, value) in [
            ("asng_trainer_last_loss", "Smallest loss of the last step.", smallest),
            ("asng_trainer_best_loss", "Smallest loss since the study was opened.", open.best_loss),
            ("asng_trainer_learning_rate", "Learning rate of the last step.", learning_rate),
        ] {
            if let Some(value) = value {
                let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                let labels = [("study", open.study.as_str())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
