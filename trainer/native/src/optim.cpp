// Gradients in one flat tensor, and steps of optimisers along them: a few operations for all parameters together, where a loop
// over the parameters asks for ten for each. On a GPU most of a small network's step is the time to ask.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <unordered_set>
#include <vector>

#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/strides.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/functions/utils.h>

#include "border.h"

namespace {

using torch::autograd::Node;
using Tensors = std::vector<at::Tensor>;

// Keeps a division by a norm of zero finite (the constant of PyTorch's `clip_grad_norm_`).
constexpr double CLIP_EPSILON = 1e-6;

Tensors copied(const at::Tensor* const* tensors, size_t count) {
  Tensors copies;
  for (size_t i = 0; i < count; i++) copies.push_back(*tensors[i]);
  return copies;
}

// A part of a flat tensor, in a shape. `narrow` and `view` are four operations.
at::Tensor part(const at::Tensor& flat, int64_t offset, at::IntArrayRef sizes) {
  return at::native::as_strided_tensorimpl(flat, sizes, c10::contiguous_strides(sizes), offset);
}

Tensors parts(const at::Tensor& flat, const Tensors& shapes) {
  Tensors result;
  int64_t offset = 0;
  for (const at::Tensor& shape : shapes) {
    result.push_back(part(flat, offset, shape.sizes()));
    offset += shape.numel();
  }
  TORCH_CHECK(offset == flat.numel(), "gradients: ", flat.numel(), " numbers for parameters of ", offset);
  return result;
}

// ---- gradients --------------------------------------------------------------------------------------------------------

// The tensors that `loss` was computed from, and that want gradients.
std::unordered_set<const c10::TensorImpl*> leaves(const at::Tensor& loss) {
  std::unordered_set<const c10::TensorImpl*> leaves;
  std::unordered_set<const Node*> seen;
  std::vector<Node*> left{torch::autograd::impl::gradient_edge(loss).function.get()};
  while (!left.empty()) {
    Node* const node = left.back();
    left.pop_back();
    if (node == nullptr || !seen.insert(node).second) continue;
    if (const auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(node))
      leaves.insert(leaf->variable.unsafeGetTensorImpl());
    for (const auto& edge : node->next_edges()) left.push_back(edge.function.get());
  }
  return leaves;
}

at::Tensor gradients(const at::Tensor& loss, const at::Tensor* const* parameters, size_t count, bool* touched) {
  TORCH_CHECK(loss.requires_grad(), "gradients: the loss depends on no parameter");
  const auto behind_loss = leaves(loss);
  Tensors inputs;
  for (size_t i = 0; i < count; i++) {
    touched[i] = behind_loss.count(parameters[i]->unsafeGetTensorImpl()) > 0;
    if (touched[i]) inputs.push_back(*parameters[i]);
  }
  Tensors flat{at::empty({0}, loss.options().requires_grad(false))};
  if (!inputs.empty()) {
    const at::NoGradGuard guard;
    for (const at::Tensor& gradient : torch::autograd::grad({loss}, inputs)) {
      const at::Tensor dense = gradient.contiguous();
      flat.push_back(part(dense, dense.storage_offset(), {dense.numel()}));
    }
  }
  return at::cat(flat);
}

// ---- optimisers -------------------------------------------------------------------------------------------------------

struct Clipped {
  at::Tensor gradient, norm;
};

// A copy of the gradients with a norm of at most `limit` (0 does not clip), or all 0 if the norm is not finite: one step that
// diverges must not take the weights of all architectures with it. (PyTorch's `clip_grad_norm_` would spoil them.) Nothing is
// read off the device, which would wait for the whole backward pass. Millions of squares are summed in 64 bits.
Clipped clipped(const at::Tensor& flat, double limit) {
  const at::Tensor norm = at::linalg_vector_norm(flat, 2, std::nullopt, false, at::kDouble);
  // With an infinite norm it is 0, with one that is not a number 0 in the end.
  const at::Tensor factor = limit == 0
      ? norm.isfinite()
      : (norm + CLIP_EPSILON).reciprocal_().mul_(limit).clamp_max_(1).nan_to_num_(0);
  return {flat.nan_to_num(0, 0, 0).mul_(factor), norm};
}

}  // namespace

// Returns the gradients of `loss` with respect to those of the parameters that it depends on, one after the other; `touched` says
// which these are.
extern "C" at::Tensor* asng_native_gradients(
    const at::Tensor* loss, const at::Tensor* const* parameters, size_t count, bool* touched, char* error,
    size_t error_size) noexcept {
  return owned(error, error_size, [&] { return gradients(*loss, parameters, count, touched); });
}

// Returns the flat gradients of more parameters: zeros for those that are not here.
extern "C" at::Tensor* asng_native_spread(
    const at::Tensor* flat, const int64_t* lengths, const bool* here, size_t count, char* error,
    size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    const at::NoGradGuard guard;
    int64_t longest = 0, offset = 0;
    for (size_t i = 0; i < count; i++) longest = here[i] ? longest : std::max(longest, lengths[i]);
    const at::Tensor zeros = at::zeros({longest}, flat->options());
    Tensors all;
    for (size_t i = 0; i < count; i++) {
      all.push_back(here[i] ? part(*flat, offset, {lengths[i]}) : part(zeros, 0, {lengths[i]}));
      if (here[i]) offset += lengths[i];
    }
    TORCH_CHECK(offset == flat->numel(), "gradients: ", flat->numel(), " numbers for parameters of ", offset);
    return at::cat(all);
  });
}

// Returns the norm before clipping.
extern "C" at::Tensor* asng_native_sgd(
    const at::Tensor* flat, const at::Tensor* const* parameters, const at::Tensor* const* momenta, size_t count,
    double grad_clip, double learning_rate, double momentum, double weight_decay, char* error,
    size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    const at::NoGradGuard guard;
    const Tensors moved = copied(parameters, count);
    // It wants no buffers where there is no momentum.
    const Tensors buffers = copied(momenta, momentum == 0 ? 0 : count);
    const auto [gradient, norm] = clipped(*flat, grad_clip);
    const Tensors gradients = parts(gradient, moved);
    const bool nesterov = false, maximize = false, first = false;
    if (count > 0)
      at::_fused_sgd_(
          moved, gradients, buffers, weight_decay, momentum, learning_rate, /*dampening=*/0, nesterov, maximize, first);
    return norm;
  });
}

// Returns the norm before clipping. `steps` counts this step.
extern "C" at::Tensor* asng_native_adam(
    const at::Tensor* flat, const at::Tensor* const* parameters, const at::Tensor* const* first,
    const at::Tensor* const* second, size_t count, double grad_clip, double learning_rate, double beta1, double beta2,
    double epsilon, double steps, char* error, size_t error_size) noexcept {
  return owned(error, error_size, [&] {
    const at::NoGradGuard guard;
    const Tensors moved = copied(parameters, count);
    const auto [gradient, norm] = clipped(*flat, grad_clip);
    const Tensors gradients = parts(gradient, moved);
    const Tensors all_steps(count, at::full({}, steps, flat->options().dtype(at::kFloat)));
    const bool amsgrad = false, maximize = false;
    if (count > 0)
      at::_fused_adam_(
          moved, gradients, copied(first, count), copied(second, count), /*max_exp_avg_sqs=*/{}, all_steps,
          learning_rate, beta1, beta2, /*weight_decay=*/0, epsilon, amsgrad, maximize);
    return norm;
  });
}
