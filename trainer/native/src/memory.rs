//! Memory of a GPU.

use tch::Device;

unsafe extern "C" {
    fn asng_native_empty_cache();
}

/// Returns the memory that libtorch's allocator keeps unused to the device, so that a large block can be allocated from it. A CPU
/// keeps none.
pub fn empty_cache(device: Device) {
    if device.is_cuda() {
        // SAFETY: it takes and returns nothing, and lets no exception out.
        unsafe { asng_native_empty_cache() };
    }
}
