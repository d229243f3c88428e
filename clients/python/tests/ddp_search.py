"""A search by all processes of torchrun, which rank 0 writes to a file: `ddp_search.py ADDRESS NAME DIR STEPS`.

Each rank has half of each minibatch, so that the gradient is that of one process with whole minibatches.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import asng
from asng.torch import Choice, Repeat, Report, Result, Search, Width


def net() -> nn.Module:
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    width = Width("width", [4, 8])
    blocks = Repeat("depth", lambda i: nn.Linear(width, width), 0, 2)
    op = Choice("op", {"tanh": nn.Tanh(), "relu": nn.ReLU(), "skip": nn.Identity()})
    return nn.Sequential(nn.Linear(5, width), op, blocks, nn.Linear(width, 3)).double()


def batches(rank: int, size: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 8, 5, generator=generator).double(), torch.arange(24).view(3, 8) % 3
    return [[x[i, rank::size], y[i, rank::size]] for i in range(3)]


def search(
    address: str, name: str, directory: Path | None, stop_at: int = 0
) -> tuple[Search, Result]:
    """Searches to the end, or until SIGTERM comes in rank 0 after step `stop_at`."""

    def stop(report: Report) -> None:
        if report.step.id == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    torch.set_num_threads(1)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with asng.connect(address) as controller:
        search = Search(controller, name, net(), max_steps=12, warmup_steps=4, seed=2)
        loader = batches(rank, size)
        result = search.run(
            loader, loader, loss=F.cross_entropy, checkpoint=directory, callbacks=[stop]
        )
    return search, result


if __name__ == "__main__":
    dist.init_process_group("gloo")
    directory = Path(sys.argv[3])
    searched, result = search(sys.argv[1], sys.argv[2], directory, int(sys.argv[4]))
    torch.save(
        (searched.model.state_dict(), result.architecture.values, len(result.table())),
        directory / f"rank{dist.get_rank()}.pt",
    )
