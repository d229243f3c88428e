//! Descriptions of spaces for the controller: variables and costs, or the reasons why a study is rejected.

use std::collections::BTreeMap;

use asng_proto::v1::{self, describe_space_request::Answer};

use crate::space::{Decision, IntegerVariable, Space, Variable, Violation};

/// Describes the space called `name` under a study's settings, or rejects these. Returns `None` if there is no such space.
pub(super) fn describe(name: &str, settings: &BTreeMap<String, String>) -> Option<Answer> {
    Some(match Space::parse(name, settings)? {
        Ok(space) => {
            let names = space.costs().iter().copied().map(String::from).collect();
            let costs = Some(v1::ReportedCosts { names });
            Answer::Description(v1::SpaceDescription { variables: variables(&space), costs })
        }
        Err(violations) => rejection(violations),
    })
}

/// Compares a study whose variables and rules the controller knows already with its space. Returns the differences;
/// without any, the study can be worked on.
pub(super) fn differences(study: &v1::Study, space: &Space) -> Vec<Violation> {
    let spec = study.spec.clone().unwrap_or_default();
    let mut found = Vec::new();
    let (ours, theirs) = (variables(space), &study.variables);
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
    let costs = space.costs();
    for (i, rule) in spec.costs.iter().enumerate() {
        if !costs.contains(&&*rule.cost) {
            let reported = match costs {
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

fn variables(space: &Space) -> Vec<v1::Variable> {
    let variable = |decision| {
        let (name, kind) = match decision {
            Decision::Categorical(Variable { name, choices }) => {
                (name, v1::variable::Kind::Categorical(v1::Categorical { choices }))
            }
            Decision::Integer(IntegerVariable { name, low, high }) => {
                (name, v1::variable::Kind::Integer(v1::Integer { low, high }))
            }
        };
        v1::Variable { name, kind: Some(kind) }
    };
    space.variables().into_iter().map(variable).collect()
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

    fn toy() -> v1::Study {
        let settings = BTreeMap::new();
        let Some(Answer::Description(description)) = describe("toy", &settings) else { panic!() };
        v1::Study {
            spec: Some(v1::StudySpec { space: "toy".into(), ..Default::default() }),
            variables: description.variables,
            ..Default::default()
        }
    }

    fn fields(study: &v1::Study) -> Vec<String> {
        let space = Space::parse("toy", &BTreeMap::new()).unwrap().unwrap();
        differences(study, &space)
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
    fn a_rule_about_a_cost_that_is_not_reported_is_a_difference() {
        let mut study = toy();
        let rule = v1::CostRule { cost: "parameters".into(), ..Default::default() };
        study.spec.as_mut().unwrap().costs = vec![rule];
        let text = "spec.costs[0].cost: unknown cost \"parameters\"; this space reports no costs";
        assert_eq!(fields(&study), [text]);
        let Some(Answer::Description(cells)) = describe("enas-micro", &BTreeMap::new()) else {
            panic!()
        };
        assert_eq!(cells.costs.unwrap().names, ["parameters", "macs"]);
    }
}
