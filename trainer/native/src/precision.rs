//! The precision of 32-bit numbers on a GPU.

unsafe extern "C" {
    fn asng_native_allow_tf32(allow: bool);
}

/// Lets GPUs from Ampere on round the inputs of convolutions and matrix products to TF32 (10 bits of fraction), or not, in this
/// whole process. libtorch lets them do so in convolutions unless it is told otherwise.
pub fn allow_tf32(allow: bool) {
    // SAFETY: it takes a plain value, and lets no exception out.
    unsafe { asng_native_allow_tf32(allow) };
}
