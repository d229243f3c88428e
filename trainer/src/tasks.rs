//! Tasks: one folder for each, with all that is its own: its spaces, networks, losses, retraining, export.
//!
//! [`Task`] is the seam between them and the rest of the trainer.

pub mod classification;
pub mod inpainting;
pub mod network;
pub mod settings;
pub mod space;
pub mod test_split;
pub mod toy;

use rand::{Rng, RngExt};
use tch::{Device, Kind, Tensor};

use self::{
    network::{Costs, Network, Output},
    settings::{Given, Preset, Violation},
};
use crate::{
    images::{Images, Info, Preprocess, Request},
    optim::{Method, cosine},
    torch::Tensors,
};

/// One task with its settings, for a search or for a retraining: what `engine`, `retrain`, `evaluate`, `export` and `compare`
/// need of it.
///
/// `values` are an architecture of [`Task::variables`], as [`check`] accepts them. Functions that return tensors may panic with
/// an error of libtorch, for [`crate::torch::attempt`] to catch.
pub trait Task: Send {
    /// The variables, in the order of an architecture's values.
    fn variables(&self) -> Vec<Variable>;

    /// Every setting with its value as text.
    fn settings(&self) -> Given;

    /// An architecture for people and other programs, with the names of its choices.
    fn describe(&self, values: &[i64]) -> serde_json::Map<String, serde_json::Value>;

    /// An architecture as a Graphviz digraph.
    fn dot(&self, values: &[i64]) -> String;

    /// The images that networks learn from; none if the task needs none.
    fn images(&self) -> Option<Request>;

    /// Returns true if pixels are normalised by the mean and the deviation of the training images, false if they lie between 0 and 1.
    fn normalised(&self) -> bool;

    /// Errors with a sentence if networks cannot read images of this kind.
    fn accepts(&self, info: &Info) -> Result<(), String>;

    /// The settings of the training of weights.
    fn training(&self) -> Training;

    /// The costs of an architecture at the size that the settings name; none where architectures are no networks.
    fn costs(&self, info: &Info, values: &[i64]) -> Option<Costs>;

    /// A network with new weights, decided by the seed of [`Task::training`]: the supernet, or one architecture alone.
    fn network(&self, info: &Info, alone: Option<&[i64]>, device: Device, kind: Kind) -> Network;

    /// Prepares images for a network.
    fn batch(&self, images: &Images, preprocess: &Preprocess, draw: Draw) -> Batch;

    /// The loss that is trained on, or that ranks architectures, and the task's metric: both without dimensions.
    fn loss(&self, output: &Output, batch: &Batch) -> [Tensor; 2];

    /// The metric of [`Task::loss`] over the train and the rank architectures of a step, by name; that of the former comes first.
    /// Nothing is told of no architectures, as in the warm-up, which ranks none.
    fn step_metrics(&self, train: &[f64], rank: &[f64]) -> Vec<(&'static str, f64)>;

    /// The names of the metrics on test images. The first decides which weights are best: the higher, the better.
    fn test_metrics(&self) -> &'static [&'static str];

    /// The metrics of [`Task::test_metrics`], without dimensions, as means over a batch; `main` is a network's output.
    fn test(&self, main: &Tensor, batch: &Batch) -> Vec<Tensor>;

    /// The output of doing nothing, to compare a network with; none where that makes no sense.
    fn baseline(&self, _batch: &Batch) -> Option<Tensor> {
        None
    }

    /// The task of training this architecture alone, with the settings of `preset` and those given.
    fn retraining(
        &self,
        info: &Info,
        values: &[i64],
        preset: Preset,
        given: &Given,
    ) -> Result<Box<dyn Task>, Vec<Violation>>;

    /// The inputs and outputs of a network for other programs, for `network.json`.
    fn interface(&self, info: &Info) -> serde_json::Map<String, serde_json::Value>;

    /// The function that is exported, of images from 0 to 1 `[batch, channels, height, width]`.
    fn exported(&self, network: Network, info: &Info, values: &[i64]) -> Exported;
}

/// A function of images from 0 to 1.
pub struct Exported {
    /// Computes it.
    pub forward: Box<dyn Fn(&Tensor) -> Tensor>,
    /// The tensors that it reads beside the network's, by name.
    pub constants: Tensors,
}

/// A minibatch, on the network's device and of its kind.
#[derive(Debug)]
pub struct Batch {
    /// The input of the network.
    pub input: Tensor,
    /// The target of its output.
    pub target: Tensor,
}

/// The random part of a minibatch.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// Augmented images for training and ranking, by the generator of minibatch `number`.
    Augmented {
        /// Of the part of the data that the batch is from.
        seed: u64,
        /// The number of the minibatch.
        number: u64,
    },
    /// Images as they are, for tests; whatever has to be drawn is the same for everybody.
    Plain {
        /// The number of the first image.
        number: u64,
    },
}

/// The settings of the training of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// Images in a minibatch.
    pub batch_size: i64,
    /// The learning rate at the start of the schedule.
    pub learning_rate: f64,
    /// The optimiser.
    pub method: Method,
    /// The largest norm of all gradients together; 0 does not clip.
    pub grad_clip: f64,
    /// The seed of the weights and of the order and augmentation of the images.
    pub seed: u64,
    /// The length of a retraining; a search takes its own from its study.
    pub length: Length,
    /// The probability of dropping an operation's output that is reached at the end of a retraining.
    pub drop_path: f64,
}

/// The length of a retraining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Passes over the training images, with an evaluation after each. The learning rate follows a cosine, by the epoch.
    Epochs(u64),
    /// Minibatches. The learning rate is divided by 10 at 2/5 and at 4/5 of them.
    Batches {
        /// All of them.
        total: u64,
        /// Between two evaluations.
        evaluate_every: u64,
    },
}

impl Training {
    /// The learning rate of minibatch `iteration` of a retraining, `per_epoch` minibatches being a pass over the images.
    pub fn learning_rate_at(&self, iteration: u64, per_epoch: u64) -> f64 {
        match self.length {
            Length::Epochs(epochs) => {
                let epoch = iteration / per_epoch.max(1);
                cosine(self.learning_rate, epoch as f64 / epochs.max(1) as f64)
            }
            Length::Batches { total, .. } => {
                let fifths = u128::from(iteration) * 5 / u128::from(total.max(1));
                self.learning_rate * [1.0, 1.0, 0.1, 0.1].get(fifths as usize).unwrap_or(&0.01)
            }
        }
    }
}

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean of each list by name, without those that are empty.
fn means<const N: usize>(lists: [(&'static str, &[f64]); N]) -> Vec<(&'static str, f64)> {
    let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
    lists.map(|(name, values)| (name, mean(values))).collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const TRAINING: Training = Training {
        batch_size: 80,
        learning_rate: 0.025,
        method: Method::Adam,
        grad_clip: 5.0,
        seed: 0,
        length: Length::Epochs(600),
        drop_path: 0.3,
    };

    /// The authors' `classification/main_retrain.py` steps PyTorch's `CosineAnnealingLR` once an epoch.
    #[test]
    fn the_rate_of_epochs_follows_a_cosine_by_the_epoch() {
        let rate = |iteration| TRAINING.learning_rate_at(iteration, 625);
        assert_eq!([0, 624].map(rate), [0.025; 2]);
        // A third of the epochs.
        assert!((rate(200 * 625) - 0.75 * 0.025).abs() < 1e-15);
        assert_eq!(rate(300 * 625), rate(300 * 625 + 624));
        assert!((rate(300 * 625) - 0.0125).abs() < 1e-15);
        assert!(rate(600 * 625 - 1) > 0.0 && rate(600 * 625 - 1) < 1e-6);
        assert_eq!(
            Training { length: Length::Epochs(0), ..TRAINING }.learning_rate_at(0, 0),
            0.025
        );
    }

    #[test]
    fn the_rate_of_batches_falls_at_two_and_at_four_fifths() {
        let of =
            |total| Training { length: Length::Batches { total, evaluate_every: 1 }, ..TRAINING };
        let rate = |iteration| of(10).learning_rate_at(iteration, 1) / 0.025;
        let expected = [[1.0; 4], [0.1; 4]].concat();
        for (iteration, expected) in expected.into_iter().chain([0.01; 2]).enumerate() {
            assert!((rate(iteration as u64) - expected).abs() < 1e-15, "{iteration}");
        }
        assert_eq!(of(0).learning_rate_at(0, 1), 0.025);
        assert_eq!(of(10).learning_rate_at(u64::MAX, 1), 0.01 * 0.025);
    }

    #[test]
    fn values_are_checked_against_the_variables() {
        let integer = Domain::Integer { low: -1, high: 2 };
        let variables = [
            Variable::categorical("op", vec!["a".into(), "b".into()]),
            Variable { name: "width".into(), domain: integer },
        ];
        let error = |values: &[i64]| check(&variables, values).unwrap_err().to_string();
        assert_eq!(check(&variables, &[1, -1]), Ok(()));
        assert_eq!(error(&[1]), "an architecture of this space has 2 values, not 1");
        assert_eq!(error(&[2, 0]), "op is 0 to 1, not 2");
        assert_eq!(error(&[0, 3]), "width is -1 to 2, not 3");
    }
}
