// Depthwise convolution whose gradients are fast on a CPU: libtorch's are for 3x3 kernels without dilation alone.
//
// The gradient of x is the convolution of the output's gradient with the kernel turned by half a turn. The gradient of the
// kernel is summed here, block by block in the same order on any number of threads: a row of the output's gradient times the
// row of x that a row of the kernel sees, for all places of that row at once.

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "border.h"
#include "vectors.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Size {
  int64_t stride, padding, dilation;
};

// The gradient of a kernel of K x K for some rows of the output.
template <class T, int K>
struct KernelGradient {
  const T *x, *gradient;
  int64_t height, width, out_height, out_width, channels;
  Size size;
  int64_t first, last;  // rows of the output, over all images
  T* sum;               // [K, K, channels]

  // The places of the output, from the first to the one after the last, where all places of a row of the kernel lie on x.
  std::pair<int64_t, int64_t> inside() const {
    const int64_t reach = size.dilation * (K - 1) - size.padding;
    const int64_t begin = (size.padding + size.stride - 1) / size.stride;
    const int64_t end = width > reach ? (width - reach - 1) / size.stride + 1 : 0;
    return {std::min(begin, out_width), std::clamp(end, std::min(begin, out_width), out_width)};
  }

  template <class V>
  INLINE void tile(int64_t channel) const {
    const auto [begin, end] = inside();
    for (int ky = 0; ky < K; ky++) {
      V sums[K]{};
      for (int64_t row = first; row < last; row++) {
        const int64_t image = row / out_height, out_y = row % out_height;
        const int64_t y = out_y * size.stride + ky * size.dilation - size.padding;
        if (y < 0 || y >= height) continue;
        const T* const g = gradient + row * out_width * channels + channel;
        const T* const from = x + (image * height + y) * width * channels + channel;
        const auto border = [&](int64_t out_x) INLINED {
          const V here = load<V>(g + out_x * channels);
          for (int kx = 0; kx < K; kx++) {
            const int64_t at = out_x * size.stride + kx * size.dilation - size.padding;
            if (at >= 0 && at < width) sums[kx] += here * load<V>(from + at * channels);
          }
        };
        for (int64_t out_x = 0; out_x < begin; out_x++) border(out_x);
        for (int64_t out_x = begin; out_x < end; out_x++) {
          const V here = load<V>(g + out_x * channels);
          const T* const window = from + (out_x * size.stride - size.padding) * channels;
          for (int kx = 0; kx < K; kx++)
            sums[kx] += here * load<V>(window + kx * size.dilation * channels);
        }
        for (int64_t out_x = end; out_x < out_width; out_x++) border(out_x);
      }
      for (int kx = 0; kx < K; kx++) store(sum + (ky * K + kx) * channels + channel, sums[kx]);
    }
  }
};

template <class T, int K>
at::Tensor kernel_gradient(const at::Tensor& x, const at::Tensor& gradient, const Size& size) {
  // Numbers of the output in a block: 32 KB of floats.
  constexpr int64_t BLOCK = 8192;
  const int64_t channels = x.size(1), out_width = gradient.size(3);
  const int64_t rows = gradient.size(0) * gradient.size(2);
  const int64_t rows_of_block = std::max<int64_t>(BLOCK / (out_width * channels), 1);
  const int64_t blocks = (rows + rows_of_block - 1) / rows_of_block;
  std::vector<T> sums(blocks * K * K * channels);
  const KernelGradient<T, K> all{
      x.const_data_ptr<T>(), gradient.const_data_ptr<T>(), x.size(2), x.size(3), gradient.size(2),
      out_width, channels, size, 0, 0, nullptr};
  at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      KernelGradient<T, K> block = all;
      block.first = i * rows_of_block;
      block.last = std::min(block.first + rows_of_block, rows);
      block.sum = &sums[i * K * K * channels];
      for_columns<T>(block, channels);
    }
  });
  const auto contiguous = x.options().memory_format(at::MemoryFormat::Contiguous);
  at::Tensor total = at::empty({channels, 1, K, K}, contiguous);
  for (int64_t c = 0; c < channels; c++) {
    for (int64_t place = 0; place < K * K; place++) {
      double sum = 0;
      for (int64_t i = 0; i < blocks; i++) sum += sums[(i * K * K + place) * channels + c];
      total.data_ptr<T>()[c * K * K + place] = T(sum);
    }
  }
  return total;
}

// The kernels turned by half a turn.
template <class T>
at::Tensor turned(const at::Tensor& weight) {
  const at::Tensor from = weight.is_contiguous() ? weight : weight.contiguous();
  const int64_t size = from.size(2) * from.size(3);
  at::Tensor turned = at::empty(from.sizes(), from.options());
  for (int64_t c = 0; c < from.size(0); c++) {
    const T* const kernel = from.const_data_ptr<T>() + c * size;
    std::reverse_copy(kernel, kernel + size, turned.data_ptr<T>() + c * size);
  }
  return turned;
}

struct Depthwise : torch::autograd::Function<Depthwise> {
  static at::Tensor forward(
      AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, const Size& size) {
    context->save_for_backward({x, weight});
    context->saved_data["size"] = std::vector<int64_t>{size.stride, size.padding, size.dilation};
    return convolution(x, weight, size);
  }

  static at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const Size& size) {
    const auto [stride, padding, dilation] = size;
    return at::conv2d(
        x, weight, {}, {stride, stride}, {padding, padding}, {dilation, dilation}, weight.size(0));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "depthwise: there is no second derivative");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor gradient = channels_last(gradients[0]);
    const std::vector<int64_t> numbers = context->saved_data["size"].toIntVector();
    const Size size{numbers[0], numbers[1], numbers[2]};
    variable_list result(3);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise", [&] {
      if (context->needs_input_grad(0)) result[0] = of_x<scalar_t>(x, weight, gradient, size);
      if (context->needs_input_grad(1)) {
        const auto of = weight.size(2) == 3 ? kernel_gradient<scalar_t, 3>
            : weight.size(2) == 5           ? kernel_gradient<scalar_t, 5>
                                            : kernel_gradient<scalar_t, 7>;
        result[1] = of(x, gradient, size);
      }
    });
    return result;
  }

  template <class T>
  static at::Tensor of_x(
      const at::Tensor& x, const at::Tensor& weight, const at::Tensor& gradient, const Size& size) {
    const auto [stride, padding, dilation] = size;
    if (stride > 1 && dilation == 1) {
      const bool transposed = false;
      return std::get<0>(at::convolution_backward(
          gradient, x, weight, std::nullopt, {stride, stride}, {padding, padding}, {1, 1}, transposed,
          {0, 0}, weight.size(0), {true, false, false}));
    }
    const int64_t reach = dilation * (weight.size(2) - 1);
    at::Tensor spread = gradient;
    if (stride > 1) {
      // As of the convolution with stride 1: no gradient reaches the places in between.
      spread = at::zeros(
          {x.size(0), x.size(1), x.size(2) + 2 * padding - reach, x.size(3) + 2 * padding - reach},
          gradient.options().memory_format(at::MemoryFormat::ChannelsLast));
      spread.slice(2, 0, std::nullopt, stride).slice(3, 0, std::nullopt, stride).copy_(gradient);
    }
    return convolution(spread, turned<T>(weight), {1, reach - padding, dilation});
  }
};

// ---- the border -------------------------------------------------------------------------------------------------------

// A trace keeps libtorch's operation, which others can run, and autocast chooses the type of libtorch's.
bool suits(const at::Tensor& x, const at::Tensor& weight, const Size& size) {
  if (!has_channels_last(x) || !weight.is_cpu() || weight.dim() != 4) return false;
  const int64_t kernel = weight.size(2);
  return weight.scalar_type() == x.scalar_type() && weight.size(0) == x.size(1) &&
      weight.size(1) == 1 && kernel == weight.size(3) &&
      (kernel == 3 || kernel == 5 || kernel == 7) &&
      size.padding <= size.dilation * (kernel - 1) && at::GradMode::is_enabled() &&
      !at::autocast::is_autocast_enabled(at::kCPU) && !torch::jit::tracer::isTracing();
}

}  // namespace

extern "C" at::Tensor* asng_native_depthwise(
    const at::Tensor* x, const at::Tensor* weight, int64_t stride, int64_t padding, int64_t dilation,
    char* error, size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    const Size size{stride, padding, dilation};
    return suits(*x, *weight, size) ? Depthwise::apply(*x, *weight, size)
                                    : Depthwise::convolution(*x, *weight, size);
  });
}
