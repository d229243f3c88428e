//! The controller of ASNG-NAS: it owns the distribution of every study, hands out steps, and never loses a report.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`asng`] | the optimiser: pure arithmetic |
//! | [`study`] | a study's states, steps, leases and reports: pure, takes the time as an argument |
//! | [`store`] | the only place that touches the database |
//! | [`studies`] | the thread that owns every study, and the one that commits |
//! | [`access`] | tokens, their roles, and the studies they are bound to |
//! | [`limits`] | how much clients may ask for |
//! | [`tls`] | certificates and keys |
//! | [`files`] | values read from files, and read again when these change |
//! | `connections` | accepting them, in plain text or under TLS |
//! | `rpc` | the layer around every RPC: counters, spans, the version header |
//! | `service` | gRPC: who asks, decode, one operation, encode |
//! | [`web`] | HTTP: probes and `/metrics` |
//! | `metrics` | what the store's commits cost |
//!
//! Imports point inwards: service and web, then studies, then store, then study, then asng.

pub mod access;
pub mod asng;
mod connections;
pub mod files;
pub mod limits;
mod metrics;
mod rpc;
mod service;
pub mod store;
pub mod studies;
pub mod study;
pub mod tls;
pub mod web;

#[cfg(test)]
#[path = "../../tests/src/postgres.rs"]
#[allow(unreachable_pub)]
mod postgres;

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use asng_proto::v1::{
    search_service_server::SearchServiceServer, study_service_server::StudyServiceServer,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use tokio_rustls::rustls::ServerConfig;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tower::layer::layer_fn;
use tracing::{error, info, warn};

use self::{
    access::Tokens,
    files::Watched,
    limits::{Limits, RateLimit},
    service::{Api, Gate},
    store::{Location, Reader},
    studies::Studies,
};

/// Peers that do not answer a ping in this time are gone.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Headers of a request, in bytes; a token and a trace take some hundreds.
const MAX_HEADERS: u32 = 16 * 1024;
/// Requests that a client has cancelled before they were looked at; beyond, its connection is closed.
const MAX_RESETS: usize = 64;
/// How soon a change of a file is noticed.
const FILES_INTERVAL: Duration = Duration::from_secs(1);

/// What a controller is to be.
pub struct Config {
    /// Where the database is.
    pub location: Location,
    /// How much the database may hold.
    pub studies: studies::Limits,
    /// What TLS is served with; absent: plain text.
    pub tls: Option<Watched<ServerConfig>>,
    /// Who may do what; absent: everybody everything.
    pub tokens: Option<Watched<Tokens>>,
    /// How much clients may ask for.
    pub limits: Limits,
    /// How long running requests may take to end after a shutdown began.
    pub grace: Duration,
    /// When notified, `tls` and `tokens` are read again at once. Without, it may take a second.
    pub reload: Arc<Notify>,
}

/// Why the controller ended otherwise than by request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The thread that owns the studies could not start, or had to end.
    #[error(transparent)]
    Studies(#[from] studies::Error),
    /// The thread that owns the studies has panicked: a fault of this program. What was acknowledged is stored.
    #[error("the thread that owns the studies has died")]
    Died,
    /// The server cannot serve.
    #[error("server: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves the studies of `config` on `listener`, and what [`web`] shows on `http`, until `shutdown` is ready: then health
/// says NOT_SERVING, no more work is handed out, running requests end, and what they did is stored.
pub async fn run(
    config: Config,
    listener: TcpListener,
    http: Option<TcpListener>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Config { location, studies, tls, tokens, limits, grace, reload } = config;
    let (studies, mut ended) = Studies::start(location.clone(), studies).await?;
    let reader = Reader::new(&location)?;
    let (stop, mut stopped) = watch::channel(false);
    let (end_http, http_ends) = oneshot::channel::<()>();
    if let Some(http) = http {
        let end = async { drop(http_ends.await) };
        let serving = web::serve(http, studies.clone(), reader.clone(), stopped.clone(), end);
        tokio::spawn(async {
            if let Err(error) = serving.await {
                error!(%error, "HTTP has ended");
            }
        });
    }
    let api = Api { studies, reader, closing: stopped.clone() };

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<StudyServiceServer<Api>>().await;
    health.set_serving::<SearchServiceServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(asng_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let rate_limit = limits.rate_limit.map(RateLimit::new).map(Arc::new);
    let gate = Gate {
        tokens: tokens.as_ref().map(Watched::subscribe),
        rate_limit: rate_limit.clone(),
        request_timeout: limits.request_timeout,
    };

    let connections =
        connections::accept(listener, tls.as_ref().map(Watched::subscribe), limits.max_connections);
    let server = Server::builder()
        .layer(layer_fn(rpc::Observed))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(limits.max_streams)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .layer(gate)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(
            StudyServiceServer::new(api.clone()).max_decoding_message_size(limits.max_message_size),
        )
        .add_service(
            SearchServiceServer::new(api).max_decoding_message_size(limits.max_message_size),
        )
        .serve_with_incoming_shutdown(connections, async move {
            // An error means that `stop` is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    let mut server = Box::pin(server);

    tokio::select! {
        result = &mut server => return Ok(result?),
        // While handles are left, the thread ends only if something is wrong.
        result = &mut ended => return Err(result.map_or(Error::Died, |result| match result {
            Ok(()) => Error::Died,
            Err(error) => error.into(),
        })),
        never = keep_fresh(tls, tokens, rate_limit, reload) => match never {},
        () = shutdown => {}
    }
    info!("shutting down");
    health.set_service_status("", ServingStatus::NotServing).await;
    health.set_not_serving::<StudyServiceServer<Api>>().await;
    health.set_not_serving::<SearchServiceServer<Api>>().await;
    stop.send_replace(true);
    match timeout(grace, &mut server).await {
        Ok(result) => info!(clean = result.is_ok(), "no request is running any more"),
        Err(_) => warn!(?grace, "requests are still running"),
    }
    // Probes were answered until now.
    drop(end_http);
    // With the last handle gone, the thread stores what is left to store and lets go of the database.
    drop(server);
    match timeout(grace, ended).await {
        Ok(Ok(Ok(()))) => info!("shut down"),
        Ok(Ok(Err(error))) => return Err(error.into()),
        Ok(Err(_)) => return Err(Error::Died),
        Err(_) => warn!("shut down with requests still running"),
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
