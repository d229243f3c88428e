//! TrainerService: decodes a request, reads the status or asks the engine, and encodes the answer.

use std::{path::Path, time::Instant};

use asng_proto::v1::{self, trainer_service_server::TrainerService};
use asng_serving::{
    Rules,
    access::{Identity, Role, Scope},
    status::{denial, precondition, short},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, info};

use super::state::{Last, Open, State};
use crate::engine::{self, Engine, checkpoints};

/// The rules for callers. Calls that wait for a step have no time limit.
pub(super) const RULES: Rules = Rules {
    server: "trainer",
    least_role,
    unhurried: &[
        "/asng.v1.TrainerService/EvaluateArchitecture",
        "/asng.v1.TrainerService/SaveCheckpoint",
    ],
};

fn least_role(path: &str) -> Role {
    match path {
        "/asng.v1.TrainerService/GetStatus" => Role::Viewer,
        "/asng.v1.TrainerService/EvaluateArchitecture" => Role::Trainer,
        _ => Role::Admin,
    }
}

/// The implementation of TrainerService.
pub(super) struct Api {
    pub(super) engine: Engine,
    pub(super) state: watch::Receiver<State>,
    /// Asks the trainer to end.
    pub(super) drain: CancellationToken,
}

impl Api {
    /// Returns the status and the content of a request, whose caller must not be limited to some studies.
    fn open<T>(&self, request: Request<T>) -> Result<(State, T), Status> {
        let identity = request.extensions().get::<Identity>();
        let identity = identity.ok_or_else(|| Status::internal("the request has no identity"))?;
        if identity.scope() != Scope::default() {
            let message =
                "this token is bound to an owner or to labels, and a trainer works on any study";
            return Err(denial(Code::PermissionDenied, "SCOPE", message.into()));
        }
        Ok((self.state.borrow().clone(), request.into_inner()))
    }
}

/// Returns the open study of `state`. Errors if there is none, or if it is not `wanted`, unless that is empty.
fn opened(state: State, wanted: &str) -> Result<Open, Status> {
    let Some(open) = state.open else { return Err(not_open()) };
    if !wanted.is_empty() && wanted != open.study {
        let message = format!("study {:?} is open, not {:?}", open.study, short(wanted));
        return Err(precondition("OTHER_STUDY", &short(wanted), message));
    }
    Ok(open)
}

fn not_open() -> Status {
    let message = "no study is open: the trainer has had no step of one yet, or the study has ended; on the trainer's \
                   machine, `asng-trainer evaluate --study NAME --work-dir DIR` evaluates with the weights last saved";
    precondition("NO_STUDY", "study", message.into())
}

fn invalid(field: &str, description: String) -> Status {
    let description = short(&description);
    let details = ErrorDetails::with_bad_request_violation(field, &description);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

fn status(error: &engine::Error) -> Status {
    use engine::Error;
    match error {
        Error::Architecture(_) => invalid("architecture.values", error.to_string()),
        Error::TestImages(_) => invalid("images", error.to_string()),
        Error::NotOpen => not_open(),
        Error::Images(_)
        | Error::OtherImages(_)
        | Error::Torch(_)
        | Error::Checkpoints(_)
        | Error::Thread(_)
        | Error::Panicked
        | Error::Died => {
            error!("{error}");
            Status::internal(short(&error.to_string()))
        }
    }
}

/// Returns the newest checkpoint in `directory`.
fn checkpoint(directory: &Path) -> Option<v1::Checkpoint> {
    let (file, time) = checkpoints::last(directory)?;
    Some(v1::Checkpoint {
        step_id: checkpoints::step(&file)?,
        time: Some(time.into()),
        path: file.display().to_string(),
    })
}

#[tonic::async_trait]
impl TrainerService for Api {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let (state, v1::GetStatusRequest {}) = self.open(request)?;
        let doing = match (state.draining, &state.step) {
            (true, _) => v1::TrainerState::Draining,
            (false, Some(_)) => v1::TrainerState::Working,
            (false, None) => v1::TrainerState::Idle,
        };
        let mut answer = v1::GetStatusResponse {
            trainer_id: state.trainer_id,
            version: env!("CARGO_PKG_VERSION").into(),
            device: state.device,
            spaces: state.spaces,
            controller: state.controller,
            state: doing.into(),
            uptime: state.started.elapsed().try_into().ok(),
            step_id: state.step.map_or(0, |step| step.id),
            step_time: state.step.map(|step| step.since.into()),
            steps: state.steps,
            set_aside: state.set_aside.at(Instant::now()),
            unserved: state.unserved,
            data_sets: state.data_sets,
            checkpoint_error: self.engine.checkpoint_problems().join("; "),
            ..Default::default()
        };
        if let Some(Open { study, study_id, directory, last, .. }) = state.open {
            answer.checkpoint = checkpoint(&directory);
            (answer.study, answer.study_id) = (study, study_id);
            if let Some(Last { losses, metrics, images_per_second }) = last {
                (answer.losses, answer.metrics) = (losses, metrics);
                answer.images_per_second = images_per_second;
            }
        }
        Ok(Response::new(answer))
    }

    async fn evaluate_architecture(
        &self,
        request: Request<v1::EvaluateArchitectureRequest>,
    ) -> Result<Response<v1::EvaluateArchitectureResponse>, Status> {
        let (state, request) = self.open(request)?;
        let v1::EvaluateArchitectureRequest { study, architecture, images } = request;
        let trainer_id = state.trainer_id.clone();
        let Open { study, study_id, directory, .. } = opened(state, &study)?;
        let Some(v1::Architecture { values }) = architecture else {
            return Err(invalid("architecture", "is required".into()));
        };
        let images = (images > 0).then_some(images.into());
        let evaluated = self.engine.evaluate(directory, values, images).await;
        let evaluated = evaluated.map_err(|error| status(&error))?;
        let (losses, metrics): (Vec<_>, Vec<_>) =
            evaluated.metrics.into_iter().partition(|(name, _)| *name == "loss");
        let loss = losses.first().map_or(f64::NAN, |(_, loss)| *loss);
        let figures = metrics.into_iter().map(|(name, metric)| (name.into(), metric));
        Ok(Response::new(v1::EvaluateArchitectureResponse {
            study,
            study_id,
            step_id: evaluated.step,
            trainer_id,
            images: evaluated.images as u32,
            loss,
            figures: figures.collect(),
        }))
    }

    async fn save_checkpoint(
        &self,
        request: Request<v1::SaveCheckpointRequest>,
    ) -> Result<Response<v1::SaveCheckpointResponse>, Status> {
        let (state, v1::SaveCheckpointRequest {}) = self.open(request)?;
        let Open { directory, .. } = opened(state, "")?;
        self.engine.save(directory.clone()).await.map_err(|error| status(&error))?;
        let checkpoint = Some(checkpoint(&directory).ok_or_else(not_open)?);
        Ok(Response::new(v1::SaveCheckpointResponse { checkpoint }))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let (_, v1::DrainRequest {}) = self.open(request)?;
        info!("asked to drain");
        self.drain.cancel();
        Ok(Response::new(v1::DrainResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_harmless_needs_an_admin() {
        assert_eq!(least_role("/asng.v1.TrainerService/GetStatus"), Role::Viewer);
        for path in ["/asng.v1.TrainerService/Drain", "/asng.v1.StudyService/GetStudy", "x"] {
            assert_eq!(least_role(path), Role::Admin, "{path}");
        }
    }
}
