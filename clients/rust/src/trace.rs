//! Where the context of a trace enters a call.

use http::HeaderMap;
use opentelemetry::global;
use opentelemetry_http::HeaderInjector;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Writes the present span into `headers`, as `traceparent` where the program has set up the W3C propagator. Without a
/// propagator, or outside any trace, nothing is written.
pub(crate) fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
}
