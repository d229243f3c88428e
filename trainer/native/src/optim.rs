//! Gradients in one flat tensor, and the optimisers' steps along them.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::owned;

unsafe extern "C" {
    fn asng_native_gradients(
        loss: *const C_tensor,
        parameters: *const *const C_tensor,
        count: usize,
        touched: *mut bool,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn asng_native_spread(
        gradients: *const C_tensor,
        lengths: *const i64,
        here: *const bool,
        count: usize,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn asng_native_sgd(
        gradients: *const C_tensor,
        parameters: *const *const C_tensor,
        momenta: *const *const C_tensor,
        count: usize,
        grad_clip: f64,
        learning_rate: f64,
        momentum: f64,
        weight_decay: f64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn asng_native_adam(
        gradients: *const C_tensor,
        parameters: *const *const C_tensor,
        first: *const *const C_tensor,
        second: *const *const C_tensor,
        count: usize,
        grad_clip: f64,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        steps: f64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
}

/// Returns the gradients of `loss`, a tensor without dimensions, with respect to those of the parameters that it depends on: one
/// after the other in a tensor of one dimension, and for each parameter whether it is among them. Frees the graph behind the loss.
pub fn gradients(loss: &Tensor, parameters: &[&Tensor]) -> Result<(Tensor, Vec<bool>), TchError> {
    let mut touched = vec![false; parameters.len()];
    let pointers = pointers(parameters);
    // SAFETY: the pointers are to tensors that outlive the call, `touched` has room for one bool for each of them.
    let flat = owned(|error, size| unsafe {
        let (parameters, count) = (pointers.as_ptr(), pointers.len());
        asng_native_gradients(loss.as_ptr(), parameters, count, touched.as_mut_ptr(), error, size)
    })?;
    Ok((flat, touched))
}

/// Returns flat gradients with zeros for more parameters: `parts` has the numbers of all, in their order, and whether their gradient
/// is here. Errors if those that are here are not as many numbers as `gradients`.
pub fn spread(gradients: &Tensor, parts: &[(i64, bool)]) -> Result<Tensor, TchError> {
    let (lengths, here): (Vec<_>, Vec<_>) = parts.iter().copied().unzip();
    // SAFETY: the pointers are to what outlives the call, as many numbers as it is told.
    owned(|error, size| unsafe {
        let (lengths, here) = (lengths.as_ptr(), here.as_ptr());
        asng_native_spread(gradients.as_ptr(), lengths, here, parts.len(), error, size)
    })
}

/// Stochastic gradient descent, as PyTorch's `torch.optim.SGD`.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// The largest norm of all gradients together; 0 does not clip.
    pub grad_clip: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The share of the last step's direction that stays.
    pub momentum: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
}

impl Sgd {
    /// Moves `parameters` and their `momenta` along flat gradients, which all count as 0 if their norm is not finite. Returns the norm
    /// before clipping, a 64-bit tensor without dimensions. Errors if the gradients are not as many numbers as the parameters.
    pub fn step(
        &self,
        gradients: &Tensor,
        parameters: &[&Tensor],
        momenta: &[&Tensor],
    ) -> Result<Tensor, TchError> {
        assert_eq!(parameters.len(), momenta.len());
        let [moved, momenta] = [parameters, momenta].map(pointers);
        // SAFETY: the pointers are to tensors that outlive the call, as many in each list as it is told.
        owned(|error, size| unsafe {
            asng_native_sgd(
                gradients.as_ptr(),
                moved.as_ptr(),
                momenta.as_ptr(),
                moved.len(),
                self.grad_clip,
                self.learning_rate,
                self.momentum,
                self.weight_decay,
                error,
                size,
            )
        })
    }
}

/// Adam (Kingma and Ba, 2015), as PyTorch's `torch.optim.Adam`.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// The largest norm of all gradients together; 0 does not clip.
    pub grad_clip: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The shares of the first and the second moments that stay.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// The number of this step, from 1.
    pub steps: i64,
}

impl Adam {
    /// Moves `parameters` and their first and second moments; the rest is as in [`Sgd::step`].
    pub fn step(
        &self,
        gradients: &Tensor,
        parameters: &[&Tensor],
        moments: [&[&Tensor]; 2],
    ) -> Result<Tensor, TchError> {
        assert_eq!(moments.map(<[_]>::len), [parameters.len(); 2]);
        let moved = pointers(parameters);
        let [first, second] = moments.map(pointers);
        let [beta1, beta2] = self.betas;
        // SAFETY: as above.
        owned(|error, size| unsafe {
            asng_native_adam(
                gradients.as_ptr(),
                moved.as_ptr(),
                first.as_ptr(),
                second.as_ptr(),
                moved.len(),
                self.grad_clip,
                self.learning_rate,
                beta1,
                beta2,
                self.epsilon,
                self.steps as f64,
                error,
                size,
            )
        })
    }
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}
