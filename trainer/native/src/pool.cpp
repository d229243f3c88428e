// Pooling over 3x3 pixels, as one node of autograd where the stride is 1.
//
// A row of a channels_last image is `width * channels` adjacent numbers, and a neighbour to the side is `channels` numbers
// away. So a window is joined down the rows first and then sideways (averages), or sideways first (maxima, where the first of
// equal ones wins, row by row, as in libtorch), each in loops that compilers turn into vectors.

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "border.h"
#include "vectors.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Shape {
  int64_t images, height, width, channels, row;

  explicit Shape(const at::Tensor& x)
      : images(x.size(0)),
        height(x.size(2)),
        width(x.size(3)),
        channels(x.size(1)),
        row(width * channels) {}

  // Calls `work` with a thread's share of the images: their first numbers are `begin`, `begin + image()` and so on below `end`.
  template <class Work>
  void share_images(const Work& work) const {
    // Numbers that are worth a thread.
    constexpr int64_t GRAIN = 32768;
    const int64_t grain = std::max<int64_t>(GRAIN / image(), 1);
    at::parallel_for(0, images, grain, [&](int64_t begin, int64_t end) {
      work(begin * image(), end * image());
    });
  }

  int64_t image() const { return height * row; }
};

// Rows with a pixel of `value` on both sides.
template <class T>
struct Padded {
  std::vector<T> numbers;
  int64_t row, side;

  Padded(const Shape& shape, int64_t rows, T value)
      : numbers(rows * (shape.row + 2 * shape.channels), value), row(shape.row), side(shape.channels) {}

  T* at(int64_t y) { return numbers.data() + y * (row + 2 * side) + side; }
};

// ---- averages ---------------------------------------------------------------------------------------------------------

// 1 / the pixels of a window along an axis of `size` at `place`.
template <class T>
T share(bool count_padding, int64_t place, int64_t size) {
  if (count_padding) return T(1) / 3;
  return T(1) / (1 + (place > 0) + (place + 1 < size));
}

// Multiplies the first and the last pixel of a row.
template <class T>
void scale_ends(T* row, const Shape& shape, T factor) {
  if (factor == T(1)) return;
  for (int64_t c = 0; c < shape.channels; c++) row[c] *= factor;
  if (shape.width > 1)
    for (int64_t c = shape.row - shape.channels; c < shape.row; c++) row[c] *= factor;
}

// The averages; or, from their gradient, that of x: sums over the same windows, where the shares belong to what is summed.
template <class T>
at::Tensor average(const at::Tensor& x, bool count_padding, bool backward) {
  const Shape shape(x);
  at::Tensor out = at::empty_like(x);
  const T* const from = x.const_data_ptr<T>();
  T* const to = out.data_ptr<T>();
  const T ends = 3 * share<T>(count_padding, 0, shape.width);
  shape.share_images([&](int64_t begin, int64_t end) {
    Padded<T> padded(shape, 1, 0);
    T* const sum = padded.at(0);
    for (int64_t start = begin; start < end; start += shape.row) {
      const int64_t y = start / shape.row % shape.height;
      std::fill_n(sum, shape.row, T(0));
      for (int64_t each = std::max<int64_t>(y - 1, 0); each < std::min(y + 2, shape.height); each++) {
        const T weight = backward ? share<T>(count_padding, each, shape.height) : T(1);
        const T* const row = from + start + (each - y) * shape.row;
        for_each(shape.row, [=](int64_t i) INLINED { sum[i] += weight * row[i]; });
      }
      if (backward) scale_ends(sum, shape, ends);
      const T weight = (backward ? T(1) : share<T>(count_padding, y, shape.height)) / 3;
      T* const row = to + start;
      for_each(shape.row, [=, side = shape.channels](int64_t i) INLINED {
        row[i] = (sum[i - side] + sum[i] + sum[i + side]) * weight;
      });
      if (!backward) scale_ends(row, shape, ends);
    }
  });
  return out;
}

struct AveragePool : torch::autograd::Function<AveragePool> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, bool count_padding) {
    context->saved_data["count_padding"] = count_padding;
    return run(x, count_padding, false);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "average_pool: there is no second derivative");
    const at::Tensor gradient = channels_last(gradients[0]);
    return {run(gradient, context->saved_data["count_padding"].toBool(), true), at::Tensor()};
  }

  static at::Tensor run(const at::Tensor& x, bool count_padding, bool backward) {
    at::Tensor result;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "average_pool", [&] {
      result = average<scalar_t>(x, count_padding, backward);
    });
    return result;
  }
};

// ---- maxima -----------------------------------------------------------------------------------------------------------

// Replaces the maximum so far, and its place, by a larger number, or by what is not a number, which wins in libtorch too.
template <class T>
INLINE void replace(T& max, T& place, T next, T next_place) {
  place = next > max ? next_place : place;
  max = next > max ? next : max;
  place = next != next ? next_place : place;
  max = next != next ? next : max;
}

// An argument, not an expression: it is read in any case, so that there is no branch.
template <class T>
INLINE T if_equal(T place, T here, T gradient) {
  return place == here ? gradient : T(0);
}

// The rows around row `y` that are there, of 0 to 2.
struct Around {
  int first, last;

  Around(int64_t y, const Shape& shape) : first(y == 0), last(y + 1 == shape.height ? 1 : 2) {}
};

// Maxima; and the place of each in its window, 3 times the row and the column, as a number of the same type, which vectors like.
template <class T>
std::pair<at::Tensor, at::Tensor> maximum(const at::Tensor& x) {
  const Shape shape(x);
  const at::Tensor out = at::empty_like(x), places = at::empty_like(x);
  const T* const from = x.const_data_ptr<T>();
  T *const to = out.data_ptr<T>(), *const place_in_window = places.data_ptr<T>();
  shape.share_images([&](int64_t begin, int64_t end) {
    Padded<T> padded(shape, 1, -std::numeric_limits<T>::infinity());
    T* const row = padded.at(0);
    // Of each pixel and its two neighbours in the row.
    std::vector<T> largest(shape.image()), columns(shape.image());
    for (int64_t image = begin; image < end; image += shape.image()) {
      for (int64_t start = 0; start < shape.image(); start += shape.row) {
        std::copy_n(from + image + start, shape.row, row);
        T *const max = &largest[start], *const column = &columns[start];
        for_each(shape.row, [=, side = shape.channels](int64_t i) INLINED {
          T max_here = row[i - side], column_here = 0;
          replace(max_here, column_here, row[i], T(1));
          replace(max_here, column_here, row[i + side], T(2));
          max[i] = max_here;
          column[i] = column_here;
        });
      }
      for (int64_t y = 0; y < shape.height; y++) {
        const int64_t start = y * shape.row;
        T *const max = to + image + start, *const place = place_in_window + image + start;
        const auto [first, last] = Around(y, shape);
        for (int each = first; each <= last; each++) {
          const int64_t other = start + (each - 1) * shape.row;
          const T *const candidate = &largest[other], *const column = &columns[other];
          const bool only = each == first;
          for_each(shape.row, [=, rows = T(3 * each)](int64_t i) INLINED {
            T max_here = only ? candidate[i] : max[i], place_here = only ? rows + column[i] : place[i];
            replace(max_here, place_here, candidate[i], rows + column[i]);
            max[i] = max_here;
            place[i] = place_here;
          });
        }
      }
    }
  });
  return {out, places};
}

template <class T>
at::Tensor maximum_backward(const at::Tensor& gradient, const at::Tensor& places) {
  const Shape shape(gradient);
  at::Tensor out = at::empty_like(gradient);
  const T* const from = gradient.const_data_ptr<T>();
  const T* const place_in_window = places.const_data_ptr<T>();
  T* const to = out.data_ptr<T>();
  shape.share_images([&](int64_t begin, int64_t end) {
    Padded<T> gradients(shape, shape.height, 0), places(shape, shape.height, 0);
    for (int64_t image = begin; image < end; image += shape.image()) {
      for (int64_t y = 0; y < shape.height; y++) {
        std::copy_n(from + image + y * shape.row, shape.row, gradients.at(y));
        std::copy_n(place_in_window + image + y * shape.row, shape.row, places.at(y));
      }
      for (int64_t y = 0; y < shape.height; y++) {
        T* const sum = to + image + y * shape.row;
        std::fill_n(sum, shape.row, T(0));
        const auto [first, last] = Around(y, shape);
        for (int each = first; each <= last; each++) {
          const T *const g = gradients.at(y + each - 1), *const place = places.at(y + each - 1);
          // This pixel is below the middle of the windows above it, and to the right of those on its left.
          for_each(shape.row, [=, side = shape.channels, row = T(3 * (2 - each))](int64_t i) INLINED {
            sum[i] += if_equal(place[i - side], row + 2, g[i - side]) +
                if_equal(place[i], row + 1, g[i]) + if_equal(place[i + side], row, g[i + side]);
          });
        }
      }
    }
  });
  return out;
}

struct MaxPool : torch::autograd::Function<MaxPool> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    at::Tensor result, places;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "max_pool", [&] {
      std::tie(result, places) = maximum<scalar_t>(x);
    });
    context->save_for_backward({places});
    return result;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "max_pool: there is no second derivative");
    const at::Tensor gradient = channels_last(gradients[0]);
    at::Tensor result;
    AT_DISPATCH_FLOATING_TYPES(gradient.scalar_type(), "max_pool", [&] {
      result = maximum_backward<scalar_t>(gradient, context->get_saved_variables()[0]);
    });
    return {result};
  }
};

// ---- the border -------------------------------------------------------------------------------------------------------

// A trace keeps libtorch's operations, which others can run.
bool suits(const at::Tensor& x, int64_t stride) {
  return stride == 1 && has_channels_last(x) && !torch::jit::tracer::isTracing();
}

}  // namespace

extern "C" at::Tensor* asng_native_average_pool(
    const at::Tensor* x, int64_t stride, bool count_padding, char* error, size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    if (suits(*x, stride)) return AveragePool::apply(*x, count_padding);
    const bool ceil = false;
    return at::avg_pool2d(*x, {3, 3}, {stride, stride}, {1, 1}, ceil, count_padding);
  });
}

extern "C" at::Tensor* asng_native_max_pool(
    const at::Tensor* x, int64_t stride, char* error, size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    if (suits(*x, stride)) return MaxPool::apply(*x);
    // The default of the dilation is one number, which a trace would keep: other programs want two.
    return at::max_pool2d(*x, {3, 3}, {stride, stride}, {1, 1}, {1, 1});
  });
}
