//! The commands that call a trainer.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Error};
use asng_client::{Connection, Options, TRAINER_PORT, explain_trainer};
use asng_proto::v1::{
    Architecture, Checkpoint, DrainRequest, EvaluateArchitectureRequest,
    EvaluateArchitectureResponse, GetStatusRequest, GetStatusResponse, SaveCheckpointRequest,
    trainer_service_client::TrainerServiceClient,
};
use prost_types::Timestamp;
use serde_json::Value;
use tonic::{Request, Status};

use crate::{
    args::{EvaluateArgs, Output, TrainerCommand, Which},
    client, connect, json, print, refuse,
    text::{self, age, number, or_dash, row, section},
};

/// A step, for which an evaluation and a checkpoint wait, may take long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Asks the trainer at `address`.
pub(crate) async fn run(
    options: &Options,
    address: &str,
    output: Output,
    command: TrainerCommand,
) -> anyhow::Result<ExitCode> {
    if let TrainerCommand::List = command {
        return list(options, output).await;
    }
    let at_trainer = client::options_at(options, address, TRAINER_PORT);
    let connection = connect(&at_trainer.unwrap_or_else(|error| refuse(error)));
    let url = connection.url();
    let mut trainer = TrainerServiceClient::new(connection);
    let explained = |error: Error| match error.downcast::<Status>() {
        Ok(status) => Error::msg(explain_trainer(&status, &url)),
        Err(other) => other,
    };
    match command {
        TrainerCommand::List => {}
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
                || "the trainer exits after it has reported its step and saved its weights".into();
            print(output, text, || json!({ "draining": true }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists the trainers that the controller knows.
async fn list(options: &Options, output: Output) -> anyhow::Result<ExitCode> {
    let connection = options.connect()?;
    let url = connection.url();
    let trainers = client::trainers(&mut client::connect(connection)).await;
    let trainers = trainers.map_err(|status| client::explained(status.into(), &url))?;
    let all = || trainers.iter().map(json::trainer).collect();
    print(output, || text::all_trainers(&trainers, SystemTime::now()), all)?;
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
        "the trainer has no study open; run `asng-trainer evaluate --study NAME --work-dir DIR` on its machine to evaluate with \
         the last saved weights"
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
    let architecture = architecture.with_context(|| {
        format!("study `{study}` has no such architecture yet; give its values")
    })?;
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
        row("data sets", or_dash(Some(status.data_sets.join(", ")))),
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
    for (name, problems) in [
        ("checkpoint error", status.checkpoint_error.clone()),
        ("cannot serve", text::unserved(&status.unserved)),
        ("set aside", text::set_aside(&status.set_aside)),
    ] {
        rows.extend((!problems.is_empty()).then(|| row(name, problems)));
    }
    section(&format!("Trainer {}", status.trainer_id), rows)
}

fn status_json(status: &GetStatusResponse) -> Value {
    json!({
        "trainer_id": status.trainer_id,
        "version": status.version,
        "device": status.device,
        "spaces": status.spaces,
        "data_sets": status.data_sets,
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
        "checkpoint_error": status.checkpoint_error,
        "unserved": json::unserved(&status.unserved),
        "set_aside": json::set_aside(&status.set_aside),
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

#[cfg(test)]
mod tests {
    use asng_proto::v1::{SetAsideStudy, UnservedSpace};

    use super::*;

    #[test]
    fn a_status_says_what_the_trainer_cannot_do_and_why() {
        let status = GetStatusResponse {
            trainer_id: "gpu-1".into(),
            spaces: vec!["toy".into()],
            data_sets: vec!["cifar10".into(), "flowers".into()],
            checkpoint_error: "cannot write checkpoint x: no space left on device".into(),
            unserved: vec![UnservedSpace {
                space: "inpaint-cat".into(),
                reason: "no photos in data/photos".into(),
            }],
            set_aside: vec![SetAsideStudy {
                study: "faces".into(),
                reason: "no whole checkpoint".into(),
                retry_after: Some(prost_types::Duration { seconds: 40, nanos: 0 }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = status_text(&status, SystemTime::UNIX_EPOCH);
        for (name, value) in [
            ("data sets", "cifar10, flowers"),
            ("checkpoint error", "cannot write checkpoint x: no space left on device"),
            ("cannot serve", "inpaint-cat: no photos in data/photos"),
            ("set aside", "faces: no whole checkpoint; tries again in 40 s"),
        ] {
            let row = text.lines().find(|line| line.trim().starts_with(name));
            assert!(row.is_some_and(|row| row.ends_with(value)), "{name} in\n{text}");
        }
        let json = status_json(&status);
        assert_eq!(json["unserved"][0]["space"], "inpaint-cat");
        assert_eq!(json["set_aside"][0]["retry_after"], "40s");
        assert_eq!(json["checkpoint_error"], status.checkpoint_error);
        let well = status_text(&GetStatusResponse::default(), SystemTime::UNIX_EPOCH);
        assert!(!well.contains("cannot") && !well.contains("set aside"), "{well}");
    }
}
