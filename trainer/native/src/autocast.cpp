// Switches automatic mixed precision on and off for the calling thread. tch does it for CUDA alone, and only with 16-bit
// floats that overflow early; bfloat16 has the range of 32 bits, so losses need no scaling.

#include <ATen/autocast_mode.h>

// Returns whether it was on before. The weights converted meanwhile are forgotten when it goes off: an optimiser moves them.
extern "C" bool asng_native_autocast(bool cuda, bool on) noexcept {
  const auto device = cuda ? at::kCUDA : at::kCPU;
  const bool before = at::autocast::is_autocast_enabled(device);
  if (on) at::autocast::set_autocast_dtype(device, at::kBFloat16);
  if (!on) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device, on);
  return before;
}
