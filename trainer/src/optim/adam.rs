//! Adam, with the number of steps as a tensor, so that all of its state is in a file of tensors.

use tch::{Device, Kind, Tensor};

use crate::torch::{Tensors, zeros_like};

/// PyTorch's defaults.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The name of the number of steps in a file.
const STEPS: &str = "steps";

#[derive(Debug)]
pub(super) struct Adam {
    pub(super) first: Tensors,
    pub(super) second: Tensors,
    /// One number, on the CPU, where reading it waits for nothing.
    pub(super) steps: Tensors,
}

impl Adam {
    pub(super) fn new(parameters: &Tensors) -> Adam {
        let steps = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
        let steps = [(STEPS.to_owned(), steps)].into();
        Adam { first: zeros_like(parameters), second: zeros_like(parameters), steps }
    }

    pub(super) fn step<'a>(
        &mut self,
        parameters: &mut Tensors,
        gradients: impl Iterator<Item = (&'a str, Tensor)>,
        learning_rate: f64,
    ) {
        let steps = self.steps.get_mut(STEPS).expect("new puts it there");
        let steps = steps.g_add_scalar_(1).int64_value(&[0]) as f64;
        let correction1 = 1.0 - BETA1.powf(steps);
        let correction2 = 1.0 - BETA2.powf(steps);
        for (name, gradient) in gradients {
            // Indexing: gradients and moments have the names of the parameters that they were made for.
            let parameter = parameters.get_mut(name).unwrap();
            let (first, second) =
                (self.first.get_mut(name).unwrap(), self.second.get_mut(name).unwrap());
            let square = gradient.square();
            let _ = first.g_mul_scalar_(BETA1).g_add_(&(gradient * (1.0 - BETA1)));
            let _ = second.g_mul_scalar_(BETA2).g_add_(&(square * (1.0 - BETA2)));
            let scale = (&*second / correction2).sqrt() + EPSILON;
            let _ = parameter.g_sub_(&(&*first * (learning_rate / correction1) / scale));
        }
    }
}
