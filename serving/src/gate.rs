//! The check of every request: its sender, their permission, and the rate limit.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use tokio::{sync::watch, time::timeout};
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::{debug, info};

use crate::{
    access::{Denied, Fingerprint, Identity, Role, Tokens},
    connections::NOT_HTTP,
    limits::{Client, RateLimit},
    status,
};

/// The roles that the methods of a program need.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The name of the program in errors, such as "controller".
    pub server: &'static str,
    /// The least role that may call a method of its own services, given by its path such as
    /// "/asng.v1.StudyService/GetStudy".
    pub least_role: fn(&str) -> Role,
    /// The paths of the methods that may go on for long before they are answered.
    pub unhurried: &'static [&'static str],
}

impl Rules {
    /// The least role that may call a method, given by its path; none when it is open to all.
    fn least_role(&self, path: &str) -> Option<Role> {
        if path.starts_with("/grpc.health.v1.Health/") {
            None
        } else if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
            Some(Role::Viewer)
        } else {
            Some((self.least_role)(path))
        }
    }
}

/// Lets requests through to the services, with their sender's [`Identity`] among their extensions. What else leads to the
/// services asks it too.
#[derive(Clone)]
pub struct Gate {
    pub(crate) rules: Rules,
    /// Where tokens are in use.
    pub(crate) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    /// Where clients are limited.
    pub(crate) rate_limit: Option<Arc<RateLimit>>,
    /// How long a request may take until its answer begins.
    pub(crate) request_timeout: Duration,
}

impl Gate {
    /// Returns true if every caller must have a token.
    pub fn wants_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// The holder of a token that was shown before, if it is still known; anybody, where none are in use.
    pub fn holder(&self, token: Option<&Fingerprint>) -> Option<Identity> {
        self.identify(token).ok()
    }

    /// Returns true if an identity may call the method at `path`.
    pub fn allows(&self, identity: &Identity, path: &str) -> bool {
        self.rules.least_role(path).is_none_or(|role| identity.check_role(path, role).is_ok())
    }

    /// Lets the holder of a token call the method at `path`, as if the call had come by gRPC.
    pub fn enter(
        &self,
        token: Option<&Fingerprint>,
        path: &str,
        peer: SocketAddr,
    ) -> Result<Identity, Status> {
        self.admit(self.identify(token), path, Some(peer))
    }

    fn identify(&self, token: Option<&Fingerprint>) -> Result<Identity, Denied> {
        match &self.tokens {
            Some(tokens) => tokens.borrow().holder(token.ok_or(Denied::NoToken)?),
            None => Ok(Identity::anybody()),
        }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<Identity, Status> {
        let identity = match &self.tokens {
            Some(tokens) => tokens.borrow().identify(request.headers()),
            None => Ok(Identity::anybody()),
        };
        let peer = request.extensions().get().and_then(|peer: &TcpConnectInfo| peer.remote_addr);
        self.admit(identity, request.uri().path(), peer)
    }

    fn admit(
        &self,
        identity: Result<Identity, Denied>,
        path: &str,
        peer: Option<SocketAddr>,
    ) -> Result<Identity, Status> {
        let Some(least_role) = self.rules.least_role(path) else { return Ok(Identity::anybody()) };
        if let Some(limit) = &self.rate_limit {
            let name = identity.as_ref().ok().and_then(Identity::name);
            let client = match (name, peer) {
                (Some(name), _) => Some(Client::Token(name.into())),
                (None, Some(peer)) => Some(Client::at(peer.ip())),
                // The connection has broken.
                (None, None) => None,
            };
            if let Some(client) = client {
                limit.check(&client).map_err(|wait| status::too_many_requests(&client, wait))?;
            }
        }
        let allowed =
            identity.and_then(|identity| identity.check_role(path, least_role).map(|()| identity));
        let identity = allowed.map_err(|denied| {
            let refusal = status::denied(&denied, self.rules.server);
            debug!(?peer, path, denied = refusal.message(), "refused");
            refusal
        })?;
        if let (Role::Admin, Some(token)) = (least_role, identity.name()) {
            info!(token, ?peer, path, "an admin acts");
        }
        Ok(identity)
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Box::pin(async { Ok(not_http()) });
        }
        match self.gate.check(&request) {
            Ok(identity) => request.extensions_mut().insert(identity),
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        if self.gate.rules.unhurried.contains(&request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let Gate { rules: Rules { server, .. }, request_timeout: limit, .. } = self.gate;
        let response = self.inner.call(request);
        Box::pin(async move {
            match timeout(limit, response).await {
                Ok(response) => response,
                Err(_) => Ok(status::took_too_long(server, limit).into_http()),
            }
        })
    }
}

/// Returns whether headers are those of a gRPC request.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Returns the response to a browser, or another client of HTTP/2, at the port of gRPC.
fn not_http() -> Response<Body> {
    // The status is for the metrics.
    let mut answer = Status::unimplemented("").into_http();
    *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    answer.map(|_: Body| Body::new(Full::from(format!("{NOT_HTTP}\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_open_to_all_and_reflection_to_those_who_may_look() {
        let rules = Rules { server: "test", least_role: |_| Role::Admin, unhurried: &[] };
        assert_eq!(rules.least_role("/grpc.health.v1.Health/Check"), None);
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(rules.least_role(reflection), Some(Role::Viewer));
        for path in ["/asng.v1.New/Method", "/grpc.health.v1.Healthy/Check", "/", "x"] {
            assert_eq!(rules.least_role(path), Some(Role::Admin), "{path}");
        }
    }
}
