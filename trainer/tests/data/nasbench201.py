#!/usr/bin/env python3
"""Writes nasbench201.txt: what a plain PyTorch network of NAS-Bench-201's cells computes, for trainer/tests/parity.rs.

    python3 trainer/tests/data/nasbench201.py      # PyTorch 1.13 or later

The network follows the paper (Dong and Yang, ICLR 2020, section 2 and figure 1) and is ordinary nn.Modules. Parameters and images
are filled by parity.py's formula, `wave`, in 64 bits. Modules have the names that our parameters have.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

OPERATIONS = ["none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3"]
EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]

MIXED = [3, 1, 2, 4, 0, 3]
CONVOLUTIONS = [2, 3, 3, 2, 3, 2]
SPARSE = [1, 0, 0, 3, 2, 0]


def waves(name, shape):
    """A number between -1 and 1 for each entry of the tensor of that name."""
    phase = 0
    for byte in name.encode():
        phase = (phase * 31 + byte) % 1000003
    values = [math.sin(0.37 * (k * k) + 0.001 * phase) for k in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def start(name, shape):
    """Where a parameter starts: like an ordinary initialisation, but by formula."""
    if len(shape) >= 2:
        return waves(name, shape) * math.sqrt(3.0 / math.prod(shape[1:]))
    if name.endswith("weight"):
        return 1.0 + 0.1 * waves(name, shape)
    return 0.1 * waves(name, shape)


class ReluConvNorm(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, alone):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=alone, track_running_stats=alone)

    def forward(self, x):
        return self.norm(self.conv(F.relu(x)))


class Zero(nn.Module):
    """Zeros that no gradient passes through."""

    def forward(self, x):
        return torch.zeros_like(x)


def operation(name, channels, alone):
    if name == "none":
        return Zero()
    if name == "skip":
        return nn.Identity()
    if name == "conv_1x1":
        return ReluConvNorm(channels, channels, 1, 1, alone)
    if name == "conv_3x3":
        return ReluConvNorm(channels, channels, 3, 1, alone)
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class Cell(nn.Module):
    """A directed acyclic graph of four nodes. Node 0 is the input, node 3 the output; a node sums its edges."""

    def __init__(self, channels, choices, alone):
        super().__init__()
        self.choices = choices
        for source, target in EDGES:
            node = f"node{target}"
            if not hasattr(self, node):
                self.add_module(node, nn.Module())
            edge = nn.Module()
            names = [OPERATIONS[choices[EDGES.index((source, target))]]] if alone else OPERATIONS
            for name in names:
                edge.add_module(name, operation(name, channels, alone))
            getattr(self, node).add_module(f"from{source}", edge)

    def forward(self, x):
        values = [x]
        for target in (1, 2, 3):
            terms = []
            for (source, end), choice in zip(EDGES, self.choices):
                if end == target:
                    edge = getattr(getattr(self, f"node{target}"), f"from{source}")
                    terms.append(getattr(edge, OPERATIONS[choice])(values[source]))
            values.append(sum(terms))
        return values[3]


class Residual(nn.Module):
    """A basic residual block with stride 2; its shortcut is 2x2 average pooling and a 1x1 convolution."""

    def __init__(self, inputs, outputs, alone):
        super().__init__()
        self.conv1 = ReluConvNorm(inputs, outputs, 3, 2, alone)
        self.conv2 = ReluConvNorm(outputs, outputs, 3, 1, alone)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return self.shortcut(F.avg_pool2d(x, 2)) + self.conv2(self.conv1(x))


class Network(nn.Module):
    """Three stages of cells at full, half and quarter resolution with residual blocks between them."""

    def __init__(self, channels, cells_of_a_stage, choices, alone):
        super().__init__()
        self.stem = nn.Module()
        self.stem.add_module("conv", nn.Conv2d(3, channels, 3, padding=1, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(channels, track_running_stats=alone))
        self.cells = []
        for stage in range(3):
            if stage > 0:
                self.cells.append(Residual(channels, 2 * channels, alone))
                channels *= 2
            self.cells += [Cell(channels, choices, alone) for _ in range(cells_of_a_stage)]
        for index, cell in enumerate(self.cells):
            self.add_module(f"cell{index}", cell)
        self.final_norm = nn.BatchNorm2d(channels, track_running_stats=alone)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, images):
        x = self.stem.norm(self.stem.conv(images))
        for cell in self.cells:
            x = cell(x)
        return self.classifier(F.relu(self.final_norm(x)).mean(dim=(2, 3)))


def summary(kind, name, tensor):
    """One line: the norm, and the projection on a wave, which tells the order of the entries."""
    tensor = tensor.detach()
    dot = (tensor * waves(f"{kind} {name}", tensor.shape)).sum().item()
    return f"{kind} {name} {tensor.norm().item():.15e} {dot:.15e}"


def case(kind, title, cells_of_a_stage, channels, choices):
    alone = kind == "alone"
    net = Network(channels, cells_of_a_stage, choices, alone).double().train()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(start(name, parameter.shape))
    images = waves("images", (4, 3, 32, 32))
    labels = torch.tensor([(3 * i + 1) % 10 for i in range(4)])
    yield ""
    yield f"{kind} {title} cells {3 * cells_of_a_stage + 2} channels {channels}"
    yield "values " + " ".join(map(str, choices))
    if alone:
        yield f"parameters {sum(p.numel() for p in net.parameters())}"
    loss = F.cross_entropy(net(images), labels)
    yield f"loss {loss.item():.15e}"
    loss.backward()
    touched = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    yield from sorted(summary("gradient", name, gradient) for name, gradient in touched.items())
    if alone:
        statistics = {name: buffer for name, buffer in net.named_buffers() if "running" in name}
        yield from sorted(summary("statistic", name, statistic) for name, statistic in statistics.items())
        net.eval()
        with torch.no_grad():
            yield f"evaluated {F.cross_entropy(net(images), labels).item():.15e}"


def main():
    lines = ["# Written by nasbench201.py, in 64 bits. The format is that of parity.txt."]
    lines += case("search", "mixed", 1, 8, MIXED)
    lines += case("search", "sparse", 2, 6, SPARSE)
    lines += case("alone", "mixed", 1, 6, MIXED)
    lines += case("alone", "convolutions", 2, 4, CONVOLUTIONS)
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


main()
