//! What the trainer's search step is compared with: the same networks and the same step on libtorch's own operations alone.
//! Gradients and optimiser are the trainer's, so that the network alone makes the difference.

mod autoencoder;
mod cells;

use std::collections::BTreeMap;

use asng_trainer::supernet::{
    Error,
    gradients::Gradients,
    sgd::{Rates, Sgd},
};
use tch::Tensor;

/// A network, whose weights are somewhere else.
pub(crate) trait Forward {
    type Batch;
    type Architecture;

    fn loss(
        &self,
        weights: &BTreeMap<String, Tensor>,
        batch: &Self::Batch,
        architecture: &Self::Architecture,
    ) -> Result<Tensor, Error>;
}

/// A supernet with its weights by name, and their optimiser.
pub(crate) struct Plain<N> {
    network: N,
    weights: BTreeMap<String, Tensor>,
    sgd: Sgd,
    learning_rate: f64,
}

impl<N: Forward> Plain<N> {
    fn new(
        network: N,
        weights: &BTreeMap<String, Tensor>,
        rates: Rates,
        learning_rate: f64,
    ) -> Result<Plain<N>, Error> {
        let named = weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        let weights = named.collect();
        let sgd = Sgd::new(&weights, rates)?;
        Ok(Plain { network, weights, sgd, learning_rate })
    }

    /// Returns the losses of `rank` with the moved weights.
    pub(crate) fn search_step(
        &mut self,
        train_batch: &N::Batch,
        train: &[N::Architecture],
        rank_batch: &N::Batch,
        rank: &[N::Architecture],
    ) -> Result<Vec<f64>, Error> {
        let mut gradients = Gradients::default();
        for architecture in train {
            let loss = self.network.loss(&self.weights, train_batch, architecture)?;
            let loss = loss / train.len() as f64;
            gradients = gradients.plus(Gradients::of(&loss, &self.weights)?)?;
        }
        let _norm = self.sgd.step(&mut self.weights, &gradients, self.learning_rate)?;
        let _guard = tch::no_grad_guard();
        let loss = |architecture| {
            Ok(f64::try_from(self.network.loss(&self.weights, rank_batch, architecture)?)?)
        };
        rank.iter().map(loss).collect()
    }
}
