#!/usr/bin/env python3
"""Writes parity.txt: what the authors' own PyTorch code computes, for the test trainer/tests/parity.rs.

    git clone https://github.com/shirakawas/ASNG-NAS
    python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
    venv/bin/python trainer/tests/data/parity.py ASNG-NAS

Every parameter and image is filled by a formula that the Rust test repeats (`wave` below), in 64 bits, so the file holds
only results. Names are ours; `our_name` is the translation from theirs.
"""

import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch

checkout = Path(sys.argv[1])
sys.path.insert(0, str(checkout / "classification"))
# Their data loading, which is not used here, imports torchvision.
sys.modules["torchvision"] = types.ModuleType("torchvision")
sys.modules["torchvision.transforms"] = types.ModuleType("torchvision.transforms")

from classification.cnn_model_micro import MicroProbabilisticCNN  # noqa: E402
from classification.operations import ENASOpsServer  # noqa: E402

OPS = ["identity", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"]
SEP_CONV = {"1": "depthwise1", "2": "pointwise1", "3": "norm1", "5": "depthwise2", "6": "pointwise2", "7": "norm2"}
AUXILIARY = {"2": "conv1", "3": "norm1", "5": "conv2", "6": "norm2"}

# One line for each node: input1, input2, op1, op2; first the normal cell, then the reduction cell.
MIXED = """
0 1 3 1   1 2 4 0   0 0 2 3   2 1 0 4   4 0 3 2
0 1 0 3   1 0 4 0   2 3 1 2   0 1 2 1   1 5 0 3
"""
WIDE = """
0 1 0 3   1 1 4 2   0 0 1 0   0 1 3 4   1 0 2 3
0 1 0 0   1 0 0 4   0 2 0 0   1 4 0 0   0 1 3 2
"""
CHAIN = """
0 1 4 4   2 2 3 3   3 0 1 0   4 4 0 0   5 5 2 2
1 1 0 0   2 2 4 1   3 0 3 2   4 1 2 0   5 5 3 4
"""


def wave(name, k):
    """A number between -1 and 1 for entry k of the tensor of that name."""
    phase = 0
    for byte in name.encode():
        phase = (phase * 31 + byte) % 1000003
    return math.sin(0.37 * (k * k) + 0.001 * phase)


def waves(name, shape):
    count = math.prod(shape)
    return torch.tensor([wave(name, k) for k in range(count)], dtype=torch.float64).reshape(shape)


def start(name, shape):
    """Where a parameter starts: like an ordinary initialisation, but by formula."""
    if len(shape) >= 2:
        return waves(name, shape) * math.sqrt(3.0 / math.prod(shape[1:]))
    if name.endswith("weight"):
        return 1.0 + 0.1 * waves(name, shape)
    return 0.1 * waves(name, shape)


def our_name(theirs):
    rules = [
        (r"stem\.0\.(.*)", lambda m: f"stem.conv.{m[1]}"),
        (r"stem\.1\.(.*)", lambda m: f"stem.norm.{m[1]}"),
        (r"cell\.(\d+)\.preprocess(\d)\.op\.1\.(.*)", lambda m: f"cell{m[1]}.input{m[2]}.conv.{m[3]}"),
        (r"cell\.(\d+)\.preprocess(\d)\.op\.2\.(.*)", lambda m: f"cell{m[1]}.input{m[2]}.norm.{m[3]}"),
        (r"cell\.(\d+)\.preprocess1\.conv_(\d)\.(.*)", lambda m: f"cell{m[1]}.input1.conv{m[2]}.{m[3]}"),
        (r"cell\.(\d+)\.preprocess1\.bn\.(.*)", lambda m: f"cell{m[1]}.input1.norm.{m[2]}"),
        (
            r"cell\.(\d+)\.op\.(\d+)\.(\d+)\.(\d)\.op\.(\d)\.(.*)",
            lambda m: f"cell{m[1]}.node{m[2]}.from{m[3]}.{OPS[int(m[4])]}.{SEP_CONV[m[5]]}.{m[6]}",
        ),
        (
            r"cell\.(\d+)\.op\.(\d+)\.(\d+)\.0\.conv_(\d)\.(.*)",
            lambda m: f"cell{m[1]}.node{m[2]}.from{m[3]}.identity.conv{m[4]}.{m[5]}",
        ),
        (
            r"cell\.(\d+)\.op\.(\d+)\.(\d+)\.0\.bn\.(.*)",
            lambda m: f"cell{m[1]}.node{m[2]}.from{m[3]}.identity.norm.{m[4]}",
        ),
        (r"cell\.(\d+)\.conv\.W", lambda m: f"cell{m[1]}.output.conv.weight"),
        (r"cell\.(\d+)\.bn\.(.*)", lambda m: f"cell{m[1]}.output.norm.{m[2]}"),
        (r"classifier\.(.*)", lambda m: f"classifier.{m[1]}"),
        (r"auxiliary_network\.(\d)\.(.*)", lambda m: f"auxiliary.{AUXILIARY[m[1]]}.{m[2]}"),
        (r"auxiliary_classifier\.(.*)", lambda m: f"auxiliary.classifier.{m[1]}"),
    ]
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, theirs):
            return ours(match)
    raise KeyError(theirs)


def network(cells, channels, values, alone):
    """Their network, filled by formula, and the architecture as they represent it."""
    theta = np.zeros((40, 6))
    theta[np.arange(40), values] = 1.0
    net = MicroProbabilisticCNN(
        n_classes=10,
        channels_init=channels,
        n_cells=cells,
        affine=alone,
        ops_server=ENASOpsServer(affine=alone),
        trained_theta=theta,
    )
    if alone:
        net.fix_arc()
    net.double().train()
    with torch.no_grad():
        for theirs, parameter in net.named_parameters():
            parameter.copy_(start(our_name(theirs), parameter.shape))
    return net, theta


def summary(kind, name, tensor):
    """One line: the norm, and the projection on a wave, which tells the order of the entries. Not on the wave that the
    tensor was filled by: before a normalisation, a gradient is orthogonal to its weight."""
    tensor = tensor.detach()
    dot = (tensor * waves(f"{kind} {name}", tensor.shape)).sum().item()
    return f"{kind} {name} {tensor.norm().item():.15e} {dot:.15e}"


def case(kind, name, cells, channels, text):
    values = [int(word) for word in text.split()]
    batch = 4
    images = waves("images", (batch, 3, 32, 32))
    labels = torch.tensor([(3 * i + 1) % 10 for i in range(batch)])
    cross_entropy = torch.nn.CrossEntropyLoss()
    alone = kind == "alone"
    net, theta = network(cells, channels, values, alone)
    yield ""
    yield f"{kind} {name} cells {cells} channels {channels}"
    yield "values " + " ".join(map(str, values))
    if alone:
        yield f"parameters {sum(p.numel() for p in net.parameters())}"
        main, _, auxiliary = net(images, False)
        loss = cross_entropy(main, labels) + 0.4 * cross_entropy(auxiliary, labels)
    else:
        loss = cross_entropy(net.forward_as(theta, images), labels)
    yield f"loss {loss.item():.15e}"
    loss.backward()
    lines = []
    for theirs, parameter in net.named_parameters():
        if parameter.grad is not None:
            lines.append(summary("gradient", our_name(theirs), parameter.grad))
    yield from sorted(lines)
    if alone:
        lines = []
        for theirs, statistic in net.named_buffers():
            if "running" in theirs:
                lines.append(summary("statistic", our_name(theirs), statistic))
        yield from sorted(lines)
        net.eval()
        with torch.no_grad():
            yield f"evaluated {cross_entropy(net(images, False)[0], labels).item():.15e}"


def sgd():
    """torch.optim.SGD on three parameters of 2 x 3, of which some steps touch only some."""
    names = ["a", "b", "c"]
    parameters = {name: torch.nn.Parameter(waves(name, (2, 3))) for name in names}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, weight_decay=0.01)
    touched = ["ab", "b", "abc", "ac", "c"]
    yield ""
    yield "# torch.optim.SGD, momentum 0.9, weight decay 0.01, gradients clipped to norm 2; the gradient of step i of"
    yield "# parameter p is scale * wave(p + str(i)). Each step: the parameters with a gradient, lr, scale, norm; then all."
    for i, step in enumerate(touched):
        lr, scale = 0.1 / (i + 1), [0.5, 3.0, 1.0, 2.0, 4.0][i]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        for name in step:
            parameters[name].grad = scale * waves(f"{name}{i}", (2, 3))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 2.0).item()
        optimizer.step()
        yield f"step {step} {lr!r} {scale!r} {norm:.15e}"
        for name in names:
            yield f"moved {name} " + " ".join(f"{x:.15e}" for x in parameters[name].flatten().tolist())


def main():
    lines = [
        "# Written by parity.py from the authors' PyTorch code, in 64 bits. A case is a network (search: every operation,",
        "# no affine in the cells; alone: the architecture's own, affine, auxiliary loss times 0.4), its architecture's",
        "# values, its loss in training mode on a batch of 4, and for each parameter that has a gradient the gradient's norm",
        "# and its projection on a wave. `alone` also has the running statistics after that one pass, likewise,",
        "# and the loss then evaluated with them.",
    ]
    lines += case("search", "mixed", 8, 8, MIXED)
    lines += case("search", "wide", 5, 6, WIDE)
    lines += case("search", "chain", 6, 8, CHAIN)
    lines += case("alone", "mixed", 5, 6, MIXED)
    lines += case("alone", "chain", 6, 5, CHAIN)
    lines += sgd()
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


main()
