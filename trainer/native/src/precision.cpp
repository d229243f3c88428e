// Whether a GPU may round 32-bit numbers, which tch does not reach.

#include <ATen/Context.h>

// Of convolutions and matrix products, for the whole process. libtorch's own default is yes for the former alone.
extern "C" void asng_native_allow_tf32(bool allow) noexcept {
  at::globalContext().setAllowTF32CuDNN(allow);
  at::globalContext().setAllowTF32CuBLAS(allow);
}
