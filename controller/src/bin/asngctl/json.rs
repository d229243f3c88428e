//! The stable output for programs: names as in the contract, enums without their prefix, times in RFC 3339.

use asng_controller::pictures::notes::Note;
use asng_proto::v1::{
    Architecture, Candidate, CostRule, FieldViolation, Front, FrontPoint, GetDistributionResponse,
    Incumbent, Marginal, Progress, Retention, SetAsideStudy, Start, StopRules, Study, StudySpec,
    Target, Trainer, UnservedSpace, Variable, marginal, retention::Keep, start::From,
    variable::Kind,
};
use serde_json::{Map, Value, json};

use crate::names;

/// A study. Its spec carries the defaults in force for what was left out.
pub(crate) fn study(study: &Study) -> Value {
    let variables = &study.variables;
    let time = |time: Option<prost_types::Timestamp>| time.map(|t| t.to_string());
    json!({
        "name": study.name,
        "state": names::state(study),
        "spec": spec(study.spec.as_ref().unwrap_or(&StudySpec::default())),
        "variables": variables.iter().map(variable).collect::<Value>(),
        "progress": progress(&study.progress.unwrap_or_default()),
        "mode": study.mode.as_ref().map(|a| architecture(a, variables)),
        "incumbent": study.incumbent.as_ref().map(|i| incumbent(i, variables)),
        "chosen": study.chosen.as_ref().map(|c| candidate(c, variables)),
        "fronts": study.fronts.iter().map(|f| front(f, variables)).collect::<Value>(),
        "stop_reason": names::stop_reason(study),
        "owner": study.owner,
        "failure": study.failure.iter().map(violation).collect::<Value>(),
        "create_time": time(study.create_time),
        "seed": study.seed,
        "study_id": study.study_id,
        "state_time": time(study.state_time),
    })
}

/// A study with the notes about it.
pub(crate) fn study_with_notes(study: &Study, notes: &[Note]) -> Value {
    let mut value = self::study(study);
    value["notes"] = notes.iter().map(ToString::to_string).collect();
    value
}

/// A trainer, as a study or its controller knows it.
pub(crate) fn trainer(trainer: &Trainer) -> Value {
    json!({
        "trainer_id": trainer.trainer_id,
        "last_seen": trainer.last_seen.map(|time| time.to_string()),
        "holds": trainer.holds,
        "applied": trainer.applied,
        "stale": trainer.stale,
        "duplicate": trainer.duplicate,
        "expired": trainer.expired,
        "mean_staleness": trainer.mean_staleness,
        "study": trainer.study,
        "spaces": trainer.spaces,
        "data_sets": trainer.data_sets,
        "unserved": unserved(&trainer.unserved),
        "set_aside": set_aside(&trainer.set_aside),
    })
}

/// Spaces that a trainer cannot serve.
pub(crate) fn unserved(spaces: &[UnservedSpace]) -> Value {
    spaces.iter().map(|space| json!({ "space": space.space, "reason": space.reason })).collect()
}

/// Studies that a trainer has set aside.
pub(crate) fn set_aside(studies: &[SetAsideStudy]) -> Value {
    let aside = |aside: &SetAsideStudy| {
        json!({
            "study": aside.study,
            "study_id": aside.study_id,
            "reason": aside.reason,
            "retry_after": aside.retry_after.map(|time| time.to_string()),
        })
    };
    studies.iter().map(aside).collect()
}

/// A distribution; `variables` are those of its study, for the names.
pub(crate) fn distribution(d: &GetDistributionResponse, variables: &[Variable]) -> Value {
    let marginals = marginals(&d.marginals, variables);
    json!({ "generation": d.generation, "delta": d.delta, "marginals": marginals })
}

fn marginals(marginals: &[Marginal], variables: &[Variable]) -> Value {
    let marginal = |(i, marginal): (usize, &Marginal)| {
        let mut object = variables.get(i).map_or_else(|| json!({}), variable);
        object["name"] = json!(marginal.name);
        match &marginal.kind {
            Some(marginal::Kind::Categorical(c)) => {
                object["probabilities"] = json!(c.probabilities);
            }
            Some(marginal::Kind::Integer(i)) => {
                object["mean"] = json!(i.mean);
                object["deviation"] = json!(i.deviation);
            }
            None => {}
        }
        object
    };
    marginals.iter().enumerate().map(marginal).collect()
}

fn spec(spec: &StudySpec) -> Value {
    let algorithm = spec.algorithm.unwrap_or_default();
    let defaults = names::defaults();
    json!({
        "space": spec.space,
        "space_definition": spec.space_definition,
        "settings": spec.settings,
        "variables": spec.variables.iter().map(variable).collect::<Value>(),
        "direction": names::direction(spec),
        "algorithm": {
            "algorithm": names::algorithm(&algorithm),
            "alpha": algorithm.alpha.or(defaults.alpha),
            "delta_init": algorithm.delta_init.or(defaults.delta_init),
            "delta_max": algorithm.delta_max.or(defaults.delta_max),
            "lambda_x": algorithm.lambda_x.or(defaults.lambda_x),
            "lambda_theta": algorithm.lambda_theta.or(defaults.lambda_theta),
            "steps_per_update": algorithm.steps_per_update.or(defaults.steps_per_update),
            "max_staleness": algorithm.max_staleness.or(defaults.max_staleness),
            "warmup_steps": algorithm.warmup_steps.or(defaults.warmup_steps),
            "seed": algorithm.seed,
        },
        "stop": stop(&spec.stop.clone().unwrap_or_default()),
        "lease": spec.lease.unwrap_or_else(names::default_lease).to_string(),
        "start": spec.start.as_ref().map(start),
        "fixed": spec.fixed,
        "labels": spec.labels,
        "owner": spec.owner,
        "retention": spec.retention.as_ref().map(retention),
        "costs": spec.costs.iter().map(rule).collect::<Value>(),
    })
}

fn rule(CostRule { cost, weight, limit }: &CostRule) -> Value {
    json!({ "cost": cost, "weight": weight, "limit": limit })
}

fn stop(stop: &StopRules) -> Value {
    let target = |Target { metric, value, at_least }: &Target| json!({ "metric": metric, "value": value, "at_least": at_least });
    json!({
        "max_steps": stop.max_steps,
        "max_duration": stop.max_duration.map(|duration| duration.to_string()),
        "convergence": stop.convergence,
        "target": stop.target.as_ref().map(target),
    })
}

fn start(start: &Start) -> Value {
    match &start.from {
        Some(From::Study(name)) => json!({ "study": name }),
        Some(From::Distribution(d)) => {
            json!({ "distribution": { "marginals": marginals(&d.marginals, &[]) } })
        }
        None => json!({}),
    }
}

fn retention(retention: &Retention) -> Value {
    match retention.keep {
        Some(Keep::Every(steps)) => json!({ "every": steps }),
        Some(Keep::Last(steps)) => json!({ "last": steps }),
        None => json!({}),
    }
}

fn progress(progress: &Progress) -> Value {
    json!({
        "generation": progress.generation,
        "applied": progress.applied,
        "pending": progress.pending,
        "outstanding": progress.outstanding,
        "stale": progress.stale,
        "duplicate": progress.duplicate,
        "diverged": progress.diverged,
        "over_limit": progress.over_limit,
        "expired": progress.expired,
        "max_steps": progress.max_steps,
        "convergence": progress.convergence,
    })
}

/// In the form that `--variables` reads.
fn variable(variable: &Variable) -> Value {
    match &variable.kind {
        Some(Kind::Categorical(c)) => json!({ "name": variable.name, "choices": c.choices }),
        Some(Kind::Integer(i)) => json!({ "name": variable.name, "low": i.low, "high": i.high }),
        None => json!({ "name": variable.name }),
    }
}

/// `choices` is null where the variables are not known, as in a list.
pub(crate) fn architecture(architecture: &Architecture, variables: &[Variable]) -> Value {
    let named = variables.iter().zip(&architecture.values).map(|(variable, &value)| {
        let value = match variable.kind {
            Some(Kind::Integer(_)) => json!(value),
            _ => json!(names::choice(variable, value)),
        };
        (variable.name.clone(), value)
    });
    let choices = (!variables.is_empty()).then(|| named.collect::<Map<_, _>>());
    json!({ "values": architecture.values, "choices": choices })
}

fn incumbent(incumbent: &Incumbent, variables: &[Variable]) -> Value {
    json!({
        "architecture": incumbent.architecture.as_ref().map(|a| architecture(a, variables)),
        "loss": incumbent.loss,
        "step_id": incumbent.step_id,
        "costs": incumbent.costs,
    })
}

fn candidate(candidate: &Candidate, variables: &[Variable]) -> Value {
    json!({
        "architecture": candidate.architecture.as_ref().map(|a| architecture(a, variables)),
        "costs": candidate.costs,
    })
}

fn front(front: &Front, variables: &[Variable]) -> Value {
    let point = |point: &FrontPoint| {
        json!({
            "cost": point.cost,
            "loss": point.loss,
            "architecture": point.architecture.as_ref().map(|a| architecture(a, variables)),
            "step_id": point.step_id,
        })
    };
    json!({ "cost": front.cost, "points": front.points.iter().map(point).collect::<Value>() })
}

fn violation(violation: &FieldViolation) -> Value {
    json!({ "field": violation.field, "description": violation.description })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{names::tests::two_variables, text::tests::a_study};

    #[test]
    fn an_architecture_has_numbers_and_names() {
        let value = architecture(&Architecture { values: vec![1, 12] }, &two_variables());
        assert_eq!(value, json!({ "values": [1, 12], "choices": { "op": "conv5", "width": 12 } }));
    }

    #[test]
    fn a_study_is_named_as_in_the_contract() {
        let value = study(&a_study());
        assert_eq!(value["state"], "RUNNING");
        assert_eq!(value["create_time"], "1970-01-01T00:00:00Z");
        assert_eq!(value["spec"]["algorithm"]["algorithm"], "ASNG");
        assert_eq!(value["spec"]["algorithm"]["alpha"], 1.5);
        assert_eq!(value["spec"]["lease"], "60s");
        assert_eq!(value["mode"]["choices"]["op"], "conv3");
        assert_eq!(value["incumbent"]["architecture"]["choices"]["width"], 64);
        assert_eq!(value["chosen"]["architecture"]["choices"]["width"], 12);
        assert_eq!(value["chosen"]["costs"], json!({ "size": 12.5 }));
        assert_eq!(value["fronts"][0]["points"][1]["cost"], 2.0);
    }

    #[test]
    fn a_listed_study_has_no_names() {
        let listed = study(&Study { variables: Vec::new(), ..a_study() });
        assert_eq!(listed["mode"], json!({ "values": [0, 36], "choices": null }));
    }
}
