//! Words for the contract's values.

use asng_proto::v1::{Algorithm, AlgorithmSettings, Study, StudyState, Variable, variable::Kind};

use crate::args::DEFAULTS;

/// The state as it is written in the contract, without its prefix.
pub(crate) fn state(study: &Study) -> &'static str {
    study.state().as_str_name().trim_start_matches("STUDY_STATE_")
}

/// Whether a study in this state stays in it.
pub(crate) fn has_ended(state: StudyState) -> bool {
    matches!(state, StudyState::Finished | StudyState::Stopped | StudyState::Failed)
}

/// The algorithm in force, without its prefix.
pub(crate) fn algorithm(settings: &AlgorithmSettings) -> &'static str {
    let algorithm = match settings.algorithm() {
        Algorithm::Unspecified => DEFAULTS.algorithm(),
        algorithm => algorithm,
    };
    algorithm.as_str_name().trim_start_matches("ALGORITHM_")
}

/// The name of a value: of the choice for a categorical, the number itself for an integer.
pub(crate) fn choice(variable: &Variable, value: i64) -> String {
    let index = usize::try_from(value).ok();
    match &variable.kind {
        Some(Kind::Categorical(c)) => index.and_then(|i| c.choices.get(i)).cloned(),
        _ => None,
    }
    .unwrap_or_else(|| value.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use asng_proto::v1::{Categorical, Integer};

    use super::*;

    pub(crate) fn two_variables() -> Vec<Variable> {
        let choices = vec!["conv3".into(), "conv5".into()];
        let op = Kind::Categorical(Categorical { choices });
        let width = Kind::Integer(Integer { low: 8, high: 64 });
        vec![
            Variable { name: "op".into(), kind: Some(op) },
            Variable { name: "width".into(), kind: Some(width) },
        ]
    }

    #[test]
    fn a_value_is_named_by_its_choice_or_is_the_number() {
        let [op, width] = &two_variables()[..] else { unreachable!("there are two") };
        assert_eq!(choice(op, 1), "conv5");
        assert_eq!(choice(width, 1), "1");
        // Whatever the wire brings.
        assert_eq!(choice(op, 2), "2");
        assert_eq!(choice(op, -1), "-1");
        assert_eq!(choice(&Variable::default(), 3), "3");
    }

    #[test]
    fn enums_lose_their_prefix_and_defaults_are_filled_in() {
        let study = |state| Study { state, ..Study::default() };
        assert_eq!(state(&study(StudyState::Waiting.into())), "WAITING");
        assert_eq!(state(&study(99)), "UNSPECIFIED");
        assert_eq!(algorithm(&AlgorithmSettings::default()), "ASNG");
    }
}
