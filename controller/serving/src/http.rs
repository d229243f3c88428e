//! HTTP beside gRPC, on a port of its own: probes, and metrics in the OpenMetrics text that Prometheus reads. It only
//! looks: nothing here changes anything.

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages look at.
pub trait Sight: Clone + Send + Sync + 'static {
    /// Whether the process should go on living; the error is a sentence that says why not.
    fn alive(&self) -> Result<(), String>;
    /// Whether requests are of use here.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// What is not counted where it happens but looked at now.
    fn look(&self) -> impl Future<Output = Registry> + Send;
}

/// Serves what is in `registry` and in `sight` on `listener` until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    sight: impl Sight,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state((sight, Arc::new(registry)));
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

type Pages<S> = State<(S, Arc<Registry>)>;

async fn healthz<S: Sight>(State((sight, _)): Pages<S>) -> Result<&'static str, Unavailable> {
    sight.alive().map(|()| "ok\n").map_err(Unavailable)
}

async fn readyz<S: Sight>(State((sight, _)): Pages<S>) -> Result<&'static str, Unavailable> {
    sight.ready().await.map(|()| "ok\n").map_err(Unavailable)
}

async fn metrics<S: Sight>(State((sight, registry)): Pages<S>) -> impl IntoResponse {
    let look = sight.look().await;
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
