//! What a network is trained on and ranked by.

use tch::{Kind, Reduction, Tensor};

use super::Error;

/// Mean cross-entropy of logits `[batch, classes]` for labels `[batch]`.
///
/// Not tch's `cross_entropy_for_logits`, which computes in 32 bits whatever the network's kind.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let ignore_index = -100;
    let log_probabilities = logits.f_log_softmax(-1, None::<Kind>)?;
    Ok(log_probabilities.f_nll_loss(labels, None::<Tensor>, Reduction::Mean, ignore_index)?)
}

/// Part of the batch whose largest logit is the label's, as a tensor without dimensions.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let hits = logits.f_argmax(-1, false)?.f_eq_tensor(labels)?;
    Ok(hits.f_mean(Kind::Double)?)
}

/// Reads numbers (tensors without dimensions) off the device, waiting for it once.
pub(super) fn read(numbers: &[Tensor]) -> Result<Vec<f64>, Error> {
    let doubles: Result<Vec<Tensor>, _> =
        numbers.iter().map(|number| number.f_to_kind(Kind::Double)).collect();
    let stacked = Tensor::f_stack(&doubles?, 0)?;
    Ok(Vec::<f64>::try_from(&stacked)?)
}
