// Batch normalisation with the statistics of the batch, and the ReLU after it, as one node of autograd.
//
// The pixels of a channels_last tensor are rows of a matrix whose columns are the channels. Rows are worked on in blocks
// that fit a first-level cache, the channels of a block in tiles as wide as the processor's vectors. What is summed is
// summed block by block in the same order on any number of threads.
//
// Forward reads x three times (mean; squared deviations, while the block is still in the cache; output) and keeps nothing
// but x and two numbers for each channel: the ReLU's mask is computed again in backward.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "border.h"
#include "vectors.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- kernels: what is done to one tile of channels of one block of rows -----------------------------------------------

struct Block {
  int64_t index, first_row, rows;
};

// Mean and squared deviations from it, of each block by itself.
template <class T>
struct Moments {
  const T* x;
  T *mean, *squares;  // [blocks, channels]
  int64_t channels;

  template <class V>
  INLINE void tile(const Block& block, int64_t channel) const {
    const T* const rows = x + block.first_row * channels + channel;
    V sum{};
    for (int64_t row = 0; row < block.rows; row++) sum += load<V>(rows + row * channels);
    const V mean_here = sum / T(block.rows);
    V squares_here{};
    for (int64_t row = 0; row < block.rows; row++) {
      const V deviation = load<V>(rows + row * channels) - mean_here;
      squares_here += deviation * deviation;
    }
    store(mean + block.index * channels + channel, mean_here);
    store(squares + block.index * channels + channel, squares_here);
  }
};

// The affine map of each channel, (x - mean) * scale + shift.
template <class T>
struct Map {
  std::vector<T> mean, scale, shift;
};

template <class T, bool Relu>
struct Apply {
  const T* x;
  T* y;
  const Map<T>& map;
  int64_t channels;

  template <class V>
  INLINE void tile(const Block& block, int64_t channel) const {
    const int64_t start = block.first_row * channels + channel;
    const V mean = load<V>(&map.mean[channel]), scale = load<V>(&map.scale[channel]);
    const V shift = load<V>(&map.shift[channel]);
    for (int64_t row = 0; row < block.rows; row++) {
      V v = (load<V>(x + start + row * channels) - mean) * scale + shift;
      if (Relu) v = v < T(0) ? V{} : v;  // what is not a number stays so, as in torch
      store(y + start + row * channels, v);
    }
  }
};

// Sums of the gradient (behind the ReLU) and of the gradient times x - mean.
template <class T, bool Relu>
struct GradientSums {
  const T *x, *gradient;
  const Map<T>& map;
  T *plain, *times_deviation;  // [blocks, channels]
  int64_t channels;

  template <class V>
  INLINE void tile(const Block& block, int64_t channel) const {
    const int64_t start = block.first_row * channels + channel;
    const V mean = load<V>(&map.mean[channel]), scale = load<V>(&map.scale[channel]);
    const V shift = load<V>(&map.shift[channel]);
    V sum{}, sum_times_deviation{};
    for (int64_t row = 0; row < block.rows; row++) {
      const V deviation = load<V>(x + start + row * channels) - mean;
      V g = load<V>(gradient + start + row * channels);
      if (Relu) g = deviation * scale + shift <= T(0) ? V{} : g;
      sum += g;
      sum_times_deviation += g * deviation;
    }
    store(plain + block.index * channels + channel, sum);
    store(times_deviation + block.index * channels + channel, sum_times_deviation);
  }
};

// The gradient of x: scale * (g - mean of g - (x - mean) * slope).
template <class T, bool Relu>
struct GradientOfX {
  const T *x, *gradient;
  T* result;
  const Map<T>& map;
  const std::vector<T>&mean_gradient, &slope;
  int64_t channels;

  template <class V>
  INLINE void tile(const Block& block, int64_t channel) const {
    const int64_t start = block.first_row * channels + channel;
    const V mean = load<V>(&map.mean[channel]), scale = load<V>(&map.scale[channel]);
    const V shift = load<V>(&map.shift[channel]);
    const V mean_g = load<V>(&mean_gradient[channel]), slope_here = load<V>(&slope[channel]);
    for (int64_t row = 0; row < block.rows; row++) {
      const V deviation = load<V>(x + start + row * channels) - mean;
      V g = load<V>(gradient + start + row * channels);
      if (Relu) g = deviation * scale + shift <= T(0) ? V{} : g;
      store(result + start + row * channels, (g - mean_g - deviation * slope_here) * scale);
    }
  }
};

// ---- blocks -----------------------------------------------------------------------------------------------------------

// A channels_last tensor as rows of channels, in blocks.
struct Rows {
  // Elements of a block: 32 KB of floats.
  static constexpr int64_t BLOCK = 8192;
  // Blocks that are worth a thread.
  static constexpr int64_t GRAIN = 4;

  int64_t rows, channels, rows_of_block, blocks;

  explicit Rows(const at::Tensor& x) {
    channels = x.size(1);
    rows = x.numel() / channels;
    rows_of_block = std::max<int64_t>(BLOCK / channels, 16);
    blocks = (rows + rows_of_block - 1) / rows_of_block;
  }

  Block block(int64_t index) const {
    const int64_t first = index * rows_of_block;
    return {index, first, std::min(rows_of_block, rows - first)};
  }

  // A kernel on one block.
  template <class Kernel>
  struct OnBlock {
    const Kernel& kernel;
    Block block;

    template <class V>
    INLINE void tile(int64_t channel) const {
      kernel.template tile<V>(block, channel);
    }
  };

  template <class T, class Kernel>
  void run(const Kernel& kernel) const {
    at::parallel_for(0, blocks, GRAIN, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        for_columns<T>(OnBlock<Kernel>{kernel, block(i)}, channels);
    });
  }
};

// ---- forward and backward ---------------------------------------------------------------------------------------------

struct Statistics {
  std::vector<double> mean, variance;  // the variance over the number of rows
};

template <class T>
Statistics statistics(const T* x, const Rows& rows) {
  std::vector<T> means(rows.blocks * rows.channels), squares(rows.blocks * rows.channels);
  rows.run<T>(Moments<T>{x, means.data(), squares.data(), rows.channels});
  // Blocks are joined as Chan, Golub and LeVeque (1983) say, which loses no digits when the mean is large.
  Statistics joined{std::vector<double>(rows.channels), std::vector<double>(rows.channels)};
  double seen = 0;
  for (int64_t i = 0; i < rows.blocks; i++) {
    const double more = rows.block(i).rows, total = seen + more;
    for (int64_t c = 0; c < rows.channels; c++) {
      const double difference = means[i * rows.channels + c] - joined.mean[c];
      joined.mean[c] += difference * (more / total);
      joined.variance[c] +=
          squares[i * rows.channels + c] + difference * difference * (seen * more / total);
    }
    seen = total;
  }
  for (double& variance : joined.variance) variance /= seen;
  return joined;
}

// `statistics` is [2, channels]: mean, and 1 / deviation.
template <class T>
Map<T> map_of(const at::Tensor& statistics, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t channels = statistics.size(1);
  const T* const mean = statistics.const_data_ptr<T>();
  const T* const inverse = mean + channels;
  Map<T> map{{mean, mean + channels}, {inverse, inverse + channels}, std::vector<T>(channels)};
  if (weight.defined()) {
    const T* const weights = weight.const_data_ptr<T>();
    const T* const biases = bias.const_data_ptr<T>();
    for (int64_t c = 0; c < channels; c++) map.scale[c] *= weights[c];
    map.shift.assign(biases, biases + channels);
  }
  return map;
}

// What is normalised besides x; tensors that are not wanted are undefined.
struct Options {
  at::Tensor weight, bias, running_mean, running_var;
  double momentum, epsilon;
  bool relu;
};

template <class T>
void update_running(const Options& options, const Statistics& statistics, double rows) {
  T* const mean = options.running_mean.data_ptr<T>();
  T* const variance = options.running_var.data_ptr<T>();
  const double unbiased = rows / (rows - 1), momentum = options.momentum;
  for (size_t c = 0; c < statistics.mean.size(); c++) {
    mean[c] = T((1 - momentum) * mean[c] + momentum * statistics.mean[c]);
    variance[c] = T((1 - momentum) * variance[c] + momentum * unbiased * statistics.variance[c]);
  }
}

// y, and the statistics that backward needs.
template <class T>
std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& x, const Options& options) {
  const Rows rows(x);
  const T* const from = x.const_data_ptr<T>();
  const Statistics of_batch = statistics(from, rows);
  if (options.running_mean.defined()) update_running<T>(options, of_batch, double(rows.rows));
  at::Tensor saved =
      at::empty({2, rows.channels}, x.options().memory_format(at::MemoryFormat::Contiguous));
  T* const mean = saved.data_ptr<T>();
  for (int64_t c = 0; c < rows.channels; c++) {
    mean[c] = T(of_batch.mean[c]);
    mean[rows.channels + c] = T(1 / std::sqrt(of_batch.variance[c] + options.epsilon));
  }
  const Map<T> map = map_of<T>(saved, options.weight, options.bias);
  at::Tensor y = at::empty_like(x);
  if (options.relu)
    rows.run<T>(Apply<T, true>{from, y.data_ptr<T>(), map, rows.channels});
  else
    rows.run<T>(Apply<T, false>{from, y.data_ptr<T>(), map, rows.channels});
  return {y, saved};
}

// The sum of each channel over the blocks.
template <class T>
std::vector<double> over_blocks(const std::vector<T>& sums, const Rows& rows) {
  std::vector<double> total(rows.channels);
  for (int64_t i = 0; i < rows.blocks; i++)
    for (int64_t c = 0; c < rows.channels; c++) total[c] += sums[i * rows.channels + c];
  return total;
}

// Gradients of x, weight and bias; of the latter two only if there are any.
template <class T, bool Relu>
variable_list backward(
    const at::Tensor& x, const at::Tensor& gradient, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& statistics) {
  const Rows rows(x);
  const T* const from = x.const_data_ptr<T>();
  const T* const g = gradient.const_data_ptr<T>();
  const Map<T> map = map_of<T>(statistics, weight, bias);
  std::vector<T> plain(rows.blocks * rows.channels), deviating(rows.blocks * rows.channels);
  rows.run<T>(
      GradientSums<T, Relu>{from, g, map, plain.data(), deviating.data(), rows.channels});
  const std::vector<double> sum = over_blocks(plain, rows);
  const std::vector<double> sum_deviating = over_blocks(deviating, rows);

  const T* const inverse = statistics.const_data_ptr<T>() + rows.channels;
  std::vector<T> mean_gradient(rows.channels), slope(rows.channels);
  for (int64_t c = 0; c < rows.channels; c++) {
    mean_gradient[c] = T(sum[c] / rows.rows);
    slope[c] = T(sum_deviating[c] / rows.rows * inverse[c] * inverse[c]);
  }
  at::Tensor of_x = at::empty_like(x);
  rows.run<T>(GradientOfX<T, Relu>{
      from, g, of_x.data_ptr<T>(), map, mean_gradient, slope, rows.channels});
  if (!weight.defined()) return {of_x, at::Tensor(), at::Tensor()};

  at::Tensor of_weight = at::empty_like(weight), of_bias = at::empty_like(bias);
  for (int64_t c = 0; c < rows.channels; c++) {
    of_weight.data_ptr<T>()[c] = T(sum_deviating[c] * inverse[c]);
    of_bias.data_ptr<T>()[c] = T(sum[c]);
  }
  return {of_x, of_weight, of_bias};
}

// Weight and bias are arguments beside the options so that autograd sees them; it wants no undefined tensor there.
struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static at::Tensor forward(
      AutogradContext* context, const at::Tensor& x, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&, const Options& options) {
    at::Tensor y, statistics;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] {
      std::tie(y, statistics) = ::forward<scalar_t>(x, options);
    });
    context->save_for_backward({x, options.weight, options.bias, statistics});
    context->saved_data["relu"] = options.relu;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "batch_norm: there is no second derivative");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor gradient = channels_last(gradients[0]);
    const bool relu = context->saved_data["relu"].toBool();
    variable_list result;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] {
      const auto of = relu ? ::backward<scalar_t, true> : ::backward<scalar_t, false>;
      result = of(x, gradient, saved[1], saved[2], saved[3]);
    });
    result.emplace_back();  // of the options
    return result;
  }
};

// ---- the border -------------------------------------------------------------------------------------------------------

void check(const at::Tensor& x, const Options& options) {
  TORCH_CHECK(x.dim() == 4, "batch_norm: x has ", x.dim(), " dimensions, not 4");
  const int64_t channels = x.size(1);
  TORCH_CHECK(
      channels > 0 && x.numel() / channels > 1,
      "batch_norm: statistics need more than one value for each channel, x is ", x.sizes());
  for (const at::Tensor& each :
       {options.weight, options.bias, options.running_mean, options.running_var}) {
    TORCH_CHECK(
        !each.defined() || (each.dim() == 1 && each.size(0) == channels),
        "batch_norm: x has ", channels, " channels, weights or statistics are ", each.sizes());
  }
}

// Whether the kernels above are for this: all on the CPU, of one type, and without gaps.
bool suits(const at::Tensor& x, const Options& options) {
  const auto type = x.scalar_type();
  if (!x.is_cpu() || !(type == at::kFloat || type == at::kDouble)) return false;
  for (const at::Tensor& each :
       {options.weight, options.bias, options.running_mean, options.running_var}) {
    const bool fits = !each.defined() ||
        (each.is_cpu() && each.scalar_type() == type && each.is_contiguous());
    if (!fits) return false;
  }
  return x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

at::Tensor batch_norm(const at::Tensor& x, const Options& options) {
  check(x, options);
  if (suits(x, options))
    return BatchNorm::apply(x, if_defined(options.weight), if_defined(options.bias), options);
  const bool training = true, cudnn = true;
  const at::Tensor y = at::batch_norm(
      x, options.weight, options.bias, options.running_mean, options.running_var, training,
      options.momentum, options.epsilon, cudnn);
  return options.relu ? at::relu(y) : y;
}

at::Tensor or_undefined(const at::Tensor* tensor) {
  return tensor == nullptr ? at::Tensor() : *tensor;
}

}  // namespace

extern "C" at::Tensor* asng_native_batch_norm(
    const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias,
    const at::Tensor* running_mean, const at::Tensor* running_var, double momentum, double epsilon,
    bool relu, char* error, size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    const Options options{
        or_undefined(weight), or_undefined(bias), or_undefined(running_mean),
        or_undefined(running_var), momentum, epsilon, relu};
    return batch_norm(*x, options);
  });
}
