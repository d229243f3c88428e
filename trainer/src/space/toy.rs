//! The space `toy`: the artificial problem of the paper's section 5.1, whose weights are a table of numbers and whose best
//! architecture is known: the first choice of every variable. It shows within minutes, and without images, whether a search
//! works.

use std::collections::BTreeMap;

use super::{
    Variable, Violation,
    setting::{self, Kind, Presets},
};

/// The name a study asks for this space by.
pub const NAME: &str = "toy";

/// What a study can set. The defaults are the paper's; its 100,000 steps are the study's own `max_steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Variables, D in the paper, 1 to 1000.
    pub variables: i64,
    /// Choices of each, K in the paper, 2 to 100.
    pub choices: i64,
    /// Learning rate at the start of the cosine, 0 to 10.
    pub learning_rate: f64,
    /// Momentum of SGD, 0 to 0.999.
    pub momentum: f64,
    /// Seed of the weights at the start and of the noise.
    pub seed: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { variables: 30, choices: 5, learning_rate: 0.05, momentum: 0.9, seed: 0 }
    }
}

const TABLE: [(&str, Kind<Settings>); 5] = [
    ("variables", Kind::Whole(1, 1000, |s| &mut s.variables)),
    ("choices", Kind::Whole(2, 100, |s| &mut s.choices)),
    ("learning_rate", Kind::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("momentum", Kind::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("seed", Kind::Whole(0, i64::MAX, |s| &mut s.seed)),
];

/// Values that are no architecture of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not one value for each variable.
    #[error("an architecture has {0} values, not {1}")]
    Length(i64, usize),
    /// A value that is no choice.
    #[error("a choice is 0 to {1}, not {0}")]
    Value(i64, i64),
}

impl Settings {
    /// A smaller problem, solved in seconds.
    pub fn quick() -> Settings {
        Settings { variables: 10, ..Settings::default() }
    }

    /// Reads a study's settings. A setting that is absent keeps the value of `preset`, which is `paper` unless it says
    /// `quick`. The error lists everything that is wrong.
    pub fn parse(settings: &BTreeMap<String, String>) -> Result<Settings, Vec<Violation>> {
        let presets = Presets { paper: Settings::default(), quick: Settings::quick() };
        let (parsed, violations) = setting::parse(NAME, presets, &TABLE, settings);
        if violations.is_empty() { Ok(parsed) } else { Err(violations) }
    }

    /// An architecture from the controller's values: the choice of each variable.
    pub fn decode(&self, values: &[i64]) -> Result<Vec<usize>, DecodeError> {
        let choice = |value: &i64| {
            let choice = (0..self.choices).contains(value).then_some(*value as usize);
            choice.ok_or(DecodeError::Value(*value, self.choices - 1))
        };
        if values.len() as i64 != self.variables {
            return Err(DecodeError::Length(self.variables, values.len()));
        }
        values.iter().map(choice).collect()
    }

    /// The space's variables.
    pub fn variables(&self) -> Vec<Variable> {
        let choices: Vec<_> = (0..self.choices).map(|choice| choice.to_string()).collect();
        let variable = |d| Variable { name: format!("c{d}"), choices: choices.clone() };
        (0..self.variables).map(variable).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_s_settings_and_the_preset_s() {
        // Section 5.1, as in the authors' toy problem.
        let paper =
            Settings { variables: 30, choices: 5, learning_rate: 0.05, momentum: 0.9, seed: 0 };
        let parse = |preset: &str| Settings::parse(&[("preset".into(), preset.into())].into());
        assert_eq!(parse("paper"), Ok(paper.clone()));
        assert_eq!(Settings::parse(&BTreeMap::new()), Ok(paper));
        assert_eq!(parse("quick"), Ok(Settings::quick()));
        let violations = parse("Quick").unwrap_err();
        assert_eq!(violations[0].description, "must be paper or quick, not \"Quick\"");
    }
}
