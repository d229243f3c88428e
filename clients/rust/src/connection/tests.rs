//! Against real servers in this process.

use std::{
    convert::Infallible,
    fs,
    future::{Ready, ready},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::SystemTime,
};

use asng_proto::v1::{
    ImportStudyRequest, PauseStudyRequest, PauseStudyResponse,
    study_service_client::StudyServiceClient,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    server::NamedService,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};
use tonic_types::ErrorDetails;

use super::*;
use crate::{Options, explain};

/// A controller that answers every call with an empty message, or with `refusal`.
#[derive(Clone, Default)]
struct Fake {
    refusal: Option<Status>,
    /// Only calls with this token are answered.
    token: Option<&'static str>,
    calls: Arc<AtomicU32>,
}

impl NamedService for Fake {
    const NAME: &'static str = "asng.v1.StudyService";
}

impl Service<Request<Body>> for Fake {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.calls.fetch_add(1, SeqCst);
        let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let wanted = self.token.map(|token| format!("Bearer {token}"));
        if wanted.is_some() && wanted.as_ref().map(String::as_bytes) != given {
            return ready(Ok(Status::unauthenticated("no such token").into_http()));
        }
        if let Some(refusal) = self.refusal.clone() {
            return ready(Ok(refusal.into_http()));
        }
        // One message of length 0.
        let body = Full::from(&[0; 5][..]).with_trailers(async {
            let mut trailers = HeaderMap::new();
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            Some(Ok(trailers))
        });
        let mut answer = Response::new(Body::new(body));
        let kind = HeaderValue::from_static("application/grpc");
        answer.headers_mut().insert("content-type", kind);
        ready(Ok(answer))
    }
}

/// Serves `fake` for as long as the test runs, and returns host and port.
async fn serve(fake: Fake, tls: Option<ServerTlsConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    let server = server.add_service(fake);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address.to_string()
}

fn options(addresses: &[&str]) -> Options {
    Options {
        controller: addresses.iter().map(|address| format!("http://{address}")).collect(),
        ..Options::default()
    }
}

async fn call(connection: &Connection) -> Result<PauseStudyResponse, Status> {
    let mut studies = StudyServiceClient::new(connection.clone());
    studies.pause_study(PauseStudyRequest::default()).await.map(tonic::Response::into_inner)
}

/// A port where nobody listens: one that was free a moment ago.
async fn dead() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn not_owner(address: &str) -> Option<Status> {
    let metadata = [("address".to_string(), address.to_string())];
    let details = ErrorDetails::with_error_info("NOT_OWNER", "asng", metadata);
    Some(Status::with_error_details(Code::Unavailable, "not the owner", details))
}

#[tokio::test]
async fn a_refused_connection_says_where_and_what_to_do() {
    let connection = options(&[&dead().await]).connect().unwrap();
    let status = call(&connection).await.unwrap_err();
    assert!(crate::is_transient(&status));
    let text = explain(&status, &connection.url());
    let start = format!("no controller answers at {}: ", connection.url());
    assert!(text.starts_with(&start) && text.contains("asng-controller"), "{text}");
}

#[tokio::test]
async fn a_dead_address_is_left_for_good() {
    let fake = Fake::default();
    let connection = options(&[&dead().await, &serve(fake.clone(), None).await]).connect().unwrap();
    for calls in 1..=2 {
        call(&connection).await.unwrap();
        assert_eq!(fake.calls.load(SeqCst), calls);
    }
    assert_eq!(connection.places().current, 1);
}

#[tokio::test]
async fn a_controller_that_is_unavailable_is_left_and_others_are_tried_once() {
    let away = Fake { refusal: Some(Status::unavailable("shutting down")), ..Fake::default() };
    let [a, b] = [away.clone(), away.clone()].map(|fake| async { serve(fake, None).await });
    let connection = options(&[&a.await, &b.await]).connect().unwrap();
    assert_eq!(call(&connection).await.unwrap_err().message(), "shutting down");
    assert_eq!(away.calls.load(SeqCst), 2);
}

#[tokio::test]
async fn other_errors_are_answers() {
    let fake = Fake { refusal: Some(Status::not_found("no such study")), ..Fake::default() };
    let address = serve(fake.clone(), None).await;
    let connection = options(&[&address, &dead().await]).connect().unwrap();
    assert_eq!(call(&connection).await.unwrap_err().code(), Code::NotFound);
    assert_eq!((fake.calls.load(SeqCst), connection.places().current), (1, 0));
}

#[tokio::test]
async fn the_owner_is_followed_known_or_not() {
    let owner = Fake::default();
    let address = serve(owner.clone(), None).await;
    for named in [address.clone(), format!("http://{address}/")] {
        let other = Fake { refusal: not_owner(&named), ..Fake::default() };
        let other_address = serve(other.clone(), None).await;
        for configured in [&[&*other_address][..], &[&*other_address, &*address]] {
            let connection = options(configured).connect().unwrap();
            let before = owner.calls.load(SeqCst);
            call(&connection).await.unwrap();
            call(&connection).await.unwrap();
            assert_eq!(owner.calls.load(SeqCst), before + 2);
            assert_eq!(connection.url(), options(configured).controller.join(","));
        }
        assert_eq!(other.calls.load(SeqCst), 2);
    }
}

#[tokio::test]
async fn controllers_that_name_each_other_are_not_asked_for_ever() {
    let [a, b] = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    let addresses = [&a, &b].map(|listener| listener.local_addr().unwrap().to_string());
    let calls = Arc::new(AtomicU32::new(0));
    for (listener, other) in [(a, &addresses[1]), (b, &addresses[0])] {
        let fake = Fake { refusal: not_owner(other), calls: calls.clone(), token: None };
        let server = Server::builder().add_service(fake);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    }
    let connection = options(&[&addresses[0]]).connect().unwrap();
    assert_eq!(call(&connection).await.unwrap_err().message(), "not the owner");
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test]
async fn an_owner_with_a_nonsensical_address_is_not_followed() {
    let fake = Fake { refusal: not_owner("ftp://a/b c"), ..Fake::default() };
    let connection = options(&[&serve(fake, None).await]).connect().unwrap();
    assert_eq!(call(&connection).await.unwrap_err().message(), "not the owner");
}

#[tokio::test]
async fn the_token_goes_along_and_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let address = serve(Fake { token: Some("the-second"), ..Fake::default() }, None).await;
    let options = Options { token_file: Some(file.clone()), ..options(&[&address]) };
    let connection = options.connect().unwrap();
    assert_eq!(call(&connection).await.unwrap_err().code(), Code::Unauthenticated);
    fs::write(&file, "the-second\n").unwrap();
    call(&connection).await.unwrap();
}

/// An authority, and files of certificates that it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(parameters, key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca"), issuer.pem()).unwrap();
        Authority { issuer, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Certificate and key for `name`, for servers and clients.
    fn sign(&self, name: &str) -> (String, String) {
        let mut parameters = CertificateParams::new([name.to_string()]).unwrap();
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> ServerTlsConfig {
        let (certificate, key) = self.sign(name);
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }

    fn client(&self, address: &str) -> Options {
        Options { tls_ca: Some(self.file("ca")), ..tls_options(address) }
    }
}

fn tls_options(address: &str) -> Options {
    Options { controller: vec![format!("https://{address}")], ..Options::default() }
}

/// Returns the text of the error when a call over `options` fails.
async fn failure(options: &Options) -> String {
    let connection = options.connect().unwrap();
    explain(&call(&connection).await.unwrap_err(), &connection.url())
}

#[tokio::test]
async fn tls_needs_the_authority_and_the_name() {
    let (ours, other) = (Authority::new(), Authority::new());
    let address = serve(Fake::default(), Some(ours.server("127.0.0.1"))).await;
    call(&ours.client(&address).connect().unwrap()).await.unwrap();
    let url = format!("https://{address}");
    let end = ours.client(&address).certificate_end(&url).await.unwrap();
    assert_eq!(end, SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800));
    let error = other.client(&address).certificate_end(&url).await.unwrap_err();
    assert!(error.to_string().contains("--tls-ca FILE"), "{error}");
    let text = failure(&other.client(&address)).await;
    assert!(
        text.contains("no TLS connection to https://") && text.contains("--tls-ca FILE"),
        "{text}"
    );
    let address = serve(Fake::default(), Some(ours.server("elsewhere.test"))).await;
    let text = failure(&ours.client(&address)).await;
    assert!(text.contains("its certificate is for another host name"), "{text}");
}

#[tokio::test]
async fn tls_on_one_side_only_is_explained() {
    let ours = Authority::new();
    let plain = serve(Fake::default(), None).await;
    let text = failure(&ours.client(&plain)).await;
    assert!(text.contains("write http://"), "{text}");
    let secure = serve(Fake::default(), Some(ours.server("127.0.0.1"))).await;
    let text = failure(&options(&[&secure])).await;
    assert!(text.contains("write https://"), "{text}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_asked_for() {
    let ours = Authority::new();
    let authority = Certificate::from_pem(fs::read(ours.file("ca")).unwrap());
    let server = ours.server("127.0.0.1").client_ca_root(authority);
    let address = serve(Fake::default(), Some(server)).await;
    let text = failure(&ours.client(&address)).await;
    assert!(text.contains("--tls-cert FILE and --tls-key FILE"), "{text}");
    let (certificate, key) = ours.sign("a trainer");
    fs::write(ours.file("certificate"), certificate).unwrap();
    fs::write(ours.file("key"), key).unwrap();
    let (tls_cert, tls_key) = (Some(ours.file("certificate")), Some(ours.file("key")));
    let options = Options { tls_cert, tls_key, ..ours.client(&address) };
    call(&options.connect().unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_owner_without_tls_is_not_followed_from_one_with_it() {
    let ours = Authority::new();
    let plain = Fake::default();
    let refusal = not_owner(&format!("http://{}", serve(plain.clone(), None).await));
    let fake = Fake { refusal, ..Fake::default() };
    let address = serve(fake, Some(ours.server("127.0.0.1"))).await;
    call(&ours.client(&address).connect().unwrap()).await.unwrap_err();
    assert_eq!(plain.calls.load(SeqCst), 0);
}

#[tokio::test]
async fn what_streams_towards_the_controller_is_sent_once() {
    let fake = Fake { refusal: Some(Status::unavailable("away")), ..Fake::default() };
    let address = serve(fake.clone(), None).await;
    let connection = options(&[&address, &dead().await]).connect().unwrap();
    let mut studies = StudyServiceClient::new(connection.clone());
    let parts = tokio_stream::once(ImportStudyRequest::default());
    assert_eq!(studies.import_study(parts).await.unwrap_err().message(), "away");
    assert_eq!((fake.calls.load(SeqCst), connection.places().current), (1, 1));
}

#[test]
fn the_calls_that_stream_are_those_of_the_contract() {
    let files = FileDescriptorSet::decode(asng_proto::DESCRIPTORS).unwrap().file;
    let mut streams = Vec::new();
    for service in files.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            let path = format!("/asng.v1.{}/{}", service.name(), method.name());
            assert!(!method.client_streaming() || path == IMPORT, "{path}");
            if method.client_streaming() || method.server_streaming() {
                streams.push(path);
            }
        }
    }
    streams.sort();
    let mut listed = STREAMS;
    listed.sort_unstable();
    assert_eq!(streams, listed);
}
