//! Pooling over 3x3 pixels.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::owned;

unsafe extern "C" {
    fn asng_native_average_pool(
        x: *const C_tensor,
        stride: i64,
        count_padding: bool,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;

    fn asng_native_max_pool(
        x: *const C_tensor,
        stride: i64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
}

/// Averages over the 3x3 pixels around each, as libtorch's `avg_pool2d` with padding 1; `count_padding` divides by 9 at the border
/// too. `[batch, channels, height, width]` keeps its layout, and has a first derivative. A stride of 1 and tensors of 32 or 64 bits on
/// the CPU whose channels lie side by side (channels_last) are the fast case; all others go through libtorch's own operation.
pub fn average_pool(x: &Tensor, stride: i64, count_padding: bool) -> Result<Tensor, TchError> {
    // SAFETY: the pointer is to a tensor that outlives the call.
    owned(|error, error_size| unsafe {
        asng_native_average_pool(x.as_ptr(), stride, count_padding, error, error_size)
    })
}

/// The largest of the 3x3 pixels around each, as libtorch's `max_pool2d` with padding 1; otherwise as
/// [`average_pool`].
pub fn max_pool(x: &Tensor, stride: i64) -> Result<Tensor, TchError> {
    // SAFETY: the pointer is to a tensor that outlives the call.
    owned(|error, error_size| unsafe {
        asng_native_max_pool(x.as_ptr(), stride, error, error_size)
    })
}
