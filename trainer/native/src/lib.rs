//! Operations that libtorch lacks, and those, modes, counts and traces that tch does not reach, in C++ against its headers: the only unsafe
//! code of the project.
//!
//! An exception of C++ becomes a [`TchError`] with its message.

mod autocast;
mod calls;
mod cuda;
mod depthwise;
mod memory;
mod optim;
mod pool;
mod precision;
mod trace;

pub use autocast::Autocast;
pub use calls::count_calls;
pub use cuda::load_cuda;
pub use depthwise::depthwise;
pub use memory::empty_cache;
pub use optim::{Adam, Sgd, gradients, spread};
pub use pool::{average_pool, max_pool};
pub use precision::allow_tf32;
pub use trace::trace;

use std::{
    ffi::{CStr, c_char},
    ptr,
};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn asng_native_batch_norm(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        epsilon: f64,
        relu: bool,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
}

/// Batch normalisation of `[batch, channels, height, width]` with the statistics of the batch, each channel by itself.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// The factors and then the summands of the normalised values of each channel.
    pub weight_and_bias: Option<(&'a Tensor, &'a Tensor)>,
    /// Running mean and (unbiased) variance of each channel, which are moved towards the batch's.
    pub running_mean_and_var: Option<(&'a Tensor, &'a Tensor)>,
    /// How far the running statistics move, 0 to 1.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
    /// True if negative results are then set to 0.
    pub relu: bool,
}

impl BatchNorm<'_> {
    /// The result has the shape and the layout of `x`, and a first derivative. Tensors of 32 or 64 bits on the CPU whose
    /// channels lie side by side (channels_last) are the fast case; all others go through libtorch's own operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = pointers(self.weight_and_bias);
        let (running_mean, running_var) = pointers(self.running_mean_and_var);
        // SAFETY: the pointers are null or to tensors that outlive the call.
        owned(|error, error_size| unsafe {
            asng_native_batch_norm(
                x.as_ptr(),
                weight,
                bias,
                running_mean,
                running_var,
                self.momentum,
                self.epsilon,
                self.relu,
                error,
                error_size,
            )
        })
    }
}

/// Returns the tensor that `call` returns for its caller to own; or the error whose text it puts, with its end, into the buffer that
/// it is given.
fn owned(call: impl FnOnce(*mut c_char, usize) -> *mut C_tensor) -> Result<Tensor, TchError> {
    let mut error = [0_u8; 512];
    let result = call(error.as_mut_ptr().cast(), error.len());
    if result.is_null() {
        let message = CStr::from_bytes_until_nul(&error).unwrap_or_default();
        return Err(TchError::Torch(message.to_string_lossy().into_owned()));
    }
    // SAFETY: a tensor that was made for the caller to own.
    Ok(unsafe { Tensor::from_ptr(result) })
}

fn pointers(pair: Option<(&Tensor, &Tensor)>) -> (*const C_tensor, *const C_tensor) {
    pair.map_or((ptr::null(), ptr::null()), |(first, second)| (first.as_ptr(), second.as_ptr()))
}
