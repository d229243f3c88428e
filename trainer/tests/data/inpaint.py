#!/usr/bin/env python3
"""Writes inpaint.txt: what the authors' own PyTorch code computes, for the test trainer/tests/inpaint.rs.

    git clone https://github.com/shirakawas/ASNG-NAS
    python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
    venv/bin/python trainer/tests/data/inpaint.py ASNG-NAS

Every parameter and image is filled by a formula that the Rust test repeats (`wave` below), in 64 bits, so the file holds
only results. Names are ours; `our_name` is the translation from theirs.
"""

import math
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(sys.argv[1]) / "inpainting"))
# What their code takes from a numpy of 2018.
np.int = int
array_sum = np.sum
np.sum = lambda x, **options: sum(x) if isinstance(x, types.GeneratorType) else array_sum(x, **options)

from inpainting_cat.cae_model import ProbablisticCAE as Categorical  # noqa: E402
from inpainting_int.cae_model import ProbablisticCAE as Integer  # noqa: E402

NODES, LEVEL_BACK = 20, 5
# Their smallest and largest number of channels; the paper's are 64 and 256.
LOW, HIGH = 2, 8

CAT_MODULES = [f"conv_{k}x{k}_{kind}" for k in (1, 3, 5) for kind in ("skip", "down")]
INT_MODULES = [f"conv_{k}x{k}_{kind}" for kind in ("down", "skip") for k in (1, 3, 5)]


def wave(name, k):
    """A number between -1 and 1 for entry k of the tensor of that name."""
    phase = 0
    for byte in name.encode():
        phase = (phase * 31 + byte) % 1000003
    return math.sin(0.37 * (k * k) + 0.001 * phase)


def waves(name, shape):
    count = math.prod(shape)
    return torch.tensor([wave(name, k) for k in range(count)], dtype=torch.float64).reshape(shape)


def our_name(theirs, modules):
    index, of_mirror = int(theirs.split(".")[1]), NODES * len(modules)
    if index == 2 * of_mirror:
        return "output.weight"
    what, index = ("mirror", index - of_mirror) if index >= of_mirror else ("conv", index)
    return f"node{index // len(modules)}.{modules[index % len(modules)]}.{what}.weight"


def summary(kind, name, tensor):
    """One line: the norm, and the projection on a wave, which tells the order of the entries."""
    tensor = tensor.detach()
    dot = (tensor * waves(f"{kind} {name}", tensor.shape)).sum().item()
    return f"{kind} {name} {tensor.norm().item():.15e} {dot:.15e}"


def inputs(node):
    return LEVEL_BACK if node >= LEVEL_BACK else node + 1


def categorical(random):
    """An architecture in our order, and as a function that builds theirs."""
    values = []
    for node in range(NODES):
        values += [random.randint(6), random.randint(3), random.randint(inputs(node))]
    values += [0, 0, random.randint(inputs(NODES))]

    def build(alone):
        one_hot = np.zeros((63, 6))
        one_hot[np.arange(63), values] = 1.0
        channels = (LOW, 2 * LOW, HIGH)
        net = Categorical(col_size=NODES, level_back=LEVEL_BACK, ch_nums=channels, M=one_hot if alone else None)
        return net, lambda x: net.forward_as(one_hot, x)

    return values, CAT_MODULES, build


def integer(random):
    values, theirs, integers = [], [], []
    for node in range(NODES):
        kernel, skip = 1 + random.randint(3), random.randint(2)
        channels, source = LOW + random.randint(HIGH - LOW + 1), random.randint(inputs(node))
        values += [kernel, skip, channels, source]
        theirs += [skip, source]
        integers += [kernel, channels]
    values.append(random.randint(inputs(NODES)))
    theirs.append(values[-1])

    def build(alone):
        one_hot = np.zeros((41, 5))
        one_hot[np.arange(41), theirs] = 1.0
        c = (one_hot, np.array(integers)) if alone else None
        net = Integer(col_size=NODES, level_back=LEVEL_BACK, ch_range=(LOW, HIGH), c=c)
        return net, lambda x: net.forward(one_hot, np.array(integers), x)

    return values, INT_MODULES, build


def case(kind, draw, seed, side):
    values, modules, build = draw(np.random.RandomState(seed))
    alone = kind == "alone"
    net, forward = build(alone)
    net.double().train()
    with torch.no_grad():
        for theirs, parameter in net.named_parameters():
            name, shape = our_name(theirs, modules), parameter.shape
            parameter.copy_(waves(name, shape) * math.sqrt(3.0 / math.prod(shape[1:])))
    images = 0.5 + 0.5 * waves("images", (2, 3, side, side))
    mask = (waves("mask", (2, 1, side, side)) > 0).double()
    loss = torch.nn.MSELoss()(forward(images * mask), images)
    yield ""
    yield f"{kind} {'inpaint-cat' if draw is categorical else 'inpaint-int'} side {side}"
    yield "values " + " ".join(map(str, values))
    if alone:
        yield f"parameters {sum(p.numel() for p in net.parameters())}"
    yield f"loss {loss.item():.15e}"
    loss.backward()
    lines = []
    for theirs, parameter in net.named_parameters():
        if parameter.grad is not None:
            lines.append(summary("gradient", our_name(theirs, modules), parameter.grad))
    yield from sorted(lines)


def adam():
    """torch.optim.Adam on two parameters of 2 x 3."""
    parameters = {name: torch.nn.Parameter(waves(name, (2, 3))) for name in ["a", "b"]}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.1, betas=(0.9, 0.999))
    yield ""
    yield "# torch.optim.Adam, gradients clipped to norm 2; the gradient of step i of parameter p is scale * wave(p + str(i))."
    yield "# Each step: lr, scale, norm; then all parameters."
    for i, scale in enumerate([0.5, 3.0, 1e-3, 2.0]):
        lr = 0.1 / (i + 1)
        optimizer.param_groups[0]["lr"] = lr
        for name, parameter in parameters.items():
            parameter.grad = scale * waves(f"{name}{i}", (2, 3))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 2.0).item()
        optimizer.step()
        yield f"step {lr!r} {scale!r} {norm:.15e}"
        for name, parameter in parameters.items():
            yield f"moved {name} " + " ".join(f"{x:.15e}" for x in parameter.flatten().tolist())


def main():
    lines = [
        "# Written by inpaint.py from the authors' PyTorch code, in 64 bits. A case is a network of 20 nodes, level-back 5 and",
        "# 2 to 8 channels (search: every module of every node; alone: the architecture's own), its architecture's values, its",
        "# loss on a batch of 2 masked images, and for each parameter that has a gradient the gradient's norm and its projection",
        "# on a wave.",
    ]
    lines += case("search", categorical, 1, 16)
    lines += case("search", categorical, 2, 8)
    lines += case("search", integer, 3, 16)
    lines += case("search", integer, 4, 2)
    lines += case("alone", categorical, 5, 64)
    lines += case("alone", integer, 6, 64)
    lines += adam()
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


main()
