//! The reference for the trainer's search step: the same networks and the same step on libtorch's own operations alone.
//! Losses, gradients and optimiser are the trainer's, so that the network alone makes the difference.

pub(crate) mod autoencoder;
pub(crate) mod cells;

use asng_trainer::{
    images::Info,
    optim::{Gradients, Optimizer},
    tasks::{Batch, Task, network::Output},
    torch::{Tensors, read},
};
use tch::{Device, Kind, Tensor};

/// Computes the output of the architecture with these values from weights by name.
pub(crate) type Forward = fn(&Tensors, &Tensor, &[i64]) -> Tensor;

/// A supernet with its weights by name, and their optimiser.
pub(crate) struct Plain<'a> {
    task: &'a dyn Task,
    forward: Forward,
    weights: Tensors,
    optimizer: Optimizer,
}

impl<'a> Plain<'a> {
    /// Starts with the weights that the trainer's supernet starts with.
    pub(crate) fn new(task: &'a dyn Task, info: &Info, forward: Forward) -> Plain<'a> {
        let weights = task.network(info, None, Device::Cpu, Kind::Float).parameters;
        let training = task.training();
        let optimizer = Optimizer::new(training.method, training.grad_clip, &weights);
        Plain { task, forward, weights, optimizer }
    }

    /// Returns the losses of `rank` with the moved weights.
    pub(crate) fn step(
        &mut self,
        (train_batch, train): (&Batch, &[Vec<i64>]),
        (rank_batch, rank): (&Batch, &[Vec<i64>]),
    ) -> Vec<f64> {
        let mut gradients = Gradients::default();
        for values in train {
            let loss = self.loss(train_batch, values) / train.len() as f64;
            gradients = gradients.plus(Gradients::of(&loss, &self.weights));
        }
        let learning_rate = self.task.training().learning_rate;
        let _norm = self.optimizer.step(&mut self.weights, &gradients, learning_rate);
        let _guard = tch::no_grad_guard();
        let losses: Vec<Tensor> = rank.iter().map(|values| self.loss(rank_batch, values)).collect();
        read(&losses)
    }

    fn loss(&self, batch: &Batch, values: &[i64]) -> Tensor {
        let main = (self.forward)(&self.weights, &batch.input, values);
        let [loss, _metric] = self.task.loss(&Output { main, auxiliary: None }, batch);
        loss
    }
}
