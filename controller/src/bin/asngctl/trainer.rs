//! What is asked of a trainer.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Error};
use asng_client::{Connection, Options, explain_trainer};
use asng_proto::v1::{
    Architecture, Checkpoint, DrainRequest, EvaluateArchitectureRequest,
    EvaluateArchitectureResponse, GetStatusRequest, GetStatusResponse, SaveCheckpointRequest,
    trainer_service_client::TrainerServiceClient,
};
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::{Request, Status};

use crate::{
    args::{EvaluateArgs, Output, TrainerCommand, Which},
    client, print,
    text::{age, number, or_dash, row, section},
};

/// A step, for which an evaluation and a checkpoint wait, may take long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Asks the trainer at `url`.
pub(crate) async fn run(
    options: &Options,
    url: &str,
    output: Output,
    command: TrainerCommand,
) -> anyhow::Result<ExitCode> {
    let connection = client::options_at(options, url.to_owned()).connect()?;
    let mut trainer = TrainerServiceClient::new(connection);
    let explained = |error: Error| match error.downcast::<Status>() {
        Ok(status) => Error::msg(explain_trainer(&status, url)),
        Err(other) => other,
    };
    match command {
        TrainerCommand::Status => {
            let status = get_status(&mut trainer).await.map_err(explained)?;
            print(output, || status_text(&status, SystemTime::now()), || status_json(&status))?;
        }
        TrainerCommand::Evaluate(EvaluateArgs { architecture, images }) => {
            let (study, values) = match architecture {
                Which::Values(values) => (String::new(), values),
                which => {
                    let status = get_status(&mut trainer).await.map_err(explained)?;
                    (status.study.clone(), values_of(options, &status.study, &which).await?)
                }
            };
            let architecture = Some(Architecture { values: values.clone() });
            let images = images.unwrap_or(0);
            let request = EvaluateArchitectureRequest { study, architecture, images };
            let evaluated = trainer.evaluate_architecture(patient(request)).await;
            let evaluated = evaluated.map_err(|status| explained(status.into()))?.into_inner();
            let json = || evaluation_json(&evaluated, &values);
            print(output, || evaluation_text(&evaluated), json)?;
        }
        TrainerCommand::Checkpoint => {
            let saved = trainer.save_checkpoint(patient(SaveCheckpointRequest {})).await;
            let saved = saved.map_err(|status| explained(status.into()))?.into_inner();
            let saved = saved.checkpoint.context("the trainer's reply has no checkpoint")?;
            let text = || format!("weights after step {} are in {}", saved.step_id, saved.path);
            print(output, text, || checkpoint_json(&saved))?;
        }
        TrainerCommand::Drain => {
            trainer.drain(DrainRequest {}).await.map_err(|status| explained(status.into()))?;
            let text =
                || "the trainer ends when its step is reported and its weights are saved".into();
            print(output, text, || json!({ "draining": true }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

async fn get_status(
    trainer: &mut TrainerServiceClient<Connection>,
) -> anyhow::Result<GetStatusResponse> {
    Ok(trainer.get_status(GetStatusRequest {}).await?.into_inner())
}

/// The values of an architecture of the trainer's study, from the controller.
async fn values_of(options: &Options, study: &str, which: &Which) -> anyhow::Result<Vec<i64>> {
    anyhow::ensure!(
        !study.is_empty(),
        "the trainer has no study open now; on its machine, `asng-trainer evaluate --study NAME --work-dir DIR` evaluates \
         with the weights last saved"
    );
    let connection = options.connect()?;
    let url = connection.url();
    let found = client::study(&mut client::connect(connection), study).await;
    let found = found.map_err(|status| client::explained(status.into(), &url))?;
    let architecture = match which {
        Which::Incumbent => found.incumbent.and_then(|incumbent| incumbent.architecture),
        Which::Mode => found.mode,
        _ => found.chosen.and_then(|chosen| chosen.architecture),
    };
    let architecture = architecture.with_context(|| format!("study `{study}` has none yet"))?;
    Ok(architecture.values)
}

fn state(status: &GetStatusResponse) -> &'static str {
    status.state().as_str_name().trim_start_matches("TRAINER_STATE_")
}

fn status_text(status: &GetStatusResponse, now: SystemTime) -> String {
    let ago = |time: Timestamp| format!("{} ago", age(time, now));
    let mut rows = vec![
        row("state", state(status)),
        row("device", &status.device),
        row("spaces", status.spaces.join(", ")),
        row("controller", &status.controller),
        row("release", &status.version),
        row("steps reported", status.steps),
    ];
    if let Some(uptime) = status.uptime.and_then(|uptime| Duration::try_from(uptime).ok()) {
        let seconds = Duration::from_secs(uptime.as_secs());
        rows.push(row("up for", humantime::format_duration(seconds)));
    }
    rows.push(row("study", or_dash(Some(status.study.clone()))));
    if let Some(since) = status.step_time {
        rows.push(row("step", format!("{}, taken {}", status.step_id, ago(since))));
    }
    if !status.losses.is_empty() {
        let losses: Vec<_> = status.losses.iter().copied().map(number).collect();
        rows.push(row("last losses", losses.join(" ")));
    }
    rows.extend(status.metrics.iter().map(|(name, value)| row(name, number(*value))));
    if status.images_per_second > 0.0 {
        rows.push(row("images/s", format!("{:.0}", status.images_per_second)));
    }
    if let Some(Checkpoint { step_id, time, path }) = &status.checkpoint {
        let when = or_dash(time.map(ago));
        rows.push(row("checkpoint", format!("step {step_id}, {when}\n{path}")));
    }
    section(&format!("Trainer {}", status.trainer_id), rows)
}

fn status_json(status: &GetStatusResponse) -> Value {
    json!({
        "trainer_id": status.trainer_id,
        "version": status.version,
        "device": status.device,
        "spaces": status.spaces,
        "controller": status.controller,
        "state": state(status),
        "uptime": status.uptime.map(|uptime| uptime.to_string()),
        "study": status.study,
        "study_id": status.study_id,
        "step_id": status.step_id,
        "step_time": status.step_time.map(|time| time.to_string()),
        "steps": status.steps,
        "losses": status.losses,
        "metrics": status.metrics,
        "images_per_second": status.images_per_second,
        "checkpoint": status.checkpoint.as_ref().map(checkpoint_json),
    })
}

fn checkpoint_json(checkpoint: &Checkpoint) -> Value {
    json!({
        "step_id": checkpoint.step_id,
        "time": checkpoint.time.map(|time| time.to_string()),
        "path": checkpoint.path,
    })
}

fn evaluation_text(evaluated: &EvaluateArchitectureResponse) -> String {
    let weights = format!("trainer {}, after step {}", evaluated.trainer_id, evaluated.step_id);
    let mut rows = vec![row("weights", weights), row("images", evaluated.images)];
    rows.push(row("loss", number(evaluated.loss)));
    rows.extend(evaluated.figures.iter().map(|(name, value)| row(name, number(*value))));
    section(&format!("Study {}", evaluated.study), rows)
}

fn evaluation_json(evaluated: &EvaluateArchitectureResponse, values: &[i64]) -> Value {
    json!({
        "study": evaluated.study,
        "study_id": evaluated.study_id,
        "step_id": evaluated.step_id,
        "trainer_id": evaluated.trainer_id,
        "images": evaluated.images,
        "architecture": values,
        "loss": evaluated.loss,
        "figures": evaluated.figures,
    })
}
