// TorchScript of a traced function whose weights are parameters and buffers of the module. tch traces them as constants.

#include <iomanip>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>

namespace {

using namespace torch::jit;

// Makes a tensor with the name "stem.conv.weight" the attribute `weight` of the submodule `conv` of the submodule `stem`.
void add(Module module, const std::string& name, const at::Tensor& tensor, bool parameter) {
  size_t begin = 0, dot;
  for (; (dot = name.find('.', begin)) != std::string::npos; begin = dot + 1) {
    const auto child = name.substr(begin, dot - begin);
    if (!module.hasattr(child)) {
      const auto unit = module._ivalue()->compilation_unit();
      Module made("__torch__.Part", unit, /*shouldMangle=*/true);
      made.register_attribute("training", c10::BoolType::get(), false);
      module.register_module(child, made);
    }
    module = module.attr(child).toModule();
  }
  module.register_parameter(name.substr(begin), tensor, /*is_buffer=*/!parameter);
}

// An input of a node as JSON: a number, a list, null, or a string: the name of a weight or the number of a value.
std::string json(const Value* value) {
  const Node* node = value->node();
  if (node->kind() == c10::prim::GetAttr) {
    std::string name = node->s(c10::attr::name);
    while ((node = node->input()->node())->kind() == c10::prim::GetAttr)
      name = node->s(c10::attr::name) + '.' + name;
    return '"' + name + '"';
  }
  if (node->kind() == c10::prim::ListConstruct) {
    std::string list;
    for (const Value* item : node->inputs()) list += (list.empty() ? "" : ",") + json(item);
    return '[' + list + ']';
  }
  const auto constant = toIValue(value);
  if (!constant) return '"' + std::to_string(value->unique()) + '"';
  if (constant->isNone()) return "null";
  if (constant->isBool()) return constant->toBool() ? "true" : "false";
  if (constant->isInt()) return std::to_string(constant->toInt());
  if (!constant->isDouble())
    throw std::runtime_error("the network has a constant that is neither a parameter nor a buffer: " + constant->tagKind());
  std::ostringstream number;
  number << std::setprecision(17) << constant->toDouble();
  return number.str();
}

// The nodes in order, each with one output, and the number of the value that is returned.
std::string json(const Graph& graph) {
  std::string nodes;
  for (const Node* node : graph.nodes()) {
    if (!node->kind().is_aten()) continue;
    std::string inputs, shape;
    for (const Value* input : node->inputs()) inputs += (inputs.empty() ? "" : ",") + json(input);
    const auto sizes = node->output()->type()->expectRef<TensorType>().sizes().concrete_sizes().value();
    for (const int64_t size : sizes) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    nodes += (nodes.empty() ? "" : ",") + std::string("{\"op\":\"") + node->kind().toUnqualString() +
             "\",\"inputs\":[" + inputs + "],\"output\":" + json(node->output()) + ",\"shape\":[" + shape + "]}";
  }
  const Value* input = graph.inputs().at(1);
  return "{\"input\":" + json(input) + ",\"nodes\":[" + nodes + "],\"output\":" + json(graph.outputs().at(0)) + "}";
}

}  // namespace

// Traces `forward` on `images`, writes the module to `file`, and gives its graph to `text`; or an error's message, and returns
// false. `forward` returns a tensor for the caller to own, or null after a failure.
extern "C" bool asng_native_trace(const char* const* names, const at::Tensor* const* tensors, size_t parameters, size_t count,
                                  const at::Tensor* images, at::Tensor* (*forward)(void*, at::Tensor*), void* function,
                                  const char* file, void (*write)(void*, const char*), void* text) noexcept {
  try {
    Module module("__torch__.Network");
    module.register_attribute("training", c10::BoolType::get(), false);
    for (size_t i = 0; i < count; i++) add(module, names[i], *tensors[i], i < parameters);
    const auto traced = tracer::trace(
        {*images},
        [&](const Stack& inputs) -> Stack {
          const std::unique_ptr<at::Tensor> output(forward(function, new at::Tensor(inputs.at(0).toTensor())));
          if (!output) throw std::runtime_error("the function that is traced failed");
          return {*output};
        },
        [](const at::Tensor&) { return std::string(); }, /*strict=*/true, /*force_outplace=*/true, &module, {"images"});
    const auto& graph = traced.first->graph;
    module.type()->addMethod(module._ivalue()->compilation_unit()->create_function("forward", graph));
    module.save(file);
    write(text, json(*graph).c_str());
    return true;
  } catch (const std::exception& error) {
    write(text, error.what());
    return false;
  }
}
