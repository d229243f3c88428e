//! A trainer's calls of the controller's SearchService. Every failed call is counted. Calls are repeated until the controller answers, except
//! those that may as well fail: extending a lease, and giving a step back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use asng_client::{Connection, explain, insist};
use asng_proto::v1::{
    self, describe_space_request::Answer, lease_step_response::Next,
    search_service_client::SearchServiceClient,
};
use tokio::time::{Instant, interval_at, sleep, timeout, timeout_at};
use tonic::{Response, Status};
use tracing::{error, info, warn};

use crate::{engine, metrics};

/// Time limit for giving back steps, and for the last reports of a trainer that ends.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// The controller, as one trainer calls it.
#[derive(Clone)]
pub(super) struct Controller {
    pub(super) connection: Connection,
    search: SearchServiceClient<Connection>,
    trainer_id: String,
    spaces: Vec<String>,
    unserved: Vec<v1::UnservedSpace>,
    data_sets: Vec<String>,
    /// Random number that makes the request ids of this process unique.
    process: u64,
    /// The number of requests for a step so far, of all clones.
    requests: Arc<AtomicU64>,
}

/// Returns the values of architectures.
pub(super) fn values(architectures: &[v1::Architecture]) -> Vec<Vec<i64>> {
    architectures.iter().map(|architecture| architecture.values.clone()).collect()
}

impl Controller {
    /// Makes the client of a trainer that serves `spaces` and not `unserved`, on the images of `data_sets`.
    pub(super) fn new(
        connection: Connection,
        trainer_id: String,
        spaces: Vec<String>,
        unserved: Vec<v1::UnservedSpace>,
        data_sets: Vec<String>,
    ) -> Controller {
        let (search, process) = (SearchServiceClient::new(connection.clone()), rand::random());
        Controller {
            connection,
            search,
            trainer_id,
            spaces,
            unserved,
            data_sets,
            process,
            requests: Arc::default(),
        }
    }

    /// Makes a request for a step of `study`, or of any study when that is empty.
    pub(super) fn lease_request(
        &self,
        study: String,
        set_aside: Vec<v1::SetAsideStudy>,
    ) -> v1::LeaseStepRequest {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        v1::LeaseStepRequest {
            study,
            trainer_id: self.trainer_id.clone(),
            spaces: self.spaces.clone(),
            request_id: format!("{:016x}-{}", self.process, before + 1),
            fresh_start: before == 0,
            set_aside,
            unserved: self.unserved.clone(),
            data_sets: self.data_sets.clone(),
        }
    }

    /// Asks for a step.
    pub(super) async fn lease(
        &self,
        request: &v1::LeaseStepRequest,
    ) -> Result<Option<Next>, Status> {
        let answer = insist(request, |request| {
            let mut search = self.search.clone();
            async move { counted(search.lease_step(request).await) }
        });
        Ok(answer.await?.next)
    }

    /// Makes the report of a computed step.
    pub(super) fn report_of(
        &self,
        step: v1::Step,
        outcome: engine::Outcome,
    ) -> v1::ReportStepRequest {
        v1::ReportStepRequest {
            study: step.study,
            step_id: step.step_id,
            lease_id: step.lease_id,
            trainer_id: self.trainer_id.clone(),
            spaces: self.spaces.clone(),
            data_sets: self.data_sets.clone(),
            losses: outcome.losses,
            costs: outcome.costs.into_iter().map(costs).collect(),
            metrics: outcome.metrics,
            ..Default::default()
        }
    }

    /// Sends a report.
    pub(super) async fn report(
        &self,
        request: &v1::ReportStepRequest,
    ) -> Result<v1::ReportStepResponse, Status> {
        let report = insist(request, |request| {
            let mut search = self.search.clone();
            async move { counted(search.report_step(request).await) }
        });
        report.await
    }

    /// Does `work` for a step, and extends the step's lease meanwhile, but for no longer than `limit`.
    pub(super) async fn keep_lease<T>(
        &self,
        step: &v1::Step,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> T {
        let lease = step.lease.and_then(|lease| Duration::try_from(lease).ok());
        let period = lease.unwrap_or(Duration::from_secs(60)).max(Duration::from_millis(3)) / 3;
        let mut extend = interval_at(Instant::now() + period, period);
        let stuck_at = sleep(limit);
        tokio::pin!(work, stuck_at);
        let mut stuck = false;
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = &mut stuck_at, if !stuck => {
                    stuck = true;
                    let architectures = (values(&step.train), values(&step.rank));
                    error!(?architectures, ?limit, "step is stuck: its lease runs out, for another trainer");
                }
                _ = extend.tick(), if !stuck => self.extend(step, period).await,
            }
        }
    }

    /// Extends the lease of a step, within `limit`. A failure is only logged: the report still counts if it is the first.
    async fn extend(&self, step: &v1::Step, limit: Duration) {
        let request = v1::ExtendLeaseRequest {
            study: step.study.clone(),
            step_id: step.step_id,
            lease_id: step.lease_id.clone(),
        };
        let extended = timeout(limit, self.search.clone().extend_lease(request)).await;
        if let Ok(Err(status)) = extended.map(counted) {
            warn!(reason = status.message(), "lease cannot be extended");
        }
    }

    /// Describes or rejects a study.
    pub(super) async fn describe(&self, study: &str, answer: Answer) -> Result<(), Status> {
        let request = v1::DescribeSpaceRequest {
            study: study.into(),
            trainer_id: self.trainer_id.clone(),
            answer: Some(answer),
        };
        let reply = insist(&request, |request| {
            let mut search = self.search.clone();
            async move { counted(search.describe_space(request).await) }
        });
        let described = reply.await?.study.unwrap_or_default();
        // This trainer rejects the study, or the controller does because its cost rules do not fit the description.
        if described.state() == v1::StudyState::Failed {
            let reasons =
                described.failure.iter().map(|v| format!("{}: {}", v.field, v.description));
            let reason = reasons.collect::<Vec<_>>().join("; ");
            warn!(study, reason, "study rejected");
        } else {
            info!(study, "study described");
        }
        Ok(())
    }

    /// Gives a step back, if the controller answers before `end`.
    pub(super) async fn release(&self, step: v1::Step, reason: &str, end: Instant) {
        let v1::Step { study, step_id, lease_id, .. } = step;
        let reason = reason.chars().take(1000).collect();
        let request = v1::ReleaseStepRequest { study, step_id, lease_id, reason };
        match timeout_at(end, self.search.clone().release_step(request)).await {
            Ok(Ok(_)) => info!(step = step_id, "step given back"),
            Ok(Err(status)) => {
                warn!(step = step_id, reason = status.message(), "step not given back");
            }
            Err(_) => {
                warn!(step = step_id, "step not given back: the controller does not answer");
            }
        }
    }

    /// Returns the text of an error of the controller, with what to do about it.
    pub(super) fn explain(&self, status: &Status) -> String {
        explain(status, &self.connection.url())
    }
}

fn costs(costs: engine::Costs) -> v1::Costs {
    let figures = costs.into_iter().map(|(name, cost)| (name.to_owned(), cost));
    v1::Costs { figures: figures.collect() }
}

/// Counts a call if it has failed.
fn counted<T>(answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
    answer.inspect_err(|status| metrics::controller_failed(status.code()))
}
