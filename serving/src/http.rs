//! HTTP beside gRPC, on a port of its own: probes, and metrics in the OpenMetrics text that Prometheus reads. It only
//! looks: nothing here changes anything.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
    serve::IncomingStream,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

use crate::{
    connections::{self, Connection, Protocol},
    files::Watched,
    tls,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The state of a program that probes and metrics read.
pub trait HealthSource: Clone + Send + Sync + 'static {
    /// Returns an error with the reason if the process cannot work and should be restarted.
    fn alive(&self) -> Result<(), String>;
    /// Returns an error with the reason if the program cannot answer requests now.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Returns the metrics that are read at the time of a scrape.
    fn look(&self) -> impl Future<Output = Registry> + Send;
}

/// Serves what is in `registry` and in `source` on `listener` until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    source: impl HealthSource,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, probes(registry, source)).with_graceful_shutdown(shutdown).await
}

/// The pages `/metrics`, `/healthz` and `/readyz`.
pub fn probes(registry: Registry, source: impl HealthSource) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state((source, Arc::new(registry)))
}

/// A port for pages that are not for everybody: in plain text or under TLS, with a bound on connections.
pub struct Listener {
    connections: ReceiverStream<io::Result<Connection>>,
    address: SocketAddr,
}

impl Listener {
    /// Accepts connections, under `tls` if any.
    pub fn new(
        listener: TcpListener,
        tls: Option<&Watched<ServerConfig>>,
        max_connections: usize,
    ) -> io::Result<Listener> {
        let address = listener.local_addr()?;
        let tls = tls.map(|tls| tls::for_browsers(tls.subscribe()));
        let connections = connections::accept(listener, tls, max_connections, Protocol::Http);
        Ok(Listener { connections, address })
    }

    /// Serves `pages` until `shutdown` is ready, with each request's [`Peer`].
    pub async fn serve(
        self,
        pages: Router,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let pages = pages.into_make_service_with_connect_info::<Peer>();
        axum::serve(self, pages).with_graceful_shutdown(shutdown).await
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        while let Some(connection) = self.connections.next().await {
            // Neither is there when the connection has broken already.
            let Ok(connection) = connection else { continue };
            if let Some(peer) = connection.connect_info().remote_addr {
                return (connection, peer);
            }
        }
        // Whoever accepts has ended; this will be dropped.
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The other end of a connection, for axum's `ConnectInfo`.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl axum::extract::connect_info::Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Peer {
        Peer(*stream.remote_addr())
    }
}

type Pages<S> = State<(S, Arc<Registry>)>;

async fn healthz<S: HealthSource>(
    State((source, _)): Pages<S>,
) -> Result<&'static str, Unavailable> {
    source.alive().map(|()| "ok\n").map_err(Unavailable)
}

async fn readyz<S: HealthSource>(
    State((source, _)): Pages<S>,
) -> Result<&'static str, Unavailable> {
    source.ready().await.map(|()| "ok\n").map_err(Unavailable)
}

async fn metrics<S: HealthSource>(State((source, registry)): Pages<S>) -> impl IntoResponse {
    let look = source.look().await;
    let mut text = String::new();
    // Unwrap safety: writing to a string does not fail, nor do our collectors by themselves.
    text::encode_registry(&mut text, &registry).unwrap();
    text::encode_registry(&mut text, &look).unwrap();
    text::encode_eof(&mut text).unwrap();
    ([(CONTENT_TYPE, OPEN_METRICS)], text)
}

/// 503 with a sentence that says why.
struct Unavailable(String);

impl IntoResponse for Unavailable {
    fn into_response(self) -> axum::response::Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0 + "\n").into_response()
    }
}
