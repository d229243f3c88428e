//! How weights move: gradients as values, the optimisers with a state that can be saved, and learning-rate schedules.

mod adam;
mod gradients;
mod sgd;

use std::f64::consts::PI;

use tch::Tensor;

use self::{adam::Adam, sgd::Sgd};
use crate::torch::Tensors;

pub use self::gradients::Gradients;

/// The constants of an optimiser; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Stochastic gradient descent, as PyTorch's `torch.optim.SGD`.
    Sgd {
        /// The share of the last step's direction that stays.
        momentum: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015), as PyTorch's `torch.optim.Adam` with its defaults.
    Adam,
}

/// An optimiser with its state for each parameter.
#[derive(Debug)]
pub struct Optimizer {
    /// The largest norm of all gradients together; 0 does not clip.
    grad_clip: f64,
    state: State,
}

#[derive(Debug)]
enum State {
    Sgd(Sgd),
    Adam(Adam),
}

impl Optimizer {
    /// Starts without a history.
    pub fn new(method: Method, grad_clip: f64, parameters: &Tensors) -> Optimizer {
        let state = match method {
            Method::Sgd { momentum, weight_decay } => {
                State::Sgd(Sgd::new(momentum, weight_decay, parameters))
            }
            Method::Adam => State::Adam(Adam::new(parameters)),
        };
        Optimizer { grad_clip, state }
    }

    /// Moves every parameter that has a gradient; the others, and their state, stay as they are. If the norm of the gradients is
    /// not finite, they count as 0. Returns the norm before clipping, a tensor without dimensions.
    pub fn step(
        &mut self,
        parameters: &mut Tensors,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Tensor {
        let _guard = tch::no_grad_guard();
        let norm = gradients.norm();
        let factor = gradients::clip_factor(&norm, self.grad_clip);
        let gradients = gradients
            .iter()
            .map(|(name, gradient)| (name, gradient.nan_to_num(0.0, 0.0, 0.0) * &factor));
        match &mut self.state {
            State::Sgd(sgd) => sgd.step(parameters, gradients, learning_rate),
            State::Adam(adam) => adam.step(parameters, gradients, learning_rate),
        }
        norm
    }

    /// The state, for a file.
    pub fn parts(&self) -> Vec<(&'static str, &Tensors)> {
        match &self.state {
            State::Sgd(Sgd { momentum, .. }) => vec![("momentum", momentum)],
            State::Adam(Adam { first, second, steps }) => {
                vec![("first", first), ("second", second), ("adam", steps)]
            }
        }
    }

    /// The state, to load into.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, &mut Tensors)> {
        match &mut self.state {
            State::Sgd(Sgd { momentum, .. }) => vec![("momentum", momentum)],
            State::Adam(Adam { first, second, steps }) => {
                vec![("first", first), ("second", second), ("adam", steps)]
            }
        }
    }
}

/// A tensor of zeros for each parameter.
fn zeros(parameters: &Tensors) -> Tensors {
    let _guard = tch::no_grad_guard();
    parameters.iter().map(|(name, parameter)| (name.clone(), parameter.zeros_like())).collect()
}

/// The cosine schedule from `start` to 0 (Loshchilov and Hutter, 2017), at `progress` from 0 to 1.
pub fn cosine(start: f64, progress: f64) -> f64 {
    0.5 * start * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())
}
