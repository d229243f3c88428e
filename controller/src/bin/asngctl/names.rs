//! Words for the contract's values, and the values that stand for what a spec leaves out.

pub(crate) use asng_controller::pictures::words::{choice, outcome, state};
use asng_controller::study::Spec;
use asng_proto::v1::{
    Algorithm, AlgorithmSettings, Architecture, Direction, Draw, Study, StudySpec, StudyState,
    Variable, variable::Kind,
};

/// The settings in force where a spec leaves them out.
pub(crate) fn defaults() -> AlgorithmSettings {
    let spec = Spec::default();
    let optimiser = spec.optimiser();
    AlgorithmSettings {
        algorithm: Algorithm::Asng.into(),
        alpha: Some(optimiser.alpha),
        delta_init: Some(optimiser.delta_init),
        delta_max: Some(optimiser.delta_max).filter(|delta| delta.is_finite()),
        lambda_x: Some(spec.lambda_x() as u32),
        lambda_theta: Some(spec.lambda_theta() as u32),
        steps_per_update: Some(spec.steps_per_update() as u32),
        max_staleness: Some(spec.max_staleness() as u32),
        seed: None,
        warmup_steps: Some(spec.warmup_steps()),
    }
}

/// The lease in force where a spec leaves it out.
pub(crate) fn default_lease() -> prost_types::Duration {
    // Unwrap safety: a minute is in range.
    Spec::default().lease().try_into().unwrap()
}

/// Why a study has ended as it is written in the contract, without its prefix.
pub(crate) fn stop_reason(study: &Study) -> &'static str {
    study.stop_reason().as_str_name().trim_start_matches("STOP_REASON_")
}

/// Returns true if a study in this state stays in it.
pub(crate) fn has_ended(state: StudyState) -> bool {
    matches!(state, StudyState::Finished | StudyState::Stopped | StudyState::Failed)
}

/// The algorithm in force, without its prefix.
pub(crate) fn algorithm(settings: &AlgorithmSettings) -> &'static str {
    let algorithm = match settings.algorithm() {
        Algorithm::Unspecified => defaults().algorithm(),
        algorithm => algorithm,
    };
    algorithm.as_str_name().trim_start_matches("ALGORITHM_")
}

/// The direction in force, without its prefix.
pub(crate) fn direction(spec: &StudySpec) -> &'static str {
    let direction = match spec.direction() {
        Direction::Unspecified => Direction::Minimize,
        direction => direction,
    };
    direction.as_str_name().trim_start_matches("DIRECTION_")
}

/// The architecture that a trainer gets for a draw.
pub(crate) fn architecture(draw: &Draw, variables: &[Variable]) -> Architecture {
    let value = |(&value, variable): (&f64, &Variable)| match &variable.kind {
        Some(Kind::Integer(i)) => value.max(i.low as f64).min(i.high as f64).round() as i64,
        _ => value as i64,
    };
    Architecture { values: draw.values.iter().zip(variables).map(value).collect() }
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
    fn defaults_are_filled_in() {
        assert_eq!(algorithm(&AlgorithmSettings::default()), "ASNG");
    }
}
