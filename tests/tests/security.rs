//! Callers without access to the controller, or without the right to do something, are refused with the reason.

use std::{
    error::Error,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use asng_proto::v1::{
    self, search_service_client::SearchServiceClient, study_service_client::StudyServiceClient,
};
use asng_tests::{Controller, asng_controller, create_request};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};
use tonic_types::StatusExt;

/// Codes of a request whose connection came to nothing; the last where a client takes TLS for HTTP/2.
const NOT_CONNECTED: [Code; 4] =
    [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];

fn certs(arguments: &[&str], out: &Path) -> Output {
    let mut command = Command::new(asng_controller());
    command.arg("certs").args(arguments).arg("--out").arg(out).output().unwrap()
}

/// A directory with an authority and what it has signed.
fn new_certs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    assert!(certs(&[], directory.path()).status.success());
    directory
}

/// A controller under mutual TLS with the files of a directory.
fn start_tls(state_dir: &Path, certs: &Path) -> Controller {
    let file = |name: &str| certs.join(name).to_str().unwrap().to_string();
    let (cert, key, ca) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca];
    let arguments = [&["--log", "debug"], &tls[..]].concat();
    Controller::start_with(state_dir, &arguments)
}

/// A client that trusts the authority of one directory and has the certificate `client` of another.
fn connect(
    controller: &Controller,
    trusts: &Path,
    has: Option<(&Path, &str)>,
) -> StudyServiceClient<Channel> {
    let ca = fs::read(trusts.join("ca.pem")).unwrap();
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    if let Some((directory, name)) = has {
        let read = |end| fs::read(directory.join(format!("{name}{end}.pem"))).unwrap();
        tls = tls.identity(Identity::from_pem(read(""), read("-key")));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", controller.address)).unwrap();
    StudyServiceClient::new(endpoint.tls_config(tls).unwrap().connect_lazy())
}

async fn list(client: &mut StudyServiceClient<Channel>) -> Result<(), Status> {
    client.list_studies(v1::ListStudiesRequest::default()).await.map(drop)
}

/// The code of the status of a connection that came to nothing, and all its causes.
async fn refusal(mut client: StudyServiceClient<Channel>) -> (Code, String) {
    let status = list(&mut client).await.unwrap_err();
    let (mut text, mut cause) = (status.to_string(), status.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    (status.code(), text)
}

#[tokio::test]
async fn mutual_tls_is_for_the_certificates_of_its_authority() {
    let state = tempfile::tempdir().unwrap();
    let (ours, others) = (new_certs(), new_certs());
    let (ours, others) = (ours.path(), others.path());
    let controller = start_tls(state.path(), ours);
    list(&mut connect(&controller, ours, Some((ours, "client")))).await.unwrap();

    // The log says why; a client may learn no more than that its connection was closed.
    for (has, why) in [
        (None, "peer sent no certificates"),
        (Some((others, "client")), "UnknownIssuer"),
        (Some((ours, "server")), "extended key usage"),
    ] {
        let (code, text) = refusal(connect(&controller, ours, has)).await;
        assert!(NOT_CONNECTED.contains(&code), "{code:?}: {text}");
        controller.log_with(why);
    }
    let (code, text) = refusal(connect(&controller, others, Some((ours, "client")))).await;
    assert!(NOT_CONNECTED.contains(&code) && text.contains("UnknownIssuer"), "{code:?}: {text}");
    let plain = StudyServiceClient::new(controller.channel());
    assert!(NOT_CONNECTED.contains(&refusal(plain).await.0));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_warned_of() {
    let (state, certs) = (tempfile::tempdir().unwrap(), new_certs());
    let read = |name: &str| fs::read_to_string(certs.path().join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let ca = Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_string()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    let expired = params.signed_by(&key, &ca).unwrap();
    fs::write(certs.path().join("server.pem"), expired.pem()).unwrap();
    fs::write(certs.path().join("server-key.pem"), key.serialize_pem()).unwrap();

    let controller = start_tls(state.path(), certs.path());
    controller.log_with("the certificate has expired, on ");
    let client = connect(&controller, certs.path(), Some((certs.path(), "client")));
    let (code, text) = refusal(client).await;
    assert!(NOT_CONNECTED.contains(&code), "{code:?}: {text}");
    assert!(text.contains("certificate expired"), "{text}");
}

#[tokio::test]
async fn certificates_can_be_replaced_while_the_controller_runs() {
    let (state, used, new) = (tempfile::tempdir().unwrap(), new_certs(), new_certs());
    let (used, new) = (used.path(), new.path());
    let controller = start_tls(state.path(), used);
    let mut before = connect(&controller, used, Some((used, "client")));
    list(&mut before).await.unwrap();
    for name in ["server.pem", "server-key.pem", "ca.pem"] {
        fs::copy(new.join(name), used.join(name)).unwrap();
    }
    controller.signal("HUP");
    controller.log_with("SIGHUP: changed certificates and tokens are read again");
    while list(&mut connect(&controller, new, Some((new, "client")))).await.is_err() {}
    // What is open stays open.
    list(&mut before).await.unwrap();
}

#[test]
fn certs_keeps_its_authority_and_what_was_not_named() {
    let directory = new_certs();
    let out = directory.path();
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    for name in ["ca-key.pem", "server-key.pem", "client-key.pem"] {
        let mode = fs::metadata(out.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let before = ["ca.pem", "ca-key.pem", "server.pem", "client.pem"].map(read);
    let added = certs(&["--client", "bob"], out);
    assert!(added.status.success());
    let usage = String::from_utf8(added.stdout).unwrap();
    for command in ["asng-controller --listen", "asng-trainer serve", "asngctl --controller"] {
        assert!(usage.contains(command), "{usage}");
    }
    assert_eq!(["ca.pem", "ca-key.pem", "server.pem", "client.pem"].map(read), before);

    let refused = certs(&["--client", "bob"], out);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.contains("exists; --force replaces it"), "{error}");
    let bob = read("bob.pem");
    assert!(certs(&["--client", "bob", "--force"], out).status.success());
    assert_ne!(read("bob.pem"), bob);
    assert_eq!(["ca.pem", "ca-key.pem", "server.pem", "client.pem"].map(read), before);
}

/// Returns a token and its entry from `asng-controller token`.
fn new_token(name: &str, role: &str) -> (String, String) {
    let mut command = Command::new(asng_controller());
    let output = command.args(["token", "--name", name, "--role", role]).output().unwrap();
    let token = String::from_utf8(output.stderr).unwrap().trim().to_string();
    (token, String::from_utf8(output.stdout).unwrap())
}

/// A file of tokens, one of each role, and the tokens.
fn token_file(directory: &Path) -> (String, [String; 3]) {
    let made = ["viewer", "trainer", "admin"].map(|role| new_token(&format!("a-{role}"), role));
    let file = directory.join("tokens.toml");
    fs::write(&file, made.each_ref().map(|(_, entry)| entry.as_str()).concat()).unwrap();
    (file.to_str().unwrap().into(), made.map(|(token, _)| token))
}

fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A status as code, reason and message.
fn told(status: &Status) -> (Code, String, String) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "asng");
    (status.code(), info.reason, status.message().into())
}

fn lease_request() -> v1::LeaseStepRequest {
    v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() }
}

#[tokio::test]
async fn a_token_allows_what_its_role_does() {
    let directory = tempfile::tempdir().unwrap();
    let (file, [viewer, trainer, admin]) = token_file(directory.path());
    let state = directory.path().join("state");
    let controller = Controller::start_with(&state, &["--token-file", &file]);
    let mut studies = StudyServiceClient::new(controller.channel());
    let mut search = SearchServiceClient::new(controller.channel());

    // Everybody may ask after health, nobody else after anything without a token.
    let check = HealthCheckRequest::default();
    HealthClient::new(controller.channel()).check(check).await.unwrap();
    let get = v1::GetStudyRequest { name: "s".into() };
    let status = studies.get_study(get.clone()).await.unwrap_err();
    let message = "the controller needs a token: send it as `authorization: Bearer TOKEN`";
    assert_eq!(told(&status), (Code::Unauthenticated, "TOKEN_MISSING".into(), message.into()));
    let mut reflection = ServerReflectionClient::new(controller.channel());
    let ask = tokio_stream::once(ServerReflectionRequest::default());
    let status = reflection.server_reflection_info(ask).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = studies.get_study(bearing("unknown", get.clone())).await.unwrap_err();
    let message = "unknown or revoked token: the controller does not accept it";
    assert_eq!(told(&status), (Code::Unauthenticated, "TOKEN_UNKNOWN".into(), message.into()));

    for (token, name) in [(&viewer, "a-viewer"), (&trainer, "a-trainer")] {
        let create = bearing(token, create_request("s", 10));
        let (code, reason, message) = told(&studies.create_study(create).await.unwrap_err());
        assert_eq!((code, &*reason), (Code::PermissionDenied, "ROLE"));
        let role = &name[2..];
        let expected = format!("CreateStudy needs a token of role admin; {name:?} has role {role}");
        assert_eq!(message, expected);
    }
    studies.create_study(bearing(&admin, create_request("s", 10))).await.unwrap();
    controller.log_with("an admin acts token=\"a-admin\"");

    let status = search.lease_step(bearing(&viewer, lease_request())).await.unwrap_err();
    let message = "LeaseStep needs a token of role trainer; \"a-viewer\" has role viewer";
    assert_eq!(told(&status), (Code::PermissionDenied, "ROLE".into(), message.into()));
    search.lease_step(bearing(&trainer, lease_request())).await.unwrap();
    for token in [&viewer, &trainer, &admin] {
        studies.get_study(bearing(token, get.clone())).await.unwrap();
    }
}

#[tokio::test]
async fn a_bound_token_sees_and_touches_its_own_studies_only() {
    let directory = tempfile::tempdir().unwrap();
    let (trainer, trainers_entry) = new_token("lab-trainers", "trainer");
    let (lead, leads_entry) = new_token("lab-lead", "admin");
    let (admin, admins_entry) = new_token("root", "admin");
    let file = directory.path().join("tokens.toml");
    let owner = "owner = \"lab\"";
    let bound = format!("{owner}\nlabels = {{ team = \"vision\" }}");
    let entries = [trainers_entry.trim(), owner, leads_entry.trim(), &bound, &admins_entry];
    fs::write(&file, entries.join("\n")).unwrap();
    let state = directory.path().join("state");
    let arguments = ["--token-file", file.to_str().unwrap()];
    let controller = Controller::start_with(&state, &arguments);
    let (mut studies, mut search) = (controller.studies(), controller.search());
    let create = |name: &str, owner: &str, labels: &[(&str, &str)]| {
        let mut request = create_request(name, 10);
        let spec = request.spec.as_mut().unwrap();
        (spec.space, spec.owner) = ("toy".into(), owner.into());
        spec.labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        request
    };

    // Of a bound token, a study is its owner's, and has to have its labels.
    let vision = [("team", "vision")];
    let mut made = async |token: &str, request| {
        let created = studies.create_study(bearing(token, request)).await?;
        Ok::<_, Status>(created.into_inner().study.unwrap().owner)
    };
    assert_eq!(made(&admin, create("other", "", &[])).await.unwrap(), "root");
    assert_eq!(made(&lead, create("lab1", "", &vision)).await.unwrap(), "lab");
    assert_eq!(made(&admin, create("lab2", "lab", &[])).await.unwrap(), "lab");
    for request in [create("x", "", &[]), create("x", "someone", &vision)] {
        let message =
            "this token is for studies of owner \"lab\", label \"team\" = \"vision\" only";
        let status = made(&lead, request).await.unwrap_err();
        assert_eq!(told(&status), (Code::PermissionDenied, "SCOPE".into(), message.into()));
    }
    // That a name is taken cannot be hidden, what has taken it can.
    // Neither does its state show, nor is it replaced.
    let rejection = v1::Rejection { violations: vec![v1::FieldViolation::default()] };
    let reject = v1::DescribeSpaceRequest {
        study: "failed".into(),
        trainer_id: "t".into(),
        answer: Some(v1::describe_space_request::Answer::Rejection(rejection)),
    };
    made(&admin, create("failed", "", &vision)).await.unwrap();
    search.describe_space(bearing(&admin, reject)).await.unwrap();
    for name in ["other", "failed"] {
        let taken =
            format!("study {name:?} exists, and is another: with another spec, or imported before");
        for replace_failed in [false, true] {
            let mut request = create(name, "", &vision);
            request.replace_failed = replace_failed;
            let status = made(&lead, request).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::AlreadyExists, &*taken));
            assert!(status.get_details_bad_request().is_none());
        }
    }
    let delete = v1::DeleteStudyRequest { name: "failed".into() };
    controller.studies().delete_study(bearing(&admin, delete)).await.unwrap();

    for (token, seen) in [
        (&admin, &["other", "lab1", "lab2"][..]),
        (&trainer, &["lab1", "lab2"]),
        (&lead, &["lab1"]),
    ] {
        let list = bearing(token, v1::ListStudiesRequest::default());
        let list = studies.list_studies(list).await.unwrap().into_inner().studies;
        assert_eq!(list.iter().map(|study| &*study.name).collect::<Vec<_>>(), seen);
    }
    let name = || "other".to_string();
    let unknown = "there is no study \"other\"";
    let hidden = [
        studies.get_study(bearing(&trainer, v1::GetStudyRequest { name: name() })).await.err(),
        studies.watch_study(bearing(&trainer, v1::WatchStudyRequest { name: name() })).await.err(),
        studies.delete_study(bearing(&lead, v1::DeleteStudyRequest { name: name() })).await.err(),
        studies.pause_study(bearing(&lead, v1::PauseStudyRequest { name: name() })).await.err(),
    ];
    for status in hidden {
        let status = status.unwrap();
        assert_eq!((status.code(), status.message()), (Code::NotFound, unknown));
    }

    // Any study of a space is any that it sees, though the other is older.
    let any = v1::LeaseStepRequest {
        study: String::new(),
        spaces: vec!["toy".into()],
        ..lease_request()
    };
    let answer = search.lease_step(bearing(&trainer, any)).await.unwrap().into_inner();
    let Some(v1::lease_step_response::Next::Step(step)) = answer.next else { panic!("{answer:?}") };
    assert_eq!(step.study, "lab1");
    // A start in its name elsewhere is none of its business.
    let elsewhere = v1::LeaseStepRequest { study: name(), ..lease_request() };
    search.lease_step(bearing(&admin, elsewhere)).await.unwrap();
    let restart = v1::LeaseStepRequest {
        study: "lab2".into(),
        fresh_start: true,
        request_id: "2".into(),
        ..lease_request()
    };
    search.lease_step(bearing(&trainer, restart)).await.unwrap();
    let other = v1::LeaseStepRequest { study: name(), request_id: "3".into(), ..lease_request() };
    let answer = search.lease_step(bearing(&admin, other)).await.unwrap().into_inner();
    let Some(v1::lease_step_response::Next::Step(step)) = answer.next else { panic!("{answer:?}") };
    assert_eq!(step.step_id, 2, "its first step was not put back");
    let mut report = asng_tests::report(&step, "t");
    report.lease_next = false;
    let status = search.report_step(bearing(&trainer, report.clone())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, unknown));

    // Everybody sees every trainer, and of what it does the part that concerns studies in scope.
    report.trainer_id = "roamer".into();
    search.report_step(bearing(&admin, report)).await.unwrap();
    studies.create_study(bearing(&admin, create("hidden", "", &[]))).await.unwrap();
    let get = |name: &str| bearing(&admin, v1::GetStudyRequest { name: name.into() });
    let mut set_aside = Vec::new();
    for name in ["lab1", "hidden"] {
        let study = studies.get_study(get(name)).await.unwrap().into_inner().study.unwrap();
        let (study, study_id) = (study.name, study.study_id);
        set_aside.push(v1::SetAsideStudy { study, study_id, ..Default::default() });
    }
    let trainer_id = "roamer".into();
    let roams = v1::LeaseStepRequest { study: name(), trainer_id, set_aside, ..lease_request() };
    search.lease_step(bearing(&admin, roams)).await.unwrap();
    for (token, study, counted, named) in
        [(&admin, "other", 1, &["lab1", "hidden"][..]), (&trainer, "", 0, &["lab1"])]
    {
        let list = bearing(token, v1::ListTrainersRequest::default());
        let list = studies.list_trainers(list).await.unwrap().into_inner().trainers;
        assert_eq!(list.iter().map(|t| &*t.trainer_id).collect::<Vec<_>>(), ["roamer", "t"]);
        let set_aside: Vec<_> = list[0].set_aside.iter().map(|s| &*s.study).collect();
        assert_eq!((&*list[0].study, list[0].applied, &*set_aside), (study, counted, named));
    }
}

#[tokio::test]
async fn tokens_can_be_changed_while_the_controller_runs() {
    let directory = tempfile::tempdir().unwrap();
    let (file, [viewer, ..]) = token_file(directory.path());
    let state = directory.path().join("state");
    let controller = Controller::start_with(&state, &["--token-file", &file]);
    let studies = controller.studies();
    let code = async |token: &str| {
        let list = bearing(token, v1::ListStudiesRequest::default());
        studies.clone().list_studies(list).await.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(code(&viewer).await, Code::Ok);

    fs::write(&file, "[[token]]\nname = 5\n").unwrap();
    controller.log_with("cannot be read again; what was read before stays in use");
    assert_eq!(code(&viewer).await, Code::Ok);

    let (new, entry) = new_token("new", "viewer");
    fs::write(&file, entry).unwrap();
    while code(&new).await != Code::Ok {}
    assert_eq!(code(&viewer).await, Code::Unauthenticated);
}

#[tokio::test]
async fn a_token_is_never_logged() {
    let directory = tempfile::tempdir().unwrap();
    let (_, [.., admin]) = token_file(directory.path());
    let file = directory.path().join("clear.toml");
    let entry = format!("[[token]]\nname = \"a\"\nrole = \"viewer\"\ntoken = \"{admin}\"\n");
    fs::write(&file, &entry).unwrap();
    let state = directory.path().join("state");
    let arguments = ["--token-file", file.to_str().unwrap(), "--log", "trace"];
    let controller = Controller::start_with(&state, &arguments);
    let mut studies = controller.studies();
    studies.list_studies(bearing(&admin, v1::ListStudiesRequest::default())).await.unwrap();
    studies.create_study(bearing(&admin, create_request("s", 1))).await.unwrap_err();
    let wrong = format!("{admin}-mistyped");
    studies.list_studies(bearing(&wrong, v1::ListStudiesRequest::default())).await.unwrap_err();
    // Faults of the file do not quote it either.
    fs::write(&file, format!("token = \"{admin}\"\n")).unwrap();
    controller.log_with("stays in use");
    fs::write(&file, entry.replace("viewer\"", "viewer")).unwrap();
    let log = controller.log_with("is not TOML from line 3 on");
    assert!(!log.contains(&admin), "{log}");
}
