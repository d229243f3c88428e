//! A trainer of one's own in Rust, without shared weights: it creates a study, leases steps and reports losses until the
//! study ends. The controller may be killed and started again meanwhile.
//!
//! ```sh
//! cargo run -p asng-client --example black_box -- --controller http://127.0.0.1:50051
//! ```

use std::{process, time::Duration};

use anyhow::{Context, bail};
use asng_client::{Connection, Options, environment, insist};
use asng_proto::v1::{
    AlgorithmSettings, Architecture, Categorical, CreateStudyRequest, ExtendLeaseRequest, Integer,
    LeaseStepRequest, ReportStepRequest, Step, StopRules, StudySpec, Variable,
    lease_step_response::Next, search_service_client::SearchServiceClient,
    study_service_client::StudyServiceClient, variable::Kind,
};
use clap::Parser;
use tokio::{task::spawn_blocking, time};

const STUDY: &str = "rust-black-box";
const OPERATIONS: [&str; 3] = ["conv3", "conv5", "skip"];

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    controller: Options,
}

/// Stands for whatever is to be minimised; it may take hours.
fn loss(architecture: &Architecture) -> f64 {
    match architecture.values[..] {
        [operation, width] => f64::from(operation != 1) + (width - 24).unsigned_abs() as f64 / 56.0,
        _ => f64::NAN, // Not of this study's space: it ranks last.
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let connection = environment::parse::<Args>().controller.connect()?;
    create_study(&connection).await?;
    let search = SearchServiceClient::new(connection);
    let trainer_id = format!("black-box-{}", process::id());
    let (mut requests, mut next) = (0, None);
    loop {
        match next.take() {
            Some(Next::Finished(finished)) => {
                let study = finished.study.context("the controller says no study")?;
                let mode = study.mode.context("the study has no variables")?;
                let [operation, width] = mode.values[..] else { bail!("the study is another") };
                println!("{}, width {width}", OPERATIONS[usize::try_from(operation)?]);
                return Ok(());
            }
            Some(Next::Step(step)) => {
                let losses = compute(&search, &step).await?;
                let report = ReportStepRequest {
                    study: step.study,
                    step_id: step.step_id,
                    lease_id: step.lease_id,
                    trainer_id: trainer_id.clone(),
                    losses,
                    lease_next: true,
                    ..Default::default()
                };
                let answer = insist(&report, |report| {
                    let mut search = search.clone();
                    async move { search.report_step(report).await }
                });
                next = answer.await?.next.and_then(|next| next.next);
                continue;
            }
            Some(Next::NoWork(no_work)) => {
                let pause = no_work.retry_after.and_then(|pause| pause.try_into().ok());
                time::sleep(pause.unwrap_or(Duration::from_secs(1))).await;
            }
            Some(Next::Describe(_)) => bail!("the study has its variables"),
            None => {}
        }
        requests += 1;
        let lease = LeaseStepRequest {
            study: STUDY.into(),
            trainer_id: trainer_id.clone(),
            request_id: requests.to_string(),
            fresh_start: requests == 1,
            ..Default::default()
        };
        let answer = insist(&lease, |lease| {
            let mut search = search.clone();
            async move { search.lease_step(lease).await }
        });
        next = answer.await?.next;
    }
}

/// The same study again is the study that exists.
async fn create_study(connection: &Connection) -> anyhow::Result<()> {
    let choices = OPERATIONS.map(Into::into).into();
    let variable = |name: &str, kind| Variable { name: name.into(), kind: Some(kind) };
    let spec = StudySpec {
        variables: vec![
            variable("op", Kind::Categorical(Categorical { choices })),
            variable("width", Kind::Integer(Integer { low: 8, high: 64 })),
        ],
        algorithm: Some(AlgorithmSettings {
            lambda_x: Some(0), // There are no weights to be trained.
            seed: Some(0),
            ..Default::default()
        }),
        stop: Some(StopRules { max_steps: 500, ..Default::default() }),
        ..Default::default()
    };
    let request = CreateStudyRequest { name: STUDY.into(), spec: Some(spec), ..Default::default() };
    insist(&request, |request| {
        let mut studies = StudyServiceClient::new(connection.clone());
        async move { studies.create_study(request).await }
    })
    .await?;
    Ok(())
}

/// The losses of a step, whose lease is kept meanwhile.
async fn compute(
    search: &SearchServiceClient<Connection>,
    step: &Step,
) -> anyhow::Result<Vec<f64>> {
    let rank = step.rank.clone();
    let mut work = spawn_blocking(move || rank.iter().map(loss).collect());
    let lease = step.lease.and_then(|lease| lease.try_into().ok());
    let third = lease.unwrap_or(Duration::from_secs(60)) / 3;
    loop {
        match time::timeout(third, &mut work).await {
            Ok(losses) => return Ok(losses?),
            Err(_) => {
                let request = ExtendLeaseRequest {
                    study: step.study.clone(),
                    step_id: step.step_id,
                    lease_id: step.lease_id.clone(),
                };
                // Should it fail, the report still counts if it is the first.
                let _ = search.clone().extend_lease(request).await;
            }
        }
    }
}
