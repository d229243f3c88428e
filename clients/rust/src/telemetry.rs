//! Logs on standard error, and traces to an OpenTelemetry collector.
//!
//! A trace follows a step through the programs: the context of the span that sends a request travels in its headers
//! ([`inject`]), and the span that answers it continues there ([`continue_trace`]). Without a collector there are no traces,
//! both do nothing, and spans cost what the log's filter lets through.

use std::{env, io::IsTerminal, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use http::{HeaderMap, Uri};
use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};
use tracing::{Metadata, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

/// How long the last spans may take to reach the collector when the program ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Options of logs and traces.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Log filter, in the form of RUST_LOG: a level, or "info,h2=debug"
    #[arg(long, global = true, env = "ASNG_LOG", default_value = "info", value_name = "FILTER")]
    log: EnvFilter,
    /// Log format: text for people, json for programs (one object per line)
    #[arg(long, global = true, env = "ASNG_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Send traces to the OpenTelemetry collector at this URL, by OTLP over gRPC, such as http://127.0.0.1:4317. The standard
    /// variables, such as OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS, apply [default: no traces]
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, the event's fields beside `timestamp` (RFC 3339), `level`, `target` and `message`.
    Json,
}

/// The telemetry that [`start`](Options::start) has set up; to be [`flush`](Telemetry::flush)ed when the program ends.
#[must_use]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Options {
    /// Sets up logs and traces for the whole process, once, within its tokio runtime. `service` is the program's name in
    /// traces, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say another.
    pub fn start(self, service: &'static str) -> anyhow::Result<Telemetry> {
        let Options { log, log_format, otlp_endpoint } = self;
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match log_format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        };
        let traces = otlp_endpoint.filter(|url| !url.is_empty());
        let traces = traces.map(|url| provider(&url, service)).transpose()?;
        let spans = traces.as_ref().map(|provider| {
            global::set_text_map_propagator(TraceContextPropagator::new());
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(service))
                .with_filter(filter_fn(is_own_span).with_max_level_hint(LevelFilter::DEBUG))
        });
        tracing_subscriber::registry().with(spans).with(lines.with_filter(log)).init();
        Ok(Telemetry { traces })
    }
}

/// Spans of other crates are left out, among them those of the exporter's own connection. Events go to the log.
fn is_own_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("asng_")
}

fn provider(url: &str, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
    let scheme = url.parse::<Uri>().ok().and_then(|url| url.scheme_str().map(str::to_owned));
    ensure!(
        matches!(scheme.as_deref(), Some("http" | "https")),
        "cannot send traces to {url:?}: give a URL such as http://127.0.0.1:4317"
    );
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).build();
    let exporter = exporter.with_context(|| format!("cannot send traces to {url}"))?;
    // Later ones win.
    let name = env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let resource = Resource::builder_empty()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_attributes(name.map(|name| KeyValue::new("service.name", name)))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Telemetry {
    /// Sends what is left of the traces, if the collector can be reached in a short time.
    pub async fn flush(self) {
        let Some(traces) = self.traces else { return };
        // It blocks, and a runtime of one thread has to carry the connection meanwhile.
        let flushed = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(FAREWELL));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Writes the context of the present span into the headers of a request, as W3C `traceparent`.
pub fn inject(headers: &mut HeaderMap) {
    let span = Span::current();
    if !span.is_disabled() {
        let context = span.context();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeaderInjector(headers));
        });
    }
}

/// Makes `span`, which has not been entered yet, a child of the span whose context a request's headers carry, if they do.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() {
        let context = global::get_text_map_propagator(|propagator| {
            propagator.extract(&HeaderExtractor(headers))
        });
        // Fails if the span is in no trace, as without a collector.
        let _ = span.set_parent(context);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;
    use tracing::debug_span;

    use super::*;

    #[test]
    fn a_trace_goes_on_across_a_request() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let mut headers = HeaderMap::new();
            let client = debug_span!("client");
            client.in_scope(|| inject(&mut headers));
            let server = debug_span!("server");
            continue_trace(&server, &headers);
            let trace = |span: &Span| span.context().span().span_context().trace_id();
            assert_eq!(trace(&server), trace(&client));
            let parent = format!("00-{}-", trace(&client));
            assert!(headers["traceparent"].to_str().unwrap().starts_with(&parent), "{headers:?}");
        });
    }

    #[test]
    fn without_a_collector_nothing_is_added_to_a_request() {
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty());
    }
}
