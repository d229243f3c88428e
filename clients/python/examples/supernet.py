"""A supernet with shared weights in PyTorch, searched on CIFAR-10: each step trains its weights on one half of the images with
the `train` architectures, and measures the `rank` architectures on a minibatch of the other half.

    cargo xtask setup cifar10     # or any directory with CIFAR-10's data_batch_1.bin to data_batch_5.bin
    python clients/python/examples/supernet.py --data data/cifar-10-batches-bin
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import asng

LAYERS = 6
SPACE = asng.Space(
    **{f"layer{i}": asng.Categorical(["conv3", "conv5", "pool", "skip"]) for i in range(LAYERS)}
)


class Supernet(nn.Module):
    """Every choice of every layer, with weights of its own; an architecture uses one of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def conv(kernel: int) -> nn.Module:
            depthwise = nn.Conv2d(
                channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
            )
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            # Batch statistics also when measuring: running ones would mix those of all architectures.
            return nn.Sequential(
                nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, track_running_stats=False)
            )

        def layer() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "conv3": conv(3),
                    "conv5": conv(5),
                    "pool": nn.AvgPool2d(3, 1, 1),
                    "skip": nn.Identity(),
                }
            )

        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor, arch: asng.Architecture) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            chosen = layer[arch[f"layer{i}"]](x)
            x = chosen if arch[f"layer{i}"] == "skip" else x + chosen
            if i == LAYERS // 2 - 1:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


def cifar10(directory: Path) -> tuple[Tensor, Tensor]:
    """The training images, as bytes, and their labels."""
    files = [directory / f"data_batch_{i}.bin" for i in range(1, 6)]
    rows = torch.cat(
        [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
    ).view(-1, 3073)
    return rows[:, 1:].view(-1, 3, 32, 32), rows[:, 0].long()


def minibatch(images: Tensor, labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Follows from the step's number alone, so that a step that is done again sees the same images."""
    chosen = torch.randint(len(labels), (size,), generator=torch.Generator().manual_seed(seed))
    return images[chosen].float() / 127.5 - 1, labels[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    parser.add_argument("--study", default="supernet")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16)
    options = parser.parse_args()

    images, labels = cifar10(options.data)
    half = len(labels) // 2
    torch.manual_seed(0)
    net = Supernet(options.channels)
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)

    with asng.connect() as controller:
        study = controller.create_study(options.study, SPACE, max_steps=options.steps)
        for step in study.steps():
            sgd.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step.progress))
            sgd.zero_grad()
            x, y = minibatch(images[:half], labels[:half], options.batch, seed=2 * step.id)
            train_loss = 0.0
            for arch in step.train:
                loss = F.cross_entropy(net(x, arch), y) / len(step.train)
                loss.backward()
                train_loss += loss.item()
            nn.utils.clip_grad_norm_(net.parameters(), 5)
            sgd.step()
            x, y = minibatch(images[half:], labels[half:], options.batch, seed=2 * step.id + 1)
            with torch.no_grad():
                losses = [F.cross_entropy(net(x, arch), y) for arch in step.rank]
            step.report(losses, {"train_loss": train_loss})
        print(study.best())


if __name__ == "__main__":
    main()
