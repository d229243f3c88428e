// Loops over adjacent numbers, in vectors as wide as those of the processor that runs this.

#pragma once

#include <cstdint>
#include <cstring>

#include <ATen/core/Tensor.h>

#define INLINE __attribute__((always_inline)) inline
#define INLINED __attribute__((always_inline))  // of a lambda

namespace {

// ---- vectors: of a target's width, or a single number -----------------------------------------------------------------

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T, int Bytes>
using Vector = typename VectorOf<T, Bytes>::type;

template <class V, class T>
INLINE V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
INLINE void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

// ---- the processor's instructions -------------------------------------------------------------------------------------

#if defined(__x86_64__) && defined(__linux__)

template <class Work>
__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))) void with_avx512(const Work& work) {
  work.template run<64>();
}

template <class Work>
__attribute__((target("avx2,fma"))) void with_avx2(const Work& work) {
  work.template run<32>();
}

// Runs `work` with the processor's best instructions: `run<Bytes>()`, which must be inlined, with the size of a vector.
template <class Work>
void with_best(const Work& work) {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw");
  if (avx512)
    with_avx512(work);
  else if (avx2)
    with_avx2(work);
  else
    work.template run<16>();
}

#else

template <class Work>
void with_best(const Work& work) {
  work.template run<16>();
}

#endif

// ---- loops ------------------------------------------------------------------------------------------------------------

template <class T, class Kernel>
struct Columns {
  const Kernel& kernel;
  int64_t columns;

  template <int Bytes>
  INLINE void run() const {
    constexpr int64_t wide = Bytes / sizeof(T), narrow = 16 / sizeof(T);
    int64_t column = 0;
    for (; column + wide <= columns; column += wide)
      kernel.template tile<Vector<T, Bytes>>(column);
    for (; column + narrow <= columns; column += narrow)
      kernel.template tile<Vector<T, 16>>(column);
    for (; column < columns; column++) kernel.template tile<T>(column);
  }
};

// Calls `kernel.tile<V>(column)` for all columns; it works on as many as V has numbers, from `column` on.
template <class T, class Kernel>
void for_columns(const Kernel& kernel, int64_t columns) {
  with_best(Columns<T, Kernel>{kernel, columns});
}

template <class Each>
struct Loop {
  int64_t count;
  const Each& each;

  template <int Bytes>
  INLINE void run() const {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; i++) each(i);
  }
};

// Calls `each(i)` for all numbers below `count`, in a loop that the compiler turns into vectors. What one call writes, no other
// reads.
template <class Each>
void for_each(int64_t count, const Each& each) {
  with_best(Loop<Each>{count, each});
}

// ---- tensors ----------------------------------------------------------------------------------------------------------

// The tensor itself, without a call, if its channels lie side by side already.
INLINE at::Tensor channels_last(const at::Tensor& x) {
  const auto format = at::MemoryFormat::ChannelsLast;
  return x.is_contiguous(format) ? x : x.contiguous(format);
}

// Whether loops like these are for this: numbers of 32 or 64 bits on the CPU, `[batch, channels, height, width]`, without gaps.
INLINE bool has_channels_last(const at::Tensor& x) {
  const auto type = x.scalar_type();
  return x.is_cpu() && (type == at::kFloat || type == at::kDouble) && x.dim() == 4 && x.numel() > 0 &&
      x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace
