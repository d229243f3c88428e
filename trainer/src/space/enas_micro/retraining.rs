//! How the paper trains the found architecture alone, from scratch.

use serde::{Deserialize, Serialize};

/// The size and the schedule of a retraining with SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retraining {
    /// Cells of the network, two of which are reductions. At least 3.
    pub cells: usize,
    /// The most trainable parameters, without the auxiliary head: they decide the channels.
    pub max_parameters: i64,
    /// Passes over the training images.
    pub epochs: u64,
    /// Images in each minibatch.
    pub batch_size: usize,
    /// Learning rate at the start of the cosine, which moves once an epoch.
    pub learning_rate: f64,
    /// Part of the last step's direction that stays.
    pub momentum: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub grad_clip: f64,
    /// Probability of dropping an operation's output, which it rises to from 0 in a line.
    pub drop_path: f64,
    /// Side of the square cut out of each training image, in pixels.
    pub cutout: u16,
}

impl Retraining {
    /// The paper's.
    pub const PAPER: Retraining = Retraining {
        cells: 20,
        max_parameters: 4_000_000,
        epochs: 600,
        batch_size: 80,
        learning_rate: 0.025,
        momentum: 0.9,
        weight_decay: 3e-4,
        grad_clip: 5.0,
        drop_path: 0.3,
        cutout: 16,
    };

    /// Minutes on two cores: a small network, and too few epochs for what slows a long training
    /// down to its benefit.
    pub const QUICK: Retraining = Retraining {
        cells: 5,
        max_parameters: 40_000,
        epochs: 1,
        drop_path: 0.0,
        cutout: 0,
        ..Retraining::PAPER
    };

    /// The probability of dropping an operation's output in an epoch, counted from 0.
    pub fn drop_path_at(&self, epoch: u64) -> f64 {
        self.drop_path * epoch as f64 / self.epochs.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Akimoto et al. (ICML 2019), section 5.1, and their `classification/main_retrain.py`.
    #[test]
    fn the_defaults_are_the_paper_s() {
        let paper = Retraining {
            cells: 20,
            max_parameters: 4_000_000,
            epochs: 600,
            batch_size: 80,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            grad_clip: 5.0,
            drop_path: 0.3,
            cutout: 16,
        };
        assert_eq!(Retraining::PAPER, paper);
        assert_eq!([0, 300, 599].map(|e| paper.drop_path_at(e)), [0.0, 0.15, 0.3 * 599.0 / 600.0]);
    }
}
