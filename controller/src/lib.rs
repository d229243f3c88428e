//! The controller of ASNG-NAS: it owns the distribution of every study, hands out steps, and never loses a report.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`asng`] | the optimiser: pure arithmetic |
//! | [`study`] | a study's states, steps, leases and reports: pure, takes the time as an argument |
//! | [`store`] | the only place that touches the database |
//! | [`studies`] | the thread that owns every study, and the one that commits |
//! | `service` | gRPC: who asks, decode, one operation, encode |
//! | [`web`] | HTTP: the live page, probes and `/metrics` |
//! | [`pictures`] | SVG and HTML of a study |
//! | [`conformance`] | a controller that misbehaves on purpose, for trainers to be tried on |
//! | `metrics` | what the store's commits cost |
//!
//! Imports point inwards: service and web, then studies, then store, then study, then asng. How it serves (TLS, tokens, limits, health,
//! metrics) is the crate `asng-serving`.

pub mod asng;
pub mod conformance;
mod metrics;
pub mod pictures;
mod service;
pub mod store;
pub mod studies;
pub mod study;
pub mod web;

#[cfg(test)]
#[path = "../../tests/src/postgres.rs"]
#[allow(dead_code, unreachable_pub)]
mod postgres;

use std::future::Future;

use asng_proto::v1::{
    search_service_server::{self, SearchServiceServer},
    study_service_server::{self, StudyServiceServer},
};
use asng_serving::{Health, Services};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    time::timeout,
};
use tonic::service::Routes;
use tracing::{error, info, warn};

use self::{
    service::Api,
    store::{Location, Reader},
    studies::Studies,
};

/// The configuration of a controller.
pub struct Config {
    /// Where the database is.
    pub location: Location,
    /// How much the database may hold.
    pub studies: studies::Limits,
    /// How it is served.
    pub serving: asng_serving::Config,
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
    #[error(transparent)]
    Serving(#[from] asng_serving::Error),
}

/// Serves the studies of `config` on `listener`, and what [`web`] shows on `http`, until `shutdown` is ready: then health
/// says NOT_SERVING, no more work is handed out, running requests end, and what they did is stored.
pub async fn run(
    config: Config,
    listener: TcpListener,
    http: Option<web::Listener>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Config { location, studies, serving } = config;
    let (studies, mut ended) = Studies::start(location.clone(), studies).await?;
    let reader = Reader::new(&location)?;
    let (stop, stopped) = watch::channel(false);
    let (end_http, http_ends) = oneshot::channel::<()>();
    let gate = serving.gate(service::RULES);
    let api = Api::new(studies.clone(), reader, stopped);
    if let Some(http) = http {
        let end = async { drop(http_ends.await) };
        let pages = web::serve(http, &serving, api.clone(), gate.clone(), end);
        tokio::spawn(async {
            if let Err(error) = async { pages?.await }.await {
                error!(%error, "HTTP has ended");
            }
        });
    }
    let (grace, max_size) = (serving.grace, serving.limits.max_message_size);
    let routes =
        Routes::new(StudyServiceServer::new(api.clone()).max_decoding_message_size(max_size))
            .add_service(SearchServiceServer::new(api).max_decoding_message_size(max_size));
    let names = [study_service_server::SERVICE_NAME, search_service_server::SERVICE_NAME];
    let health = Health::new(&names).await;
    let services = Services { routes, health: health.clone(), gate };
    let shutdown = async {
        shutdown.await;
        info!("shutting down");
        health.not_serving().await;
        stop.send_replace(true);
    };
    tokio::select! {
        result = asng_serving::run(serving, services, listener, shutdown) => result?,
        // While handles are left, the thread ends only if something is wrong.
        result = &mut ended => return Err(result.map_or(Error::Died, |result| match result {
            Ok(()) => Error::Died,
            Err(error) => error.into(),
        })),
    }
    // Probes were answered until now.
    drop(end_http);
    // With the last handle gone, the thread stores what is left to store and lets go of the database.
    drop(studies);
    match timeout(grace, ended).await {
        Ok(Ok(Ok(()))) => info!("shut down"),
        Ok(Ok(Err(error))) => return Err(error.into()),
        Ok(Err(_)) => return Err(Error::Died),
        Err(_) => warn!("shut down with requests still running"),
    }
    Ok(())
}
