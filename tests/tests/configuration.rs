//! The controller's flags, environment and configuration file, the configurations that it refuses, and its limits.

use std::{fs, process::Command, time::Duration};

use asng_proto::v1;
use asng_tests::{Controller, asng_controller, asngctl, create_request, trainer_program};
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

/// Starts a controller that is to refuse its configuration, and returns what it says.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(asng_controller()).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    text.lines().next().unwrap_or_default().into()
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("controller.toml");
    fs::write(
        &file,
        "listen = \"256.0.0.1:1\"\nhttp-prefix = \"/asng\"\ngrace = \"1s\"\nmax-studies = 1\nmax-streams = 4\n",
    )
    .unwrap();
    let mut command = Command::new(asng_controller());
    command.arg("--state-dir").arg(&file).args(["--listen", "127.0.0.1:0", "--max-studies", "3"]);
    command.env("ASNG_CONFIG", &file).env("ASNG_MAX_STUDIES", "2").env("ASNG_MAX_STREAMS", "5");
    // The program ends at once, since the file is no directory.
    let log = String::from_utf8(command.output().unwrap().stderr).unwrap();
    for expected in [
        "max-studies=3 (flag)",
        "max-streams=5 (environment)",
        "grace=1s,",
        "http-prefix=/asng,",
        "listen=127.0.0.1:0 (flag)",
        "request-timeout=60s,",
    ] {
        assert!(log.contains(expected), "expected {expected}: {log}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("controller.toml");
    let file = file.to_str().unwrap();
    for (content, expected) in [
        ("lisen = \"127.0.0.1:1\"", "there is no option `lisen`; the nearest is `listen`"),
        ("listen = \"here\"", "invalid value 'here' for '--listen <ADDRESS>'"),
        ("listen = [1]", "`listen` must be a string, an integer, true or false"),
        (
            "http-prefix = \"asng\"",
            "invalid value 'asng' for '--http-prefix <PATH>': expected a path",
        ),
    ] {
        fs::write(file, content).unwrap();
        let text = refusal(&["--config", file]);
        assert!(text.starts_with(&format!("error: {file}: {expected}")), "{text}");
    }
    assert!(refusal(&["--config", "nowhere"]).starts_with("error: nowhere: No such file"));
    let sqlite = refusal(&["--store", "sqlite:asng.db"]);
    assert!(sqlite.starts_with("error: --store must be the URL of a PostgreSQL"), "{sqlite}");
    let elsewhere = refusal(&["--store", "postgres://db/asng", "--advertise", "a:port"]);
    let expected = "error: --advertise: \"a:port\" is not an address such as localhost:50051";
    assert!(elsewhere.starts_with(expected), "{elsewhere}");
    let nowhere = refusal(&["--token-file", "nowhere"]);
    assert!(nowhere.starts_with("error: nowhere: No such file"), "{nowhere}");
    assert_eq!(refusal(&["--tls-cert", "x"]), "error: TLS needs both --tls-cert and --tls-key");
}

#[test]
fn a_backup_is_no_stream() {
    for command in ["backup", "restore"] {
        let output = Command::new(asng_controller()).args([command, "-"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("name a file in place of -"), "{text}");
    }
}

/// The variables that a program's help names.
fn variables(program: &mut Command) -> Vec<String> {
    let help = String::from_utf8(program.arg("--help").output().unwrap().stdout).unwrap();
    let after = help.split("[env: ").skip(1);
    after.map(|text| text.split('=').next().unwrap().into()).collect()
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let empty = |command: &mut Command, variables: &[String]| {
        for variable in variables {
            command.env(variable, "");
        }
    };
    let names = variables(Command::new(asng_controller()).arg("serve"));
    for name in ["ASNG_SERVE_TOKEN_FILE", "ASNG_SERVE_INSECURE", "ASNG_RATE_LIMIT", "ASNG_LISTEN"] {
        assert!(names.contains(&name.into()), "{name}: {names:?}");
    }
    let mut command = Command::new(asng_controller());
    empty(&mut command, &names);
    // The program ends at once, since the file is no directory.
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = command.arg("--state-dir").arg(file.path()).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("insecure=false, ") && !log.contains("(environment)"), "{log}");

    let mut names = variables(Command::new(asngctl()).arg("trainer"));
    names.push("ASNG_TOKEN".into());
    let mut command = Command::new(asngctl());
    empty(&mut command, &names);
    let output = command.args(["--controller", &controller.url(), "study", "list"]).output();
    assert!(output.as_ref().unwrap().status.success(), "{output:?}");

    let names = variables(Command::new(trainer_program()).arg("serve"));
    assert!(names.len() > 20, "{names:?}");
    let mut command = Command::new(trainer_program());
    empty(&mut command, &names);
    // A trainer that ends at once, since the directory of its files is a file.
    let output = command.args(["serve", "--work-dir"]).arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn booleans_in_the_environment_are_words() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let controller = |word: &str| {
        let mut command = Command::new(asng_controller());
        command.args(["--listen", "0.0.0.0:0", "--http", "off", "--state-dir"]).arg(file.path());
        command.env("ASNG_SERVE_INSECURE", word);
        // The program ends at once, since the file is no directory.
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let trainer = |word: &str| {
        let mut command = Command::new(trainer_program());
        command.args(["serve", "--listen", "0.0.0.0:0", "--work-dir"]).arg(file.path());
        command.env("ASNG_SERVE_INSECURE", word).env("ASNG_CUDNN_BENCHMARK", "off");
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    for word in ["1", "true", "Yes", "ON"] {
        let (code, log) = controller(word);
        assert!(code == Some(1) && log.contains("insecure: serving other machines"), "{log}");
        let log = trainer(word);
        assert!(log.contains("insecure: serving other machines"), "{log}");
    }
    for word in ["0", "False", "no", "off"] {
        let (code, log) = controller(word);
        assert!(code == Some(2) && log.contains("or give --insecure"), "{log}");
        let log = trainer(word);
        assert!(log.contains("or give --serve-insecure"), "{log}");
    }
    let words = "expected 1, true, yes, on, 0, false, no or off";
    let (code, log) = controller("maybe");
    assert!(code == Some(2) && log.contains(words), "{log}");
    assert!(log.contains("variable ASNG_SERVE_INSECURE"), "{log}");
    let log = trainer("maybe");
    assert!(log.contains(words) && log.contains("variable ASNG_SERVE_INSECURE"), "{log}");

    let asngctl = |word: &str, arguments: &[&str]| {
        let mut command = Command::new(asngctl());
        command.args(["--controller", "http://192.0.2.1:1"]).args(arguments);
        command.args(["study", "list"]).env("ASNG_TOKEN", "secret").env("ASNG_INSECURE", word);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    assert!(asngctl("maybe", &[]).contains("variable ASNG_INSECURE"));
    for (word, arguments) in [("0", &[][..]), ("1", &["--insecure=false"])] {
        let text = asngctl(word, arguments);
        assert!(text.contains("a token would be sent to"), "{text}");
    }
}

#[test]
fn nobody_is_served_in_plain_text_or_unknown_by_oversight() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let certs = Command::new(asng_controller()).args(["certs", "--out", out]).output().unwrap();
    assert!(certs.status.success());
    let (cert, key) = (format!("{out}/server.pem"), format!("{out}/server-key.pem"));
    let (state, everywhere) = (format!("{out}/state"), "0.0.0.0:0");
    let plain = ["--state-dir", &state, "--listen", everywhere];
    let text = refusal(&plain);
    assert!(
        text.starts_with("error: serving other machines, on 0.0.0.0:0, would be in plain text")
    );
    assert!(text.contains("`asng-controller certs --host NAME` creates"), "{text}");
    // Tokens do not make up for it: they could be read on their way.
    let tokens = [&plain[..], &["--token-file", "tokens.toml"]].concat();
    assert_eq!(refusal(&tokens), text);
    let unknown = refusal(&[&plain[..], &["--tls-cert", &cert, "--tls-key", &key]].concat());
    assert!(unknown.contains("would give everyone full access. Give --tls-client-ca"), "{unknown}");
    assert!(!directory.path().join("state").exists());

    let mut insecure = Command::new(asng_controller());
    insecure.args(["--state-dir", &cert, "--listen", everywhere, "--insecure", "--http", "off"]);
    // It ends at once, since the certificate is no directory.
    let log = String::from_utf8(insecure.output().unwrap().stderr).unwrap();
    assert!(log.contains("insecure: serving other machines") && log.contains("address=0.0.0.0:"));
}

#[tokio::test]
async fn clients_that_ask_too_often_are_told_when_to_ask_again() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start_with(directory.path(), &["--rate-limit", "2"]);
    let list = || {
        let mut studies = controller.studies();
        async move { studies.list_studies(v1::ListStudiesRequest::default()).await }
    };
    let status = loop {
        if let Err(status) = list().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let message = "too many requests from address 127.0.0.1: retry in ";
    assert!(status.message().starts_with(message), "{status}");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    assert!(status.get_details_quota_failure().is_some());
    let check = HealthCheckRequest::default();
    HealthClient::new(controller.channel()).check(check).await.unwrap();
    while list().await.is_err() {}
}

#[tokio::test]
async fn studies_and_messages_have_limits() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--max-studies", "1", "--max-message-size", "2000"];
    let controller = Controller::start_with(directory.path(), &arguments);
    let mut studies = controller.studies();
    for _ in 0..2 {
        studies.create_study(create_request("s", 10)).await.unwrap();
    }
    let status = studies.create_study(create_request("t", 10)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let message = "there are 1 studies, which is the limit; delete some";
    assert_eq!(status.message(), message);
    assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "studies");
    studies.delete_study(v1::DeleteStudyRequest { name: "s".into() }).await.unwrap();
    studies.create_study(create_request("t", 10)).await.unwrap();

    let mut large = create_request("u", 10);
    large.spec.as_mut().unwrap().settings.insert("k".into(), "x".repeat(2000));
    let status = studies.create_study(large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("2000 bytes"), "{status}");
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start_with(directory.path(), &["--request-timeout", "50ms"]);
    let mut client = Grpc::new(controller.channel());
    client.ready().await.unwrap();
    let never_sent = tokio_stream::pending::<v1::GetStudyRequest>();
    let path = PathAndQuery::from_static("/asng.v1.StudyService/GetStudy");
    let codec = ProstCodec::<_, v1::GetStudyResponse>::default();
    let status = client.client_streaming(Request::new(never_sent), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "no response within the controller's time limit of 50ms");
}
