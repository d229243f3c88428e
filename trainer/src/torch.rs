//! Additions to libtorch: its errors as values, and named tensors in files.
//!
//! Tensor code uses tch's plain calls, which panic when libtorch refuses something. [`attempt`] turns that panic into an
//! [`Error`], once, around a whole computation.

mod error;
mod weights;

use asng_native::Autocast;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use self::{
    error::{Error, attempt},
    weights::{Numbers, Snapshot, Tensors, load, numbers, zeros_like},
};

/// Reads numbers (tensors without dimensions) off their devices, waiting for each once.
pub fn read(numbers: &[Tensor]) -> Vec<f64> {
    let Some(first) = numbers.first() else { return Vec::new() };
    let device = first.device();
    let doubles: Vec<_> =
        numbers.iter().map(|n| n.to_device_(device, Kind::Double, true, false)).collect();
    Vec::try_from(Tensor::stack(&doubles, 0)).expect("one dimension of doubles is a Vec<f64>")
}

/// The number formats that training and ranking compute with. Weights, gradients, optimisers and evaluations always have 32
/// bits; with `Tf32`, evaluations round as training does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// 32 bits whose fractions are rounded from 23 to 10 as inputs of convolutions and matrix products (TensorFloat-32): for GPUs
    Tf32,
    /// 16 bits with the exponent range of 32 (bfloat16)
    Bf16,
}

impl Precision {
    /// Has forward passes on `device` compute in this format as long as the result lives. Backward passes follow.
    pub fn enter(self, device: Device) -> Option<Autocast> {
        (self == Precision::Bf16).then(|| Autocast::new(device))
    }
}
