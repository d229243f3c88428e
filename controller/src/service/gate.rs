//! What every request passes first: who sends it, whether they may, and whether there are too many.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{sync::watch, time::timeout};
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::{debug, info};

use super::status;
use crate::{
    access::{Identity, Role, Tokens, least_role},
    limits::{Client, RateLimit},
};

/// The one method whose request may go on for long before it is answered.
const IMPORT: &str = "/asng.v1.StudyService/ImportStudy";

/// Lets requests through to the services, with their sender's [`Identity`] among their extensions.
#[derive(Clone)]
pub(crate) struct Gate {
    /// Where tokens are in use.
    pub(crate) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    /// Where clients are limited.
    pub(crate) rate_limit: Option<Arc<RateLimit>>,
    /// How long a request may take until its answer begins.
    pub(crate) request_timeout: Duration,
}

impl Gate {
    fn check<B>(&self, request: &Request<B>) -> Result<Identity, Status> {
        let path = request.uri().path();
        let Some(least_role) = least_role(path) else { return Ok(Identity::anybody()) };
        let identity = match &self.tokens {
            Some(tokens) => tokens.borrow().identify(request.headers()),
            None => Ok(Identity::anybody()),
        };
        let peer = request.extensions().get().and_then(|peer: &TcpConnectInfo| peer.remote_addr);
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
        let allowed = identity.and_then(|identity| identity.check_role(path).map(|()| identity));
        let identity = allowed.map_err(|denied| {
            debug!(?peer, path, %denied, "refused");
            status::denied(&denied)
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
pub(crate) struct Gated<S> {
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
        match self.gate.check(&request) {
            Ok(identity) => request.extensions_mut().insert(identity),
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        if request.uri().path() == IMPORT {
            return Box::pin(self.inner.call(request));
        }
        let (limit, response) = (self.gate.request_timeout, self.inner.call(request));
        Box::pin(async move {
            match timeout(limit, response).await {
                Ok(response) => response,
                Err(_) => Ok(status::took_too_long(limit).into_http()),
            }
        })
    }
}
