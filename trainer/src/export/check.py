"""Checks exported networks with other programs: check.py onnx|torch DIRECTORY..., for the tests of export.

Beside the exported files, a directory has the safetensors file `cases`: images1 and output1, the network's output for one image,
images7 and output7.
"""

import json
import os
import struct
import sys

import numpy


def tensors(file):
    """Returns the tensors of a safetensors file, all of 32-bit floats, by name."""
    data = open(file, "rb").read()
    size = 8 + struct.unpack("<Q", data[:8])[0]
    read = {}
    for name, entry in json.loads(data[8:size]).items():
        first, last = entry["data_offsets"]
        read[name] = numpy.frombuffer(data[size + first : size + last], "<f4").reshape(entry["shape"])
    return read


def compare(output, expected):
    assert output.shape == expected.shape, (output.shape, expected.shape)
    difference = abs(output - expected).max()
    assert difference <= 1e-4 * max(1, abs(expected).max()), difference


def check_onnx(cases, weights):
    import onnx
    import onnxruntime

    model = onnx.load("network.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [17]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, 16, 16]
    operators.update(node.op_type for node in model.graph.node)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {name for name in names if not name.startswith("constant")} == set(weights)
    session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
    network = json.load(open("network.json"))
    for count in "1", "7":
        images = {network["input"]["name"]: cases["images" + count]}
        [output] = session.run([network["output"]["name"]], images)
        compare(output, cases["output" + count])


def check_torch(cases, weights):
    import torch

    network = torch.jit.load("network.pt")
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    assert set(parameters) | set(buffers) == set(weights)
    constants = ("running_mean", "running_var", "normalisation.mean", "normalisation.std")
    assert all(name.endswith(constants) for name in buffers)
    for count in "1", "7":
        images, output = (torch.tensor(cases[name + count]) for name in ("images", "output"))
        compare(network(images).detach().numpy(), output.numpy())
    converted = torch.jit.load("network.pt").eval().double()(images.double())
    assert converted.dtype == torch.float64
    compare(converted.detach().numpy(), output.numpy())

    optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0], losses


# All that onnx.rs can write.
OPERATORS = """
Add AveragePool BatchNormalization Clip Concat ConstantOfShape Conv ConvTranspose Div Expand Gemm HardSwish Identity MaxPool Mul Pad
ReduceMean Relu Reshape Shape Sigmoid Slice Sub Transpose
"""
operators = set()
check = {"onnx": check_onnx, "torch": check_torch}[sys.argv[1]]
for directory in sys.argv[2:]:
    os.chdir(directory)
    check(tensors("cases"), tensors("weights.safetensors"))
assert check is check_torch or operators == set(OPERATORS.split()), operators
