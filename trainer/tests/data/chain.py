#!/usr/bin/env python3
"""Writes chain.txt: what timm computes for networks of the family chain, for the test trainer/tests/chain.rs.

    python3 -m venv venv && venv/bin/pip install torch==1.13.1 torchvision==0.14.1 timm==0.9.16 'numpy<2'
    venv/bin/python trainer/tests/data/chain.py

Two parts: parameters and multiplications of published networks, and losses and gradients of a small network with every kind
of block, in 64 bits. Every parameter and image of the latter is filled by a formula that the Rust test repeats (`wave` below).
"""

import math
import re
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet

PUBLISHED = ["mobilenetv2_100", "semnasnet_100", "efficientnet_b0", "tf_efficientnetv2_s", "mobilenetv2_050"]

# Row, and the name of its operation in the trainer.
ROWS = [
    ("ds_r1_k3_s1_e1_c16_se0.25", "ds_k3_se0_25"),
    ("ir_r2_k5_s2_e3_c24_se0.25", "mbconv_k5_e3_se0_25"),
    ("er_r1_k3_s1_e2_c24_se0.5", "fused_k3_e2_se0_5"),
    ("cn_r1_k3_s2_e1_c32_nhs", "conv_k3"),
    ("ir_r2_k7_s1_e2.3_c32_noskip_nre", "mbconv_k7_e2_3"),
    ("ir_r1_k3_s2_e6_c40_nr6", "mbconv_k3_e6"),
]
BATCH, SIDE, CLASSES = 3, 17, 5

LAYERS = {
    "InvertedResidual": {"conv_pw": "expand", "bn1": "expand.norm", "conv_dw": "depthwise", "bn2": "depthwise.norm",
                         "conv_pwl": "project", "bn3": "project.norm"},
    "DepthwiseSeparableConv": {"conv_dw": "depthwise", "bn1": "depthwise.norm", "conv_pw": "project", "bn2": "project.norm"},
    "EdgeResidual": {"conv_exp": "expand", "bn1": "expand.norm", "conv_pwl": "project", "bn2": "project.norm"},
    "ConvBnAct": {"conv": "conv", "bn1": "conv.norm"},
}
SQUEEZE_EXCITE = {"se.conv_reduce": "squeeze_excite.reduce", "se.conv_expand": "squeeze_excite.expand"}
ENDS = {"conv_stem": "stem", "bn1": "stem.norm", "conv_head": "head", "bn2": "head.norm", "classifier": "classifier"}


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


def our_name(network, name):
    layer, _, tensor = name.rpartition(".")
    if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.*)", layer):
        stage, block, layer = match.groups()
        names = LAYERS[type(network.blocks[int(stage)][int(block)]).__name__] | SQUEEZE_EXCITE
        return f"stage{stage}.block{block}.{ROWS[int(stage)][1]}.{names[layer]}.{tensor}"
    return f"{ENDS[layer]}.{tensor}"


def macs(network, side):
    total = 0

    def count(module, _, output):
        nonlocal total
        total += module.weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    return total


def parity():
    network = EfficientNet(
        decode_arch_def([[row] for row, _ in ROWS]),
        num_classes=CLASSES,
        num_features=48,
        stem_size=16,
        act_layer=torch.nn.SiLU,
        round_chs_fn=partial(round_channels, multiplier=1.0),
    ).double()
    shapes = {}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            ours = our_name(network, name)
            # The trainer computes squeeze-and-excitation by linear layers.
            shape = [size for k, size in enumerate(parameter.shape) if k < 2 or "squeeze_excite" not in ours]
            shapes[name] = shape
            parameter.copy_(start(ours, shape).reshape(parameter.shape))
    images = waves("images", (BATCH, 3, SIDE, SIDE))
    labels = torch.arange(BATCH) % CLASSES
    yield f"parameters {sum(p.numel() for p in network.parameters())}"
    loss = torch.nn.functional.cross_entropy(network.train()(images), labels)
    loss.backward()
    yield f"loss {loss.item()!r}"
    with torch.no_grad():
        evaluated = torch.nn.functional.cross_entropy(network.eval()(images), labels)
    yield f"evaluated {evaluated.item()!r}"
    for name, parameter in network.named_parameters():
        ours = our_name(network, name)
        gradient = parameter.grad.reshape(shapes[name])
        dot = (gradient * waves(f"gradient {ours}", shapes[name])).sum()
        yield f"gradient {ours} {gradient.norm().item()!r} {dot.item()!r}"


def main():
    lines = [f"# Written by chain.py with timm {timm.__version__}, PyTorch {torch.__version__}.", "# network, parameters, MACs at 224x224"]
    for name in PUBLISHED:
        network = timm.create_model(name)
        lines.append(f"published {name} {sum(p.numel() for p in network.parameters())} {macs(network, 224)}")
    lines += ["# norm of each gradient, and its product with a wave", *parity()]
    Path(__file__).with_name("chain.txt").write_text("\n".join(lines) + "\n")


main()
