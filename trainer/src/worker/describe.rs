//! Descriptions of spaces for the controller: variables and costs, or the reasons why a study is rejected.

use asng_proto::v1::{self, Direction, describe_space_request::Answer};

use crate::{
    engine::LATENCY,
    tasks::{Domain, Task, Variable, settings::Violation, space::Space},
};

/// The costs that are reported of architectures that are networks.
const COSTS: [&str; 2] = ["parameters", "macs"];

/// Describes a space under a study's settings, or rejects these, or a direction that is not that of losses.
pub(super) fn describe(space: &Space, direction: Direction, measure_latency: bool) -> Answer {
    if let Some(violation) = maximizes(direction) {
        return rejection(vec![violation]);
    }
    match space.task() {
        Ok(task) => {
            let names = costs(&*task, measure_latency).into_iter().map(String::from).collect();
            let costs = Some(v1::ReportedCosts { names });
            Answer::Description(v1::SpaceDescription { variables: variables(&*task), costs })
        }
        Err(violations) => rejection(violations),
    }
}

fn maximizes(direction: Direction) -> Option<Violation> {
    let field = "spec.direction".into();
    let description =
        "is MAXIMIZE, and this trainer reports losses; set MINIMIZE or leave it out".into();
    (direction == Direction::Maximize).then_some(Violation { field, description })
}

fn costs(task: &dyn Task, measure_latency: bool) -> Vec<&'static str> {
    match task.images() {
        Some(_) => COSTS.into_iter().chain(measure_latency.then_some(LATENCY)).collect(),
        None => Vec::new(),
    }
}

/// Compares a study whose variables and rules the controller knows already with its space. Returns the differences;
/// without any, the study can be worked on.
pub(super) fn differences(
    study: &v1::Study,
    task: &dyn Task,
    measure_latency: bool,
) -> Vec<Violation> {
    let spec = study.spec.clone().unwrap_or_default();
    let mut found = Vec::from_iter(maximizes(spec.direction()));
    let (ours, theirs) = (variables(task), &study.variables);
    if ours.len() != theirs.len() {
        found.push(Violation {
            field: "spec.variables".into(),
            description: format!(
                "space {} has {} variables with these settings, not {}; leave `variables` out and the trainer describes them",
                spec.space,
                ours.len(),
                theirs.len()
            ),
        });
    } else if let Some(i) = (0..ours.len()).find(|&i| ours[i] != theirs[i]) {
        found.push(Violation {
            field: format!("spec.variables[{i}]"),
            description: format!(
                "space {} has {} here with these settings, not {}; leave `variables` out and the trainer describes them",
                spec.space,
                in_words(&ours[i]),
                in_words(&theirs[i])
            ),
        });
    }
    let costs = costs(task, measure_latency);
    for (i, rule) in spec.costs.iter().enumerate() {
        if !costs.contains(&&*rule.cost) {
            let reported = match &costs[..] {
                [] => "no costs".into(),
                costs => costs.join(", "),
            };
            found.push(Violation {
                field: format!("spec.costs[{i}].cost"),
                description: format!("unknown cost {:?}; this space reports {reported}", rule.cost),
            });
        }
    }
    found
}

/// Rejects a study for these reasons.
pub(super) fn rejection(violations: Vec<Violation>) -> Answer {
    let violations = violations
        .into_iter()
        .map(|Violation { field, description }| v1::FieldViolation { field, description });
    Answer::Rejection(v1::Rejection { violations: violations.collect() })
}

fn variables(task: &dyn Task) -> Vec<v1::Variable> {
    let variable = |Variable { name, domain }| {
        let kind = match domain {
            Domain::Categorical(choices) => {
                v1::variable::Kind::Categorical(v1::Categorical { choices })
            }
            Domain::Integer { low, high } => v1::variable::Kind::Integer(v1::Integer { low, high }),
        };
        v1::Variable { name, kind: Some(kind) }
    };
    task.variables().into_iter().map(variable).collect()
}

fn in_words(variable: &v1::Variable) -> String {
    let kind = match &variable.kind {
        Some(v1::variable::Kind::Categorical(v1::Categorical { choices })) => {
            format!("one of {}", choices.join(", "))
        }
        Some(v1::variable::Kind::Integer(v1::Integer { low, high })) => {
            format!("a whole number from {low} to {high}")
        }
        None => "nothing".into(),
    };
    format!("{:?} ({kind})", variable.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(name: &str) -> Space {
        Space { name: name.into(), ..Space::default() }
    }

    fn toy() -> v1::Study {
        let Answer::Description(description) =
            describe(&space("toy"), Direction::Unspecified, false)
        else {
            panic!()
        };
        v1::Study {
            spec: Some(v1::StudySpec { space: "toy".into(), ..Default::default() }),
            variables: description.variables,
            ..Default::default()
        }
    }

    fn fields(study: &v1::Study) -> Vec<String> {
        let task = space("toy").task().unwrap();
        differences(study, &*task, false)
            .into_iter()
            .map(|v| format!("{}: {}", v.field, v.description))
            .collect()
    }

    #[test]
    fn a_study_is_compared_with_its_space_variable_by_variable() {
        let study = toy();
        assert!(fields(&study).is_empty());
        let mut fewer = study.clone();
        fewer.variables.truncate(2);
        let text = "spec.variables: space toy has 30 variables with these settings, not 2;";
        assert!(fields(&fewer)[0].starts_with(text), "{:?}", fields(&fewer));
        let mut other = study;
        other.variables[7].name = "width".into();
        let kind = v1::variable::Kind::Integer(v1::Integer { low: 1, high: 9 });
        other.variables[7].kind = Some(kind);
        let found = fields(&other).remove(0);
        assert!(found.starts_with("spec.variables[7]: space toy has "), "{found}");
        assert!(found.contains("not \"width\" (a whole number from 1 to 9)"), "{found}");
    }

    #[test]
    fn a_study_that_maximizes_is_rejected_before_and_after_its_description() {
        let text = "spec.direction: is MAXIMIZE, and this trainer reports losses";
        let mut study = toy();
        study.spec.as_mut().unwrap().direction = Direction::Maximize.into();
        assert!(fields(&study)[0].starts_with(text), "{:?}", fields(&study));
        let Answer::Rejection(rejection) = describe(&space("toy"), Direction::Maximize, false)
        else {
            panic!()
        };
        assert_eq!(rejection.violations[0].field, "spec.direction");
    }

    #[test]
    fn a_rule_about_a_cost_that_is_not_reported_is_a_difference() {
        let mut study = toy();
        let rule = v1::CostRule { cost: "parameters".into(), ..Default::default() };
        study.spec.as_mut().unwrap().costs = vec![rule];
        let text = "spec.costs[0].cost: unknown cost \"parameters\"; this space reports no costs";
        assert_eq!(fields(&study), [text]);
        let cells = space("enas-micro");
        let names = |measure_latency| match describe(&cells, Direction::Minimize, measure_latency) {
            Answer::Description(cells) => cells.costs.unwrap().names,
            Answer::Rejection(_) => panic!(),
        };
        assert_eq!(names(false), ["parameters", "macs"]);
        assert_eq!(names(true), ["parameters", "macs", "latency_ms"]);
    }
}
