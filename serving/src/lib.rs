//! How a program of ASNG-NAS serves: gRPC under TLS, behind tokens and limits, with health, reflection and metrics; and HTTP
//! beside it. What its services do, and which role each of their methods needs, is for the program to say.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`access`] | tokens, their roles, and the studies they are bound to |
//! | [`limits`] | how much clients may ask for |
//! | [`tls`] | certificates and keys |
//! | [`files`] | values read from files, and read again when these change |
//! | [`status`] | errors that more than one service answers with |
//! | [`condition`] | conditions that last: logged once, not each time they are met |
//! | [`http`] | probes and `/metrics`, and where further pages are served |
//! | `exposure` | what would be open to the world by oversight |
//! | `address` | where to listen, if at all |
//! | `connections` | accepting them, in plain text or under TLS |
//! | `gate` | what every request passes first |
//! | `rpc` | the layer around every RPC: counters, spans, the version header |
//! | `metrics` | what is counted, and what the process takes |

pub mod access;
mod address;
pub mod condition;
mod connections;
mod exposure;
pub mod files;
mod gate;
pub mod http;
pub mod limits;
mod metrics;
mod rpc;
pub mod status;
pub mod tls;

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_rustls::rustls::ServerConfig;
use tonic::{
    service::Routes,
    transport::{self, Server},
};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::layer::layer_fn;
use tracing::{info, warn};

use self::{
    access::Tokens,
    connections::Protocol,
    files::Watched,
    limits::{Limits, RateLimit},
};
pub use self::{
    address::{Address, listen_address},
    exposure::Exposure,
    gate::{Gate, Rules},
    metrics::registry,
    rpc::code_name,
};

/// Peers that do not answer a ping in this time are gone.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Headers of a request, in bytes; a token and a trace take some hundreds.
const MAX_HEADERS: u32 = 16 * 1024;
/// Requests that a client has cancelled before they were looked at; beyond, its connection is closed.
const MAX_RESETS: usize = 64;
/// How soon a change of a file is noticed.
const FILES_INTERVAL: Duration = Duration::from_secs(1);

/// The configuration of a server.
pub struct Config {
    /// Certificate and key of TLS; plain text if absent.
    pub tls: Option<Watched<ServerConfig>>,
    /// The accepted tokens; full access for everyone if absent.
    pub tokens: Option<Watched<Tokens>>,
    /// How much clients may ask for.
    pub limits: Limits,
    /// How long running requests may take to end after a shutdown began.
    pub grace: Duration,
    /// A notification to read `tls` and `tokens` again at once. Otherwise it may take a second.
    pub reload: Arc<Notify>,
}

impl Config {
    /// Returns the access check of a program with these rules.
    pub fn gate(&self, rules: Rules) -> Gate {
        Gate {
            rules,
            tokens: self.tokens.as_ref().map(Watched::subscribe),
            rate_limit: self.limits.rate_limit.map(RateLimit::new).map(Arc::new),
            request_timeout: self.limits.request_timeout,
        }
    }
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot serve.
    #[error("server: {0}")]
    Server(#[from] transport::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The services of a server.
pub struct Services {
    /// The program's own services.
    pub routes: Routes,
    /// The health of the services; made of their names.
    pub health: Health,
    /// The access check of the services; made of the same configuration.
    pub gate: Gate,
}

/// The health of a server over `grpc.health.v1`.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    services: Vec<&'static str>,
}

impl Health {
    /// SERVING, for the server as a whole and each of `services`.
    pub async fn new(services: &[&'static str]) -> Health {
        let health = Health { reporter: HealthReporter::new(), services: services.into() };
        health.set(ServingStatus::Serving).await;
        health
    }

    /// NOT_SERVING from now on, so that clients go elsewhere. Requests are still answered.
    pub async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in [""].iter().chain(&self.services) {
            self.reporter.set_service_status(*service, status).await;
        }
    }
}

/// Serves on `listener` until `shutdown` is ready: then running requests have `grace` to end.
pub async fn run(
    config: Config,
    services: Services,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Config { tls, tokens, limits, grace, reload } = config;
    let Services { routes, health, gate } = services;
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(asng_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(tonic_health::pb::health_server::SERVICE_NAME);
    for service in &health.services {
        reflection = reflection.with_service_name(*service);
    }
    let rate_limit = gate.rate_limit.clone();
    let connections = connections::accept(
        listener,
        tls.as_ref().map(Watched::subscribe),
        limits.max_connections,
        Protocol::Grpc,
    );
    let (end, ended) = oneshot::channel::<()>();
    let server = Server::builder()
        .layer(layer_fn(rpc::Observed))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(limits.max_streams)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .layer(gate)
        .add_routes(routes)
        .add_service(HealthServer::new(HealthService::from_health_reporter(health.reporter)))
        .add_service(reflection.build_v1()?)
        .serve_with_incoming_shutdown(connections, async { drop(ended.await) });
    tokio::pin!(server);

    tokio::select! {
        result = &mut server => return Ok(result?),
        never = keep_fresh(tls, tokens, rate_limit, reload) => match never {},
        () = shutdown => {}
    }
    drop(end);
    match timeout(grace, server).await {
        Ok(result) => info!(clean = result.is_ok(), "no request is running any more"),
        Err(_) => warn!(?grace, "requests are still running"),
    }
    Ok(())
}

/// Reads the files again when they have changed, and lets go of clients that have gone.
async fn keep_fresh(
    mut tls: Option<Watched<ServerConfig>>,
    mut tokens: Option<Watched<Tokens>>,
    rate_limit: Option<Arc<RateLimit>>,
    reload: Arc<Notify>,
) -> Infallible {
    loop {
        // Either will do.
        let _ = timeout(FILES_INTERVAL, reload.notified()).await;
        if let Some(tls) = &mut tls {
            tls.refresh().await;
        }
        if let Some(tokens) = &mut tokens {
            tokens.refresh().await;
        }
        if let Some(rate_limit) = &rate_limit {
            rate_limit.forget_quiet();
        }
    }
}
