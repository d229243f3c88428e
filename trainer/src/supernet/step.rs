//! One step of a search, the same for every network with shared weights.

use std::collections::BTreeMap;

use tch::Tensor;

use super::gradients::Gradients;
use super::sgd::Sgd;
use super::{Error, loss};

/// A network whose weights are shared by all architectures of its space.
pub(super) trait Shared {
    type Batch;
    type Architecture;

    /// The loss of an architecture on a batch, and a figure for people, both without dimensions and
    /// on the device.
    fn measure(
        &self,
        batch: &Self::Batch,
        architecture: &Self::Architecture,
    ) -> Result<[Tensor; 2], Error>;

    /// The weights, by name.
    fn shared(&self) -> &BTreeMap<String, Tensor>;

    /// The weights, to move.
    fn shared_mut(&mut self) -> &mut BTreeMap<String, Tensor>;
}

/// What was measured in a step.
pub(super) struct Measured {
    /// Of each rank architecture, after the weights moved.
    pub(super) losses: Vec<f64>,
    /// Mean figure of the rank architectures.
    pub(super) rank_quality: f64,
    /// Mean loss of the train architectures, before the weights moved.
    pub(super) train_loss: f64,
    /// Their mean figure.
    pub(super) train_quality: f64,
    /// Norm of the mean gradient before it was clipped.
    pub(super) gradient_norm: f64,
}

/// Moves the weights along the mean gradient of the `train` architectures on their batch, then
/// measures the `rank` architectures on theirs. Without train architectures the weights stay, and
/// what is said of training is NaN.
pub(super) fn search<N: Shared>(
    network: &mut N,
    sgd: &mut Sgd,
    (train_batch, train): (&N::Batch, &[N::Architecture]),
    (rank_batch, rank): (&N::Batch, &[N::Architecture]),
    learning_rate: f64,
) -> Result<Measured, Error> {
    if rank.is_empty() {
        return Err(Error::NoArchitectures);
    }
    let mut numbers = Vec::new();
    let mut gradients = Gradients::default();
    for architecture in train {
        let [loss, quality] = network.measure(train_batch, architecture)?;
        // Backward at once, not of the sum of the losses: only one graph is alive at a time.
        let part = loss.f_div_scalar(train.len() as f64)?;
        gradients = gradients.plus(Gradients::of(&part, network.shared())?)?;
        numbers.extend([loss.f_detach()?, quality]);
    }
    if !train.is_empty() {
        numbers.push(sgd.step(network.shared_mut(), &gradients, learning_rate)?);
    }
    drop(gradients);
    let of_training = numbers.len();

    let _guard = tch::no_grad_guard();
    for architecture in rank {
        numbers.extend(network.measure(rank_batch, architecture)?);
    }
    let numbers = loss::read(&numbers)?;
    let (trained, ranked) = numbers.split_at(of_training);
    let gradient_norm = trained.last().copied().unwrap_or(f64::NAN);
    let trained = &trained[..2 * train.len()];
    Ok(Measured {
        losses: ranked.iter().step_by(2).copied().collect(),
        rank_quality: mean(ranked.iter().skip(1).step_by(2)),
        train_loss: mean(trained.iter().step_by(2)),
        train_quality: mean(trained.iter().skip(1).step_by(2)),
        gradient_norm,
    })
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
