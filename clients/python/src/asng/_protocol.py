"""The requests to a controller, and the meaning of its answers. No socket, thread, task or clock: those are in aio.py and _client.py."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Literal, SupportsFloat, TypedDict, TypeVar

from google.protobuf.message import Message

from asng import _checks as checks
from asng._checks import MAX_UINT32, MAX_UINT64
from asng._errors import Error, NotReported, is_for_good
from asng._options import log
from asng._prefetch import Pace
from asng._space import Architecture, Space
from asng._study import Outcome, StudyState, summary_of
from asng.v1 import search_pb2 as search
from asng.v1 import study_pb2 as v1

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

STEP_LIMIT = 1800.0
"""Default time in seconds for which the lease of a step is extended, as `asng-trainer serve --step-limit`."""


@dataclass(frozen=True)
class Method(Generic[Q, R]):
    """A call of the contract."""

    path: str
    request: type[Q]
    response: type[R]


def _method(name: str, request: type[Q], response: type[R]) -> Method[Q, R]:
    return Method(f"/asng.v1.{name}", request, response)


CREATE_STUDY = _method("StudyService/CreateStudy", v1.CreateStudyRequest, v1.CreateStudyResponse)
GET_STUDY = _method("StudyService/GetStudy", v1.GetStudyRequest, v1.GetStudyResponse)
LIST_STUDIES = _method("StudyService/ListStudies", v1.ListStudiesRequest, v1.ListStudiesResponse)
PAUSE_STUDY = _method("StudyService/PauseStudy", v1.PauseStudyRequest, v1.PauseStudyResponse)
RESUME_STUDY = _method("StudyService/ResumeStudy", v1.ResumeStudyRequest, v1.ResumeStudyResponse)
STOP_STUDY = _method("StudyService/StopStudy", v1.StopStudyRequest, v1.StopStudyResponse)
DELETE_STUDY = _method("StudyService/DeleteStudy", v1.DeleteStudyRequest, v1.DeleteStudyResponse)
GET_DISTRIBUTION = _method(
    "StudyService/GetDistribution", v1.GetDistributionRequest, v1.GetDistributionResponse
)
LIST_REPORTS = _method("StudyService/ListReports", v1.ListReportsRequest, v1.ListReportsResponse)
GET_TRACE = _method("StudyService/GetTrace", v1.GetTraceRequest, v1.GetTraceResponse)
LIST_TRAINERS = _method(
    "StudyService/ListTrainers", v1.ListTrainersRequest, v1.ListTrainersResponse
)
LEASE_STEP = _method("SearchService/LeaseStep", search.LeaseStepRequest, search.LeaseStepResponse)
REPORT_STEP = _method(
    "SearchService/ReportStep", search.ReportStepRequest, search.ReportStepResponse
)
EXTEND_LEASE = _method(
    "SearchService/ExtendLease", search.ExtendLeaseRequest, search.ExtendLeaseResponse
)
RELEASE_STEP = _method(
    "SearchService/ReleaseStep", search.ReleaseStepRequest, search.ReleaseStepResponse
)


class Settings(TypedDict, total=False):
    """The settings of a search. A setting that is left out or None takes the controller's default, which is given below after
    the semicolon."""

    direction: Literal["minimize", "maximize"] | None
    """Direction of the reported values, which are called losses: "minimize", or "maximize" for accuracies; "minimize"."""
    algorithm: Literal["asng", "sng", "random"] | None
    """Algorithm that updates the distribution: "asng" (adaptive step size), "sng" (constant step size) or "random" (no updates);
    "asng"."""
    alpha: float | None
    """Threshold of the signal-to-noise ratio of the updates, above 0; 1.5."""
    delta_init: float | None
    """Initial trust region, above 0; 1."""
    delta_max: float | None
    """Upper bound of the trust region's divisor, above 0; none."""
    lambda_x: int | None
    """Architectures per step that train the weights, 0 to 1024; 2. Use 0 for a problem without weights."""
    lambda_theta: int | None
    """Architectures per step that are ranked, 2 to 1024; 2."""
    steps_per_update: int | None
    """Reports per update of the distribution, 1 to 1024; 1."""
    max_staleness: int | None
    """Largest staleness at which a report still counts: updates between the sampling of a step and its report, 0 to 1000000;
    64."""
    warmup_steps: int | None
    """Steps at the start that only train the weights, up to `max_steps`; 0. Their `rank` is empty, and the distribution does
    not change. Needs `lambda_x` above 0."""
    seed: int | None
    """Seed of all random draws of the study, 0 to 2**64 - 1; drawn by the controller."""
    lease: float | timedelta | None
    """Time, in seconds or as a timedelta, after which another trainer gets the step of a trainer that died, 1 s to 24 h;
    60 s."""
    limits: Mapping[str, float] | None
    """Largest allowed costs of an architecture by name, above 0; none. An architecture over a limit ranks last and is never
    `best`. Every report must contain these costs, and those of `penalties`."""
    penalties: Mapping[str, float] | None
    """Amounts that one unit of a cost adds to the loss, or subtracts from a maximized value, by the cost's name, above 0; none."""


_DIRECTIONS = {"minimize": v1.DIRECTION_MINIMIZE, "maximize": v1.DIRECTION_MAXIMIZE}
_ALGORITHMS = {
    "asng": v1.ALGORITHM_ASNG,
    "sng": v1.ALGORITHM_SNG,
    "random": v1.ALGORITHM_RANDOM,
}
_REALS = ("alpha", "delta_init", "delta_max")
_WHOLES = {
    "lambda_x": MAX_UINT32,
    "lambda_theta": MAX_UINT32,
    "steps_per_update": MAX_UINT32,
    "max_staleness": MAX_UINT32,
    "warmup_steps": MAX_UINT64,
    "seed": MAX_UINT64,
}


def create_study(
    name: str, space: Space, max_steps: int, settings: Settings
) -> v1.CreateStudyRequest:
    """Checks types and what the wire can hold; ranges are the controller's to check."""
    if not isinstance(space, Space):
        raise checks.refuse("space", space, "an asng.Space")
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for unknown in settings.keys() - Settings.__annotations__.keys():
        known = ", ".join(Settings.__annotations__)
        raise TypeError(f"{unknown}: no such setting; there are {known}")
    spec = v1.StudySpec(variables=space._messages())
    spec.stop.max_steps = checks.whole("max_steps", max_steps, 0, MAX_UINT64)
    if "lease" in given:
        lease = checks.seconds("lease", given["lease"])
        if lease > 86_400:
            raise checks.refuse("lease", given["lease"], "a duration from 1 s to 24 h")
        spec.lease.FromNanoseconds(round(lease * 1e9))
    limits = checks.figures("limits", given.get("limits"))
    penalties = checks.figures("penalties", given.get("penalties"))
    # By name: the same study again has its rules in the same order.
    for cost in sorted({*limits, *penalties}):
        spec.costs.add(cost=cost, limit=limits.get(cost), weight=penalties.get(cost))
    if "direction" in given:
        direction = _DIRECTIONS.get(checks.text("direction", given["direction"]))
        if direction is None:
            raise checks.refuse("direction", given["direction"], "'minimize' or 'maximize'")
        spec.direction = direction
    # Present even when empty, as it always was: the same study again has the same spec.
    spec.algorithm.SetInParent()
    if "algorithm" in given:
        algorithm = _ALGORITHMS.get(checks.text("algorithm", given["algorithm"]))
        if algorithm is None:
            raise checks.refuse("algorithm", given["algorithm"], "'asng', 'sng' or 'random'")
        spec.algorithm.algorithm = algorithm
    for setting in _REALS:
        if setting in given:
            setattr(spec.algorithm, setting, checks.real(setting, given[setting]))
    for setting, high in _WHOLES.items():
        if setting in given:
            setattr(spec.algorithm, setting, checks.whole(setting, given[setting], 0, high))
    return v1.CreateStudyRequest(name=checks.text("name", name), spec=spec)


def list_studies(
    owner: str | None,
    labels: Mapping[str, str] | None,
    states: Iterable[StudyState],
    name: str | None,
    newest_first: bool,
    limit: int | None,
) -> v1.ListStudiesRequest:
    page = 1000 if limit is None else min(checks.whole("limit", limit, 1, MAX_UINT64), 1000)
    wanted = [states] if isinstance(states, (StudyState, str)) else states
    for state in wanted:
        if not isinstance(state, StudyState):
            raise checks.refuse("states", state, "members of asng.StudyState")
    return v1.ListStudiesRequest(
        page_size=page,
        owner=owner and checks.text("owner", owner),
        labels=labels,
        newest_first=newest_first,
        states=[state.value for state in wanted],
        name_contains=name and checks.text("name", name),
    )


class Step:
    """A leased step of work."""

    def __init__(self, message: search.Step, space: Space) -> None:
        self._message = message
        self.id: int = message.step_id
        """Number of the step within the study, from 1."""
        self.study_id: str = message.study_id
        """Id of the study; a later study of the same name has another."""
        self.generation: int = message.generation
        """Generation of the distribution that the architectures are drawn from."""
        self.progress: float = message.applied / max(message.max_steps, 1)
        """Fraction of the search that is done, 0 to 1, for schedules such as of the learning rate."""
        self.train = [Architecture(space._decode(a.values)) for a in message.train]
        """Architectures to train the weights on."""
        self.rank = [Architecture(space._decode(a.values)) for a in message.rank]
        """Architectures whose losses are to be reported, in this order; empty during the warm-up: call `report([])`."""

    def __repr__(self) -> str:
        return f"Step(id={self.id}, train={self.train}, rank={self.rank})"


def reason(error: BaseException | None) -> str:
    """Returns the reason why a step is given back, for people."""
    if isinstance(error, SystemExit):
        return f"the program ends with status {error.code}"
    if error is None or isinstance(error, GeneratorExit):
        return "the loop was left"
    return f"{type(error).__name__}: {error}"


@dataclass
class _Held:
    """A step that is here, to the controller's knowledge."""

    step: search.Step
    since: float
    """The time at which it came, or at which the body of the loop got it."""
    lost: bool = False
    """Whether its lease is no longer extended."""


class TrainerSession:
    """The work of one loop on a study: the steps in hand, the requests about them, and the meaning of the answers.

    Times, `now`, are of a clock that only goes forward, in seconds. With steps leased ahead, several threads use it.
    """

    def __init__(
        self,
        study: str,
        trainer_id: str | None,
        step_limit: float | timedelta | None,
        prefetch: int | Literal["auto"] = 0,
    ) -> None:
        self._study = study
        self._run = secrets.token_hex(8)
        drawn = f"{socket.gethostname()}-{self._run}"
        self._trainer_id = drawn if trainer_id is None else checks.text("trainer_id", trainer_id)
        self._limit = (
            float("inf") if step_limit is None else checks.seconds("step_limit", step_limit)
        )
        self._pace = Pace(prefetch)
        self._lock = threading.Lock()
        self._requests = 0
        self._next: search.LeaseStepResponse | None = None
        # The steps that are here by their leases, and by their numbers those that wait for the body of the loop.
        self._held: dict[str, _Held] = {}
        self._waiting: dict[int, search.Step] = {}
        # Reports on their way by their leases, in the order in which they were sent.
        self._sent: dict[str, search.ReportStepRequest] = {}
        # The number of requests on their way that bring a step, and whether one of them is a LeaseStep.
        self._asking = 0
        self._leasing = False
        self._ask_again = 0.0
        self.period = 20.0
        """Seconds between two extensions of a lease, once there is one."""

    @property
    def leases_ahead(self) -> bool:
        """Whether reports are sent without waiting for their answers."""
        return self._pace.leases_ahead

    def begin(self, now: float) -> search.Step | None:
        """Returns a step that waits, for the body of the loop."""
        with self._lock:
            if not self._waiting:
                return None
            # A step that came back has a smaller number than those that were leased after it.
            step = self._waiting.pop(min(self._waiting))
            self._held[step.lease_id] = _Held(step, now)
            return step

    def next(self) -> search.LeaseStepResponse | None:
        """Returns what the last reply without a step said of the next one, once."""
        answer, self._next = self._next, None
        return answer

    def lease(self) -> search.LeaseStepRequest:
        """Returns a new request for a step, to be sent again as it is whenever in doubt."""
        self._requests += 1
        return search.LeaseStepRequest(
            study=self._study,
            trainer_id=self._trainer_id,
            request_id=f"{self._run}-{self._requests}",
            fresh_start=self._requests == 1,
        )

    def lease_ahead(self, now: float) -> search.LeaseStepRequest | None:
        """Returns a request for a further step, while one is in the body of the loop, if fewer wait than should."""
        with self._lock:
            ahead = len(self._waiting) + self._asking
            if ahead >= self._pace.ahead() or self._leasing or now < self._ask_again:
                return None
            self._asking += 1
            self._leasing = True
            return self.lease()

    def leased_ahead(self, answer: search.LeaseStepResponse | None, now: float) -> None:
        """Takes the answer to a request for a further step; None if it has failed."""
        with self._lock:
            self._asking -= 1
            self._leasing = False
            # Whatever is wrong shows in the calls that the loop waits for.
            self._ask_again = now + (0 if answer else 1)
            if answer:
                self._told(answer, now)

    def take(self, answer: search.LeaseStepResponse, now: float) -> float | v1.Study:
        """Takes what comes next. Returns seconds after which to go on, or the study, which has ended. Raises StudyFailed."""
        match answer.WhichOneof("next"):
            case "step":
                with self._lock:
                    self._hold(answer.step, now)
                return 0.0
            case "finished":
                summary_of(answer.finished.study).must_not_have_failed()
                return answer.finished.study
            case "no_work":
                return max(answer.no_work.retry_after.ToTimedelta().total_seconds(), 0.01)
            case other:
                raise Error(
                    f"the controller sent an unknown answer, {other or 'empty'}: use a newer release of asng"
                )

    def report(
        self,
        step: Step,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None,
        now: float,
    ) -> search.ReportStepRequest:
        """Returns the report of the step in hand. Raises InvalidArgument for what is not numbers; the step stays in hand."""
        message = step._message
        held = self._held.get(message.lease_id)
        if not held or held.step is not message or self._is_on_its_way(message):
            raise Error(
                f"step {step.id} cannot be reported: it was reported or released before; report each step once"
            )
        request = search.ReportStepRequest(
            study=message.study,
            step_id=message.step_id,
            lease_id=message.lease_id,
            trainer_id=self._trainer_id,
            losses=checks.losses(losses),
            metrics=checks.figures("metrics", metrics),
            costs=[v1.Costs(figures=figures) for figures in checks.costs(costs)],
        )
        with self._lock:
            if again := self._sent.get(message.lease_id):
                self._no_longer_sent(again)
            request.lease_next = len(self._waiting) + self._asking <= self._pace.ahead()
            before = next(reversed(self._sent.values()), None)
            request.after = before.step_id if before else 0
            self._asking += request.lease_next
            self._sent[message.lease_id] = request
            self._pace.computed(now - held.since)
        return request

    def reported(
        self, request: search.ReportStepRequest, answer: search.ReportStepResponse, now: float
    ) -> Outcome:
        """Takes the answer to a report: the step is no longer in hand, and the next one may be."""
        with self._lock:
            self._no_longer_sent(request)
            self._held.pop(request.lease_id, None)
            # A controller that is about to end takes a report without saying what is next.
            if answer.next.WhichOneof("next"):
                self._told(answer.next, now)
        return Outcome(answer.outcome)

    def answered(self, seconds: float) -> None:
        """Records the time from a report to its answer."""
        self._pace.answered(seconds)

    def refused(self, request: search.ReportStepRequest) -> None:
        """Notes that the report was answered with an error: the step is still in hand."""
        with self._lock:
            self._no_longer_sent(request)

    def interrupted(self) -> search.ReportStepRequest | None:
        """Returns the report whose answer was not waited for, without steps ahead. Sent again it counts once, and brings the
        same next step."""
        return next(iter(self._sent.values()), None) if not self.leases_ahead else None

    def must_be_reported(self, step: Step) -> None:
        """Raises NotReported if the step is still in hand, and its report not on its way."""
        message = step._message
        if message.lease_id in self._held and not self._is_on_its_way(message):
            raise NotReported(
                f"step {step.id} was not reported: call step.report(losses) before the next step"
            )

    def extensions(self, now: float) -> list[search.ExtendLeaseRequest]:
        """Returns the requests that extend the leases of the steps in hand; none for a lease that is lost, nor for a step that
        was here for longer than the limit."""
        requests = []
        with self._lock:
            for held in self._held.values():
                step = held.step
                if not held.lost and now - held.since > self._limit:
                    held.lost = True
                    log.error(
                        "step %d is stuck: the body of the loop has had it for more than %g s (step_limit), so its lease is "
                        "left to run out, and another trainer gets the step; a report still counts if it is the first",
                        step.step_id,
                        self._limit,
                    )
                if not held.lost:
                    request = search.ExtendLeaseRequest(
                        study=step.study, step_id=step.step_id, lease_id=step.lease_id
                    )
                    requests.append(request)
        return requests

    def not_kept(self, request: search.ExtendLeaseRequest, error: Exception) -> bool:
        """Notes that the request was answered with an error. Returns whether it is about a lease that is still in hand.

        A lease that is lost stays lost; the step's report counts all the same if it is the first.
        """
        held = self._held.get(request.lease_id)
        if not held or held.lost:
            return False
        held.lost = is_for_good(error)
        return True

    def releases(self, reason: str) -> list[search.ReleaseStepRequest]:
        """Returns the requests that give back the steps in hand, which they no longer are."""
        with self._lock:
            steps = [held.step for held in self._held.values()]
            self._held.clear()
            self._waiting.clear()
        return [
            search.ReleaseStepRequest(
                study=step.study, step_id=step.step_id, lease_id=step.lease_id, reason=reason[:1000]
            )
            for step in steps
        ]

    def _is_on_its_way(self, step: search.Step) -> bool:
        """Whether the report of a step is sent, and is not waited for."""
        return self.leases_ahead and step.lease_id in self._sent

    def _no_longer_sent(self, request: search.ReportStepRequest) -> None:
        if self._sent.pop(request.lease_id, None) is not None:
            self._asking -= request.lease_next

    def _told(self, answer: search.LeaseStepResponse, now: float) -> None:
        match answer.WhichOneof("next"):
            case "step":
                self._hold(answer.step, now)
                return
            case "no_work":
                pause = answer.no_work.retry_after.ToTimedelta().total_seconds()
                self._ask_again = now + pause
            case "finished":
                # The steps that wait are closed.
                for step in self._waiting.values():
                    self._held.pop(step.lease_id, None)
                self._waiting.clear()
        self._next = answer

    def _hold(self, step: search.Step, now: float) -> None:
        self._waiting[step.step_id] = step
        self._held[step.lease_id] = _Held(step, now)
        self.period = max(step.lease.ToTimedelta().total_seconds(), 0.003) / 3
