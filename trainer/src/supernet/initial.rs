//! The values of a network's parameters at the start: PyTorch's defaults, drawn on the CPU from a
//! named generator, so that the same seed gives the same weights on every device, whatever else
//! uses libtorch's global generator.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Error;

/// Fills the weights of convolutions and linear layers, and the biases of the latter, uniformly
/// within +-1 / sqrt(inputs of an output). That is Kaiming's bound with PyTorch's a = sqrt(5) and
/// leaves the batch normalisations (one dimension) at weight 1, bias 0. In the order of the names.
pub(super) fn draw(parameters: &mut BTreeMap<String, Tensor>, seed: u64) -> Result<(), Error> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut fan_ins = BTreeMap::new();
    for (name, parameter) in &*parameters {
        if let Some(layer) = name.strip_suffix(".weight")
            && let [_, inputs @ ..] = parameter.size().as_slice()
            && !inputs.is_empty()
        {
            fan_ins.insert(layer.to_owned(), inputs.iter().product::<i64>());
        }
    }
    let _guard = tch::no_grad_guard();
    for (name, parameter) in parameters {
        let fan_in = name.rsplit_once('.').and_then(|(layer, _)| fan_ins.get(layer));
        if let Some(&fan_in) = fan_in {
            let bound = 1.0 / (fan_in as f32).sqrt();
            let draw = |_| generator.random_range(-bound..bound);
            let values: Vec<f32> = (0..parameter.numel()).map(draw).collect();
            let values = Tensor::f_from_slice(&values)?.f_view(parameter.size().as_slice())?;
            parameter.f_copy_(&values)?;
        }
    }
    Ok(())
}
