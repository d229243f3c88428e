//! Checks the connection to each controller layer by layer, and prints a remedy for each failure.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use asng_client::{CONTROLLER_PORT, Connection, Options, explain};
use asng_proto::v1::{
    LeaseStepRequest, ListStudiesRequest, PauseStudyRequest,
    search_service_client::SearchServiceClient, study_service_client::StudyServiceClient,
};
use serde_json::json;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tonic::{Code, Request, Status, metadata::MetadataMap};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{args::Output, client, print_line, text};

const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks of two machines that differ by more make ages and times in logs misleading.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// The result of one check, or the fault and its remedy.
type Finding = anyhow::Result<String>;

/// Examines every address of `options` and prints a line for each finding.
pub(crate) async fn examine(options: &Options, output: Output) -> anyhow::Result<ExitCode> {
    let mut healthy = true;
    for address in options.controller.iter().map(|address| address.trim()) {
        let options = Options { controller: vec![address.to_owned()], ..options.clone() };
        let report = |check: &str, finding: &Finding| {
            let (ok, detail) = match finding {
                Ok(detail) => (true, detail.clone()),
                Err(error) => (false, format!("{error:#}")),
            };
            print_line(match output {
                Output::Table => {
                    let word = if ok { "ok" } else { "FAILED" };
                    format!("{address}  {check:<11} {word:<7} {}", detail.replace('\n', "\n    "))
                }
                Output::Json => {
                    json!({ "controller": address, "check": check, "ok": ok, "detail": detail })
                        .to_string()
                }
            })?;
            anyhow::Ok(ok)
        };
        healthy &= controller(&options, report).await?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks what serves at `address`, or else the controller, after its health alone, which is open to all. Returns the word for it.
pub(crate) async fn is_serving(options: Options, address: Option<String>) -> Finding {
    let options = match address {
        Some(address) => client::options_at(&options, &address, CONTROLLER_PORT)?,
        None => options,
    };
    health(&options.connect()?).await.0
}

/// Examines one controller, no further than what is wrong makes sense. Returns whether all is well.
async fn controller(
    options: &Options,
    mut report: impl FnMut(&str, &Finding) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let connection = match options.connect() {
        Ok(connection) => connection,
        Err(error) => return report("options", &Err(error)),
    };
    let url = connection.url();
    if !report("connection", &reach(&url).await)? {
        return Ok(false);
    }
    if url.starts_with("https://") && !report("tls", &certificate(options, &url).await)? {
        return Ok(false);
    }
    let (health, metadata) = health(&connection).await;
    let mut healthy = report("health", &health)?;
    let Some(metadata) = metadata else { return Ok(false) };
    if let Some(version) = metadata.get("asng-version").and_then(|version| version.to_str().ok()) {
        let ours = env!("CARGO_PKG_VERSION");
        healthy &= report("version", &Ok(format!("{version}; asngctl is {ours}")))?;
    }
    if let Some(finding) = clock(&metadata, SystemTime::now()) {
        healthy &= report("clock", &finding)?;
    }
    healthy &= report("access", &access(&connection).await)?;
    healthy &= report("reflection", &reflection(&connection).await)?;
    Ok(healthy)
}

/// Resolves the name, and connects.
async fn reach(url: &str) -> Finding {
    // `connect` has checked the URL.
    let uri: http::Uri = url.parse()?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let resolved = lookup_host((host, port)).await;
    let addresses: Vec<_> =
        resolved.with_context(|| format!("cannot resolve {host}: check the name"))?.collect();
    let stream = timeout(PATIENCE, TcpStream::connect(&addresses[..]))
        .await
        .with_context(|| format!("no answer within {PATIENCE:?}: check for a firewall"))?
        .context("cannot connect: check that the controller is running, and its port")?;
    Ok(format!("connected to {}", stream.peer_addr()?))
}

/// The time that the certificate has left.
async fn certificate(options: &Options, url: &str) -> Finding {
    let end = options.certificate_end(url).await?;
    let left = end.duration_since(SystemTime::now());
    let left = left.context("the certificate has expired; give the controller a new one")?;
    Ok(format!("trusted; the certificate is valid for {}", text::brief(left)))
}

/// Checks the controller's health; returns the metadata of the reply as well.
async fn health(connection: &Connection) -> (Finding, Option<MetadataMap>) {
    let request = with_patience(HealthCheckRequest::default());
    match HealthClient::new(connection.clone()).check(request).await {
        Ok(reply) => {
            let finding = match reply.get_ref().status() {
                ServingStatus::Serving => Ok("SERVING".to_owned()),
                other => Err(anyhow::anyhow!(
                    "{}: the controller is starting or shutting down; see its log",
                    other.as_str_name()
                )),
            };
            (finding, Some(reply.metadata().clone()))
        }
        Err(status) => (Err(explained(&status, connection)), None),
    }
}

/// The difference of the clocks, if the answer had a time.
fn clock(metadata: &MetadataMap, now: SystemTime) -> Option<Finding> {
    let there = httpdate::parse_http_date(metadata.get("date")?.to_str().ok()?).ok()?;
    let difference = now.duration_since(there).unwrap_or_else(|earlier| earlier.duration());
    Some(if difference <= CLOCK_TOLERANCE {
        Ok("agrees within 5 s".to_owned())
    } else {
        Err(anyhow::anyhow!(
            "the controller's clock differs from this machine's by {}; synchronize both by NTP",
            text::brief(difference)
        ))
    })
}

/// Finds the role of the token, by calls that a controller always refuses, first because of the role.
async fn access(connection: &Connection) -> Finding {
    let mut studies = StudyServiceClient::new(connection.clone());
    let request = ListStudiesRequest { page_size: 1, ..Default::default() };
    studies.list_studies(request).await.map_err(|status| explained(&status, connection))?;
    let denied = |status: Status| status.code() == Code::PermissionDenied;
    let pause = studies.pause_study(PauseStudyRequest::default());
    if !pause.await.is_err_and(denied) {
        return Ok("role admin, or the controller needs no token".to_owned());
    }
    let mut search = SearchServiceClient::new(connection.clone());
    let lease = search.lease_step(LeaseStepRequest::default());
    Ok(match lease.await.is_err_and(denied) {
        false => "role trainer: may read and train".to_owned(),
        true => "role viewer: may read".to_owned(),
    })
}

/// Checks that gRPC reflection, which tools such as grpcurl use, lists the services.
async fn reflection(connection: &Connection) -> Finding {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let request = with_patience(tokio_stream::once(request));
    let mut client = ServerReflectionClient::new(connection.clone());
    let answer = async {
        let mut replies = client.server_reflection_info(request).await?.into_inner();
        replies.message().await
    };
    let reply = answer.await.map_err(|status| explained(&status, connection))?;
    match reply.and_then(|reply| reply.message_response) {
        Some(MessageResponse::ListServicesResponse(list))
            if list.service.iter().any(|service| service.name == "asng.v1.SearchService") =>
        {
            Ok("lists asng.v1".to_owned())
        }
        _ => bail!(
            "does not list asng.v1: check that the address is that of a controller and not of a proxy"
        ),
    }
}

fn with_patience<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

fn explained(status: &Status, connection: &Connection) -> anyhow::Error {
    anyhow::Error::msg(explain(status, &connection.url()))
}
