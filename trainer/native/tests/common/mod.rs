//! Tensors to compare our operations with libtorch's.

use tch::Tensor;

/// Returns numbers of both signs, by formula.
pub(crate) fn wave(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|i| (0.37 * (i * i) as f64 + phase).sin()).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Returns the same numbers with the channels of a pixel side by side.
pub(crate) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Returns the largest difference, relative to the largest number of `theirs`, or to 1.
pub(crate) fn difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    let largest = |tensor: &Tensor| f64::try_from(tensor.abs().max()).unwrap();
    largest(&(ours - theirs)) / largest(theirs).max(1.0)
}
