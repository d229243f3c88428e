"""The loop of a one-shot search: leases steps, has them computed, reports, keeps checkpoints."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import asng
from asng import Architecture
from asng._checks import whole
from asng.torch._batches import Batches
from asng.torch._checkpoint import Checkpoint
from asng.torch._loop import Leader, Report, follow
from asng.torch._ranks import Ranks
from asng.torch._result import Result
from asng.torch._signals import Signals
from asng.torch._supernet import Parts, Supernet
from asng.torch._training import MEASURED, CostFunction, LossFunction, StepFunction, Training

if TYPE_CHECKING:
    from typing_extensions import Unpack


def cosine(progress: float) -> float:
    """Returns the learning rate at a progress from 0 to 1, as a fraction of the initial one: from 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


class Search:
    """A one-shot search of a model's architecture: a study on a controller, and the supernet that the model becomes.

    `settings` are those of `asng.Settings`. Two thirds of the steps are a warm-up unless `warmup_steps` is given. The model is
    changed in place: see `Supernet`. Under `torchrun`, every rank makes the same search, and rank 0 alone calls the controller.
    """

    def __init__(
        self,
        controller: asng.Controller,
        name: str,
        model: nn.Module,
        *,
        max_steps: int,
        **settings: Unpack[asng.Settings],
    ) -> None:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"the model is wrapped in {type(model).__name__}: give the module itself; the search averages gradients itself"
            )
        if not isinstance(controller, asng.Controller):
            raise TypeError(
                f"the controller is a {type(controller).__name__}: give that of asng.connect or asng.local"
            )
        self._ranks = Ranks()
        self.max_steps = whole("max_steps", max_steps, 1, 10**12)
        if settings.get("lambda_x") != 0:
            settings.setdefault("warmup_steps", self.max_steps * 2 // 3)
        self._maximizes = settings.get("direction") == "maximize"
        self._cost_rules = {*(settings.get("limits") or {}), *(settings.get("penalties") or {})}
        # A model that cannot be searched creates no study, and settings that are refused leave the model as it is.
        space = Parts(model).space
        self.study: asng.Study | None = None
        """The study; None on ranks other than 0."""
        if self._ranks.rank == 0:
            self.study = controller.create_study(name, space, max_steps=self.max_steps, **settings)
        self.supernet = Supernet(model)
        self._has_run = False

    @property
    def space(self) -> asng.Space:
        """The search space, which follows from the model."""
        return self.supernet.space

    @property
    def model(self) -> nn.Module:
        """The supernet, which computes the architecture that was activated last."""
        return self.supernet.model

    def activate(self, architecture: Architecture) -> None:
        """Makes the model compute this architecture: for step functions."""
        self.supernet.activate(architecture)

    def run(
        self,
        train_loader: Iterable[Any] | None = None,
        valid_loader: Iterable[Any] | None = None,
        *,
        loss: LossFunction | None = None,
        step: StepFunction | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Callable[[float], float] | Any | None = cosine,
        device: str | torch.device = "auto",
        amp: torch.dtype | None = None,
        clip_grad_norm: float | None = 5.0,
        costs: Iterable[str] | Mapping[str, CostFunction | None] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 10.0,
        callbacks: Sequence[Callable[[Report], object]] = (),
        log: Any = None,
        progress_bar: bool = True,
    ) -> Result:
        """Searches until the study ends, and returns the result. A repeated call with the same checkpoint resumes the search.

        `train_loader` and `valid_loader` yield minibatches (input, target), or (input, …, target); they should be of different
        images. Each step trains its `train` architectures on one minibatch of the first, with the mean of their gradients, and
        ranks its `rank` architectures by `loss(output, target)` on one minibatch of the second. A loss that is not finite
        counts as diverged: it does not train the weights, and it ranks last.

        `step` is a function that replaces the loaders and the loss: it gets a `Step`, activates its architectures
        (`search.activate`), trains the weights, and returns a loss for each of `step.rank`, or, in a search with
        `direction="maximize"`, a value that is larger for what is better, such as an accuracy. Its random draws should depend
        on `step.id` only. `amp` and `clip_grad_norm` do not apply to it.

        `optimizer` is made from `model.parameters()`; by default SGD with a learning rate of 0.025, momentum 0.9 and weight
        decay 3e-4. `scheduler` is a function of the progress from 0 to 1, `applied / max_steps`, that returns a factor of the
        initial learning rates, or a scheduler of PyTorch that needs no loss, which is stepped once per step; None keeps the rate.

        `device` is "auto" (CUDA, or MPS, or the CPU) or any device. `amp` is torch.bfloat16 or torch.float16 for autocast; the
        latter on CUDA with gradient scaling. `clip_grad_norm` is the largest norm of the gradient; None means no limit.

        `costs` are reported for each ranked architecture: names ("parameters", "latency_ms"), or functions by name that get the
        architecture as a plain module (None for these two). Costs with limits or penalties in the study need not be named again.

        `checkpoint` is a directory. The search is saved there every `checkpoint_minutes`, at its end, and when SIGINT or SIGTERM
        ends it: the current step is computed, and KeyboardInterrupt or SystemExit(143) is raised. The step is released, and
        reported when the search resumes. A program's own handler for SIGTERM is kept.

        `callbacks` are called with a `Report` after each step. `log` gets the metrics of each step: a
        `torch.utils.tensorboard.SummaryWriter`, the module `mlflow`, a run of `wandb`, a logger of Lightning, or a function of a
        dict and the step's number. The progress bar needs tqdm.
        """
        if self._maximizes and step is None:
            raise TypeError(
                "direction='maximize' needs `step`, a function that returns the values: training and search minimize `loss`; give step, "
                "or leave direction out"
            )
        training = Training(
            self.supernet,
            self._ranks,
            batches=_batches(train_loader, valid_loader, loss, step, optimizer, checkpoint),
            loss=loss,
            step_function=step,
            optimizer=optimizer or _default_optimizer(self.model),
            scheduler=scheduler,
            device=_device(device),
            amp=amp,
            clip_grad_norm=clip_grad_norm,
            costs=_costs(costs, self._cost_rules),
        )
        with ExitStack() as stack:
            signals = stack.enter_context(Signals())
            if self.study is None:
                best, history = follow(training, self._ranks, signals)
            else:
                saved = None
                if checkpoint is not None:
                    saved = stack.enter_context(closing(Checkpoint(checkpoint)))
                shown = [*callbacks]
                if log is not None:
                    shown.append(_MetricsLog(log, training, self._maximizes))
                if progress_bar and find_spec("tqdm"):
                    shown.append(
                        stack.enter_context(
                            closing(_Bar(self.study.name, self.max_steps, self._maximizes))
                        )
                    )
                leader = Leader(
                    self.study,
                    training,
                    self._ranks,
                    signals,
                    saved,
                    60 * checkpoint_minutes,
                    not self._has_run,
                )
                self._has_run = True
                best, history = leader.run(shown)
        return Result(best, history, self.supernet, training.inputs(train_loader), self._maximizes)


def _batches(
    train_loader: Iterable[Any] | None,
    valid_loader: Iterable[Any] | None,
    loss: LossFunction | None,
    step: StepFunction | None,
    optimizer: torch.optim.Optimizer | None,
    checkpoint: object | None,
) -> tuple[Batches, Batches] | None:
    """Checks that there are either loaders and a loss, or a step function."""
    if step is None:
        if train_loader is None or valid_loader is None or loss is None:
            raise TypeError("give train_loader, valid_loader and loss, or step, a function")
        if isinstance(loss, type):
            raise TypeError(
                f"loss is the class {loss.__name__}: give an instance, {loss.__name__}()"
            )
        return Batches(train_loader, "train_loader"), Batches(valid_loader, "valid_loader")
    if train_loader is not None or valid_loader is not None or loss is not None:
        raise TypeError("give either train_loader, valid_loader and loss, or step, not both")
    if checkpoint is not None and optimizer is None:
        raise TypeError(
            "give the optimizer that the step function uses, so that checkpoints have its state"
        )
    return None


def _default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        # torchrun says which GPU is this process's.
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        torch.cuda.set_device(local)
        return local
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _costs(
    costs: Iterable[str] | Mapping[str, CostFunction | None], rules: Iterable[str]
) -> dict[str, CostFunction | None]:
    """Returns the costs to report by name, with a function where they are not counted or measured here."""
    if isinstance(costs, str):
        raise TypeError(f"costs is {costs!r}: give a list, [{costs!r}], or functions by name")
    functions: dict[str, CostFunction | None] = (
        dict(costs) if isinstance(costs, Mapping) else dict.fromkeys(costs)
    )
    for name in rules:
        functions.setdefault(name, None)
    for name, function in functions.items():
        if function is None and name not in MEASURED:
            raise ValueError(
                f"there is no function for the cost {name!r}: give costs={{{name!r}: function}}, with a function of an "
                f"architecture's module; {' and '.join(MEASURED)} need none"
            )
    return functions


class _MetricsLog:
    """Writes the metrics of each step to a log."""

    def __init__(self, log: Any, training: Training, maximizes: bool) -> None:
        self._training = training
        self._loss = "value" if maximizes else "loss"
        self._write: Callable[[dict[str, float], int], object]
        if hasattr(log, "add_scalar"):  # TensorBoard
            self._write = lambda metrics, step: [
                log.add_scalar(name, value, step) for name, value in metrics.items()
            ]
        elif hasattr(log, "log_metrics"):  # MLflow, Lightning
            self._write = lambda metrics, step: log.log_metrics(metrics, step=step)
        elif hasattr(log, "log"):  # W&B
            self._write = lambda metrics, step: log.log(metrics, step=step)
        elif callable(log):
            self._write = log
        else:
            raise TypeError(
                f"log is a {type(log).__name__}: give a SummaryWriter, mlflow, a run of wandb, a logger of Lightning, or a "
                "function of a dict and the step's number"
            )

    def __call__(self, report: Report) -> None:
        metrics = {**report.metrics, "learning_rate": self._training.learning_rate}
        if report.losses:
            metrics[self._loss] = statistics.fmean(report.losses)
        self._write(metrics, report.step.id)


class _Bar:
    """A progress bar, in terminals and notebooks."""

    def __init__(self, name: str, max_steps: int, maximizes: bool) -> None:
        self._maximizes = maximizes
        self._name = name
        self._max_steps = max_steps
        self._bar: Any = None

    def __call__(self, report: Report) -> None:
        if self._bar is None:
            from tqdm import auto

            self._bar = auto.tqdm(total=self._max_steps, unit="step", dynamic_ncols=True)
        metrics = dict(report.metrics)
        if report.losses:
            if self._maximizes:
                metrics["value"] = max(report.losses)
            else:
                metrics["loss"] = min(report.losses)
        self._bar.set_description(self._name if report.losses else f"{self._name} (warm-up)", False)
        self._bar.set_postfix({name: f"{n:.3g}" for name, n in metrics.items()}, refresh=False)
        applied = round(report.step.progress * self._max_steps) + 1
        self._bar.update(applied - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
