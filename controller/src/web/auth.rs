//! Access to the pages: tokens, sessions, and protection against requests from other sites.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use asng_serving::{
    Gate,
    access::{Fingerprint, Identity},
};
use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, ORIGIN, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use tonic::{Code, Status};
use tracing::info;

use super::{Frame, Prefix, Refusal};

/// How long somebody stays logged in.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// Sessions at a time; beyond, the oldest ends.
const MAX_SESSIONS: usize = 1000;
/// The content security policy: a page may load its own files, submit its own forms, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The methods of StudyService that pages stand for.
pub(super) const LIST: &str = "/asng.v1.StudyService/ListStudies";
pub(super) const GET: &str = "/asng.v1.StudyService/GetStudy";
pub(super) const PAUSE: &str = "/asng.v1.StudyService/PauseStudy";
pub(super) const RESUME: &str = "/asng.v1.StudyService/ResumeStudy";
pub(super) const STOP: &str = "/asng.v1.StudyService/StopStudy";

/// The sender of a request, as far as the request identifies it.
#[derive(Clone)]
pub(super) struct Visitor {
    session: Option<String>,
    peer: SocketAddr,
}

/// The access check of the pages.
pub(super) struct WebAuth {
    gate: Gate,
    sessions: Mutex<Sessions>,
    /// Why pages are not shown at all.
    closed: Option<String>,
    /// True if pages are served to this machine only, to all its users.
    local: bool,
    https: bool,
    prefix: Prefix,
}

impl WebAuth {
    /// Access at `address`. It is closed to other machines where a token would travel in the clear, or none is wanted,
    /// unless `insecure` says that this is meant.
    pub(super) fn new(
        gate: Gate,
        address: SocketAddr,
        https: bool,
        insecure: bool,
        prefix: Prefix,
    ) -> WebAuth {
        let loopback = address.ip().to_canonical().is_loopback();
        let danger = if loopback || insecure {
            None
        } else if !gate.wants_tokens() {
            Some("would give everyone full access. Give --token-file".into())
        } else if !https {
            Some(format!(
                "would be in plain text. Give --http https://{address} with --tls-cert and --tls-key, which \
                 `asng-controller certs --host NAME` creates"
            ))
        } else {
            None
        };
        let closed = danger.map(|danger| {
            format!(
                "serving the page to other machines, on {address}, {danger}; or give --insecure"
            )
        });
        if let Some(closed) = &closed {
            info!("the live page is disabled: {closed}");
        }
        let local = loopback && !gate.wants_tokens();
        WebAuth { gate, sessions: Mutex::default(), closed, local, https, prefix }
    }

    pub(super) fn visitor(&self, headers: &HeaderMap, peer: SocketAddr) -> Visitor {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
        let session = cookies.find_map(|cookie| cookie.trim().strip_prefix("asng="));
        Visitor { session: session.map(String::from), peer }
    }

    /// Lets the visitor call a method, as the gate would over gRPC.
    pub(super) fn enter(&self, visitor: &Visitor, path: &str) -> Result<Identity, Status> {
        self.gate.enter(self.token(visitor).as_ref(), path, visitor.peer)
    }

    /// Returns the identity of the visitor now, if it is known.
    pub(super) fn holder(&self, visitor: &Visitor) -> Option<Identity> {
        self.gate.holder(self.token(visitor).as_ref())
    }

    fn token(&self, visitor: &Visitor) -> Option<Fingerprint> {
        self.sessions.lock().token(visitor.session.as_deref()?, Instant::now())
    }

    /// Returns true if an identity may pause, resume and stop studies.
    pub(super) fn may_change(&self, identity: &Identity) -> bool {
        [PAUSE, RESUME, STOP].iter().all(|path| self.gate.allows(identity, path))
    }

    /// Returns the frame of the pages of an identity.
    pub(super) fn frame(&self, identity: &Identity) -> Frame {
        Frame { prefix: self.prefix.clone(), token: identity.name().map(String::from) }
    }

    /// Begins a session of whoever holds `token`, and returns its cookie.
    pub(super) fn log_in(
        &self,
        visitor: &Visitor,
        headers: &HeaderMap,
        token: &str,
    ) -> Result<String, Status> {
        let token = Fingerprint::of(token.trim());
        self.gate.enter(Some(&token), LIST, visitor.peer)?;
        // A proxy may be what speaks TLS: then only the browser knows.
        let https = self.https || text(headers, &ORIGIN).is_some_and(|o| o.starts_with("https:"));
        let session = self.sessions.lock().begin(token, Instant::now());
        Ok(self.cookie(&session, SESSION, https))
    }

    /// Ends the visitor's session, and returns the cookie that takes its place.
    pub(super) fn log_out(&self, visitor: &Visitor) -> String {
        if let Some(session) = &visitor.session {
            self.sessions.lock().0.remove(session);
        }
        self.cookie("", Duration::ZERO, self.https)
    }

    fn cookie(&self, session: &str, age: Duration, https: bool) -> String {
        let path = if self.prefix.is_empty() { "/" } else { &*self.prefix };
        let (age, secure) = (age.as_secs(), if https { "; Secure" } else { "" });
        format!("asng={session}; Path={path}; HttpOnly; SameSite=Strict; Max-Age={age}{secure}")
    }

    /// Refuses what comes from pages that are not ours.
    fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Status> {
        let refuse = |why: &str| Err(Status::permission_denied(why));
        if let Some(closed) = &self.closed {
            return refuse(closed);
        }
        let host = text(headers, &HOST).unwrap_or_default();
        if self.local && !is_loopback(host) {
            return refuse(
                "this page is served to this machine only: open it as localhost or 127.0.0.1",
            );
        }
        let own = match (text(headers, &SEC_FETCH_SITE), text(headers, &ORIGIN)) {
            (Some(site), _) => site == "same-origin",
            (None, Some(origin)) => origin
                .split_once("://")
                .is_some_and(|(_, from)| !host.is_empty() && from.eq_ignore_ascii_case(host)),
            (None, None) => false,
        };
        if *method == Method::POST && !own {
            return refuse(
                "this form was not sent from a page of this controller: open the page and try again",
            );
        }
        Ok(())
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns true if a Host, with or without a port, is a name of this machine that no other site can take.
fn is_loopback(host: &str) -> bool {
    if let Some(v6) = host.strip_prefix('[') {
        return v6
            .split(']')
            .next()
            .is_some_and(|ip| ip.parse() == Ok(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
    }
    let name = host.split(':').next().unwrap_or_default();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Lets requests for pages in, and sends those who are not known to the log-in.
pub(super) async fn guard(
    State(auth): State<Arc<WebAuth>>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(status) = auth.check(request.method(), request.headers()) {
        return Refusal(status).into_response();
    }
    let stream = text(request.headers(), &ACCEPT) == Some("text/event-stream");
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED && !stream {
        return Redirect::to(&format!("{}/login?to={path}", auth.prefix)).into_response();
    }
    response
}

/// Adds to every answer what browsers must not do with it.
pub(super) async fn strict(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Stricter, and browsers would no longer say where a form comes from.
        (REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// How HTTP says what a status does.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The sessions by their random id: the hash of the token that was shown, and the end.
#[derive(Default)]
struct Sessions(HashMap<String, (Fingerprint, Instant)>);

impl Sessions {
    fn begin(&mut self, token: Fingerprint, now: Instant) -> String {
        self.0.retain(|_, (_, end)| *end > now);
        if self.0.len() >= MAX_SESSIONS {
            let oldest = self.0.iter().min_by_key(|(_, (_, end))| *end).map(|(id, _)| id.clone());
            oldest.map(|id| self.0.remove(&id));
        }
        let id = HEXLOWER.encode(&rand::random::<[u8; 32]>());
        self.0.insert(id.clone(), (token, now + SESSION));
        id
    }

    fn token(&self, id: &str, now: Instant) -> Option<Fingerprint> {
        self.0.get(id).filter(|(_, end)| *end > now).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_always_mean_this_machine_are_local() {
        for host in
            ["localhost", "LocalHost:50052", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org:50052",
            "[::2]",
            "::1",
            "10.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn sessions_end_and_are_not_too_many() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        let token = Fingerprint::of("a-secret-of-many-characters");
        let first = sessions.begin(token, start);
        assert!(first.len() == 64 && sessions.token(&first, start).is_some());
        assert!(sessions.token("", start).is_none());
        assert!(sessions.token(&first, start + SESSION).is_none());
        let later = start + Duration::from_secs(1);
        let others: Vec<_> = (0..MAX_SESSIONS).map(|_| sessions.begin(token, later)).collect();
        assert!(sessions.token(&first, later).is_none(), "the oldest has made room");
        assert!(others.iter().all(|id| sessions.token(id, later).is_some()));
        sessions.begin(token, later + SESSION);
        assert_eq!(sessions.0.len(), 1);
    }
}
