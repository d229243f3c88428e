"""One-shot search of a convolutional network on Fashion-MNIST: operations, depths and widths, within a budget of parameters.

    pip install asng asng-controller torch
    asng-trainer data fetch fashion-mnist     # or any directory with the data set's four idx files, gzipped
    python fashion_mnist.py --data data/fashion-mnist

Run again after it was killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

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
            "separable5": nn.Sequential(conv(width, width, 5, groups=width), conv(width, width, 1)),
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

    def __init__(self) -> None:
        super().__init__()
        width = Width("width", [8, 16, 24])
        stages: list[nn.Module] = []
        inputs = 1
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
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))


def fashion_mnist(directory: Path, part: str) -> TensorDataset:
    """The images of "train" or "t10k" as bytes, and their labels."""

    def read(file: str, header: int) -> Tensor:
        content = gzip.decompress((directory / f"{part}-{file}-ubyte.gz").read_bytes())
        return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)

    images = read("images-idx3", 16).view(-1, 1, 28, 28)
    return TensorDataset(images, read("labels-idx1", 8).long())


def minibatch(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images from -1 to 1, and their labels."""
    images, labels = (torch.stack(part) for part in zip(*examples, strict=True))
    return images.float() / 127.5 - 1, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--work", type=Path, default=Path("fashion-mnist"), help="what is kept")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=float, default=100_000, help="most parameters")
    parser.add_argument("--onnx", type=Path, help="write the result as an ONNX file")
    options = parser.parse_args()

    torch.manual_seed(0)
    # One half of the images trains the weights, the other half ranks the architectures.
    images = fashion_mnist(options.data, "train")
    halves = random_split(images, [len(images) // 2, len(images) - len(images) // 2])
    train, valid = (
        DataLoader(half, options.batch, shuffle=True, collate_fn=minibatch, drop_last=True)
        for half in halves
    )
    with asng.local(options.work / "controller") as controller:
        limits = {"parameters": options.limit}
        search = Search(controller, "fashion-mnist", Net(), max_steps=options.steps, limits=limits)
        checkpoint = options.work / "checkpoint"
        result = search.run(train, valid, loss=F.cross_entropy, checkpoint=checkpoint)
    print(result)

    model = result.model().cpu()
    test = DataLoader(fashion_mnist(options.data, "t10k"), 1000, collate_fn=minibatch)
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in test])
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, test accuracy {hits.float().mean():.3f}")
    torch.save(model.state_dict(), options.work / "model.pt")
    if options.onnx:
        result.export_onnx(options.onnx, next(iter(test))[0])


if __name__ == "__main__":
    main()
