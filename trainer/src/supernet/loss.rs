//! What a network is trained on and ranked by.

use tch::{Device, Kind, Reduction, Tensor};

use super::Error;

/// Mean cross-entropy of logits `[batch, classes]` for labels `[batch]`.
///
/// Not tch's `cross_entropy_for_logits`, which computes in 32 bits whatever the network's kind. Of 16
/// bits it makes 32 as well: a loss of three digits ranks nothing.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let ignore_index = -100;
    let kind = if logits.kind() == Kind::BFloat16 { Kind::Float } else { logits.kind() };
    let log_probabilities = logits.f_to_kind(kind)?.f_log_softmax(-1, None::<Kind>)?;
    Ok(log_probabilities.f_nll_loss(labels, None::<Tensor>, Reduction::Mean, ignore_index)?)
}

/// Part of the batch whose largest logit is the label's, as a tensor without dimensions.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let hits = logits.f_argmax(-1, false)?.f_eq_tensor(labels)?;
    Ok(hits.f_mean(Kind::Double)?)
}

/// Reads numbers (tensors without dimensions) off the device, waiting for it once.
pub(super) fn read(numbers: &[Tensor]) -> Result<Vec<f64>, Error> {
    let device = numbers.first().map_or(Device::Cpu, Tensor::device);
    // The norm of no gradients at all is on the CPU.
    let double = |number: &Tensor| number.f_to_device_(device, Kind::Double, true, false);
    let doubles: Result<Vec<Tensor>, _> = numbers.iter().map(double).collect();
    let stacked = Tensor::f_stack(&doubles?, 0)?;
    Ok(Vec::<f64>::try_from(&stacked)?)
}
