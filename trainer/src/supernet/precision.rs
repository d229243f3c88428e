//! How many bits training computes with.

use asng_native::Autocast;
use clap::ValueEnum;
use tch::Device;

/// What convolutions and matrix products compute with in training and ranking. Weights, gradients,
/// optimisers and evaluations have 32 bits always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, as many of them for the exponent as 32 have (bfloat16)
    Bf16,
}

impl Precision {
    /// Has a forward pass on `device` compute so, as long as the result lives. The backward pass
    /// follows it.
    pub(super) fn enter(self, device: Device) -> Option<Autocast> {
        (self == Precision::Bf16).then(|| Autocast::new(device))
    }
}
