//! The transport below every generated client.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
    uri::Scheme,
};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, ConnectError, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};
use tracing::{info, warn};

use crate::{
    options::{CONNECT_TIMEOUT, CONTROLLER_PORT, Rules, TRAINER_PORT},
    telemetry,
    token::Token,
};

/// How long a controller may take to answer a call; calls that stream may last.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const IMPORT: &str = "/asng.v1.StudyService/ImportStudy";
/// Calls that stream in either direction.
const STREAMS: [&str; 3] =
    [IMPORT, "/asng.v1.StudyService/ExportStudy", "/asng.v1.StudyService/WatchStudy"];

type BoxError = Box<dyn Error + Send + Sync>;

/// A connection to whichever controller answers: the transport of the generated clients, cheap to clone. It connects when
/// it is first used, and again when it broke.
///
/// With several addresses it stays with one until that one fails, and then goes to the next; where a controller names
/// another as the owner of a study, it goes to that one. A call that surely had no effect is sent again there at once,
/// to each address at most once; any other failure is the caller's, and the next call goes to the next address.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    token: Option<Token>,
    places: Mutex<Places>,
}

/// Where controllers are.
struct Places {
    /// The configured ones, and then the owner last named by a controller, unless it is one of them.
    list: Vec<Place>,
    configured: usize,
    current: usize,
}

#[derive(Clone)]
struct Place {
    url: String,
    channel: Channel,
}

impl Place {
    fn new(endpoint: &Endpoint) -> Place {
        let url = endpoint.uri().to_string().trim_end_matches('/').into();
        Place { url, channel: endpoint.connect_lazy() }
    }
}

impl Connection {
    /// A connection to the first of `endpoints` that answers; there is at least one.
    pub(crate) fn new(endpoints: Vec<Endpoint>, rules: Rules, token: Option<Token>) -> Connection {
        let list: Vec<_> = endpoints.iter().map(Place::new).collect();
        let places = Places { configured: list.len(), list, current: 0 };
        Connection { shared: Arc::new(Shared { rules, token, places: places.into() }) }
    }

    /// The configured addresses, as `--controller` takes them.
    pub fn url(&self) -> String {
        let places = self.places();
        let urls: Vec<_> = places.list[..places.configured].iter().map(|p| &*p.url).collect();
        urls.join(",")
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path();
        // Requests of other services may stream.
        if !path.starts_with("/asng.v1.") || path == IMPORT {
            return self.send_once(Request::from_parts(parts, body)).await.0;
        }
        if !STREAMS.contains(&path) {
            let timeout = format!("{}S", REQUEST_TIMEOUT.as_secs());
            parts.headers.entry("grpc-timeout").or_insert(HeaderValue::try_from(timeout)?);
        }
        let body = body.collect().await?.to_bytes();
        let mut tries = 0;
        loop {
            let body = Body::new(Full::new(body.clone()));
            let (answer, again) = self.send_once(Request::from_parts(parts.clone(), body)).await;
            tries += 1;
            if !again || tries >= self.places().list.len() {
                return answer;
            }
        }
    }

    /// Sends a request to the present address. Says also whether another address may be tried with it.
    async fn send_once(
        &self,
        mut request: Request<Body>,
    ) -> (Result<Response<Body>, BoxError>, bool) {
        if let Some(token) = &self.shared.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        let place = self.places().current();
        let mut channel = place.channel.clone();
        let answer = match channel.ready().await {
            Ok(channel) => channel.call(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) if !is_grpc(response.headers()) => {
                self.places().leave(&place);
                (Err(NotGrpc::new(&place.url, Some(response.status())).into()), true)
            }
            Ok(response) => {
                let unavailable = unavailable(response.headers());
                if let Some(status) = &unavailable {
                    match owner(status) {
                        Some(owner) => self.go_to_owner(&place, &owner),
                        None => self.places().leave(&place),
                    }
                }
                (Ok(response), unavailable.is_some())
            }
            Err(error) => {
                self.places().leave(&place);
                if is_no_frame(&error) && answers_http(&place.url).await {
                    return (Err(NotGrpc::new(&place.url, None).into()), true);
                }
                let never_sent = caused_by::<ConnectError>(&error);
                (Err(error.into()), never_sent)
            }
        }
    }

    /// Goes where the controller at `place` says that the owner is: a URL, or host:port.
    fn go_to_owner(&self, place: &Place, address: &str) {
        let scheme = if place.url.starts_with("https://") { "https://" } else { "http://" };
        let url = match address.contains("://") {
            true => address.into(),
            false => format!("{scheme}{address}"),
        };
        match self.shared.rules.endpoint(&url) {
            Ok(endpoint) if scheme == "http://" || url.starts_with(scheme) => {
                self.places().enter(Place::new(&endpoint));
            }
            Ok(_) => warn!(url, "not followed to an owner without TLS"),
            Err(error) => warn!("not followed to an owner: {error:#}"),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing that holds the lock can panic halfway.
        self.shared.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn current(&self) -> Place {
        self.list[self.current].clone()
    }

    /// Turns from a place that fails to the next one, unless another call has done so.
    fn leave(&mut self, place: &Place) {
        if self.list.len() > 1 && self.list[self.current].url == place.url {
            self.current = (self.current + 1) % self.list.len();
            warn!(from = place.url, to = self.list[self.current].url, "controller fails");
        }
    }

    /// Turns to `place`, known or not.
    fn enter(&mut self, place: Place) {
        info!(url = place.url, "following to the owner");
        self.current = match self.list.iter().position(|known| known.url == place.url) {
            Some(known) => known,
            None => {
                // One at most, or an address that is new each time would let the list grow for ever.
                self.list.truncate(self.configured);
                self.list.push(place);
                self.configured
            }
        };
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        telemetry::inject(request.headers_mut());
        let connection = self.clone();
        Box::pin(async move { connection.send(request).await })
    }
}

/// Error of a call that a server answered in HTTP and not in gRPC.
#[derive(Debug)]
pub(crate) struct NotGrpc {
    /// Host and port.
    server: String,
    /// The HTTP status of the answer; none if it was not HTTP/2.
    status: Option<StatusCode>,
}

impl NotGrpc {
    pub(crate) fn new(url: &str, status: Option<StatusCode>) -> NotGrpc {
        let server = url.split_once("://").map_or(url, |(_, server)| server).into();
        NotGrpc { server, status }
    }

    /// Returns the address with another port, unless the server is a proxy or has this port already.
    pub(crate) fn with_port(&self, port: u16) -> Option<String> {
        let host = match self.server.rsplit_once(':') {
            Some((host, _)) if !self.server.ends_with(']') => host,
            _ => &self.server,
        };
        let other = format!("{host}:{port}");
        Some(other).filter(|other| !self.is_proxy() && *other != self.server)
    }

    fn is_proxy(&self) -> bool {
        self.status.is_some_and(|status| status.is_server_error())
    }
}

impl fmt::Display for NotGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotGrpc { server, status } = self;
        match status {
            Some(status) if self.is_proxy() => write!(
                f,
                "{server} answers HTTP status {status}, not gRPC: it may be a proxy that does not reach its server"
            ),
            _ => write!(
                f,
                "{server} answers HTTP, not gRPC: it may be the port of the page or of metrics. By default gRPC is on \
                 port {CONTROLLER_PORT} of a controller and {TRAINER_PORT} of a trainer"
            ),
        }
    }
}

impl Error for NotGrpc {}

/// Returns whether headers are those of a gRPC response.
fn is_grpc(headers: &HeaderMap) -> bool {
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    headers.contains_key(Status::GRPC_STATUS) || headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

/// Returns whether a response did not begin with an HTTP/2 frame: the server speaks HTTP/1.1, TLS, or another protocol.
fn is_no_frame(error: &(dyn Error + 'static)) -> bool {
    let is = |error: &h2::Error| {
        error.is_library() && error.reason() == Some(h2::Reason::FRAME_SIZE_ERROR)
    };
    error.downcast_ref().is_some_and(is) || error.source().is_some_and(is_no_frame)
}

/// Sends an HTTP/1.1 request to a server in plain text. Returns whether it answers in HTTP/1.
async fn answers_http(url: &str) -> bool {
    let uri = url.parse().ok().filter(|uri: &Uri| uri.scheme() == Some(&Scheme::HTTP));
    let Some(uri) = uri else { return false };
    let server = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let ask = async {
        let mut stream = TcpStream::connect(&server).await?;
        stream.write_all(format!("HEAD / HTTP/1.1\r\nhost: {server}\r\n\r\n").as_bytes()).await?;
        let mut begin = [0; 5];
        stream.read_exact(&mut begin).await?;
        io::Result::Ok(begin == *b"HTTP/")
    };
    matches!(timeout(CONNECT_TIMEOUT, ask).await, Ok(Ok(true)))
}

/// The status UNAVAILABLE, which servers send in the headers of an answer without a body.
fn unavailable(headers: &HeaderMap) -> Option<Status> {
    // Most answers carry no status here: nothing is to be decoded for them.
    headers.get(Status::GRPC_STATUS)?;
    Status::from_header_map(headers).filter(|status| status.code() == Code::Unavailable)
}

/// Where the owner of the study is, if that is what the status says.
pub(crate) fn owner(status: &Status) -> Option<String> {
    let info = status.get_details_error_info().filter(|info| info.reason == "NOT_OWNER")?;
    info.metadata.get("address").filter(|address| !address.is_empty()).cloned()
}

pub(crate) fn caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    error.is::<E>() || error.source().is_some_and(caused_by::<E>)
}

#[cfg(test)]
mod tests;
