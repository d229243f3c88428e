//! Mixed precision for a part of a computation.

use std::marker::PhantomData;

use tch::Device;

unsafe extern "C" {
    fn asng_native_autocast(cuda: bool, on: bool) -> bool;
}

/// As long as it lives, what this thread computes on a device takes 16-bit numbers (bfloat16) where libtorch deems them precise
/// enough: convolutions and matrix products, not sums or losses. Tensors that are trained stay as they are, and so is
/// the kind of their gradients. It is for the forward pass; the backward pass follows it by itself, without.
#[must_use]
#[derive(Debug)]
pub struct Autocast {
    cuda: bool,
    before: bool,
    /// The mode belongs to the thread.
    here: PhantomData<*const ()>,
}

impl Autocast {
    /// Switches it on for `device`, a GPU or the CPU.
    pub fn new(device: Device) -> Autocast {
        let cuda = device.is_cuda();
        // SAFETY: it takes and returns plain values, and lets no exception out.
        let before = unsafe { asng_native_autocast(cuda, true) };
        Autocast { cuda, before, here: PhantomData }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { asng_native_autocast(self.cuda, self.before) };
    }
}
