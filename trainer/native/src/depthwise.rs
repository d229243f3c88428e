//! Depthwise convolution.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::owned;

unsafe extern "C" {
    fn asng_native_depthwise(
        x: *const C_tensor,
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        dilation: i64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
}

/// Convolves each channel of `x` `[batch, channels, height, width]` with its own filter of `weight` `[channels, 1, kernel, kernel]`, as
/// libtorch's `conv2d` with as many groups as channels. The result has a first derivative. Kernels of 3, 5 and 7, and tensors of 32 or
/// 64 bits on the CPU whose channels lie side by side (channels_last), are the fast case; all others go through libtorch's own operation.
pub fn depthwise(
    x: &Tensor,
    weight: &Tensor,
    stride: i64,
    padding: i64,
    dilation: i64,
) -> Result<Tensor, TchError> {
    // SAFETY: the pointers are to tensors that outlive the call.
    owned(|error, error_size| unsafe {
        let (x, weight) = (x.as_ptr(), weight.as_ptr());
        asng_native_depthwise(x, weight, stride, padding, dilation, error, error_size)
    })
}
