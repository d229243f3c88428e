"""Studies as a controller describes them: plain values, for programs, for people and for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from asng._errors import Error, FailedPrecondition, StudyFailed, Violation
from asng._space import Architecture, Best, Categorical, Space
from asng.v1 import search_pb2 as search
from asng.v1 import study_pb2 as v1


class _WireEnum(Enum):
    """An enumeration of the contract."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise Error(
            f"the controller sent the unknown {cls.__name__} {value}: use a newer release of asng"
        )


class StudyState(_WireEnum):
    """The state of a study."""

    WAITING = v1.STUDY_STATE_WAITING
    """The study waits for a trainer to describe its variables."""
    RUNNING = v1.STUDY_STATE_RUNNING
    """The study leases steps."""
    PAUSED = v1.STUDY_STATE_PAUSED
    """The study leases no steps; reports still count."""
    FINISHED = v1.STUDY_STATE_FINISHED
    """A stop rule, such as `max_steps`, has ended the study."""
    STOPPED = v1.STUDY_STATE_STOPPED
    """`stop` has ended the study."""
    FAILED = v1.STUDY_STATE_FAILED
    """A trainer rejected the settings of the study."""

    @property
    def has_ended(self) -> bool:
        """True if a study in this state stays in it."""
        return self in (StudyState.FINISHED, StudyState.STOPPED, StudyState.FAILED)


class Outcome(_WireEnum):
    """The outcome of a report. The loop goes on after each of them."""

    APPLIED = v1.REPORT_OUTCOME_APPLIED
    """The report is part of an update of the distribution."""
    PENDING = v1.REPORT_OUTCOME_PENDING
    """The report is accepted and waits until `steps_per_update` reports have arrived."""
    DUPLICATE = v1.REPORT_OUTCOME_DUPLICATE
    """The step had been reported before, most likely by this call, whose first reply was lost."""
    STALE = v1.REPORT_OUTCOME_STALE
    """The report arrived too late to count."""
    SENT = v1.REPORT_OUTCOME_UNSPECIFIED
    """The report is being sent: the loop leases steps ahead (`prefetch`)."""


@dataclass(frozen=True)
class Progress:
    """The counters of a study."""

    applied: int
    """Reports that are part of an update."""
    max_steps: int
    """Number of applied reports after which the study is finished."""
    convergence: float
    """Convergence of the distribution, 0 to 1."""
    generation: int
    """Updates of the distribution."""
    pending: int
    """Reports that wait until `steps_per_update` of them have arrived."""
    outstanding: int
    """Steps in progress: leased, or waiting to be leased again, and not reported yet."""
    stale: int
    """Reports that arrived too late to count."""
    duplicate: int
    """Reports of steps that had been reported before."""
    diverged: int
    """Losses that were not finite."""
    expired: int
    """Leases that expired."""
    over_limit: int
    """Architectures that exceeded a limit."""

    @property
    def fraction(self) -> float:
        """Fraction of the search that is done, 0 to 1."""
        return self.applied / max(self.max_steps, 1)

    def __str__(self) -> str:
        return f"{self.applied} of {self.max_steps} steps, convergence {self.convergence:.2f}"


@dataclass(frozen=True, repr=False)
class StudySummary:
    """A study at one moment."""

    name: str
    study_id: str
    """Its id, which differs from that of an earlier study of the same name."""
    space: str
    """The name of its space; empty if it was created with its variables."""
    direction: str
    """The direction of the reported losses: "minimize" or "maximize"."""
    state: StudyState
    progress: Progress
    best_loss: float | None
    """The best reported loss among the architectures within the limits: the smallest, or the largest if the study maximizes.
    Losses are noisy: another evaluation may give another loss."""
    best: Best | None
    """The current best guess at the final architecture; None before there is one, and in `list_studies`."""
    best_choice: str | None
    """How `best` was chosen: "mode" or "within limits"."""
    best_costs: dict[str, float]
    """The costs of `best`, by name."""
    incumbent: Architecture | None
    """The architecture that `best_loss` was reported for; None before there is one, and in `list_studies`."""
    owner: str
    labels: dict[str, str]
    stop_reason: str | None
    """The rule that ended the study, such as "MAX_STEPS"; None before its end, and for a study that FAILED."""
    failure: list[Violation]
    """The reasons why the study FAILED."""
    create_time: datetime | None
    seen: datetime = field(compare=False)
    """The time at which the controller answered."""

    def __repr__(self) -> str:
        loss = "" if self.best_loss is None else f", {self._best()} {self.best_loss:.4g}"
        return f"study {self.name!r} is {self.state.name}: {self.progress}{loss}"

    def _best(self) -> str:
        return "best value" if self.direction == "maximize" else "best loss"

    def _repr_html_(self) -> str:
        progress = self.progress
        rows = {
            "state": html.escape(self.state.name)
            + "".join(f"<br>{html.escape(f'{f}: {why}')}" for f, why in self.failure),
            "steps": f'<progress max="{max(progress.max_steps, 1)}" value="{progress.applied}"></progress> '
            f"{progress.applied} of {progress.max_steps}",
            "convergence": f"{progress.convergence:.3f}",
        }
        if self.best_loss is not None:
            rows[self._best()] = f"{self.best_loss:.4g}"
        if self.best is not None:
            rows["best architecture"] = html.escape(_short(str(self.best)))
        rows["as of"] = f"{self.seen.astimezone():%Y-%m-%d %H:%M:%S}"
        cells = "".join(
            f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{text}</td></tr>'
            for name, text in rows.items()
        )
        return f"<table><caption>Study {html.escape(self.name)}</caption>{cells}</table>"

    def at(self, step: search.Step) -> StudySummary:
        """Returns the summary brought up to date by a step of the study, which hands out steps."""
        progress = replace(self.progress, applied=step.applied, generation=step.generation)
        now = datetime.now(timezone.utc)
        return replace(self, state=StudyState.RUNNING, progress=progress, seen=now)

    def must_not_have_failed(self) -> None:
        """Raises StudyFailed with the reasons if it has FAILED."""
        if self.state is StudyState.FAILED:
            reasons = "".join(f"\n  {name}: {why}" for name, why in self.failure)
            raise StudyFailed(f"study {self.name} has failed{reasons}")


@dataclass(frozen=True)
class Trainer:
    """A trainer, as the controller knows it. The counters are of one study, or sums over all studies."""

    trainer_id: str
    last_seen: datetime | None
    study: str
    """The study of the step that it last leased; empty if it holds none."""
    holds: tuple[int, ...]
    """The steps of the study that it holds; empty in the list of all trainers."""
    applied: int
    """Its reports that count."""
    stale: int
    duplicate: int
    expired: int
    """Its leases that expired."""
    mean_staleness: float
    """Mean number of updates between the sampling of a step and its report."""
    spaces: tuple[str, ...]
    """The spaces that it serves by name."""
    data_sets: tuple[str, ...]


class Normal(NamedTuple):
    """The distribution of an Integer, before values are clamped to its bounds and rounded."""

    mean: float
    deviation: float


def space_of(study: v1.Study) -> Space | None:
    """Returns the variables of a study; None while they are not known, and for a study of a list."""
    return Space._of(study.variables) if study.variables else None


def no_space(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"study {name} has no variables yet: it waits for a trainer of its space to describe them, or a trainer rejected its settings "
        "(see `study.show()`); try again later, or create a study with variables"
    )


def best_of(study: v1.Study, space: Space) -> Best:
    if not study.HasField("chosen"):
        limits = ", ".join(
            f"{rule.cost} {rule.limit:g}" for rule in study.spec.costs if rule.HasField("limit")
        )
        raise FailedPrecondition(
            f"study {study.name} has evaluated no architecture within its limits ({limits}) yet: let it continue, or create "
            "a study with higher limits"
        )
    return Best(space._decode(study.chosen.architecture.values), study)


def progress_of(progress: v1.Progress) -> Progress:
    return Progress(**{name: getattr(progress, name) for name in Progress.__annotations__})


def summary_of(study: v1.Study, space: Space | None = None) -> StudySummary:
    """Returns what people see of a study, without its architectures where the space is not known."""
    has_best = space and study.HasField("chosen")
    is_mode = study.chosen.architecture == study.mode
    incumbent = study.incumbent if study.HasField("incumbent") else None
    return StudySummary(
        name=study.name,
        study_id=study.study_id,
        space=study.spec.space,
        direction="maximize" if study.spec.direction == v1.DIRECTION_MAXIMIZE else "minimize",
        state=StudyState(study.state),
        progress=progress_of(study.progress),
        best_loss=incumbent.loss if incumbent else None,
        best=best_of(study, space) if space and has_best else None,
        best_choice=("mode" if is_mode else "within limits") if has_best else None,
        best_costs=dict(study.chosen.costs),
        incumbent=(
            Architecture(space._decode(incumbent.architecture.values))
            if space and incumbent
            else None
        ),
        owner=study.owner,
        labels=dict(study.spec.labels),
        stop_reason=(
            v1.StopReason.Name(study.stop_reason).removeprefix("STOP_REASON_")
            if study.stop_reason
            else None
        ),
        failure=[Violation(each.field, each.description) for each in study.failure],
        create_time=_time(study, "create_time"),
        seen=datetime.now(timezone.utc),
    )


def trainer_of(trainer: v1.Trainer) -> Trainer:
    return Trainer(
        trainer_id=trainer.trainer_id,
        last_seen=_time(trainer, "last_seen"),
        study=trainer.study,
        holds=tuple(trainer.holds),
        applied=trainer.applied,
        stale=trainer.stale,
        duplicate=trainer.duplicate,
        expired=trainer.expired,
        mean_staleness=trainer.mean_staleness,
        spaces=tuple(trainer.spaces),
        data_sets=tuple(trainer.data_sets),
    )


def distribution_of(
    marginals: Iterable[v1.Marginal], space: Space
) -> dict[str, dict[str, float] | Normal]:
    """Returns the distribution of each variable by its name."""
    result: dict[str, dict[str, float] | Normal] = {}
    for marginal in marginals:
        variable = space.variables[marginal.name]
        if isinstance(variable, Categorical):
            probabilities = marginal.categorical.probabilities
            result[marginal.name] = dict(zip(variable.choices, probabilities, strict=True))
        else:
            result[marginal.name] = Normal(marginal.integer.mean, marginal.integer.deviation)
    return result


def trace_record(point: v1.TracePoint) -> dict[str, Any]:
    """Returns a point of a trace as a flat record."""
    losses = point.losses if point.HasField("losses") else None
    return {
        "applied": point.applied,
        "generation": point.generation,
        "time": _time(point, "time"),
        "convergence": point.convergence,
        "entropy": point.entropy,
        "delta": point.delta,
        "signal_to_noise": point.signal_to_noise,
        "loss_low": losses.low if losses else None,
        "loss_median": losses.median if losses else None,
        "loss_high": losses.high if losses else None,
        "diverged": point.diverged,
    } | {f"metrics.{name}": value for name, value in point.metrics.items()}


def history_records(report: v1.Report, space: Space) -> list[dict[str, Any]]:
    """Returns a flat record for each ranked architecture of a step in the history."""
    outcome = v1.ReportOutcome.Name(report.outcome).removeprefix("REPORT_OUTCOME_")
    step = {
        "step": report.step_id,
        "generation": report.generation,
        "outcome": "UNREPORTED" if outcome == "UNSPECIFIED" else outcome,
        "staleness": report.staleness,
        "trainer": report.trainer_id,
        "time": _time(report, "report_time"),
        "loss": None,
    }
    metrics = {f"metrics.{name}": value for name, value in report.metrics.items()}
    records = []
    for index, draw in enumerate(report.rank):
        record: dict[str, Any] = dict(step)
        if report.losses:
            record["loss"] = report.losses[index]
        for name, value in space._decode(draw.values).items():
            # No two columns are equal: what is not prefixed here begins with none of the prefixes.
            taken = name in step or name.startswith(("variables.", "metrics.", "costs."))
            record[f"variables.{name}" if taken else name] = value
        record |= metrics
        if report.costs:
            figures = report.costs[index].figures
            record |= {f"costs.{name}": value for name, value in figures.items()}
        records.append(record)
    return records


def _time(message: v1.Report | v1.TracePoint | v1.Study | v1.Trainer, name: str) -> datetime | None:
    """Returns a time of a message, if it is there."""
    time: Timestamp = getattr(message, name)
    return time.ToDatetime(timezone.utc) if message.HasField(name) else None


def _short(text: str) -> str:
    """Returns text of a length that a page can show."""
    return text if len(text) <= 2000 else text[:2000] + "…"
