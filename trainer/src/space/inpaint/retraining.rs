//! How the paper trains the found architecture alone, from scratch.

use serde::{Deserialize, Serialize};

/// The schedule of a retraining with Adam.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retraining {
    /// Images in each minibatch.
    pub batch_size: i64,
    /// Minibatches in all.
    pub iterations: u64,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// Largest norm of all gradients together.
    pub grad_clip: f64,
    /// Minibatches between two evaluations.
    pub evaluate_every: u64,
}

impl Retraining {
    /// The paper's.
    pub const PAPER: Retraining = Retraining {
        batch_size: 16,
        iterations: 500_000,
        learning_rate: 1e-3,
        grad_clip: 5.0,
        evaluate_every: 5_000,
    };

    /// Minutes on two cores.
    pub const QUICK: Retraining =
        Retraining { iterations: 1_000, evaluate_every: 200, ..Retraining::PAPER };

    /// The learning rate of an iteration, counted from 0: a tenth after 2/5 of them, a hundredth
    /// after 4/5.
    pub fn learning_rate_at(&self, iteration: u64) -> f64 {
        let fifths = u128::from(iteration) * 5 / u128::from(self.iterations.max(1));
        match fifths {
            0..=1 => self.learning_rate,
            2..=3 => 0.1 * self.learning_rate,
            _ => 0.01 * self.learning_rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Akimoto et al. (ICML 2019), section 5.2, and their `inpainting/`.
    #[test]
    fn the_defaults_are_the_paper_s() {
        let paper = Retraining {
            batch_size: 16,
            iterations: 500_000,
            learning_rate: 0.001,
            grad_clip: 5.0,
            // Ours.
            evaluate_every: 5_000,
        };
        assert_eq!(Retraining::PAPER, paper);
    }

    #[test]
    fn the_rate_falls_at_two_and_at_four_fifths() {
        let rate = |iteration| Retraining::PAPER.learning_rate_at(iteration);
        assert_eq!([0, 199_999].map(rate), [1e-3; 2]);
        assert_eq!([200_000, 399_999].map(rate), [0.1 * 1e-3; 2]);
        assert_eq!([400_000, 499_999, u64::MAX].map(rate), [0.01 * 1e-3; 3]);
        assert_eq!(Retraining { iterations: 0, ..Retraining::PAPER }.learning_rate_at(0), 1e-3);
    }
}
