//! One layer around every RPC: it counts and times it for `/metrics`, opens its span, and says in the response which
//! release has answered. It knows nothing of what is asked.

use std::{
    array,
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{LazyLock, OnceLock},
    task::{Context, Poll, ready},
    time::Instant,
};

use asng_client::telemetry;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tower::Service;
use tracing::{Span, debug_span, field::Empty};

/// Names of the status codes, in the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 16] = [
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The name of a status code, as in gRPC's own documents.
pub fn code_name(code: Code) -> &'static str {
    CODES[code as usize]
}

static METHODS: LazyLock<Methods> = LazyLock::new(Methods::new);

type Labels<const N: usize> = [(&'static str, String); N];

/// Every method served, by its path. What is asked for otherwise counts as one more, so that callers cannot make up
/// labels.
struct Methods {
    known: HashMap<String, Method>,
    other: Method,
    requests: Family<Labels<3>, Counter>,
    in_flight: Family<Labels<2>, Gauge>,
    seconds: Family<Labels<2>, Histogram, fn() -> Histogram>,
}

/// A method, with its series at hand: but for the first of its kind, a request neither allocates nor searches for labels.
struct Method {
    service: String,
    name: String,
    in_flight: OnceLock<Gauge>,
    seconds: OnceLock<Histogram>,
    /// By code.
    ended: [OnceLock<Counter>; CODES.len()],
}

impl Method {
    fn in_flight(&self) -> &Gauge {
        self.in_flight.get_or_init(|| METHODS.in_flight.get_or_create_owned(&self.labels()))
    }

    fn labels(&self) -> Labels<2> {
        [("service", self.service.clone()), ("method", self.name.clone())]
    }
}

impl Methods {
    fn new() -> Methods {
        let method = |service: &str, name: &str| Method {
            service: service.into(),
            name: name.into(),
            in_flight: OnceLock::new(),
            seconds: OnceLock::new(),
            ended: array::from_fn(|_| OnceLock::new()),
        };
        let mut known = HashMap::new();
        for descriptors in [
            asng_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ] {
            // Unwrap safety: the build has encoded them.
            for file in FileDescriptorSet::decode(descriptors).unwrap().file {
                for service in &file.service {
                    let service_name = format!("{}.{}", file.package(), service.name());
                    for rpc in &service.method {
                        let path = format!("/{service_name}/{}", rpc.name());
                        known.insert(path, method(&service_name, rpc.name()));
                    }
                }
            }
        }
        let other = method("other", "other");
        let seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        Methods { known, other, requests: Family::default(), in_flight: Family::default(), seconds }
    }
}

pub(crate) fn register(registry: &mut Registry) {
    registry.register("asng_rpc_requests", "RPCs that have ended", METHODS.requests.clone());
    registry.register_with_unit(
        "asng_rpc_duration",
        "Time from the arrival of an RPC to the end of its response",
        Unit::Seconds,
        METHODS.seconds.clone(),
    );
    registry.register(
        "asng_rpc_in_flight",
        "RPCs that have arrived and not ended",
        METHODS.in_flight.clone(),
    );
}

/// An RPC under way. Ends when it is dropped.
struct Call {
    method: &'static Method,
    started: Instant,
    span: Span,
    /// Stays so if the caller goes away before the end.
    code: Code,
}

impl Call {
    fn start(path: &str, headers: &HeaderMap) -> Call {
        let method = METHODS.known.get(path).unwrap_or(&METHODS.other);
        method.in_flight().inc();
        let span = debug_span!(
            "rpc",
            otel.name = path.trim_start_matches('/'),
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = method.service,
            rpc.method = method.name,
            rpc.grpc.status_code = Empty,
        );
        telemetry::continue_trace(&span, headers);
        Call { method, started: Instant::now(), span, code: Code::Cancelled }
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Call { method, started, span, code } = self;
        let number = *code as usize;
        let ended = method.ended[number].get_or_init(|| {
            let [service, name] = method.labels();
            METHODS.requests.get_or_create_owned(&[
                service,
                name,
                ("code", code_name(*code).into()),
            ])
        });
        ended.inc();
        let seconds =
            method.seconds.get_or_init(|| METHODS.seconds.get_or_create_owned(&method.labels()));
        seconds.observe(started.elapsed().as_secs_f64());
        method.in_flight().dec();
        span.record("rpc.grpc.status_code", number);
        // Of the rest, the caller is the cause.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// The code that these headers or trailers carry, if they carry one.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

/// The service inside, with each RPC observed.
#[derive(Clone)]
pub(crate) struct Observed<S>(pub(crate) S);

impl<S, Q, A> Service<Request<Q>> for Observed<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
{
    type Response = Response<ObservedBody<A>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let call = Call::start(request.uri().path(), request.headers());
        let inner = call.span.in_scope(|| self.0.call(request));
        ObservedFuture { inner, call: Some(call) }
    }
}

pin_project! {
    /// Waits for the head of a response.
    pub(crate) struct ObservedFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, A, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<A>, E>>,
{
    type Output = Result<Response<ObservedBody<A>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.call.as_ref().map(|call| call.span.enter());
        let result = ready!(this.inner.poll(cx));
        drop(entered);
        let mut call = this.call.take();
        // A response that is an error from the start has its status in the headers, and no trailers.
        let status = result.as_ref().map_or(Some(Code::Unknown), |head| code(head.headers()));
        if let Some(status) = status
            && let Some(call) = call.take()
        {
            call.end(status);
        }
        Poll::Ready(result.map(|response| {
            let mut response = response.map(|inner| ObservedBody { inner, call });
            let version = HeaderValue::from_static(env!("CARGO_PKG_VERSION"));
            response.headers_mut().insert("asng-version", version);
            response
        }))
    }
}

pin_project! {
    /// Passes on the body of a response up to its trailers, with which the RPC ends.
    pub(crate) struct ObservedBody<B> {
        #[pin]
        inner: B,
        call: Option<Call>,
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        let status = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(code),
            Some(Err(_)) | None => Some(None),
        };
        if let Some(status) = status
            && let Some(call) = this.call.take()
        {
            call.end(status.unwrap_or(Code::Unknown));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, future};

    use super::*;

    struct Frames(VecDeque<Frame<&'static [u8]>>);

    impl Body for Frames {
        type Data = &'static [u8];
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<&'static [u8]>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn status(code: Code) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from(code as i32),
        )])
    }

    /// Lets a response with these headers and frames pass, up to so many frames, and says how the RPC counted.
    async fn pass(
        path: &str,
        headers: HeaderMap,
        frames: Vec<Frame<&'static [u8]>>,
        up_to: usize,
    ) -> Vec<&'static str> {
        let count = |method: &Method| -> Vec<_> {
            method.ended.iter().map(|ended| ended.get().map_or(0, Counter::get)).collect()
        };
        let method = METHODS.known.get(path).unwrap_or(&METHODS.other);
        let before = count(method);
        let mut response = Response::new(Frames(frames.into()));
        *response.headers_mut() = headers;
        let call = Some(Call::start(path, &HeaderMap::new()));
        let inner = future::ready(Ok::<_, Infallible>(response));
        let mut response = ObservedFuture { inner, call }.await.unwrap();
        assert_eq!(response.headers()["asng-version"], env!("CARGO_PKG_VERSION"));
        for _ in 0..up_to {
            future::poll_fn(|cx| Pin::new(response.body_mut()).poll_frame(cx)).await;
        }
        drop(response);
        assert_eq!(method.in_flight().get(), 0);
        let mut ends = Vec::new();
        for ((code, before), after) in CODES.iter().zip(before).zip(count(method)) {
            ends.extend((before..after).map(|_| *code));
        }
        ends
    }

    #[tokio::test]
    async fn an_rpc_counts_once_and_under_the_code_it_ended_with() {
        let path = "/asng.v1.StudyService/ExportStudy";
        let message = || Frame::data(&b"message"[..]);
        let trailers = |code| Frame::trailers(status(code));
        let none = HeaderMap::new;

        let answered = vec![message(), trailers(Code::Ok)];
        assert_eq!(pass(path, none(), answered, 3).await, ["OK"]);
        assert_eq!(pass(path, status(Code::NotFound), vec![], 1).await, ["NOT_FOUND"]);
        let broken_off = vec![message(), message(), trailers(Code::DataLoss)];
        assert_eq!(pass(path, none(), broken_off, 4).await, ["DATA_LOSS"]);
        let left_by_the_caller = vec![message(), message(), trailers(Code::Ok)];
        assert_eq!(pass(path, none(), left_by_the_caller, 1).await, ["CANCELLED"]);
        assert_eq!(pass(path, none(), vec![message()], 2).await, ["UNKNOWN"], "no status at all");
    }

    #[tokio::test]
    async fn callers_cannot_make_up_labels() {
        let path = "/asng.v1.StudyService/NoSuchMethod";
        assert_eq!(pass(path, status(Code::Unimplemented), vec![], 1).await, ["UNIMPLEMENTED"]);
        assert!(!METHODS.known.contains_key(path));
        assert_eq!(METHODS.other.labels().map(|(_, value)| value), ["other", "other"]);
    }
}
