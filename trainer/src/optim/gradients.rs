//! The gradient of a loss with respect to parameters, as a value. A parameter that the loss does not depend on has none, which
//! is not the same as zero: the optimiser leaves it alone.

use tch::{Device, Kind, Tensor};

use crate::torch::Tensors;

/// Keeps a division by a norm of zero finite (PyTorch's constant).
const CLIP_EPSILON: f64 = 1e-6;

/// Gradients by the name of their parameter; parameters that took no part are absent.
#[derive(Debug, Default)]
pub struct Gradients(Tensors);

impl Gradients {
    /// The gradient of `loss`, a tensor without dimensions. Frees the graph behind it.
    pub fn of(loss: &Tensor, parameters: &Tensors) -> Gradients {
        let inputs: Vec<&Tensor> = parameters.values().collect();
        let (keep_graph, create_graph) = (false, false);
        let gradients = Tensor::run_backward(&[loss], &inputs, keep_graph, create_graph);
        let named = parameters.keys().cloned().zip(gradients);
        Gradients(named.filter(|(_, gradient)| gradient.defined()).collect())
    }

    /// The sum of both; a parameter in either is in the sum.
    pub fn plus(mut self, other: Gradients) -> Gradients {
        for (name, gradient) in other.0 {
            let sum = match self.0.get(&name) {
                Some(mine) => mine + gradient,
                None => gradient,
            };
            self.0.insert(name, sum);
        }
        self
    }

    /// The norm of all gradients taken as one vector, a tensor without dimensions; zero if there is none.
    pub fn norm(&self) -> Tensor {
        let norms: Vec<Tensor> = self.0.values().map(Tensor::norm).collect();
        match norms.is_empty() {
            true => Tensor::zeros([0_i64; 0], (Kind::Float, Device::Cpu)),
            false => Tensor::stack(&norms, 0).norm(),
        }
    }

    /// Each gradient with its parameter's name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }
}

/// The factor for all gradients, given the norm that they have together: it brings the norm to at most `limit` (0 does not
/// clip), as PyTorch's `clip_grad_norm_`; 0 if the norm is not finite, since one step that diverges must not take the weights of
/// all architectures with it. (PyTorch would spoil them.) It stays on the device: reading it would wait for the whole backward
/// pass.
pub(super) fn clip_factor(norm: &Tensor, limit: f64) -> Tensor {
    let factor = match limit {
        0.0 => norm.ones_like(),
        limit => ((norm + CLIP_EPSILON).reciprocal() * limit).clamp_max(1.0),
    };
    factor.where_self(&norm.isfinite(), &norm.zeros_like())
}
