//! The controller of ASNG-NAS: it owns the distribution of every study, hands out steps, and never loses a report.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`asng`] | the optimiser: pure arithmetic |
//! | [`study`] | a study's states, steps, leases and reports: pure, takes the time as an argument |
//! | [`store`] | the only place that touches the database |
//! | [`studies`] | the thread that owns every study and the store |
//! | [`service`] | gRPC: decode, one operation, encode |
//!
//! Imports point inwards: service, then studies, then store, then study, then asng.

pub mod asng;
pub mod service;
pub mod store;
pub mod studies;
pub mod study;

#[cfg(test)]
#[path = "../../tests/src/postgres.rs"]
#[allow(unreachable_pub)]
mod postgres;

use std::{future::Future, time::Duration};

use asng_proto::v1::{
    search_service_server::SearchServiceServer, study_service_server::StudyServiceServer,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::{Server, server::TcpIncoming};
use tracing::{info, warn};

use self::{
    service::Api,
    store::{Location, Reader},
    studies::{Limits, Studies},
};

/// How long running requests may take to end after a shutdown began.
const GRACE: Duration = Duration::from_secs(10);
/// Peers that do not answer a ping in this time are gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

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

/// Serves the studies of `location` on `listener` until `shutdown` is ready: then health says NOT_SERVING, running
/// requests end, and what they did is stored.
pub async fn run(
    location: Location,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (studies, mut ended) = Studies::start(location.clone(), Limits::default()).await?;
    let api = Api::new(studies, Reader::new(&location)?);

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<StudyServiceServer<Api>>().await;
    health.set_serving::<SearchServiceServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(asng_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;

    // The server's own setting does not reach connections that it did not accept itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (stop, mut stopped) = watch::channel(false);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(StudyServiceServer::new(api.clone()))
        .add_service(SearchServiceServer::new(api))
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that `stop` is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    tokio::pin!(server);

    tokio::select! {
        result = &mut server => return Ok(result?),
        // While handles are left, the thread ends only if something is wrong.
        result = &mut ended => return Err(result.map_or(Error::Died, |result| match result {
            Ok(()) => Error::Died,
            Err(error) => error.into(),
        })),
        () = shutdown => {}
    }
    info!("shutting down");
    health.set_not_serving::<StudyServiceServer<Api>>().await;
    health.set_not_serving::<SearchServiceServer<Api>>().await;
    stop.send_replace(true);
    match tokio::time::timeout(GRACE, server).await {
        Ok(result) => info!(clean = result.is_ok(), "no request is running any more"),
        Err(_) => warn!(grace = ?GRACE, "requests are still running"),
    }
    // With the last handle gone, the thread stores what is left to store and lets go of the database.
    match tokio::time::timeout(GRACE, ended).await {
        Ok(Ok(Ok(()))) => info!("shut down"),
        Ok(Ok(Err(error))) => return Err(error.into()),
        Ok(Err(_)) => return Err(Error::Died),
        Err(_) => warn!("shut down with requests still running"),
    }
    Ok(())
}
