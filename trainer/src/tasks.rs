//! What can be learnt. Each task is one folder with all that is its own: its spaces, networks, losses, retraining, export.

pub mod classification;
pub mod network;

use rand::{Rng, RngExt};

/// One decision of a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Unique within the space, such as `normal.node2.input1`.
    pub name: String,
    /// The values it can take.
    pub domain: Domain,
}

/// The values that a variable can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// An index into these choices.
    Categorical(Vec<String>),
    /// A whole number, whose neighbours mean similar things.
    Integer {
        /// The smallest value.
        low: i64,
        /// The largest value.
        high: i64,
    },
}

impl Variable {
    /// A choice among names.
    pub fn categorical(name: impl Into<String>, choices: Vec<String>) -> Variable {
        Variable { name: name.into(), domain: Domain::Categorical(choices) }
    }

    /// The smallest and the largest value.
    pub fn range(&self) -> (i64, i64) {
        match &self.domain {
            Domain::Categorical(choices) => (0, choices.len() as i64 - 1),
            Domain::Integer { low, high } => (*low, *high),
        }
    }
}

/// Draws an architecture uniformly: one value for each variable.
pub fn draw(variables: &[Variable], random: &mut impl Rng) -> Vec<i64> {
    let draw = |variable: &Variable| {
        let (low, high) = variable.range();
        random.random_range(low..=high)
    };
    variables.iter().map(draw).collect()
}

/// Values that are no architecture of a space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoArchitecture {
    /// Not one value for each variable.
    #[error("an architecture of this space has {expected} values, not {got}")]
    Length {
        /// The number of variables.
        expected: usize,
        /// The number of values.
        got: usize,
    },
    /// A value that its variable cannot take.
    #[error("{variable} is {low} to {high}, not {value}")]
    Value {
        /// The variable's name.
        variable: String,
        /// The smallest value it can take.
        low: i64,
        /// The largest value it can take.
        high: i64,
        /// The value given.
        value: i64,
    },
}

/// Errors unless the values are an architecture of the space with these variables.
pub fn check(variables: &[Variable], values: &[i64]) -> Result<(), NoArchitecture> {
    let (expected, got) = (variables.len(), values.len());
    if expected != got {
        return Err(NoArchitecture::Length { expected, got });
    }
    for (variable, &value) in variables.iter().zip(values) {
        let (low, high) = variable.range();
        if !(low..=high).contains(&value) {
            let variable = variable.name.clone();
            return Err(NoArchitecture::Value { variable, low, high, value });
        }
    }
    Ok(())
}
