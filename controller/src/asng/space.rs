//! Variables, and architectures that give each of them a value. Knows neither
//! probabilities nor losses.

use serde::{Deserialize, Serialize};

/// Bounds of an integer lie within plus and minus this.
pub(super) const INTEGER_LIMIT: i64 = 100_000;

/// No real draw lies further from 0: the outermost mean and fifty of the largest deviations.
const REAL_LIMIT: f64 = 51.0 * INTEGER_LIMIT as f64;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// One of `choices` unordered choices; fixed when there is only one.
    Categorical {
        /// How many choices there are, at least 1.
        choices: usize,
    },
    /// A whole number in `[low, high]`; fixed when the two are equal.
    Integer {
        /// Smallest value.
        low: i64,
        /// Largest value.
        high: i64,
    },
    /// A categorical that keeps one choice.
    Fixed {
        /// How many choices there are.
        choices: usize,
        /// The one it keeps.
        choice: usize,
    },
}

impl Variable {
    /// Free parameters of its distribution: K - 1 for a categorical, 2 for an integer, 0 when fixed.
    pub fn parameters(self) -> usize {
        match self {
            Variable::Fixed { .. } => 0,
            Variable::Categorical { choices } => choices.saturating_sub(1),
            Variable::Integer { low, high } => 2 * usize::from(low < high),
        }
    }

    /// Checks that there is something to choose from; an error goes on after "the variable".
    pub fn check(self) -> Result<(), &'static str> {
        let bounds = -INTEGER_LIMIT..=INTEGER_LIMIT;
        match self {
            Variable::Categorical { choices: 0 } => Err("needs at least one choice"),
            Variable::Fixed { choices, choice } if choice >= choices => {
                Err("is fixed to a choice that it does not have")
            }
            Variable::Integer { low, high } if low > high => Err("has low above high"),
            Variable::Integer { low, high }
                if !bounds.contains(&low) || !bounds.contains(&high) =>
            {
                Err("has a bound outside -100000..=100000")
            }
            _ => Ok(()),
        }
    }

    /// Returns true if a draw can settle on `value`.
    fn settles_on(self, value: i64) -> bool {
        match self {
            Variable::Categorical { choices } => (0..choices as i64).contains(&value),
            Variable::Fixed { choice, .. } => value == choice as i64,
            Variable::Integer { low, high } => (low..=high).contains(&value),
        }
    }

    /// Returns true if `value` can have been drawn for this variable.
    pub(super) fn accepts(self, value: Value) -> bool {
        match (self, value) {
            (Variable::Categorical { choices }, Value::Choice(choice)) => {
                (choice as usize) < choices
            }
            (Variable::Integer { .. }, Value::Real(real)) => real.abs() <= REAL_LIMIT,
            (Variable::Fixed { choice, .. }, Value::Choice(value)) => value as usize == choice,
            _ => false,
        }
    }
}

/// The value of an architecture for one variable. In JSON a choice is `3` and a real `2.75` or `3.0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Index of a categorical's choice.
    Choice(u32),
    /// An integer's draw, before clamping and rounding.
    Real(f64),
}

/// Returns true if these are the values of a settled architecture of `variables`.
pub fn is_settled(values: &[i64], variables: &[Variable]) -> bool {
    values.len() == variables.len()
        && variables.iter().zip(values).all(|(variable, &value)| variable.settles_on(value))
}

/// One value for each variable of a space, in its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Architecture(pub Box<[Value]>);

impl Architecture {
    /// Returns true if it gives each of `variables` a value that can have been drawn for it.
    pub fn fits(&self, variables: &[Variable]) -> bool {
        self.0.len() == variables.len()
            && self.0.iter().zip(variables).all(|(value, variable)| variable.accepts(*value))
    }

    /// Settles every draw on a value of its variable: what the wire and the network get.
    ///
    /// # Panics
    ///
    /// If the architecture does not fit `variables`.
    pub fn settled(&self, variables: &[Variable]) -> Vec<i64> {
        assert_eq!(self.0.len(), variables.len(), "not of this space");
        let settle = |(value, variable): (&Value, &Variable)| match (*value, *variable) {
            (Value::Choice(choice), _) => i64::from(choice),
            (Value::Real(real), Variable::Integer { low, high }) => {
                real.clamp(low as f64, high as f64).round() as i64
            }
            (Value::Real(real), _) => panic!("{real} is not a choice"),
        };
        self.0.iter().zip(variables).map(settle).collect()
    }
}
