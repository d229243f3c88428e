//! Stochastic gradient descent with momentum and weight decay.

use tch::Tensor;

use crate::torch::{Tensors, zeros_like};

#[derive(Debug)]
pub(super) struct Sgd {
    decay: f64,
    weight_decay: f64,
    /// The last direction of each parameter.
    pub(super) momentum: Tensors,
}

impl Sgd {
    pub(super) fn new(decay: f64, weight_decay: f64, parameters: &Tensors) -> Sgd {
        Sgd { decay, weight_decay, momentum: zeros_like(parameters) }
    }

    pub(super) fn step<'a>(
        &mut self,
        parameters: &mut Tensors,
        gradients: impl Iterator<Item = (&'a str, Tensor)>,
        learning_rate: f64,
    ) {
        for (name, mut direction) in gradients {
            // Indexing: gradients and momentum have the names of the parameters that they were made for.
            let (parameter, momentum) =
                (parameters.get_mut(name).unwrap(), self.momentum.get_mut(name).unwrap());
            if self.weight_decay != 0.0 {
                let _ = direction.g_add_(&(&*parameter * self.weight_decay));
            }
            let _ = momentum.g_mul_scalar_(self.decay).g_add_(&direction);
            let _ = parameter.g_sub_(&(&*momentum * learning_rate));
        }
    }
}
