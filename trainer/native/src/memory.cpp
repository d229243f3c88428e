// The device memory that libtorch's allocator keeps for later use, which tch does not reach.

#include <ATen/DeviceAccelerator.h>

// Returns it to the device. A failure is left alone: the allocation that follows reports what is wrong.
extern "C" void asng_native_empty_cache() noexcept {
  try {
    at::accelerator::emptyCache();
  } catch (...) {
  }
}
