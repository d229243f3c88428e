//! `SearchService`: trainers lease steps, describe spaces and report losses.

use std::time::Duration;

use asng_proto::v1::{self, search_service_server::SearchService};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::{
    Api, Caller, convert,
    status::{invalid, not_in_turn, status},
};
use crate::{
    studies::{Error, LeaseRequest, StudyRegistry},
    study::{
        self, COSTS_RULE, Costs, LeaseId, NAME_RULE, Next, Origin, Report, StepId, Violation,
        are_costs, is_label, is_name,
    },
};

const MAX_METRICS: usize = 50;
/// Largest number of spaces, and of data sets, in a request.
const MAX_SPACES: usize = 100;
/// The time after which trainers ask again if the controller is shutting down: it, or another one, may serve by then.
const RETRY_WHEN_CLOSING: Duration = Duration::from_secs(1);
/// Longest time for which a report waits for the one that counts before it: longer than calls of one connection overtake each
/// other. If that one is lost, its trainer repeats it.
const IN_TURN_WITHIN: Duration = Duration::from_secs(1);

impl Caller {
    /// Waits until `trainer` no longer holds step `after`, whose report is to count before another one of its.
    async fn wait_in_turn(&self, study: &str, trainer: &str, after: u64) -> Result<(), Status> {
        let end = Instant::now() + IN_TURN_WITHIN;
        loop {
            // Made before the check, so that a report in between is not missed.
            let returned = self.api.returned.notified();
            let (study, trainer) = (study.to_owned(), trainer.to_owned());
            let is_held = move |registry: &mut StudyRegistry, now| {
                Ok(registry.get(&study)?.is_held_by(&trainer, StepId(after), now))
            };
            if !self.run(is_held).await? {
                return Ok(());
            }
            timeout_at(end, returned).await.map_err(|_| not_in_turn(after))?;
        }
    }
}

#[tonic::async_trait]
impl SearchService for Api {
    async fn lease_step(
        &self,
        request: Request<v1::LeaseStepRequest>,
    ) -> Result<Response<v1::LeaseStepResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let v1::LeaseStepRequest {
            study,
            trainer_id,
            spaces,
            request_id,
            fresh_start,
            set_aside,
            unserved,
            data_sets,
        } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if request_id.chars().count() > 100 {
            violations.push(Violation::new("request_id", "must have at most 100 characters"));
        }
        check_spaces(&spaces, &mut violations);
        check_data_sets(&data_sets, &mut violations);
        let announcement =
            convert::announcement(&spaces, &data_sets, unserved, set_aside, &mut violations);
        if study.is_empty() && spaces.is_empty() {
            violations.push(Violation::new("study", "name a study, or the spaces you serve"));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        if *self.closing.borrow() {
            return Err(status(&Error::ShuttingDown));
        }
        let response = caller
            .run(move |registry, now| {
                let set_aside: Vec<_> = announcement.set_aside.iter().map(|s| s.id).collect();
                registry.announce(&trainer_id, announcement, now);
                if fresh_start {
                    registry.forget_trainer(&trainer_id)?;
                }
                let request = LeaseRequest {
                    study: &study,
                    trainer: &trainer_id,
                    spaces: &spaces,
                    data_sets: &data_sets,
                    set_aside: &set_aside,
                    origin: &Origin::Request(request_id),
                };
                let (next, about) = registry.lease(&request, now)?;
                let about = about.map(|name| registry.get(&name)).transpose()?;
                Ok(convert::next(&next, about))
            })
            .await?;
        Ok(Response::new(response))
    }

    async fn describe_space(
        &self,
        request: Request<v1::DescribeSpaceRequest>,
    ) -> Result<Response<v1::DescribeSpaceResponse>, Status> {
        use v1::describe_space_request::Answer;
        let (caller, v1::DescribeSpaceRequest { study, trainer_id, answer }) =
            self.open(request)?;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        let answer = match answer {
            Some(Answer::Description(description)) => {
                let costs = description.costs.map(|costs| costs.names);
                let names = costs.as_deref().unwrap_or_default();
                violations.extend(study::cost_name_violations("description.costs.names", names));
                let variables = convert::variables("description.variables", description.variables)
                    .unwrap_or_else(|found| {
                        violations.extend(found);
                        Vec::new()
                    });
                Ok((variables, costs))
            }
            Some(Answer::Rejection(rejection)) => {
                if rejection.violations.is_empty() {
                    let what = "give at least one violation";
                    violations.push(Violation::new("rejection.violations", what));
                }
                let reasons = rejection.violations.into_iter();
                Err(reasons.map(|r| Violation::new(r.field, r.description)).collect())
            }
            None => {
                violations.push(Violation::new("answer", "describe the space, or reject it"));
                Err(Vec::new())
            }
        };
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        let study = caller
            .run(move |registry, now| {
                registry.hear(&trainer_id, now);
                registry.change(&study, |study| match answer {
                    Ok((variables, costs)) => study.describe(variables, costs.as_deref(), now),
                    Err(reasons) => study.reject(reasons, now),
                })?;
                Ok(Some(convert::study(registry.get(&study)?)))
            })
            .await?;
        Ok(Response::new(v1::DescribeSpaceResponse { study }))
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let v1::ReportStepRequest {
            study,
            step_id,
            lease_id,
            trainer_id,
            losses,
            metrics,
            lease_next,
            costs,
            spaces,
            data_sets,
            after,
        } = request;
        let mut violations = Vec::new();
        check_trainer(&trainer_id, &mut violations);
        if after != 0 && after == step_id {
            violations.push(Violation::new("after", "is another step than `step_id`, or 0"));
        }
        if metrics.len() > MAX_METRICS || !metrics.keys().all(|name| is_label(name)) {
            let rule = format!("up to {MAX_METRICS} metrics, names of 1 to 200 characters");
            violations.push(Violation::new("metrics", rule));
        }
        check_spaces(&spaces, &mut violations);
        check_data_sets(&data_sets, &mut violations);
        let costs: Vec<Costs> = costs.into_iter().map(|costs| costs.figures).collect();
        if let Some(i) = costs.iter().position(|costs| !are_costs(costs)) {
            violations.push(Violation::new(format!("costs[{i}]"), COSTS_RULE));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        if after != 0 {
            caller.wait_in_turn(&study, &trainer_id, after).await?;
        }
        let closing = *self.closing.borrow();
        let response = caller
            .run(move |registry, now| {
                let report = Report { lease, trainer: trainer_id.clone(), losses, costs, metrics };
                let receipt = registry.report(&study, report, now)?;
                let next = if lease_next && closing {
                    Some(convert::next(&Next::NoWork(RETRY_WHEN_CLOSING), None))
                } else if lease_next {
                    // The study knows this trainer's space already.
                    let own_space = [registry.get(&study)?.spec().space.clone()];
                    let request = LeaseRequest {
                        study: &study,
                        trainer: &trainer_id,
                        spaces: &own_space,
                        data_sets: &data_sets,
                        set_aside: &[],
                        origin: &Origin::Report(lease),
                    };
                    let (next, _) = registry.lease(&request, now)?;
                    Some(convert::next(&next, Some(registry.get(&study)?)))
                } else {
                    None
                };
                let undescribed = registry.find_undescribed(&trainer_id, &spaces, &data_sets);
                let describe = undescribed.filter(|_| !closing).map(convert::describe);
                let first = convert::outcome(receipt.outcome);
                let (outcome, first_outcome) = if receipt.duplicate {
                    (v1::ReportOutcome::Duplicate, first)
                } else {
                    (first, v1::ReportOutcome::Unspecified)
                };
                Ok(v1::ReportStepResponse {
                    outcome: outcome.into(),
                    first_outcome: first_outcome.into(),
                    staleness: receipt.staleness,
                    next,
                    describe,
                })
            })
            .await?;
        self.returned.notify_waiters();
        Ok(Response::new(response))
    }

    async fn extend_lease(
        &self,
        request: Request<v1::ExtendLeaseRequest>,
    ) -> Result<Response<v1::ExtendLeaseResponse>, Status> {
        let (caller, v1::ExtendLeaseRequest { study, step_id, lease_id }) = self.open(request)?;
        let mut violations = Vec::new();
        let Some(lease) = check_lease(&lease_id, step_id, &mut violations) else {
            return Err(invalid(&violations));
        };
        let lease = caller.run(move |registry, now| registry.extend(&study, lease, now)).await?;
        Ok(Response::new(v1::ExtendLeaseResponse { lease: convert::duration(lease) }))
    }

    async fn release_step(
        &self,
        request: Request<v1::ReleaseStepRequest>,
    ) -> Result<Response<v1::ReleaseStepResponse>, Status> {
        let (caller, v1::ReleaseStepRequest { study, step_id, lease_id, reason }) =
            self.open(request)?;
        let mut violations = Vec::new();
        if reason.chars().count() > 1000 {
            violations.push(Violation::new("reason", "must have at most 1000 characters"));
        }
        let lease = check_lease(&lease_id, step_id, &mut violations);
        let Some(lease) = lease.filter(|_| violations.is_empty()) else {
            return Err(invalid(&violations));
        };
        tracing::info!(study, step_id, reason, "trainer gives a step back");
        caller.run(move |registry, now| registry.release(&study, lease, now)).await?;
        self.returned.notify_waiters();
        Ok(Response::new(v1::ReleaseStepResponse {}))
    }
}

fn check_trainer(trainer_id: &str, violations: &mut Vec<Violation>) {
    if !is_label(trainer_id) {
        let rule = "has 1 to 200 characters, none of them a control character";
        violations.push(Violation::new("trainer_id", rule));
    }
}

fn check_spaces(spaces: &[String], violations: &mut Vec<Violation>) {
    if spaces.len() > MAX_SPACES {
        violations.push(Violation::new("spaces", format!("names up to {MAX_SPACES} spaces")));
    } else if let Some(i) = spaces.iter().position(|space| !is_name(space)) {
        violations.push(Violation::new(format!("spaces[{i}]"), NAME_RULE));
    }
}

fn check_data_sets(data_sets: &[String], violations: &mut Vec<Violation>) {
    if data_sets.len() > MAX_SPACES {
        let description = format!("names up to {MAX_SPACES} data sets");
        violations.push(Violation::new("data_sets", description));
    } else if let Some(i) = data_sets.iter().position(|data_set| !is_label(data_set)) {
        violations.push(Violation::new(format!("data_sets[{i}]"), study::LABEL_RULE));
    }
}

/// Reads the lease id of a request about step `step_id`.
fn check_lease(lease_id: &str, step_id: u64, violations: &mut Vec<Violation>) -> Option<LeaseId> {
    let lease = lease_id.parse::<LeaseId>().ok();
    let lease = lease.filter(|lease| lease.step == StepId(step_id));
    if lease.is_none() {
        let rule =
            format!("is not a lease of step {step_id}: send the one that came with the step");
        violations.push(Violation::new("lease_id", rule));
    }
    lease
}
