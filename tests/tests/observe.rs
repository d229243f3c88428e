//! Metrics, probes, logs and traces of the controller.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use asng_proto::v1::{
    self, lease_step_response::Next, search_service_client::SearchServiceClient,
    study_service_client::StudyServiceClient,
};
use asng_tests::{
    Controller, Disk, Postgres, controller_command, create_request, report, terminate, train,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use prometheus_parse::{Scrape, Value};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1alpha::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};

/// Status line, headers and body of a page.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, head.into(), body.into()))
}

/// Every sample of a scrape, by its name and labels as they are written. Panics where the text is not what it should be.
fn scrape(controller: &Controller) -> HashMap<String, f64> {
    let (status, head, text) = get(controller.http, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let parsed = Scrape::parse(text.lines().map(|line| Ok(line.into()))).unwrap();
    let histograms = parsed.samples.iter().filter_map(|sample| match &sample.value {
        Value::Histogram(buckets) => Some(buckets.len()),
        _ => None,
    });
    let understood = parsed.samples.len() - histograms.clone().count() + histograms.sum::<usize>();
    let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(understood, samples.len(), "a line is not understood:\n{text}");
    let mut values = HashMap::new();
    for sample in samples {
        let (name, value) = sample.rsplit_once(' ').unwrap();
        assert!(values.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {name}");
        let family = name.split('{').next().unwrap();
        let described = |suffix: &str| {
            let family = family.strip_suffix(suffix).unwrap_or(family);
            text.contains(&format!("# HELP {family} "))
        };
        let suffixes = ["", "_total", "_bucket", "_sum", "_count", "_info"];
        assert!(suffixes.into_iter().any(described), "no help: {name}");
    }
    values
}

fn rpcs(method: &str, code: &str) -> String {
    let (service, method) = method.split_once('/').unwrap();
    format!(r#"asng_rpc_requests_total{{service="{service}",method="{method}",code="{code}"}}"#)
}

#[tokio::test]
async fn metrics_count_exactly_what_happened() {
    const STEPS: u64 = 30;
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", STEPS)).await.unwrap();
    let mut last = None;
    train(controller.search(), "s", "t", |step, _| last = Some(report(step, "t"))).await;
    controller.search().report_step(last.unwrap()).await.unwrap();
    let unknown = v1::GetStudyRequest { name: "nobody".into() };
    for _ in 0..2 {
        controller.studies().get_study(unknown.clone()).await.unwrap_err();
    }

    let metrics = scrape(&controller);
    let expected = [
        (r#"asng_study_reports_total{study="s",outcome="applied"}"#.into(), STEPS),
        (r#"asng_study_reports_total{study="s",outcome="stale"}"#.into(), 0),
        (r#"asng_study_reports_total{study="s",outcome="duplicate"}"#.into(), 1),
        (r#"asng_study_generation{study="s"}"#.into(), STEPS),
        (r#"asng_study_max_steps{study="s"}"#.into(), STEPS),
        (r#"asng_study_outstanding_steps{study="s"}"#.into(), 0),
        (r#"asng_study_state{study="s",state="finished"}"#.into(), 1),
        (rpcs("asng.v1.SearchService/ReportStep", "OK"), STEPS + 1),
        (rpcs("asng.v1.SearchService/LeaseStep", "OK"), 1),
        (rpcs("asng.v1.StudyService/CreateStudy", "OK"), 1),
        (rpcs("asng.v1.StudyService/GetStudy", "NOT_FOUND"), 2),
        (
            r#"asng_rpc_duration_seconds_count{service="asng.v1.SearchService",method="ReportStep"}"#
                .into(),
            STEPS + 1,
        ),
        ("asng_store_commit_failures_total".into(), 0),
        (format!(r#"asng_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION")), 1),
    ];
    for (name, value) in expected {
        assert_eq!(metrics.get(&name), Some(&(value as f64)), "{name}");
    }
    // One trainer: the creation, the first lease and each report have a commit of their own.
    assert_eq!(metrics["asng_store_commit_seconds_count"], (STEPS + 2) as f64);
    assert!(metrics["asng_store_commit_operations_sum"] >= (STEPS + 2) as f64);
    for name in ["asng_store_size_bytes", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(metrics[name] > 0.0, "{name}");
    }
}

#[tokio::test]
async fn a_held_lease_has_an_age() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", 10)).await.unwrap();
    let age = r#"asng_study_oldest_lease_age_seconds{study="s"}"#;
    assert!(!scrape(&controller).contains_key(age));
    let request =
        v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() };
    controller.search().lease_step(request).await.unwrap();
    let first = scrape(&controller)[age];
    assert!((0.0..60.0).contains(&first), "{first}");
    while scrape(&controller)[age] <= first {}
}

#[tokio::test]
async fn streams_count_when_they_end_and_unknown_methods_share_a_label() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut health = HealthClient::new(controller.channel());
    let watch = HealthCheckRequest { service: String::new() };
    let mut stream = health.watch(watch).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let in_flight = r#"asng_rpc_in_flight{service="grpc.health.v1.Health",method="Watch"}"#;
    assert_eq!(scrape(&controller)[in_flight], 1.0);
    drop(stream);
    while scrape(&controller)[in_flight] > 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scrape(&controller)[&rpcs("grpc.health.v1.Health/Watch", "CANCELLED")], 1.0);

    // Version v1 is served.
    let mut reflection = ServerReflectionClient::new(controller.channel());
    let nothing = tokio_stream::empty::<ServerReflectionRequest>();
    let status = reflection.server_reflection_info(nothing).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(scrape(&controller)[&rpcs("other/other", "UNIMPLEMENTED")], 1.0);
}

#[tokio::test]
async fn every_response_says_which_release_has_answered() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    let answer = studies.list_studies(v1::ListStudiesRequest::default()).await.unwrap();
    assert_eq!(answer.metadata().get("asng-version").unwrap(), env!("CARGO_PKG_VERSION"));
    let request = v1::GetStudyRequest { name: "nobody".into() };
    let status = studies.get_study(request).await.unwrap_err();
    assert_eq!(status.metadata().get("asng-version").unwrap(), env!("CARGO_PKG_VERSION"));
}

// Several threads, so that the connection takes the server's farewell while the test asks for pages.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_ends_before_the_process_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let http = controller.http;
    for path in ["/healthz", "/readyz"] {
        let (status, _, body) = get(http, path).unwrap();
        assert_eq!((status, body.as_str()), (200, "ok\n"), "{path}");
    }
    assert_eq!(get(http, "/nothing").unwrap().0, 404);

    // As long as this stream is open, the shutdown waits for it.
    let mut health = HealthClient::new(controller.channel());
    let watch = HealthCheckRequest { service: String::new() };
    let stream = health.watch(watch).await.unwrap();
    controller.signal("TERM");
    let refusal = loop {
        let (status, _, body) = get(http, "/readyz").unwrap();
        if status != 200 {
            break (status, body);
        }
    };
    assert_eq!(refusal, (503, "the controller is shutting down\n".into()));
    assert_eq!(get(http, "/healthz").unwrap().0, 200, "no reason to kill it");
    drop((stream, health));
    assert!(controller.wait().success());
    assert!(get(http, "/readyz").is_err());
}

/// Waits until `/readyz` answers with this status and body.
fn readyz_when(controller: &Controller, expected: (u16, &str)) {
    let start = Instant::now();
    loop {
        let (status, _, body) = get(controller.http, "/readyz").unwrap();
        if (status, body.as_str()) == expected {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{expected:?}: {status} {body}");
    }
}

/// Asserts that `/readyz` stays as it is over some looks at the time, and that the controller goes on.
fn readyz_stays(controller: &Controller, expected: (u16, &str)) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        let (status, _, body) = get(controller.http, "/readyz").unwrap();
        assert_eq!((status, body.as_str()), expected);
        assert_eq!(get(controller.http, "/healthz").unwrap().0, 200, "no reason to kill it");
    }
}

/// Creates a study and leases its first step.
async fn first_step(controller: &Controller) -> v1::Step {
    controller.studies().create_study(create_request("s", 100)).await.unwrap();
    let request = v1::LeaseStepRequest {
        study: "s".into(),
        trainer_id: "t".into(),
        request_id: "1".into(),
        ..Default::default()
    };
    let answer = controller.search().lease_step(request).await.unwrap().into_inner();
    let Some(Next::Step(step)) = answer.next else { panic!("{answer:?}") };
    step
}

/// The lines of a log from its `start` on that tell of something wrong, or that it is over.
fn complaints(log: &str, start: usize) -> Vec<&str> {
    let lines = log[start..].lines();
    lines.filter(|l| ["WARN", "ERROR", "over: "].iter().any(|word| l.contains(word))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_by_readyz_and_logged_once() {
    let Some(disk) = Disk::mount(4) else { return };
    let controller = Controller::start(disk.path());
    let step = first_step(&controller).await;
    readyz_when(&controller, (200, "ok\n"));
    let start = controller.log_with("study created").len();

    // Nobody writes: it is noticed all the same.
    disk.fill();
    let full = (503, "cannot write to the database: the disk is full\n");
    readyz_when(&controller, full);
    for _ in 0..10 {
        let refused = controller.search().report_step(report(&step, "t")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
    readyz_stays(&controller, full);
    // Room for something small is not enough for what trainers report.
    disk.give_back(64 * 1024);
    readyz_stays(&controller, full);

    disk.empty();
    readyz_when(&controller, (200, "ok\n"));
    let answer = controller.search().report_step(report(&step, "t")).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), v1::ReportOutcome::Applied);
    readyz_stays(&controller, (200, "ok\n"));
    let log = controller.log_with("over: cannot write to the database");
    let [begin, end] = complaints(&log, start)[..] else { panic!("{log}") };
    assert!(begin.contains("cannot write to the database: the disk is full"), "{begin}");
    assert!(end.contains("over: cannot write to the database"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_makes_the_controller_unready_at_once() {
    let Some(disk) = Disk::mount(4) else { return };
    let controller = Controller::start(disk.path());
    let step = first_step(&controller).await;
    disk.fill();
    loop {
        // There may have been room for one more.
        let Err(refused) = controller.search().report_step(report(&step, "t")).await else {
            continue;
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        break;
    }
    let (status, _, body) = get(controller.http, "/readyz").unwrap();
    assert_eq!((status, body.as_str()), (503, "cannot write to the database: the disk is full\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_gone_is_told_by_readyz_and_logged_once() {
    let Some(mut postgres) = Postgres::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let url = postgres.url("observe");
    let controller = Controller::start_with(
        &directory.path().join("unused"),
        &["--store", &url, "--advertise", "http://here"],
    );
    let step = first_step(&controller).await;
    readyz_when(&controller, (200, "ok\n"));
    let start = controller.log_with("study created").len();

    postgres.stop();
    let refused = "PostgreSQL cannot be reached: Connection refused (os error 111)";
    let gone = format!("cannot write to the database: {refused}\n");
    readyz_when(&controller, (503, &gone));
    for _ in 0..3 {
        let refused = controller.search().report_step(report(&step, "t")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
    readyz_stays(&controller, (503, &gone));

    postgres.restart();
    readyz_when(&controller, (200, "ok\n"));
    let answer = controller.search().report_step(report(&step, "t")).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), v1::ReportOutcome::Applied);
    let log = controller.log_with("over: cannot write to the database");
    // First a connection breaks; and while the server starts, it says so.
    let complaints = complaints(&log, start).into_iter();
    let about = |what: &str| -> Vec<_> {
        complaints.clone().filter_map(|line| line.split_once(what)).map(|(_, why)| why).collect()
    };
    for what in ["cannot write to the database: ", "cannot read the database: "] {
        let reasons = about(what);
        let distinct: HashSet<_> = reasons.iter().collect();
        assert_eq!(reasons.len(), distinct.len(), "each once: {log}");
    }
    assert!(about("cannot write to the database: ").contains(&refused), "{log}");
    assert_eq!(about("over: cannot write to the database").len(), 1, "{log}");
}

/// A controller that logs JSON.
struct Logging {
    child: Child,
    address: SocketAddr,
    serving: serde_json::Value,
    rest: JoinHandle<Vec<serde_json::Value>>,
}

impl Logging {
    fn start(state_dir: &std::path::Path, arguments: &[&str]) -> Logging {
        let mut child = controller_command(state_dir, "127.0.0.1:0".parse().unwrap())
            .args(["--log-format", "json"])
            .args(arguments)
            // Only a flush brings the spans before the test is over.
            .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let parse = |line: std::io::Result<String>| {
            let line = line.unwrap();
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(parse);
        let serving =
            lines.by_ref().find(|event: &serde_json::Value| event["message"] == "serving");
        let serving = serving.expect("the controller did not start");
        let address = serving["address"].as_str().unwrap().parse().unwrap();
        let rest = thread::spawn(move || lines.collect());
        Logging { child, address, serving, rest }
    }

    fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    /// Ends it and returns the rest of its log.
    fn end(mut self) -> Vec<serde_json::Value> {
        assert!(terminate(&mut self.child).success());
        self.rest.join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_json_for_those_who_want_it() {
    let directory = tempfile::tempdir().unwrap();
    let controller =
        Logging::start(directory.path(), &["--http", "off", "--log", "info,asng_controller=debug"]);
    assert_eq!(controller.serving.get("http"), None);
    let channel = controller.channel();
    StudyServiceClient::new(channel.clone()).create_study(create_request("s", 3)).await.unwrap();
    train(SearchServiceClient::new(channel), "s", "t", |_, _| {}).await;
    let events = controller.end();

    for event in &events {
        let time = event["timestamp"].as_str().unwrap();
        assert!(time.len() == 27 && &time[10..11] == "T" && time.ends_with('Z'), "{time}");
        for field in ["level", "target", "message"] {
            assert!(event[field].is_string(), "{event}");
        }
    }
    let of = |message: &str| -> Vec<_> {
        events.iter().filter(|event| event["message"] == message).collect()
    };
    assert_eq!(of("study created")[0]["study"], "s");
    let states: Vec<_> = of("state changed").iter().map(|event| &event["state"]).collect();
    assert_eq!(states, ["RUNNING", "FINISHED"]);
    let reports = of("step reported");
    assert_eq!(reports.len(), 3);
    for (event, step) in reports.into_iter().zip(1..) {
        assert_eq!(event["study"], "s");
        assert_eq!(event["step"], step);
        assert_eq!(event["trainer"], "t");
        assert_eq!(event["staleness"], 0);
        assert!(event["outcome"].is_string(), "{event}");
    }
}

/// An OpenTelemetry collector that hands on what it gets.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attribute(span: &Span, key: &str) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_from_the_trainer_through_the_rpc_to_the_commit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let collector = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(collector.serve_with_incoming(TcpIncoming::from(listener)));

    let directory = tempfile::tempdir().unwrap();
    let controller = Logging::start(directory.path(), &["--otlp-endpoint", &endpoint]);
    let channel = controller.channel();
    let mut studies = StudyServiceClient::new(channel.clone());
    let mut search = SearchServiceClient::new(channel);
    let in_trace = |traceparent: &'static str| {
        move |mut request: Request<v1::ReportStepRequest>| {
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
            request
        }
    };
    studies.create_study(create_request("s", 10)).await.unwrap();
    let lease =
        v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() };
    let mut next = search.lease_step(lease).await.unwrap().into_inner().next;
    for traceparent in [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        // The trainer has chosen not to record this one.
        "00-11111111111111111111111111111111-2222222222222222-00",
    ] {
        let Some(Next::Step(step)) = next else { panic!("{next:?}") };
        let request = in_trace(traceparent)(Request::new(report(&step, "t")));
        let answer = search.report_step(request).await.unwrap().into_inner();
        next = answer.next.and_then(|next| next.next);
    }
    let mut wrong = report(&v1::Step::default(), "t");
    wrong.study = "nobody".into();
    let wrong =
        in_trace("00-33333333333333333333333333333333-4444444444444444-01")(Request::new(wrong));
    search.report_step(wrong).await.unwrap_err();
    controller.end();

    let mut spans = Vec::new();
    while let Ok(request) = received.try_recv() {
        for resource_spans in request.resource_spans {
            let resource = resource_spans.resource.unwrap();
            let name = resource.attributes.iter().find(|a| a.key == "service.name").unwrap();
            assert!(format!("{:?}", name.value).contains("asng-controller"), "{name:?}");
            spans.extend(resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let of = |digit: u8| -> Vec<&Span> {
        spans.iter().filter(|span| span.trace_id == [digit; 16]).collect()
    };
    assert!(of(0x11).is_empty());

    let trace = 0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes();
    let trace: Vec<_> = spans.iter().filter(|span| span.trace_id == trace).collect();
    let named = |name: &str| trace.iter().find(|span| span.name == name).unwrap();
    assert_eq!(trace.len(), 2, "{trace:?}");
    let rpc = named("asng.v1.SearchService/ReportStep");
    assert_eq!(rpc.parent_span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
    assert_eq!(attribute(rpc, "rpc.system"), "grpc");
    assert_eq!(attribute(rpc, "rpc.service"), "asng.v1.SearchService");
    assert_eq!(attribute(rpc, "rpc.method"), "ReportStep");
    assert_eq!(attribute(rpc, "rpc.grpc.status_code"), "0");
    let commit = named("commit");
    assert_eq!(commit.parent_span_id, rpc.span_id);
    assert!(rpc.start_time_unix_nano <= commit.start_time_unix_nano);
    assert!(commit.end_time_unix_nano <= rpc.end_time_unix_nano);

    let refused = of(0x33);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(
        attribute(refused[0], "rpc.grpc.status_code"),
        (Code::InvalidArgument as i32).to_string()
    );
}
