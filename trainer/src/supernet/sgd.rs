//! Stochastic gradient descent with momentum and weight decay, as PyTorch's `torch.optim.SGD` and
//! `torch.nn.utils.clip_grad_norm_`, but with a state that can be saved: the momentum of each
//! parameter by its name.

use std::collections::BTreeMap;

use tch::Tensor;

use super::Error;
use super::gradients::{Gradients, clip_factor};

/// The optimiser's constants; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Part of the last step's direction that stays.
    pub momentum: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 does not clip.
    pub grad_clip: f64,
}

/// Momentum for each parameter.
#[derive(Debug)]
pub struct Sgd {
    rates: Rates,
    momentum: BTreeMap<String, Tensor>,
}

impl Sgd {
    /// No momentum yet for `parameters`.
    pub fn new(parameters: &BTreeMap<String, Tensor>, rates: Rates) -> Result<Sgd, Error> {
        let _guard = tch::no_grad_guard();
        let zeros =
            |(name, parameter): (&String, &Tensor)| Ok((name.clone(), parameter.f_zeros_like()?));
        let momentum: Result<_, Error> = parameters.iter().map(zeros).collect();
        Ok(Sgd { rates, momentum: momentum? })
    }

    /// Moves every parameter that has a gradient; the others, and their momentum, stay as they are.
    /// If the gradients' norm is not finite, they count as 0.
    /// Returns the norm of the gradients before they were clipped, a tensor without dimensions.
    pub fn step(
        &mut self,
        parameters: &mut BTreeMap<String, Tensor>,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        let norm = gradients.norm()?;
        let factor = clip_factor(&norm, self.rates.grad_clip)?;
        for (name, gradient) in gradients.iter() {
            let (Some(parameter), Some(momentum)) =
                (parameters.get_mut(name), self.momentum.get_mut(name))
            else {
                return Err(Error::NotBuilt(name.to_owned()));
            };
            let decay = parameter.f_mul_scalar(self.rates.weight_decay)?;
            let finite = gradient.f_nan_to_num(0.0, 0.0, 0.0)?;
            let direction = finite.f_mul(&factor)?.f_add(&decay)?;
            let _ = momentum.f_mul_scalar_(self.rates.momentum)?.f_add_(&direction)?;
            let _ = parameter.f_sub_(&momentum.f_mul_scalar(learning_rate)?)?;
        }
        Ok(norm)
    }

    /// The momentum of every parameter, by its name.
    pub fn momentum(&self) -> &BTreeMap<String, Tensor> {
        &self.momentum
    }

    /// The momentum, to load into.
    pub(super) fn momentum_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.momentum
    }
}
