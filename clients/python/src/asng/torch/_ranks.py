"""The processes of `torch.distributed` that compute one search together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among those of the default process group; alone where there is none."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        if not together and "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1":
            raise RuntimeError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes that are in no group: call "
                "torch.distributed.init_process_group before you make a Search"
            )
        self.size: int = dist.get_world_size() if together else 1
        self.rank: int = dist.get_rank() if together else 0

    def broadcast(self, value: Any = None) -> Any:
        """Returns the value of rank 0."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def average(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors, which are of the same shapes on every rank, with their means over the ranks."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, parts, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def mean(self, value: Tensor) -> float:
        """Returns the mean of a number over the ranks."""
        value = value.detach().clone().reshape(1)
        self.average([value])
        return float(value)
