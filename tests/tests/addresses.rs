//! Addresses as people type them, and servers that are not those that were meant.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    thread,
};

use asng_tests::{Controller, Process, Trainer, asng_controller, asngctl, trainer_command};
use http_body_util::BodyExt;
use tonic::body::Body;
use tower::{Service, ServiceExt};

fn run(arguments: &[&str]) -> Output {
    Command::new(asngctl()).args(arguments).output().unwrap()
}

/// Returns the output of a command that succeeds.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the errors of a command that fails with `code`.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Sends a request without a body and returns all of the answer.
fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A server of HTTP/1.1 alone, for as long as the test runs.
fn http1() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(|| {
                let mut stream = stream.unwrap();
                // The client may have gone.
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}

#[test]
fn clients_take_addresses_without_a_scheme() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let port = controller.address.port();
    for address in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        assert_eq!(
            printed(&["--controller", &address, "study", "list", "--output", "json"]),
            "[]\n"
        );
        assert_eq!(printed(&["health", &address]), "SERVING\n");
        let healthy = printed(&["--controller", &address, "doctor"]);
        assert!(healthy.contains(&format!("{address}  connection  ok")), "{healthy}");
    }
    let trainer = refused(&["trainer", "status", "--trainer", "localhost:1"], 1);
    assert!(trainer.contains("no trainer answers at http://localhost:1"), "{trainer}");

    let mut trainer = trainer_command(&controller, &directory.path().join("work"));
    trainer.args(["serve", "--listen", "localhost:0", "--http", "0"]);
    trainer.env("ASNG_CONTROLLER", format!("localhost:{port}")).stderr(Stdio::piped());
    let mut trainer = Trainer(trainer.spawn().unwrap());
    let mut log = BufReader::new(trainer.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("serving address=127.0.0.1:")));
}

#[test]
fn what_is_no_address_is_refused_with_the_right_form() {
    let wrong = refused(&["--controller", "gpu-box:port", "study", "list"], 2);
    assert!(wrong.contains("is not an address such as localhost:50051, gpu-box or"), "{wrong}");
    let wrong = refused(&["trainer", "status", "--trainer", "a/b"], 2);
    assert!(wrong.contains("is not an address such as localhost:50053"), "{wrong}");
    for program in ["study list", "health me:secret@a", "trainer status --trainer me:secret@a"] {
        let arguments = ["--controller", "http://me:secret@a:1"].into_iter();
        let arguments: Vec<_> = arguments.chain(program.split(' ')).collect();
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("--token-file"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
    let port = refused(&["--controller", "http://gpu-box.invalid", "study", "list"], 1);
    assert!(port.contains("no controller answers at http://gpu-box.invalid:50051"), "{port}");
}

#[test]
fn servers_listen_on_names_and_on_ports_alone() {
    let directory = tempfile::tempdir().unwrap();
    let start = |listen: &str, http: &str| {
        let mut command = Command::new(asng_controller());
        command.args(["--http", http, "--state-dir"]).arg(directory.path().join("state"));
        command.env("ASNG_LISTEN", listen).stderr(Stdio::piped());
        let mut child = Process(command.spawn().unwrap());
        let mut log = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
        log.find(|line| line.contains(" serving address=127.0.0.1:") && line.contains("http=127"))
            .expect("it serves");
    };
    start("localhost:0", "localhost:0");
    start("0", "0");
    for (arguments, expected) in [
        (
            ["--listen", "http://127.0.0.1:1"],
            "an address to listen on has no scheme; give HOST:PORT",
        ),
        (["--listen", "name.invalid:1"], "the name \"name.invalid\" cannot be resolved"),
        (
            ["--http", "localhost:port"],
            "the port is not 0 to 65535; give HOST:PORT, HOST, :PORT or PORT",
        ),
        // Every interface, which needs TLS.
        (["--listen", ":0"], "serving other machines, on 0.0.0.0:0, would be in plain text"),
    ] {
        let state = directory.path().join("none");
        let mut command = Command::new(asng_controller());
        let output = command.args(arguments).arg("--state-dir").arg(&state).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_client_of_grpc_at_a_port_of_http_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    for address in [controller.http, http1()] {
        let address = address.to_string();
        let sentence = format!("{address} answers HTTP, not gRPC");
        let list = refused(&["--controller", &address, "study", "list"], 1);
        assert!(list.contains(&sentence), "{list}");
        assert!(list.contains("try --controller 127.0.0.1:50051, or ASNG_CONTROLLER="), "{list}");
        let status = refused(&["trainer", "status", "--trainer", &address], 1);
        assert!(status.contains(&sentence) && status.contains("try --trainer 127.0.0.1:50053"));
        assert!(refused(&["health", &address], 1).contains(&sentence));
        let doctor = run(&["--controller", &address, "doctor"]);
        let doctor = String::from_utf8(doctor.stdout).unwrap();
        assert!(doctor.contains("health      FAILED") && doctor.contains(&sentence), "{doctor}");

        // A trainer tries again, and says what is wrong.
        let mut trainer = trainer_command(&controller, &directory.path().join("work"));
        trainer
            .args(["serve", "--listen", "off", "--http", "off"])
            .env("ASNG_CONTROLLER", &address);
        let mut trainer = Trainer(trainer.stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(trainer.0.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(log.any(|line| line.contains("trying again") && line.contains(&sentence)));
    }
}

#[test]
fn the_port_of_the_other_service_is_told_apart_from_a_missing_one() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let address = controller.address.to_string();
    let status = refused(&["trainer", "status", "--trainer", &address], 1);
    assert!(status.contains("serves gRPC, but is no trainer that knows this call"), "{status}");
    assert!(status.contains("is by default on port 50053"), "{status}");
}

#[test]
fn the_page_under_tls_is_not_grpc_either() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    let mut make = Command::new(asng_controller());
    make.args(["certs", "--host", "localhost", "--out"]).arg(&certs);
    assert!(make.output().unwrap().status.success());
    let file = |name: &str| certs.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
    let options = ["--tls-cert", &cert, "--tls-key", &key, "--http", "https://localhost:0"];
    let controller = Controller::start_with(&directory.path().join("state"), &options);
    let page = format!("localhost:{}", controller.http.port());
    let text = refused(&["--controller", &page, "--tls-ca", &ca, "study", "list"], 1);
    assert!(
        text.contains("it serves HTTPS but not gRPC, as the port of the live page does"),
        "{text}"
    );
    // TLS options stand for https:// where there is no scheme.
    let grpc = format!("localhost:{}", controller.address.port());
    printed(&["--controller", &grpc, "--tls-ca", &ca, "study", "list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_at_the_port_of_grpc_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let answer = get(controller.address);
    assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
    assert!(answer.contains("This port answers gRPC, not HTTP."), "{answer}");
    assert!(answer.contains("--http, by default 50052"), "{answer}");
    // As a browser does under TLS.
    let page = http::Request::builder().uri(controller.url()).body(Body::empty()).unwrap();
    let answer = controller.channel().ready().await.unwrap().call(page).await.unwrap();
    assert_eq!(answer.status(), 415);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"This port answers gRPC, not HTTP."), "{text:?}");
}
