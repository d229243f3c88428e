"""What is asked of a controller, and what its answers mean. No socket, thread or task: those are in _client.py and aio.py."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timezone
from enum import Enum
from typing import Any, Generic, Literal, SupportsFloat, TypedDict, TypeVar

from google.protobuf.message import Message

from asng._errors import Error, FailedPrecondition, NotReported, StudyFailed, is_for_good
from asng._space import Architecture, Best, Space
from asng.v1 import search_pb2 as search
from asng.v1 import study_pb2 as v1

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Method(Generic[Q, R]):
    """A call of the contract."""

    name: str
    request: type[Q]
    response: type[R]

    @property
    def path(self) -> str:
        return f"/asng.v1.{self.name}"


CREATE_STUDY = Method("StudyService/CreateStudy", v1.CreateStudyRequest, v1.CreateStudyResponse)
GET_STUDY = Method("StudyService/GetStudy", v1.GetStudyRequest, v1.GetStudyResponse)
LIST_REPORTS = Method("StudyService/ListReports", v1.ListReportsRequest, v1.ListReportsResponse)
LEASE_STEP = Method("SearchService/LeaseStep", search.LeaseStepRequest, search.LeaseStepResponse)
REPORT_STEP = Method(
    "SearchService/ReportStep", search.ReportStepRequest, search.ReportStepResponse
)
EXTEND_LEASE = Method(
    "SearchService/ExtendLease", search.ExtendLeaseRequest, search.ExtendLeaseResponse
)
RELEASE_STEP = Method(
    "SearchService/ReleaseStep", search.ReleaseStepRequest, search.ReleaseStepResponse
)


class Settings(TypedDict, total=False):
    """How a study is searched. What is not given is the controller's default."""

    algorithm: Literal["asng", "sng", "random"]
    """How the distribution moves: adaptively (the default), with a constant step, or not at all."""
    alpha: float
    """Threshold of the signal-to-noise ratio of the updates, above 0; 1.5."""
    delta_init: float
    """Initial trust region, above 0; 1."""
    delta_max: float
    """Upper bound of the trust region's divisor; none."""
    lambda_x: int
    """Architectures of a step to train on: 2; 0 for a problem without weights."""
    lambda_theta: int
    """Architectures of a step to be ranked, 2 or more; 2."""
    steps_per_update: int
    """Steps gathered into one update of the distribution; 1."""
    max_staleness: int
    """How many updates may have come before a report that still counts; 64."""
    warmup_steps: int
    """Steps at the start that train the weights alone, up to `max_steps`: their `rank` is empty, and the distribution does not
    move; 0. Needs `lambda_x` above 0."""
    seed: int
    """Of everything the study draws; drawn by the controller."""
    lease: float
    """Seconds until the step of a trainer that has died goes to another; 60."""
    limits: Mapping[str, float]
    """The most that an architecture may cost, by the cost's name, above 0: what costs more ranks last, and is never `best`.
    Every report has to give these costs, and those of `penalties`."""
    penalties: Mapping[str, float]
    """What a unit of a cost adds to the loss, by the cost's name, above 0."""


def create_study(
    name: str, space: Space, max_steps: int, settings: Settings
) -> v1.CreateStudyRequest:
    algorithm: dict[str, Any] = dict(settings)
    if unknown := algorithm.keys() - Settings.__annotations__.keys():
        known = ", ".join(Settings.__annotations__)
        raise TypeError(f"{', '.join(sorted(unknown))}: no such setting; there are {known}")
    spec = v1.StudySpec(variables=space._messages(), stop=v1.StopRules(max_steps=max_steps))
    lease = algorithm.pop("lease", None)
    if lease is not None:
        spec.lease.FromNanoseconds(round(lease * 1e9))
    limits, penalties = algorithm.pop("limits", {}), algorithm.pop("penalties", {})
    # By name: the same study again has its rules in the same order.
    for cost in sorted({*limits, *penalties}):
        spec.costs.add(cost=cost, limit=limits.get(cost), weight=penalties.get(cost))
    if "algorithm" in algorithm:
        algorithm["algorithm"] = f"ALGORITHM_{algorithm['algorithm'].upper()}"
    spec.algorithm.CopyFrom(v1.AlgorithmSettings(**algorithm))
    return v1.CreateStudyRequest(name=name, spec=spec)


def space_of(study: v1.Study) -> Space:
    if not study.variables:
        raise FailedPrecondition(
            f"study {study.name} has no variables: it waits for a trainer of space {study.spec.space!r} to describe them, or "
            "its settings were rejected (`asngctl study show` says why); open it later, or create one with variables"
        )
    return Space._of(study.variables)


def best_of(study: v1.Study, space: Space) -> Best:
    if not study.HasField("chosen"):
        limits = ", ".join(
            f"{rule.cost} {rule.limit:g}" for rule in study.spec.costs if rule.HasField("limit")
        )
        raise FailedPrecondition(
            f"study {study.name} has evaluated no architecture within its limits ({limits}) so far: let it go on, or create "
            "another one with higher limits"
        )
    return Best(space._decode(study.chosen.architecture.values), study)


def records_of(report: v1.Report, space: Space) -> list[dict[str, Any]]:
    """A plain record for each ranked architecture of a step in the history."""
    arrived = (
        report.report_time.ToDatetime(timezone.utc) if report.HasField("report_time") else None
    )
    outcome = v1.ReportOutcome.Name(report.outcome).removeprefix("REPORT_OUTCOME_")
    records = []
    for index, draw in enumerate(report.rank):
        record: dict[str, Any] = {
            "step": report.step_id,
            "generation": report.generation,
            "outcome": "UNREPORTED" if outcome == "UNSPECIFIED" else outcome,
            "staleness": report.staleness,
            "trainer": report.trainer_id,
            "time": arrived,
            "loss": report.losses[index] if report.losses else None,
        }
        record |= space._decode(draw.values)
        record |= {f"metrics.{name}": value for name, value in report.metrics.items()}
        if report.costs:
            figures = report.costs[index].figures
            record |= {f"costs.{name}": value for name, value in figures.items()}
        records.append(record)
    return records


class Outcome(Enum):
    """What became of a report. All of them are fine: the loop goes on."""

    APPLIED = v1.REPORT_OUTCOME_APPLIED
    """The distribution has learnt from it."""
    PENDING = v1.REPORT_OUTCOME_PENDING
    """It waits for the others of its update."""
    DUPLICATE = v1.REPORT_OUTCOME_DUPLICATE
    """The step had been reported before, most likely by this very call, whose first reply was lost."""
    STALE = v1.REPORT_OUTCOME_STALE
    """It came too late to count."""


class Step:
    """A step in hand."""

    def __init__(self, message: search.Step, space: Space) -> None:
        self._message = message
        self.id: int = message.step_id
        """Number of the step within the study, from 1."""
        self.study_id: str = message.study_id
        """Identity of the study: another one that is given the same name later has another."""
        self.generation: int = message.generation
        """Generation of the distribution that the architectures are drawn from."""
        self.progress: float = message.applied / max(message.max_steps, 1)
        """How far the search has come, from 0 to 1: for schedules, such as of a learning rate."""
        self.train = [Architecture(space._decode(a.values)) for a in message.train]
        """Architectures to train the weights on."""
        self.rank = [Architecture(space._decode(a.values)) for a in message.rank]
        """Architectures whose losses are to be reported, in this order; none in the warm-up: `report([])`."""

    def __repr__(self) -> str:
        return f"Step(id={self.id}, train={self.train}, rank={self.rank})"


def reason(error: BaseException | None) -> str:
    """Why a step is given back."""
    if error is None or isinstance(error, GeneratorExit):
        return "the loop was left"
    return f"{type(error).__name__}: {error}"


class Walk:
    """A trainer's way through a study: what it asks, and what the answers mean."""

    def __init__(self, study: str, trainer_id: str | None) -> None:
        self._study = study
        self._run = secrets.token_hex(8)
        self._trainer_id = trainer_id or f"{socket.gethostname()}-{self._run}"
        self._requests = 0
        self._next: search.LeaseStepResponse | None = None
        # The step that is here, to the controller's knowledge, and the report of it that is on its way.
        self._hand: search.Step | None = None
        self._lost = False
        self._sent: search.ReportStepRequest | None = None
        self.period = 20.0
        """Seconds between two extensions of a lease, once there is one."""

    def next(self) -> search.LeaseStepResponse | None:
        """What the last report's reply said about the next step."""
        answer, self._next = self._next, None
        return answer

    def lease(self) -> search.LeaseStepRequest:
        """A new request for a step, to be sent again as it is whenever in doubt."""
        self._requests += 1
        return search.LeaseStepRequest(
            study=self._study,
            trainer_id=self._trainer_id,
            request_id=f"{self._run}-{self._requests}",
            fresh_start=self._requests == 1,
        )

    def take(self, answer: search.LeaseStepResponse) -> search.Step | float | None:
        """A step; or seconds after which to ask again; or None, when the study has ended."""
        match answer.WhichOneof("next"):
            case "step":
                step = answer.step
                self._hold(step)
                return step
            case "finished":
                study = answer.finished.study
                if study.state == v1.STUDY_STATE_FAILED:
                    reasons = "".join(f"\n  {v.field}: {v.description}" for v in study.failure)
                    raise StudyFailed(f"study {study.name} has failed{reasons}")
                return None
            case "no_work":
                return max(answer.no_work.retry_after.ToTimedelta().total_seconds(), 0.01)
            case other:
                raise Error(
                    f"the controller answers {other or 'nothing known'}: use a release of asng that fits its own"
                )

    def report(
        self,
        step: Step,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None,
    ) -> search.ReportStepRequest:
        message = step._message
        if self._hand is not message:
            raise Error(
                f"step {step.id} is not in hand: it was reported or given back before; report each step once"
            )
        self._sent = search.ReportStepRequest(
            study=message.study,
            step_id=message.step_id,
            lease_id=message.lease_id,
            trainer_id=self._trainer_id,
            losses=[float(loss) for loss in losses],
            metrics=_floats(metrics or {}),
            costs=[v1.Costs(figures=_floats(figures)) for figures in costs or ()],
            lease_next=True,
        )
        return self._sent

    def reported(self, answer: search.ReportStepResponse) -> Outcome:
        self._sent = self._hand = None
        # A controller that is about to end takes a report without saying what is next.
        if answer.next.WhichOneof("next"):
            self._next = answer.next
        if answer.next.HasField("step"):
            self._hold(answer.next.step)
        return Outcome(answer.outcome)

    def refused(self) -> None:
        """The report was answered with an error, and the step is still in hand."""
        self._sent = None

    def interrupted(self) -> search.ReportStepRequest | None:
        """The report whose answer was not waited for. Sent again it counts once, and brings the same next step."""
        return self._sent

    def must_be_reported(self, step: Step) -> None:
        if self._hand is step._message:
            raise NotReported(
                f"step {step.id} was not reported: call step.report(losses) before the loop goes on"
            )

    def extend(self) -> search.ExtendLeaseRequest | None:
        """The request that keeps the step in hand, while its lease is there to be kept."""
        if self._lost or not (step := self._hand):
            return None
        return search.ExtendLeaseRequest(
            study=step.study, step_id=step.step_id, lease_id=step.lease_id
        )

    def not_kept(self, request: search.ExtendLeaseRequest, error: Exception) -> bool:
        """The request was answered with an error: whether that is about the step that is still in hand.

        A lease that is lost stays lost; the step's report counts all the same if it is the first.
        """
        if request != self.extend():
            return False
        self._lost = is_for_good(error)
        return True

    def release(self, reason: str) -> search.ReleaseStepRequest | None:
        """The request that gives back the step in hand, which it no longer is."""
        step, self._hand = self._hand, None
        if not step:
            return None
        return search.ReleaseStepRequest(
            study=step.study, step_id=step.step_id, lease_id=step.lease_id, reason=reason[:1000]
        )

    def _hold(self, step: search.Step) -> None:
        self._hand = step
        self._lost = False
        self.period = max(step.lease.ToTimedelta().total_seconds(), 0.003) / 3


def _floats(figures: Mapping[str, SupportsFloat]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
