"""The computation of a step: gradients of the shared weights, and losses of the architectures to be ranked.

Knows nothing of a controller. All that a later step depends on is in `state_dict`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asng import Architecture
from asng import _checks as checks
from asng.torch._batches import Batches, first_example, move, random_state, set_random_state
from asng.torch._ranks import Ranks
from asng.torch._supernet import Supernet

LossFunction = Callable[..., Tensor]
CostFunction = Callable[[nn.Module], float]
MEASURED = ("parameters", "latency_ms")
"""The costs that need no function."""
StepFunction = Callable[["Step"], Iterable[float]]


@dataclass(frozen=True)
class Step:
    """A step of the search, as `asng.Step` without the controller."""

    id: int
    """Number of the step within the study, from 1."""
    progress: float
    """How far the search has come, from 0 to 1."""
    train: list[Architecture]
    """Architectures to train the shared weights on."""
    rank: list[Architecture]
    """Architectures whose losses are to be computed; none in the warm-up."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "progress": self.progress,
            "train": [architecture.values for architecture in self.train],
            "rank": [architecture.values for architecture in self.rank],
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Step:
        return Step(
            fields["id"],
            fields["progress"],
            [Architecture(values) for values in fields["train"]],
            [Architecture(values) for values in fields["rank"]],
        )


@dataclass
class StepResult:
    """The outcome of a step."""

    losses: list[float]
    """A loss for each of `rank`, NaN for one that diverged."""
    metrics: dict[str, float]
    costs: list[dict[str, float]]
    """The costs of each of `rank`; empty where none are asked for."""


class Training:
    """Trains the shared weights of a supernet, and measures architectures with them."""

    def __init__(
        self,
        supernet: Supernet,
        ranks: Ranks,
        *,
        batches: tuple[Batches, Batches] | None,
        loss: LossFunction | None,
        step_function: StepFunction | None,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        device: torch.device,
        amp: torch.dtype | None,
        clip_grad_norm: float | None,
        costs: Mapping[str, CostFunction | None],
    ) -> None:
        _check(optimizer, scheduler, amp)
        self._supernet = supernet
        self._model = supernet.model.to(device)
        self._ranks = ranks
        self._batches = batches
        self._loss = loss.to(device) if isinstance(loss, nn.Module) else loss
        self._step_function = step_function
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not {id(p) for p in self._parameters} & {id(p) for p in self._model.parameters()}:
            raise ValueError(
                "the optimizer has none of the model's parameters: make it from `model.parameters()` of this model"
            )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._scheduler = scheduler
        self._device = device
        self._amp = amp
        self._scaler = _scaler(enabled=amp is torch.float16 and device.type == "cuda")
        self._clip = math.inf if clip_grad_norm is None else clip_grad_norm
        self._costs = costs
        self._known_costs: dict[Architecture, dict[str, float]] = {}
        self._example: list[Any] | None = None
        self._ranks.copy(self._model.state_dict().values())

    def compute(self, step: Step) -> StepResult:
        """Trains on a minibatch, and computes the losses to be reported on another one."""
        self._set_learning_rate(step.progress)
        if self._step_function:
            losses, metrics = checks.losses(self._step_function(step)), {}
            if len(losses) != len(step.rank):
                raise ValueError(
                    f"the step function has returned {len(losses)} losses: return one for each of the {len(step.rank)} "
                    "architectures of step.rank, in order, and an empty list in the warm-up"
                )
        else:
            metrics = self._train(step)
            losses = self._rank(step)
        if hasattr(self._scheduler, "step"):
            self._scheduler.step()
        return StepResult(losses, metrics, [self._cost(arch) for arch in step.rank if self._costs])

    def _train(self, step: Step) -> dict[str, float]:
        """Moves the weights by the mean gradient of the architectures. One that diverges has no part in it."""
        assert self._batches
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        inputs, target = self._take(self._batches[0])
        losses = []
        for architecture in step.train:
            loss = self._loss_of(architecture, inputs, target)
            value = self._ranks.mean(loss)
            if math.isfinite(value):
                losses.append(value)
                if loss.requires_grad or not self._supernet.is_frozen():
                    self._scaler.scale(loss / len(step.train)).backward()
        touched = [p for p in self._parameters if p.grad is not None]
        if touched:
            self._ranks.average([p.grad for p in touched])
            self._scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(touched, self._clip)
            if math.isfinite(norm):
                self._scaler.step(self._optimizer)
            self._scaler.update()
        return {"train_loss": statistics.fmean(losses)} if losses else {}

    def _rank(self, step: Step) -> list[float]:
        """Returns the losses of the architectures on one minibatch."""
        if not step.rank:
            return []
        assert self._batches
        self._model.eval()
        inputs, target = self._take(self._batches[1])
        self._example = first_example(inputs)
        with torch.no_grad():
            return [self._ranks.mean(self._loss_of(arch, inputs, target)) for arch in step.rank]

    def _loss_of(self, architecture: Architecture, inputs: list[Any], target: Any) -> Tensor:
        assert self._loss
        self._supernet.activate(architecture)
        with self._autocast():
            loss = self._loss(self._model(*inputs), target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise TypeError(
                f"the loss is a {type(loss).__name__}{shape}: return a tensor with one number, such as the mean over the minibatch"
            )
        return loss

    def _take(self, batches: Batches) -> tuple[list[Any], Any]:
        """Returns the inputs and the target of the next minibatch."""
        batch = batches.next()
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(
                f"a minibatch is a {type(batch).__name__}: loaders have to yield (input, target) or (input, …, target); for "
                "others, give step=, a function, instead of loaders"
            )
        *inputs, target = move(batch, self._device)
        return inputs, target

    def inputs(self, loader: Iterable[Any] | None) -> Iterable[tuple[Any, ...]] | None:
        """Returns the inputs of a loader's minibatches on the device, to be iterated again and again."""
        return None if loader is None else _Inputs(loader, self._device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._amp is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._amp)

    def _set_learning_rate(self, progress: float) -> None:
        if self._scheduler and not hasattr(self._scheduler, "step"):
            for group in self._optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._scheduler(progress)

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _cost(self, architecture: Architecture) -> dict[str, float]:
        """Returns the costs of an architecture, which are computed once."""
        if architecture not in self._known_costs:
            self._supernet.activate(architecture)
            self._known_costs[architecture] = {
                name: self._measure(name, function) for name, function in self._costs.items()
            }
        return self._known_costs[architecture]

    def _measure(self, name: str, function: CostFunction | None) -> float:
        """Returns one cost of the active architecture."""
        if function:
            return float(function(self._supernet.extract().eval()))
        if name == "parameters":
            return self._supernet.parameters()
        return self._latency(self._supernet.extract().eval())

    def _latency(self, module: nn.Module) -> float:
        """Returns the median time of an inference of one example, in milliseconds."""
        if self._example is None:
            raise ValueError(
                'the cost "latency_ms" needs an input, which a search without loaders does not have: give a function as cost'
            )
        times: list[float] = []
        with torch.no_grad(), self._autocast():
            while len(times) < 13 or (len(times) < 203 and sum(times) < 300):
                began = time.perf_counter()
                module(*self._example)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times[3:])

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later steps depend on. Every rank has to call it."""
        batches = self._batches or ()
        own = {
            "batches": [b.state_dict() for b in batches],
            "random": random_state([g for b in batches for g in b.generators()]),
        }
        has_state = hasattr(self._scheduler, "state_dict")
        return {
            "model": self._model.state_dict(),
            "loss": self._loss.state_dict() if isinstance(self._loss, nn.Module) else {},
            "optimizer_kind": type(self._optimizer).__name__,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "scheduler": self._scheduler.state_dict() if has_state else {},
            "ranks": self._ranks.gather(own),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` has returned."""
        if len(state["ranks"]) != self._ranks.size:
            raise ValueError(
                f"the checkpoint is of {len(state['ranks'])} processes, and there are {self._ranks.size} now: start as many"
            )
        try:
            self._restore(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint does not fit this search: {error}\n  go on with the model, optimizer, scheduler and loaders that "
                "it was saved with, or start anew with another directory and another study"
            ) from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        if isinstance(self._loss, nn.Module):
            self._loss.load_state_dict(state["loss"])
        if (kind := type(self._optimizer).__name__) != state["optimizer_kind"]:
            raise ValueError(f"the optimizer was {state['optimizer_kind']}, and is {kind}")
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if hasattr(self._scheduler, "load_state_dict"):
            self._scheduler.load_state_dict(state["scheduler"])
        own, batches = state["ranks"][self._ranks.rank], self._batches or ()
        for restored, position in zip(batches, own["batches"], strict=True):
            restored.load_state_dict(position)
        set_random_state(own["random"], [g for b in batches for g in b.generators()])


def _check(optimizer: Any, scheduler: Any, amp: Any) -> None:
    """Refuses what would fail in the middle of a search."""
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"the optimizer is {optimizer!r}: give an instance, such as torch.optim.Adam(model.parameters())"
        )
    if isinstance(scheduler, (type, torch.optim.lr_scheduler.ReduceLROnPlateau)) or not (
        scheduler is None or callable(scheduler) or hasattr(scheduler, "step")
    ):
        raise TypeError(
            f"the scheduler is {scheduler!r}: give a function of the progress from 0 to 1, a scheduler of PyTorch that needs "
            "no loss, or None"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "the scheduler is that of another optimizer: give its optimizer as optimizer="
        )
    if amp not in (None, torch.bfloat16, torch.float16):
        raise TypeError(f"amp is {amp!r}: give torch.bfloat16, torch.float16 or None")


class _Inputs:
    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self._loader = loader
        self._device = device

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._loader:
            yield tuple(move(batch, self._device)[:-1])


def _scaler(enabled: bool) -> Any:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
