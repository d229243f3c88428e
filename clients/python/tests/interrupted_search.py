"""A small search with everything that has a state, for tests that interrupt it: `interrupted_search.py ADDRESS NAME DIR WHERE MINUTES WORKERS`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import asng
from asng.torch import Choice, Repeat, Report, Result, Search, Width

STEPS = 16


class Net(nn.Module):
    """A searched network with dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        width = Width("width", [4, 6, 8])
        self.stem = nn.Linear(5, width)
        options = {
            "narrow": nn.Linear(width, width),
            "skip": nn.Identity(),
            "drop": nn.Dropout(0.3),
        }
        self.op = Choice("op", options)
        self.blocks = Repeat(
            "depth", lambda i: nn.Sequential(nn.Linear(width, width), nn.ReLU()), 0, 3
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.op(self.stem(x)))))


def data(workers: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    """30 examples, a third of each class, in minibatches of 8, 8, 8 and 6, shuffled with the global generator."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(30) % 3
    x = torch.randn(30, 5, generator=generator) + F.one_hot(y, 5)
    return DataLoader(TensorDataset(x, y), 8, shuffle=True, num_workers=workers)


def search(
    address: str,
    name: str,
    directory: Path | None,
    where: str = "",
    minutes: float = 10,
    workers: int = 0,
    callbacks: Sequence[Callable[[Report], object]] = (),
) -> tuple[Search, Result]:
    """Searches to the end, or until the process does what `where` says: SIGNAL-PLACE, such as KILL-training."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, _, place = where.partition("-")
    calls = 0

    def interrupt(here: str, after: int) -> None:
        nonlocal calls
        if place == here:
            calls += 1
            if calls == after:
                os.kill(os.getpid(), getattr(signal, f"SIG{kind}"))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        # Of 4 calls in a step after the warm-up of 4 steps, the second in step 11.
        interrupt("training", 2 * 4 + 4 * 6 + 2)
        return F.cross_entropy(output, target)

    def reported(report: Report) -> None:
        interrupt("reported", 11)

    with asng.connect(address) as controller:
        model = Net()
        search = Search(controller, name, model, max_steps=STEPS, warmup_steps=4, seed=3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        result = search.run(
            data(workers),
            data(workers),
            loss=loss,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 5),
            checkpoint=directory,
            checkpoint_minutes=minutes,
            callbacks=[reported, *callbacks],
            progress_bar=False,
        )
    return search, result


if __name__ == "__main__":
    search(
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]),
        sys.argv[4],
        float(sys.argv[5]),
        int(sys.argv[6]),
    )
