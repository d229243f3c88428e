//! The gradient of a loss with respect to a network's parameters, as a value. A parameter that the
//! loss does not depend on has none, which is not the same as zero: the optimiser leaves it alone.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::Error;

/// Keeps a division by a norm of zero finite (PyTorch's constant).
const CLIP_EPSILON: f64 = 1e-6;

/// Gradients by the name of their parameter; parameters that took no part are absent.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// The gradient of `loss`, a tensor without dimensions. Frees the graph behind it.
    pub fn of(loss: &Tensor, parameters: &BTreeMap<String, Tensor>) -> Result<Gradients, Error> {
        let inputs: Vec<&Tensor> = parameters.values().collect();
        let gradients = Tensor::f_run_backward(&[loss], &inputs, false, false)?;
        let named = parameters.keys().cloned().zip(gradients);
        Ok(Gradients(named.filter(|(_, gradient)| gradient.defined()).collect()))
    }

    /// The sum of both; a parameter in either is in the sum.
    pub fn plus(mut self, other: Gradients) -> Result<Gradients, Error> {
        for (name, gradient) in other.0 {
            let sum = match self.0.get(&name) {
                Some(mine) => mine.f_add(&gradient)?,
                None => gradient,
            };
            self.0.insert(name, sum);
        }
        Ok(self)
    }

    /// The norm of all gradients taken as one vector, a tensor without dimensions; zero if there is
    /// none.
    pub fn norm(&self) -> Result<Tensor, Error> {
        let norms: Result<Vec<Tensor>, _> = self.0.values().map(Tensor::f_norm).collect();
        let norms = norms?;
        if norms.is_empty() {
            return Ok(Tensor::f_zeros([0_i64; 0], (Kind::Float, tch::Device::Cpu))?);
        }
        Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
    }

    /// Each gradient with its parameter's name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }
}

/// What all gradients are multiplied by, of the norm that they have together, before an optimiser
/// follows them: what brings the norm to at most `limit` (0 does not clip), as PyTorch's
/// `clip_grad_norm_`; 0 if the norm is not finite, since one step that diverges must not take the
/// weights of all architectures with it. (PyTorch would spoil them.) It stays on the device:
/// reading it would wait for the whole backward pass.
pub(super) fn clip_factor(norm: &Tensor, limit: f64) -> Result<Tensor, Error> {
    let clip = match limit {
        0.0 => norm.f_ones_like()?,
        limit => norm
            .f_add_scalar(CLIP_EPSILON)?
            .f_reciprocal()?
            .f_mul_scalar(limit)?
            .f_clamp_max(1.0)?,
    };
    Ok(clip.f_where_self(&norm.f_isfinite()?, &norm.f_zeros_like()?)?)
}
