//! Requests that no honest client sends, and a client that sends them. None of them is right by chance: what would
//! change a study names one of those that only hostile requests create, except where the request must be refused.

use std::{cmp::min, collections::BTreeMap};

use asng_proto::v1::{self, lease_step_response::Next};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use rand::{Rng, RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use crate::{Controller, categoricals, create_request, limit, report};

/// Every method of the controller, and one that it has not.
pub const METHODS: [&str; 23] = [
    "/asng.v1.StudyService/CreateStudy",
    "/asng.v1.StudyService/GetStudy",
    "/asng.v1.StudyService/ListStudies",
    "/asng.v1.StudyService/PauseStudy",
    "/asng.v1.StudyService/ResumeStudy",
    "/asng.v1.StudyService/StopStudy",
    "/asng.v1.StudyService/DeleteStudy",
    "/asng.v1.StudyService/GetDistribution",
    "/asng.v1.StudyService/WatchStudy",
    "/asng.v1.StudyService/ListReports",
    "/asng.v1.StudyService/GetTrace",
    "/asng.v1.StudyService/ListTrainers",
    "/asng.v1.StudyService/ExportStudy",
    "/asng.v1.StudyService/ImportStudy",
    "/asng.v1.SearchService/LeaseStep",
    "/asng.v1.SearchService/DescribeSpace",
    "/asng.v1.SearchService/ReportStep",
    "/asng.v1.SearchService/ExtendLease",
    "/asng.v1.SearchService/ReleaseStep",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/asng.v1.StudyService/NoSuchMethod",
];

/// A request: its method and the bytes of its body.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which method.
    pub method: &'static str,
    /// The body of the request: messages, each in its frame, if it is well-formed.
    pub body: Bytes,
}

impl Request {
    /// One message in its frame, whatever its bytes are.
    pub fn framed(method: &'static str, message: &[u8]) -> Request {
        let mut body = BytesMut::new();
        put_frame(&mut body, message);
        Request { method, body: body.freeze() }
    }

    /// Sends it and returns its status. Of a stream that does not end by itself, the first message will do.
    pub async fn send(&self, channel: &mut Channel) -> Status {
        self.try_send(channel).await.unwrap_or_else(|status| status)
    }

    async fn try_send(&self, channel: &mut Channel) -> Result<Status, Status> {
        let request = http::Request::post(self.method)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Full::new(self.body.clone())))
            .expect("methods are paths");
        let broken = |error: tonic::transport::Error| Status::unknown(format!("{error:?}"));
        let channel = channel.ready().await.map_err(broken)?;
        let response = channel.call(request).await.map_err(broken)?;
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Ok(status);
        }
        let endless = self.method.ends_with("/Watch") || self.method.ends_with("/WatchStudy");
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            match frame?.into_trailers() {
                Ok(trailers) => {
                    let status = Status::from_header_map(&trailers);
                    return status.ok_or_else(|| Status::unknown("trailers without a status"));
                }
                Err(_) if endless => return Ok(Status::ok("")),
                Err(_) => {}
            }
        }
        Err(Status::unknown("the stream ends without a status"))
    }
}

fn put_frame(body: &mut BytesMut, message: &[u8]) {
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(message);
}

/// Returns true if a status tells of a fault of the server, rather than of the request.
pub fn is_fault(status: &Status) -> bool {
    // What tonic says of bytes that are no message.
    let malformed = ["decode", "protocol error", "Missing request message", "Unexpected EOF"];
    match status.code() {
        Code::Internal => !malformed.iter().any(|reason| status.message().contains(reason)),
        Code::Unknown
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::DataLoss => true,
        _ => false,
    }
}

/// Studies that must stay as they are, whatever is sent. Nothing drawn at random hits their names.
pub struct Kept {
    running: v1::Step,
    archive: Vec<v1::ImportStudyRequest>,
}

const RUNNING: &str = "kept-b7e1a90c5d-running";
const WAITING: &str = "kept-b7e1a90c5d-waiting";
const STOPPED: &str = "kept-b7e1a90c5d-stopped";
const HOLDER: &str = "kept-b7e1a90c5d-trainer";

impl Kept {
    /// Creates them: one that runs, with a history and a step in a trainer's hands, one that waits for a description,
    /// and one that has been stopped.
    pub async fn create(controller: &Controller) -> Kept {
        let (mut studies, mut search) = (controller.studies(), controller.search());
        for name in [RUNNING, WAITING, STOPPED] {
            let mut request = create_request(name, 1000);
            let spec = request.spec.as_mut().unwrap();
            spec.space = "kept-b7e1a90c5d-space".into();
            spec.lease = Some(prost_types::Duration { seconds: 24 * 3600, nanos: 0 });
            spec.costs = vec![limit(350.0)];
            if name == WAITING {
                spec.variables.clear();
            }
            studies.create_study(request).await.unwrap();
        }
        studies.stop_study(v1::StopStudyRequest { name: STOPPED.into() }).await.unwrap();
        let request = v1::LeaseStepRequest {
            study: RUNNING.into(),
            trainer_id: HOLDER.into(),
            ..Default::default()
        };
        let mut next = search.lease_step(request).await.unwrap().into_inner().next;
        for _ in 0..20 {
            let Some(Next::Step(step)) = &next else { panic!("{next:?}") };
            let answer = search.report_step(report(step, HOLDER)).await.unwrap().into_inner();
            next = answer.next.unwrap().next;
        }
        let Some(Next::Step(running)) = next else { panic!("{next:?}") };
        let request = v1::ExportStudyRequest { name: RUNNING.into(), fork: true };
        let mut parts = studies.export_study(request).await.unwrap().into_inner();
        let mut archive = Vec::new();
        while let Some(v1::ExportStudyResponse { part }) = parts.message().await.unwrap() {
            archive.push(v1::ImportStudyRequest { name: String::new(), part });
        }
        Kept { running, archive }
    }

    /// All that can be asked about them, to the bit.
    pub async fn state(&self, controller: &Controller) -> Vec<Vec<u8>> {
        let mut studies = controller.studies();
        let mut state = Vec::new();
        for name in [RUNNING, WAITING, STOPPED] {
            let request = v1::GetStudyRequest { name: name.into() };
            state.push(studies.get_study(request).await.unwrap().into_inner().encode_to_vec());
            let request = v1::ListReportsRequest { study: name.into(), ..Default::default() };
            state.push(studies.list_reports(request).await.unwrap().into_inner().encode_to_vec());
        }
        for name in [RUNNING, STOPPED] {
            let request = v1::GetDistributionRequest { name: name.into() };
            let distribution = studies.get_distribution(request).await.unwrap().into_inner();
            state.push(distribution.encode_to_vec());
        }
        state
    }

    /// Deletes every other study.
    pub async fn clear(&self, controller: &Controller) {
        let mut studies = controller.studies();
        let request = v1::ListStudiesRequest { page_size: 1000, ..Default::default() };
        let list = studies.list_studies(request).await.unwrap().into_inner().studies;
        for study in list {
            if ![RUNNING, WAITING, STOPPED].contains(&study.name.as_str()) {
                let request = v1::DeleteStudyRequest { name: study.name };
                // Another hostile client may have deleted it.
                let _ = studies.delete_study(request).await;
            }
        }
    }

    /// Draws a request.
    pub fn request(&self, random: &mut ChaCha8Rng) -> Request {
        let method = *METHODS.choose(random).unwrap();
        match random.random_range(0..100) {
            0..10 => {
                let length = random.random_range(0..300);
                Request::framed(method, &bytes(random, length))
            }
            10..40 => {
                let mut message = message(method, random);
                mutate(&mut message, random);
                let elsewhere = random.random_bool(0.1);
                let method = if elsewhere { METHODS.choose(random).unwrap() } else { method };
                Request::framed(method, &message)
            }
            40..75 => Request::framed(method, &message(method, random)),
            75..85 => self.refused(random),
            85..95 => self.import(random),
            _ => {
                let mut body = BytesMut::new();
                for _ in 0..random.random_range(0..3) {
                    put_frame(&mut body, &message(method, random));
                }
                let mut body = body.to_vec();
                mutate(&mut body, random);
                Request { method, body: body.into() }
            }
        }
    }

    /// A request about the kept studies that must be refused, or that only reads.
    fn refused(&self, random: &mut ChaCha8Rng) -> Request {
        let name = [RUNNING, WAITING, STOPPED].choose(random).unwrap().to_string();
        let good = report(&self.running, HOLDER);
        let (step_id, lease_id) = (good.step_id, good.lease_id.clone());
        let never_given = lease_id.rsplit_once('-').map(|(rest, _)| format!("{rest}-2")).unwrap();
        let bad_label = ["".into(), "x".repeat(201), "a\nb".into()].choose(random).unwrap().clone();
        match random.random_range(0..15) {
            0 => {
                let count = *[0, 1, 3, 100_000].choose(random).unwrap();
                let losses = (0..count).map(|_| float(random)).collect();
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { losses, ..good },
                )
            }
            1 => {
                let lease_id = if random.random() { never_given } else { text(random) };
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { lease_id, ..good },
                )
            }
            2 => {
                let trainer_id = bad_label;
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { trainer_id, ..good },
                )
            }
            3 => {
                let metrics: BTreeMap<_, _> =
                    (0..60).map(|i| (format!("{i}"), float(random))).collect();
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { metrics, ..good },
                )
            }
            4 => {
                let step_id = step_id.wrapping_add(1 + number(random) % 1000);
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { step_id, ..good },
                )
            }
            5 => encoded(
                "/asng.v1.SearchService/ExtendLease",
                &v1::ExtendLeaseRequest { study: name, step_id, lease_id: never_given },
            ),
            6 => encoded(
                "/asng.v1.SearchService/ReleaseStep",
                &v1::ReleaseStepRequest {
                    study: name,
                    step_id,
                    lease_id: never_given,
                    reason: text(random),
                },
            ),
            7 => encoded(
                "/asng.v1.SearchService/LeaseStep",
                &v1::LeaseStepRequest { study: name, trainer_id: bad_label, ..Default::default() },
            ),
            8 => {
                let answer = if random.random() {
                    let variables = [categoricals(1), categoricals(1)].concat();
                    v1::describe_space_request::Answer::Description(v1::SpaceDescription {
                        variables,
                        costs: None,
                    })
                } else {
                    v1::describe_space_request::Answer::Rejection(v1::Rejection::default())
                };
                let trainer_id = HOLDER.into();
                let answer = Some(answer);
                encoded(
                    "/asng.v1.SearchService/DescribeSpace",
                    &v1::DescribeSpaceRequest { study: name, trainer_id, answer },
                )
            }
            9 => encoded(
                "/asng.v1.StudyService/CreateStudy",
                &v1::CreateStudyRequest { name, spec: Some(spec(random)), ..Default::default() },
            ),
            10 => encoded(
                "/asng.v1.StudyService/PauseStudy",
                &v1::PauseStudyRequest { name: STOPPED.into() },
            ),
            11 => encoded(
                "/asng.v1.StudyService/ListReports",
                &v1::ListReportsRequest {
                    study: name,
                    page_size: number(random) as u32,
                    page_token: text(random),
                    newest_first: random.random(),
                },
            ),
            12 => encoded(
                "/asng.v1.StudyService/ExportStudy",
                &v1::ExportStudyRequest { name, fork: random.random() },
            ),
            13 => {
                let mut costs = good.costs.clone();
                match random.random_range(0..4) {
                    0 => costs.truncate(random.random_range(0..costs.len())),
                    1 => costs.push(costs[0].clone()),
                    2 => {
                        let wrong = *[-1.0, f64::NAN, f64::INFINITY].choose(random).unwrap();
                        costs[0].figures.insert("parameters".into(), wrong);
                    }
                    _ => costs[0].figures.extend((0..10).map(|i| (format!("{i}"), 1.0))),
                }
                encoded(
                    "/asng.v1.SearchService/ReportStep",
                    &v1::ReportStepRequest { costs, ..good },
                )
            }
            _ => encoded("/asng.v1.StudyService/WatchStudy", &v1::WatchStudyRequest { name }),
        }
    }

    /// An exported study with some damage, under a junk name.
    fn import(&self, random: &mut ChaCha8Rng) -> Request {
        let mut parts = self.archive.clone();
        parts[0].name = name(random);
        if random.random_bool(0.3) {
            let (from, to) =
                (random.random_range(0..parts.len()), random.random_range(0..parts.len()));
            parts[to] = parts[from].clone();
        }
        let damaged = random.random_range(0..parts.len());
        let mut body = BytesMut::new();
        for (i, part) in parts.iter().enumerate() {
            let mut message = part.encode_to_vec();
            if i == damaged {
                // Behind the name, so that it stays a junk name.
                let start = if i == 0 { min(2 + parts[0].name.len(), message.len()) } else { 0 };
                let mut tail = message.split_off(start);
                mutate(&mut tail, random);
                message.extend(tail);
            }
            put_frame(&mut body, &message);
        }
        Request { method: "/asng.v1.StudyService/ImportStudy", body: body.freeze() }
    }
}

fn encoded(method: &'static str, message: &impl Message) -> Request {
    Request::framed(method, &message.encode_to_vec())
}

/// A message for `method`: some of its fields as they should be, some as they never should.
fn message(method: &str, random: &mut ChaCha8Rng) -> Vec<u8> {
    let (name, text) = (name(random), text(random));
    let (step_id, page_size) = (number(random), number(random) as u32);
    let trainer_id = if random.random_bool(0.9) { "junk".into() } else { text.clone() };
    let lease_id = if random.random() {
        format!("{:x}-{}-{}", number(random), number(random), number(random))
    } else {
        text.clone()
    };
    match method.rsplit('/').next().unwrap() {
        "CreateStudy" => {
            let replace_failed = random.random();
            v1::CreateStudyRequest { name, spec: Some(spec(random)), replace_failed }
                .encode_to_vec()
        }
        "ListStudies" => {
            let labels = [(text.clone(), text.clone())].into();
            v1::ListStudiesRequest {
                page_size,
                page_token: text.clone(),
                owner: text,
                labels,
                newest_first: random.random(),
                states: vec![random.random_range(-1..9); random.random_range(0..3)],
                name_contains: name.clone(),
            }
            .encode_to_vec()
        }
        "ListReports" => v1::ListReportsRequest {
            study: name,
            page_size,
            page_token: text,
            newest_first: random.random(),
        }
        .encode_to_vec(),
        "ExportStudy" => v1::ExportStudyRequest { name, fork: random.random() }.encode_to_vec(),
        "LeaseStep" => v1::LeaseStepRequest {
            study: if random.random_bool(0.8) { name } else { String::new() },
            trainer_id,
            spaces: vec!["junk".into(); random.random_range(0..3)],
            request_id: if random.random() { text.clone() } else { String::new() },
            fresh_start: random.random(),
            set_aside: vec![set_aside(random); random.random_range(0..3)],
            unserved: vec![
                v1::UnservedSpace { space: "junk".into(), reason: text.clone() };
                random.random_range(0..3)
            ],
            data_sets: vec![text; random.random_range(0..3)],
        }
        .encode_to_vec(),
        "DescribeSpace" => {
            use v1::describe_space_request::Answer;
            let answer = if random.random() {
                Answer::Description(v1::SpaceDescription {
                    variables: variables(random),
                    costs: reported_costs(random),
                })
            } else {
                let violation = v1::FieldViolation { field: text.clone(), description: text };
                Answer::Rejection(v1::Rejection { violations: vec![violation] })
            };
            v1::DescribeSpaceRequest { study: name, trainer_id, answer: Some(answer) }
                .encode_to_vec()
        }
        "ReportStep" => v1::ReportStepRequest {
            study: name,
            step_id,
            lease_id,
            trainer_id,
            losses: (0..random.random_range(0..4)).map(|_| float(random)).collect(),
            costs: (0..random.random_range(0..4))
                .map(|_| v1::Costs { figures: [(text.clone(), float(random))].into() })
                .collect(),
            metrics: [(text.clone(), float(random))].into(),
            lease_next: random.random(),
            spaces: vec!["junk".into(); random.random_range(0..3)],
            data_sets: vec![text; random.random_range(0..3)],
            after: random.random_range(0..3),
        }
        .encode_to_vec(),
        "ExtendLease" => v1::ExtendLeaseRequest { study: name, step_id, lease_id }.encode_to_vec(),
        "ReleaseStep" => {
            v1::ReleaseStepRequest { study: name, step_id, lease_id, reason: text }.encode_to_vec()
        }
        // All others have a string as their first field, and none that matters here beside it.
        _ => v1::GetStudyRequest { name }.encode_to_vec(),
    }
}

fn set_aside(random: &mut ChaCha8Rng) -> v1::SetAsideStudy {
    v1::SetAsideStudy {
        study: name(random),
        study_id: text(random),
        reason: text(random),
        retry_after: Some(duration(random)),
    }
}

fn reported_costs(random: &mut ChaCha8Rng) -> Option<v1::ReportedCosts> {
    random.random::<bool>().then(|| v1::ReportedCosts { names: vec![text(random); 2] })
}

fn spec(random: &mut ChaCha8Rng) -> v1::StudySpec {
    let variables = variables(random);
    let mut odd = |sane: u32| {
        if random.random_bool(0.8) { Some(sane) } else { Some(number(random) as u32) }
    };
    let (lambda_x, lambda_theta) = (odd(2), odd(2));
    let (steps_per_update, max_staleness) = (odd(1), odd(64));
    let mut odd = |sane: f64| {
        if random.random_bool(0.8) { Some(sane) } else { Some(float(random)) }
    };
    let (alpha, delta_init, delta_max, convergence) = (odd(1.5), odd(1.0), odd(1e9), odd(0.9));
    let rule = v1::CostRule {
        cost: text(random),
        weight: Some(float(random)),
        limit: Some(float(random)).filter(|limit| *limit != 1.0),
    };
    let target = v1::Target { metric: text(random), value: float(random), at_least: true };
    let retention = v1::Retention { keep: Some(v1::retention::Keep::Last(number(random))) };
    v1::StudySpec {
        space: if random.random() { "junk".into() } else { text(random) },
        settings: [(text(random), text(random))].into(),
        variables,
        algorithm: Some(v1::AlgorithmSettings {
            algorithm: random.random_range(-1..6),
            alpha,
            delta_init,
            delta_max,
            lambda_x,
            lambda_theta,
            steps_per_update,
            max_staleness,
            seed: Some(number(random)),
            warmup_steps: random.random_bool(0.3).then(|| random.random_range(0..60)),
        }),
        stop: Some(v1::StopRules {
            max_steps: if random.random_bool(0.8) { 50 } else { number(random) },
            max_duration: random.random_bool(0.2).then(|| duration(random)),
            convergence: convergence.filter(|_| random.random_bool(0.2)),
            target: random.random_bool(0.1).then_some(target),
        }),
        lease: random.random_bool(0.3).then(|| duration(random)),
        start: random.random_bool(0.2).then(|| start(random)),
        fixed: random.random_bool(0.2).then(|| ("v0".into(), text(random))).into_iter().collect(),
        labels: random.random_bool(0.2).then(|| (text(random), text(random))).into_iter().collect(),
        retention: random.random_bool(0.2).then_some(retention),
        costs: random.random_bool(0.2).then_some(rule).into_iter().collect(),
        space_definition: if random.random_bool(0.1) { text(random) } else { String::new() },
        direction: if random.random_bool(0.1) {
            random.random_range(-1..9)
        } else {
            random.random_range(0..3)
        },
        ..Default::default()
    }
}

fn start(random: &mut ChaCha8Rng) -> v1::Start {
    use v1::{marginal::Kind, start::From};
    if random.random() {
        return v1::Start { from: Some(From::Study(name(random))) };
    }
    let marginal = |i| {
        let kind = if random.random() {
            let probabilities = (0..random.random_range(0..6)).map(|_| float(random)).collect();
            Kind::Categorical(v1::CategoricalMarginal { probabilities })
        } else {
            let (mean, deviation) = (float(random), float(random));
            Kind::Integer(v1::IntegerMarginal { mean, deviation })
        };
        v1::Marginal { name: format!("v{i}"), kind: Some(kind) }
    };
    let marginals = (0..3).map(marginal).collect();
    v1::Start { from: Some(From::Distribution(v1::Distribution { marginals })) }
}

fn variables(random: &mut ChaCha8Rng) -> Vec<v1::Variable> {
    let count = *[0, 1, 2, 3, 3, 3, 3, 3, 40, 5000].choose(random).unwrap();
    if count > 3 {
        return categoricals(count);
    }
    let variable = |i: usize| v1::Variable {
        name: if random.random_bool(0.9) { format!("v{i}") } else { text(random) },
        kind: match random.random_range(0..20) {
            0 => None,
            1 => {
                let (low, high) = (number(random) as i64, number(random) as i64);
                Some(v1::variable::Kind::Integer(v1::Integer { low, high }))
            }
            2..8 => Some(v1::variable::Kind::Integer(v1::Integer { low: -3, high: 100_000 })),
            _ => {
                let choices = *[0, 1, 2, 2, 2, 5, 5, 5, 5, 5000].choose(random).unwrap();
                let choices = (0..choices).map(|choice: u32| choice.to_string()).collect();
                Some(v1::variable::Kind::Categorical(v1::Categorical { choices }))
            }
        },
    };
    (0..count).map(variable).collect()
}

/// The name of a study that only hostile requests create, or of none.
fn name(random: &mut ChaCha8Rng) -> String {
    if random.random_bool(0.9) {
        format!("junk-{}", random.random_range(0..6))
    } else {
        text(random)
    }
}

fn text(random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..100) {
        0..20 => String::new(),
        20..40 => "loss".into(),
        40..50 => "../../etc/passwd".into(),
        50..60 => "' OR 1=1; DROP TABLE studies; --".into(),
        60..70 => "\0\u{7f}\u{202e}\u{fffd}\u{10ffff}".into(),
        70..80 => format!("{:x}-{:x}", number(random), number(random)),
        80..90 => number(random).to_string(),
        90..99 => "x".repeat(random.random_range(90..1100)),
        _ => "x".repeat(300_000),
    }
}

fn number(random: &mut ChaCha8Rng) -> u64 {
    let edges = [0, 1, 2, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
    let edge = *edges.choose(random).unwrap();
    if random.random() {
        edge
    } else {
        edge.wrapping_add(random.random_range(0..10)).wrapping_sub(5)
    }
}

fn float(random: &mut ChaCha8Rng) -> f64 {
    let edges = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e300, f64::MAX, f64::INFINITY, f64::NAN];
    *edges.choose(random).unwrap()
}

fn duration(random: &mut ChaCha8Rng) -> prost_types::Duration {
    let (seconds, nanos) = (number(random) as i64, number(random) as i32);
    prost_types::Duration { seconds, nanos: if random.random() { 0 } else { nanos } }
}

fn bytes(random: &mut ChaCha8Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

/// Damages some bytes as a bad memory, a bad peer and a bad programmer would.
fn mutate(message: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=message.len());
        let end = min(at + random.random_range(0..20), message.len());
        match random.random_range(0..6) {
            0 => message.truncate(at),
            1 => drop(message.drain(at..end)),
            2 => {
                let length = random.random_range(1..12);
                let inserted = bytes(random, length);
                message.splice(at..at, inserted);
            }
            3 => {
                let copy = message[at..end].to_vec();
                message.splice(at..at, copy);
            }
            // No varint, no UTF-8, no float that is a number.
            4 => message[at..end].fill(0xff),
            _ => {
                if let Some(byte) = message.get_mut(at) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
}
