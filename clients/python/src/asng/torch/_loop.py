"""The loop of a search on rank 0, which leases steps and reports them, and on the other ranks, which compute what it says."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import asng
from asng.torch._checkpoint import Checkpoint
from asng.torch._ranks import Ranks
from asng.torch._signals import Signals
from asng.torch._training import Step, StepResult, Training

log = logging.getLogger("asng.torch")

Found = tuple[asng.Best, "list[dict[str, Any]]"]
"""The study's final architecture, and its history."""


@dataclass(frozen=True)
class Report:
    """A step that was computed and reported, for callbacks."""

    step: Step
    losses: list[float]
    """A loss for each of `step.rank`."""
    metrics: dict[str, float]
    costs: list[dict[str, float]]
    outcome: asng.Outcome


class Leader:
    """Rank 0 of a search."""

    def __init__(
        self,
        study: asng.Study,
        training: Training,
        ranks: Ranks,
        signals: Signals,
        checkpoint: Checkpoint | None,
        checkpoint_seconds: float,
        has_new_weights: bool,
    ) -> None:
        self._study = study
        self._training = training
        self._ranks = ranks
        self._signals = signals
        self._checkpoint = checkpoint
        self._checkpoint_seconds = checkpoint_seconds
        self._has_new_weights = has_new_weights
        self._trainer_id = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._study_id: str | None = None
        # How many steps have moved the weights, and the last of them, which may not have been reported.
        self._computed = 0
        self._last: tuple[int, StepResult] | None = None
        # Steps of the journal that are to be computed again.
        self._to_replay: list[Step] = []
        self._is_between_steps = True
        self._saved_at = time.monotonic()

    def run(self, callbacks: Iterable[Callable[[Report], object]]) -> Found:
        """Searches until the study ends."""
        try:
            self._resume()
            self._warn_of_new_weights()
            steps: Any = self._study.steps(self._trainer_id)
            with closing(steps):
                while True:
                    with self._signals.prompt():
                        leased = next(steps, None)
                    if leased is None:
                        break
                    self._work(leased, callbacks)
            self._replay_last(None)
            self._save()
            with self._signals.prompt():
                self._study.wait()  # For the controller, if that is away now.
                found = (self._study.best(), self._study.history())
        except BaseException as error:
            # In the middle of a step the weights are in no state to be saved, and other ranks do not listen.
            if self._is_between_steps:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    self._save()
                self._ranks.broadcast(("stop", None))
            raise
        self._ranks.broadcast(("end", found))
        return found

    def _work(self, leased: asng.Step, callbacks: Iterable[Callable[[Report], object]]) -> None:
        """Computes a step, unless that was done before, and reports it."""
        self._begin(leased.study_id)
        step = Step(leased.id, leased.progress, leased.train, leased.rank)
        self._replay_last(step)
        if self._last and self._last[0] == step.id:
            result = self._last[1]
        else:
            if self._checkpoint:
                self._checkpoint.append(self._computed + 1, step)
            result = self._compute(step)
        with self._signals.prompt():
            outcome = leased.report(result.losses, result.metrics, result.costs)
        for callback in callbacks:
            callback(Report(step, result.losses, result.metrics, result.costs, outcome))
        self._signals.check()
        if time.monotonic() - self._saved_at > self._checkpoint_seconds:
            self._save()

    def _begin(self, study_id: str) -> None:
        """Makes sure that the checkpoint is of this study; the first one has the weights before the search."""
        if self._study_id is None:
            self._study_id = study_id
            self._save()
        elif self._study_id != study_id:
            raise ValueError(
                f"the checkpoint is of another study that was called {self._study.name!r}, and has been deleted since: give "
                "another directory as checkpoint, or remove this one"
            )

    def _compute(self, step: Step) -> StepResult:
        self._is_between_steps = False
        self._ranks.broadcast(("compute", step))
        result = self._training.compute(step)
        self._computed += 1
        self._last = (step.id, result)
        self._is_between_steps = True
        return result

    def _resume(self) -> None:
        """Restores the checkpoint, if there is one, and computes the steps of the journal again, up to the last one."""
        saved = self._checkpoint.load() if self._checkpoint else None
        if not self._checkpoint or not saved:
            return
        if saved["study"] != self._study.name:
            raise ValueError(
                f"the checkpoint is of the study {saved['study']!r}, and this one is {self._study.name!r}: give each study a "
                "directory of its own"
            )
        self._ranks.broadcast(("load", saved["training"]))
        self._training.load_state_dict(saved["training"])
        self._trainer_id, self._study_id = saved["trainer_id"], saved["study_id"]
        self._computed = saved["computed"]
        if saved["last"]:
            self._last = (saved["last"]["id"], StepResult(**saved["last"]["result"]))
        self._to_replay = self._checkpoint.steps_after(self._computed)
        log.info(
            "resumed after %d steps, of which %d are computed again",
            self._computed + len(self._to_replay),
            len(self._to_replay),
        )
        # The next step tells whether the last one was reported.
        while len(self._to_replay) > 1:
            self._compute(self._to_replay[0])
            del self._to_replay[0]
            self._signals.check()

    def _warn_of_new_weights(self) -> None:
        """Warns if the study has begun, and this model has learnt nothing from it."""
        if self._study_id is not None or not self._has_new_weights:
            return
        with self._signals.prompt():
            progress = self._study.progress()
        if progress.applied:
            log.warning(
                "study %r has begun before (%s), and this model starts with the weights that it has now: to go on with those of "
                "an earlier search give its checkpoint=, to search anew give another name, or delete the study",
                self._study.name,
                progress,
            )

    def _replay_last(self, next_step: Step | None) -> None:
        """Computes the last step of the journal again, unless it comes next because it was not reported."""
        for step in self._to_replay:
            if not next_step or next_step.id != step.id:
                self._compute(step)
        self._to_replay = []

    def _save(self) -> None:
        # While steps of the journal are to be computed again, the checkpoint and the journal that are there are right.
        if not self._checkpoint or self._study_id is None or self._to_replay:
            return
        self._ranks.broadcast(("save", None))
        last = self._last and {"id": self._last[0], "result": asdict(self._last[1])}
        state = {
            "study": self._study.name,
            "study_id": self._study_id,
            "trainer_id": self._trainer_id,
            "computed": self._computed,
            "last": last,
            "training": self._training.state_dict(),
        }
        self._checkpoint.save(state)
        self._saved_at = time.monotonic()


def follow(training: Training, ranks: Ranks, signals: Signals) -> Found:
    """Computes what rank 0 says, until the study ends."""
    while True:
        command, value = ranks.broadcast()
        if command == "compute":
            training.compute(value)
        elif command == "save":
            training.state_dict()
        elif command == "load":
            training.load_state_dict(value)
        elif command == "end":
            return value
        else:
            signals.check()
            raise RuntimeError("the search was ended by rank 0")
