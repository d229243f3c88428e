//! HTTP beside gRPC, on a port of its own: probes, metrics in the OpenMetrics text that Prometheus reads, and the live page
//! for people. The page asks the services as a client would, in process: what somebody may see and do is decided there.
//!
//! | module | what lives there |
//! | --- | --- |
//! | `auth` | who asks: log-in, sessions, and what a browser must not be talked into |
//! | `html` | the pages |
//! | `drawing` | what is shown of a study, or of all |
//! | `views` | drawings that change while somebody looks, once for all who look |
//! | `studies` | the studies in `/metrics` |

mod auth;
mod drawing;
mod html;
mod studies;
mod views;

use std::{
    fmt, future::Future, io, net::SocketAddr, ops::Deref, str::FromStr, sync::Arc, time::Duration,
};

use anyhow::Context;
use asng_proto::v1::{self, study_service_server::StudyService};
use asng_serving::{Address, Gate, http, http::Peer};
use axum::{
    Form, Router,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Path, Query, Request, State},
    http::{StatusCode, header, request::Parts},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use clap::Args;
use maud::Markup;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tokio::{net::TcpListener, time::timeout};
use tonic::Status;

use self::{
    auth::{Visitor, WebAuth},
    drawing::{Listing, Subject},
    html::Frame,
    views::Views,
};
use crate::{
    metrics, pictures,
    service::{Api, asked},
    study::is_name,
};

/// How long the studies may take to answer a probe or a scrape.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a form.
const MAX_FORM: usize = 4096;

/// The port of HTTP by default.
const PORT: u16 = 50052;

/// Options of the HTTP server.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Address to serve HTTP on, in the form of --listen, or off: the live page for browsers, /metrics for Prometheus, /healthz and
    /// /readyz for probes. https:// in front serves TLS with the certificate of --tls-cert. The page asks for a token if --token-file
    /// is given; the metrics are open to all and contain the names of studies
    #[arg(long, env = "ASNG_HTTP", default_value = "127.0.0.1:50052")]
    #[arg(value_name = "[https://]ADDRESS|off", value_parser = Place::parse)]
    http: Place,
    /// Path under which a reverse proxy serves the page, such as /asng; links, forms and the cookie start with it. The proxy may
    /// pass the prefix on or strip it: the page is also served at /
    #[arg(long, env = "ASNG_HTTP_PREFIX", value_name = "PATH")]
    http_prefix: Option<Prefix>,
}

/// The beginning of the addresses of all pages: empty, or a path without a slash at its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix(String);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        let is_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(plain);
        let path = text.strip_suffix('/').unwrap_or(text);
        let segments = path.strip_prefix('/').map(|path| path.split('/').all(is_segment));
        match (path, segments) {
            ("", _) | (_, Some(true)) => Ok(Prefix(path.into())),
            _ => {
                Err("expected a path such as /asng, of letters, digits, '-', '_', '.' and '~'"
                    .into())
            }
        }
    }
}

impl Deref for Prefix {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where to serve HTTP.
#[derive(Clone, Copy, Debug)]
struct Place {
    https: bool,
    address: Address,
}

impl Place {
    fn parse(text: &str) -> Result<Place, String> {
        let (https, address) = match text.strip_prefix("https://") {
            Some(address) => (true, address),
            None => (false, text.strip_prefix("http://").unwrap_or(text)),
        };
        Ok(Place { https, address: Address::parse(address, PORT)? })
    }
}

impl Options {
    /// Returns true if it serves TLS.
    pub fn https(&self) -> bool {
        self.http.https
    }

    /// Binds the port; none when it is off. `insecure` shows the page to other machines also in plain text, or without
    /// knowing who they are.
    pub async fn listen(&self, insecure: bool) -> anyhow::Result<Option<Listener>> {
        let Place { https, address: Address(Some(address)) } = self.http else { return Ok(None) };
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for HTTP; give another address with --http, or off")
        })?;
        let prefix = self.http_prefix.clone().unwrap_or_default();
        Ok(Some(Listener { listener, https, insecure, prefix }))
    }
}

/// The port of HTTP, taken.
pub struct Listener {
    listener: TcpListener,
    https: bool,
    insecure: bool,
    prefix: Prefix,
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The state that the pages share.
#[derive(Clone)]
struct Site {
    api: Api,
    auth: Arc<WebAuth>,
    views: Arc<Views>,
    prefix: Prefix,
}

impl Site {
    /// Returns the frame of a page for visitors who are not logged in.
    fn frame(&self) -> Frame {
        Frame { prefix: self.prefix.clone(), token: None }
    }
}

/// Serves on `listener`, under the limits and certificate of `serving`, until `shutdown` is ready. Readiness ends before
/// that, when the controller begins to close.
pub(crate) fn serve<S: Future<Output = ()> + Send + 'static>(
    listener: Listener,
    serving: &asng_serving::Config,
    api: Api,
    gate: Gate,
    shutdown: S,
) -> io::Result<impl Future<Output = io::Result<()>> + use<S>> {
    let (address, prefix) = (listener.address()?, listener.prefix);
    let auth = WebAuth::new(gate, address, listener.https, listener.insecure, prefix.clone());
    let tls = serving.tls.as_ref().filter(|_| listener.https);
    let port = http::Listener::new(listener.listener, tls, serving.limits.max_connections)?;
    let mut registry = asng_serving::registry();
    metrics::register(&mut registry);
    let probes = http::probes(registry, api.clone());
    let views = Arc::new(Views::new(api.clone(), prefix.clone()));
    let pages = pages(Site { api, auth: Arc::new(auth), views, prefix: prefix.clone() });
    Ok(port.serve(also_under(&prefix, probes.merge(pages)), shutdown))
}

/// The same pages at / and under `prefix`.
fn also_under(prefix: &Prefix, pages: Router) -> Router {
    if prefix.is_empty() {
        return pages;
    }
    Router::new().nest_service(prefix, pages.clone()).fallback_service(pages)
}

fn pages(site: Site) -> Router {
    Router::new()
        .route("/", get(list))
        .route("/events", get(list_events))
        .route("/studies/{name}", get(study))
        .route("/studies/{name}/events", get(study_events))
        .route("/studies/{name}/pause", post(pause))
        .route("/studies/{name}/resume", post(resume))
        .route("/studies/{name}/stop", get(ask_to_stop).post(stop))
        .route("/glossary", get(glossary))
        .route("/login", get(log_in_form).post(log_in))
        .route("/logout", post(log_out))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(from_fn_with_state(site.auth.clone(), auth::guard))
        .fallback(async || Refusal(Status::not_found("there is no such page")))
        .layer(from_fn_with_state(site.prefix.clone(), draw_refusal))
        .route("/assets/style.css", get(asset("text/css", &[pictures::STYLE, html::STYLE])))
        .route("/assets/page.js", get(asset("text/javascript", &[html::SCRIPT])))
        .route("/assets/icon.svg", get(asset("image/svg+xml", &[html::ICON])))
        .layer(from_fn(auth::strict))
        .with_state(site)
}

/// A page that is the same for everybody.
fn asset(
    kind: &'static str,
    parts: &[&str],
) -> impl Fn() -> std::future::Ready<([(header::HeaderName, &'static str); 2], String)> + Clone + use<>
{
    let text = parts.concat();
    move || {
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
        std::future::ready((headers, text.clone()))
    }
}

/// A page that says why there is not the one that was asked for. It is drawn by [`draw_refusal`], which knows the prefix.
#[derive(Clone)]
struct Refusal(Status);

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        Refusal(status)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = auth::http_status(self.0.code()).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

async fn draw_refusal(State(prefix): State<Prefix>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(Refusal(status)) = response.extensions().get() else { return response };
    let (code, frame) = (response.status(), Frame { prefix, token: None });
    (code, html::refusal(&frame, code, status.message())).into_response()
}

impl FromRequestParts<Site> for Visitor {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Visitor, StatusCode> {
        // It is there: the port is served with it.
        let peer = parts.extensions.get::<ConnectInfo<Peer>>();
        let ConnectInfo(Peer(peer)) = *peer.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
        Ok(site.auth.visitor(&parts.headers, peer))
    }
}

async fn list(
    State(site): State<Site>,
    visitor: Visitor,
    Query(listing): Query<Listing>,
) -> Result<Markup, Refusal> {
    let identity = site.auth.enter(&visitor, auth::LIST)?;
    let subject = Subject::Studies(listing.clone());
    let drawing = drawing::draw(&site.api, &identity, &subject, &site.prefix).await?;
    let (frame, events) = (site.auth.frame(&identity), subject.events(&site.prefix));
    Ok(html::list(&frame, &listing, &drawing, &events))
}

async fn list_events(
    State(site): State<Site>,
    visitor: Visitor,
    Query(listing): Query<Listing>,
) -> Result<Response, Refusal> {
    let identity = site.auth.enter(&visitor, auth::LIST)?;
    Ok(views::follow(site, visitor, identity, Subject::Studies(listing)).await?)
}

async fn study(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Markup, Refusal> {
    let identity = site.auth.enter(&visitor, auth::GET)?;
    let subject = Subject::Study(name.clone());
    let drawing = drawing::draw(&site.api, &identity, &subject, &site.prefix).await?;
    let may_change = site.auth.may_change(&identity);
    let events = (!drawing.ended).then(|| subject.events(&site.prefix));
    let frame = site.auth.frame(&identity);
    Ok(html::study(&frame, &name, &drawing, may_change, events.as_deref()))
}

async fn study_events(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let identity = site.auth.enter(&visitor, auth::GET)?;
    Ok(views::follow(site, visitor, identity, Subject::Study(name)).await?)
}

async fn pause(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Redirect, Refusal> {
    let identity = site.auth.enter(&visitor, auth::PAUSE)?;
    let request = v1::PauseStudyRequest { name: name.clone() };
    site.api.pause_study(asked(&identity, request)).await?;
    Ok(Redirect::to(&format!("{}/studies/{name}", site.prefix)))
}

async fn resume(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Redirect, Refusal> {
    let identity = site.auth.enter(&visitor, auth::RESUME)?;
    let request = v1::ResumeStudyRequest { name: name.clone() };
    site.api.resume_study(asked(&identity, request)).await?;
    Ok(Redirect::to(&format!("{}/studies/{name}", site.prefix)))
}

/// Stopping is for good: the page asks again.
async fn ask_to_stop(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Markup, Refusal> {
    let identity = site.auth.enter(&visitor, auth::GET)?;
    let request = asked(&identity, v1::GetStudyRequest { name });
    let study = site.api.get_study(request).await?.into_inner().study.unwrap_or_default();
    Ok(html::ask_to_stop(&site.auth.frame(&identity), &study))
}

async fn stop(
    State(site): State<Site>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Redirect, Refusal> {
    let identity = site.auth.enter(&visitor, auth::STOP)?;
    let request = v1::StopStudyRequest { name: name.clone() };
    site.api.stop_study(asked(&identity, request)).await?;
    Ok(Redirect::to(&format!("{}/studies/{name}", site.prefix)))
}

async fn glossary(State(site): State<Site>, visitor: Visitor) -> Markup {
    let identity = site.auth.holder(&visitor);
    html::glossary(&identity.map_or_else(|| site.frame(), |identity| site.auth.frame(&identity)))
}

/// Where to go after logging in.
#[derive(Deserialize)]
struct Return {
    #[serde(default)]
    to: String,
}

impl Return {
    /// The page, which is one of ours.
    fn page(&self) -> &str {
        let study = self.to.strip_prefix("/studies/").is_some_and(is_name);
        if study { &self.to } else { "/" }
    }
}

async fn log_in_form(
    State(site): State<Site>,
    visitor: Visitor,
    Query(back): Query<Return>,
) -> Response {
    match site.auth.holder(&visitor) {
        Some(_) => Redirect::to(&format!("{}{}", site.prefix, back.page())).into_response(),
        None => html::log_in(&site.frame(), back.page(), None).into_response(),
    }
}

/// The fields of a log-in form.
#[derive(Deserialize)]
struct LogIn {
    token: String,
    #[serde(flatten)]
    back: Return,
}

async fn log_in(
    State(site): State<Site>,
    visitor: Visitor,
    headers: header::HeaderMap,
    Form(LogIn { token, back }): Form<LogIn>,
) -> Response {
    match site.auth.log_in(&visitor, &headers, &token) {
        Ok(cookie) => {
            let page = Redirect::to(&format!("{}{}", site.prefix, back.page()));
            ([(header::SET_COOKIE, cookie)], page).into_response()
        }
        Err(status) => {
            let code = match auth::http_status(status.code()) {
                StatusCode::UNAUTHORIZED => StatusCode::FORBIDDEN,
                code => code,
            };
            (code, html::log_in(&site.frame(), back.page(), Some(status.message()))).into_response()
        }
    }
}

async fn log_out(State(site): State<Site>, visitor: Visitor) -> impl IntoResponse {
    let log_in = Redirect::to(&format!("{}/login", site.prefix));
    ([(header::SET_COOKIE, site.auth.log_out(&visitor))], log_in)
}

impl http::HealthSource for Api {
    fn alive(&self) -> Result<(), String> {
        if self.studies.have_ended() {
            return Err("the thread that owns the studies has died".into());
        }
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        if *self.closing.borrow() {
            return Err("the controller is shutting down".into());
        }
        // Asked first: while writes fail, the thread that owns the studies may not answer.
        self.studies.check_writes()?;
        let answers = async {
            self.reader.check().await.map_err(|error| error.to_string())?;
            self.studies.run(|_, _| Ok(())).await.map_err(|error| error.to_string())
        };
        match timeout(PATIENCE, answers).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("the studies' thread did not answer within {PATIENCE:?}")),
        }
    }

    /// The studies, if they answer: without them the rest is worth the more.
    async fn look(&self) -> Registry {
        let mut registry = Registry::default();
        let snapshot = timeout(PATIENCE, self.studies.run(studies::snapshot)).await;
        if let Ok(Ok(snapshot)) = snapshot {
            registry.register_collector(Box::new(snapshot));
        }
        registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_path_of_plain_segments() {
        for (text, expected) in
            [("", ""), ("/", ""), ("/asng", "/asng"), ("/asng/", "/asng"), ("/a.b/c-1", "/a.b/c-1")]
        {
            assert_eq!(&*text.parse::<Prefix>().unwrap(), expected, "{text:?}");
        }
        for text in
            ["asng", "//asng", "/asng//", "/a/../b", "/a b", "/{a}", "/a?b", "/ä", "http://a/b"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text:?}");
        }
    }
}
