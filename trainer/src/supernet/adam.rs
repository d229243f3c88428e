//! Adam (Kingma and Ba, 2015) as PyTorch's `torch.optim.Adam`, with clipped gradients and a state
//! that can be saved: both moments of each parameter by its name, and the number of steps.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::Error;
use super::checkpoint::{Part, PartMut};
use super::gradients::{Gradients, clip_factor};

/// PyTorch's defaults.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The name of the number of steps in a file.
const STEPS: &str = "steps";

/// Moments for each parameter.
#[derive(Debug)]
pub struct Adam {
    /// Largest norm of all gradients together; 0 does not clip.
    grad_clip: f64,
    first: BTreeMap<String, Tensor>,
    second: BTreeMap<String, Tensor>,
    /// One number, on the CPU, where reading it waits for nothing.
    steps: BTreeMap<String, Tensor>,
}

impl Adam {
    /// Nothing known yet of `parameters`.
    pub fn new(parameters: &BTreeMap<String, Tensor>, grad_clip: f64) -> Result<Adam, Error> {
        let _guard = tch::no_grad_guard();
        let zeros = || -> Result<BTreeMap<String, Tensor>, Error> {
            let zeros = |(name, parameter): (&String, &Tensor)| {
                Ok((name.clone(), parameter.f_zeros_like()?))
            };
            parameters.iter().map(zeros).collect()
        };
        let steps = Tensor::f_zeros([1], (Kind::Int64, Device::Cpu))?;
        let steps = [(STEPS.to_owned(), steps)].into();
        Ok(Adam { grad_clip, first: zeros()?, second: zeros()?, steps })
    }

    /// Moves every parameter that has a gradient; the others, and their moments, stay as they are.
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
        let factor = clip_factor(&norm, self.grad_clip)?;
        let steps = &mut self.steps.get_mut(STEPS).expect("new puts it there");
        let steps = i64::try_from(&steps.f_add_scalar_(1)?)? as f64;
        let correction1 = 1.0 - BETA1.powf(steps);
        let correction2 = 1.0 - BETA2.powf(steps);
        for (name, gradient) in gradients.iter() {
            let (Some(parameter), Some(first), Some(second)) =
                (parameters.get_mut(name), self.first.get_mut(name), self.second.get_mut(name))
            else {
                return Err(Error::NotBuilt(name.to_owned()));
            };
            let gradient = gradient.f_nan_to_num(0.0, 0.0, 0.0)?.f_mul(&factor)?;
            let square = gradient.f_square()?;
            let _ = first.f_mul_scalar_(BETA1)?.f_add_(&gradient.f_mul_scalar(1.0 - BETA1)?)?;
            let _ = second.f_mul_scalar_(BETA2)?.f_add_(&square.f_mul_scalar(1.0 - BETA2)?)?;
            let scale = second.f_div_scalar(correction2)?.f_sqrt()?.f_add_scalar(EPSILON)?;
            let step = first.f_mul_scalar(learning_rate / correction1)?.f_div(&scale)?;
            let _ = parameter.f_sub_(&step)?;
        }
        Ok(norm)
    }

    /// The state, for a file.
    pub(super) fn parts(&self) -> [Part<'_>; 3] {
        [("first", &self.first), ("second", &self.second), ("adam", &self.steps)]
    }

    /// The state, to load into.
    pub(super) fn parts_mut(&mut self) -> [PartMut<'_>; 3] {
        [("first", &mut self.first), ("second", &mut self.second), ("adam", &mut self.steps)]
    }
}
