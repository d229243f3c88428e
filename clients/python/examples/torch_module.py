"""One-shot search of a small convolutional network on CIFAR-10: operations, depths and widths.

    asng-trainer data fetch cifar10     # or any directory with CIFAR-10's data_batch_1.bin to data_batch_5.bin
    python clients/python/examples/torch_module.py --data data/cifar-10-batches-bin

Started again after it was killed, it goes on where it was, and ends as if nothing had happened.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import asng
from asng.torch import Choice, Repeat, Search, Width


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution with batch normalisation and ReLU."""
    padding = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Block(nn.Module):
    """A residual block that chooses its operation."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        options = {
            "conv3": conv(width, width, 3),
            "conv5": nn.Sequential(conv(width, width, 5, groups=width), conv(width, width, 1)),
            "bottleneck": nn.Sequential(
                conv(width, width // 2, 1),
                conv(width // 2, width // 2, 3),
                conv(width // 2, width, 1),
            ),
            "pool": nn.MaxPool2d(3, 1, 1),
        }
        self.operation = Choice(name, options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.operation(x)


class Net(nn.Module):
    """Three stages of one to three blocks, each of half the image's size and twice the width of the one before."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        width = Width("width", [8, 16, 24])
        stages: list[nn.Module] = []
        inputs = 3
        for stage in range(3):
            outputs = width * 2**stage

            def block(i: int, stage: int = stage, outputs: int = outputs) -> nn.Module:
                return Block(f"stage{stage}.block{i}", outputs)

            stages += [
                conv(inputs, outputs, 3, stride=2),
                Repeat(f"stage{stage}.depth", block, 1, 3),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))


def cifar10(directory: Path) -> TensorDataset:
    """The training images, from -1 to 1, and their labels."""
    files = [directory / f"data_batch_{i}.bin" for i in range(1, 6)]
    rows = torch.cat(
        [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
    ).view(-1, 3073)
    return TensorDataset(rows[:, 1:].view(-1, 3, 32, 32), rows[:, 0].long())


def minibatch(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images mirrored at random, and their labels."""
    images, labels = (torch.stack(part) for part in zip(*examples, strict=True))
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    return mirrored.float() / 127.5 - 1, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    parser.add_argument("--study", default="torch-module")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=float, default=150_000, help="most parameters")
    parser.add_argument("--checkpoint", type=Path, default=Path("torch-module"))
    options = parser.parse_args()

    torch.manual_seed(0)
    # One half of the images trains the weights, the other half ranks the architectures.
    images = cifar10(options.data)
    halves = torch.utils.data.random_split(
        images, [len(images) // 2, len(images) - len(images) // 2]
    )
    train, valid = (
        DataLoader(half, options.batch, shuffle=True, collate_fn=minibatch, drop_last=True)
        for half in halves
    )
    with asng.connect() as controller:
        limits = {"parameters": options.limit}
        search = Search(controller, options.study, Net(), max_steps=options.steps, limits=limits)
        result = search.run(train, valid, loss=F.cross_entropy, checkpoint=options.checkpoint)
    print(result)
    model = result.model().cpu()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in islice(valid, 20)]
    accuracy = torch.stack(hits).mean()
    print(f"{sum(p.numel() for p in model.parameters())} parameters, accuracy {accuracy:.2f}")
    torch.save(model.state_dict(), options.checkpoint / "model.pt")


if __name__ == "__main__":
    main()
