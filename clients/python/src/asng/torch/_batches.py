"""Minibatches and random numbers, with a state that can be saved and restored."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset


class Batches:
    """Endless minibatches of a loader.

    The position is a number of minibatches after the start of an epoch. It is restored by reading these again, with the
    random numbers that they were drawn with.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
            raise TypeError(
                f"{name} is a {type(loader).__name__}, which has single examples: give a DataLoader of it"
            )
        self._loader = loader
        self._name = name
        self._epoch = -1
        self._taken = 0
        self._start: dict[str, Any] = {}
        self._iterator: Iterator[Any] = iter(())

    def next(self) -> Any:
        """Returns the next minibatch, of the next epoch after the last one."""
        for batch in self._iterator:
            self._taken += 1
            return batch
        self._begin(self._epoch + 1)
        for batch in self._iterator:
            self._taken += 1
            return batch
        raise ValueError(
            f"{self._name} yields no minibatch in epoch {self._epoch + 1}: give a DataLoader, or another iterable that can be "
            "iterated again and again"
        )

    def _begin(self, epoch: int) -> None:
        self._epoch, self._taken = epoch, 0
        sampler: Any = getattr(self._loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        self._start = random_state(self.generators())
        self._iterator = iter(self._loader)

    def generators(self) -> list[torch.Generator]:
        """Returns the loader's own random number generators."""
        batch_sampler = getattr(self._loader, "batch_sampler", None)
        owners = [self._loader, getattr(self._loader, "sampler", None)]
        owners += [batch_sampler, getattr(batch_sampler, "sampler", None)]
        found = [getattr(owner, "generator", None) for owner in owners]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "taken": self._taken, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Moves to a position. Leaves the random number generators in no particular state."""
        self._epoch, self._iterator = state["epoch"], iter(())
        if self._epoch < 0:
            return
        set_random_state(state["start"], self.generators())
        self._begin(self._epoch)
        for _ in range(state["taken"]):
            self.next()
        if self._epoch != state["epoch"]:
            raise ValueError(
                f"{self._name} yields fewer than {state['taken']} minibatches in an epoch, which it has yielded before"
            )


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Returns the state of Python's, NumPy's and PyTorch's global generators, and of some others."""
    state = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": [generator.get_state() for generator in generators],
    }
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = (str(name), keys.tolist(), *rest)
    return state


def set_random_state(state: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Restores what `random_state` has returned."""
    if len(generators) != len(state["generators"]):
        raise ValueError(
            f"the loaders have {len(generators)} generators of their own, and had {len(state['generators'])}"
        )
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)
    if (numpy := sys.modules.get("numpy")) and "numpy" in state:
        numpy.random.set_state(state["numpy"])


def move(value: Any, device: torch.device) -> Any:
    """Returns a minibatch on a device: whatever has a method `to`, also in tuples, lists and dicts."""
    return convert(
        value, lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x.to(device)
    )


def first_example(value: Any) -> Any:
    """Returns a minibatch with the first example of each tensor."""
    return convert(value, lambda x: x[:1] if isinstance(x, Tensor) and x.dim() else x)


def convert(value: Any, function: Callable[[Any], Any]) -> Any:
    """Returns a minibatch with a function applied to its tensors, and to all else that can be moved to a device."""
    if hasattr(value, "to"):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(convert(item, function) for item in value))
    if type(value) in (tuple, list):
        return type(value)(convert(item, function) for item in value)
    if isinstance(value, dict):
        return {key: convert(item, function) for key, item in value.items()}
    return value
