# Written by unasync.py from aio.py: make changes there.
"""The client whose calls wait, with a thread that extends the lease of the step in hand."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, TypeVar

import grpc
from google.protobuf.message import Message

from asng import _checks as checks
from asng import _protocol as protocol
from asng import _study as plain
from asng._attempts import FAREWELL, REQUEST_TIMEOUT, Attempts, Places
from asng._background import BackgroundThread, CallThreads
from asng._errors import Error, brief
from asng._options import Options, PathOrStr, Place, log
from asng._protocol import STEP_LIMIT, Method, Settings, TrainerSession
from asng._sigterm import sigterm_ends_the_loop
from asng._space import Best, Space
from asng._study import Normal, Outcome, Progress, StudyState, StudySummary, Trainer
from asng.v1 import search_pb2 as search
from asng.v1 import study_pb2 as v1

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Controller", "Step", "Study", "connect"]

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    token_file: PathOrStr | None = None,
    tls_ca: PathOrStr | None = None,
    tls_cert: PathOrStr | None = None,
    tls_key: PathOrStr | None = None,
    insecure: bool | None = None,
) -> Controller:
    """Returns a controller, for a `with` statement; it connects at the first call.

    `address` is a host, host:port or a URL, https:// for TLS; several, separated by commas, if several controllers share a
    database. Without a scheme it is https:// if TLS options are given, else http://; without a port it is port 50051.
    Options that are not given come from the environment: ASNG_CONTROLLER, by default http://127.0.0.1:50051, ASNG_TOKEN,
    ASNG_TOKEN_FILE, ASNG_TLS_CA, ASNG_TLS_CERT, ASNG_TLS_KEY, ASNG_INSECURE. A variable that is empty counts as unset.

    `tls_ca`, `tls_cert` and `tls_key` are PEM files: of the authorities that may have signed the controller's
    certificate, and of this client's certificate and key, for controllers that ask for one. The token is the first line of
    `token_file`, which is read again for every call. `insecure` allows to send the token over an unencrypted connection.

    A controller on this machine is reached directly. Any other is reached through the proxy that the variable grpc_proxy,
    https_proxy or http_proxy names, unless no_proxy lists its host.
    """
    options = Options(
        address,
        token=token,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
    )
    return Controller(Connection(options))


class Connection:
    """Channels to the controllers of an address, and the calls over them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._places = Places(options)
        self._channels: dict[Place, grpc.Channel] = {}
        self._closed = False

    @property
    def url(self) -> str:
        """The address of the controller in use."""
        return self._places.current.url

    def call(self, method: Method[Q, R], request: Q, *, for_ever: bool = False) -> R:
        """Repeats a call until it is answered, for at most half a minute unless `for_ever`."""
        attempts = Attempts(self._places, for_ever=for_ever)
        while True:
            place = self._places.current
            try:
                return self._send(place, method, request, REQUEST_TIMEOUT)
            except grpc.RpcError as error:
                time.sleep(attempts.failed(place, error))

    def try_once(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        """Calls once. Raises what gRPC raises."""
        return self._send(self._places.current, method, request, timeout)

    def pages(self, method: Method[Any, Any], request: Any) -> Iterator[Any]:
        """Calls for page after page of a list."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def close(self) -> None:
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _send(self, place: Place, method: Method[Q, R], request: Q, timeout: float) -> R:
        stub = self._channel(place).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        answer: R = stub(request, timeout=timeout, metadata=self._options.metadata())
        return answer

    def _channel(self, place: Place) -> grpc.Channel:
        if self._closed:
            raise Error("the connection to the controller is closed; open another with connect")
        channel = self._channels.get(place)
        if channel is None:
            options = place.channel_options
            channel = (
                grpc.secure_channel(place.host_port, self._options.credentials(), options)
                if place.tls
                else grpc.insecure_channel(place.host_port, options)
            )
            # Of two threads that come first, one has its channel closed when it is collected.
            channel = self._channels.setdefault(place, channel)
        return channel


class Controller:
    """A controller, for a `with` statement, whose end releases the steps that are still held."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._in_flight: set[InFlight] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.url!r})"

    def create_study(
        self, name: str, space: Space, *, max_steps: int, **settings: Unpack[Settings]
    ) -> Study:
        """Creates a study of `max_steps` steps, 1 to 10**12. A repeated call with the same arguments returns the existing study.

        `settings` are those of `asng.Settings`. Raises AlreadyExists if a study of this name has another space or other
        settings, and InvalidArgument for an invalid setting.
        """
        request = protocol.create_study(name, space, max_steps, settings)
        return self._study((self._connection.call(protocol.CREATE_STUDY, request)).study)

    def study(self, name: str) -> Study:
        """Returns the study of this name. Raises NotFound if there is none."""
        request = v1.GetStudyRequest(name=checks.text("name", name))
        return self._study((self._connection.call(protocol.GET_STUDY, request)).study)

    def list_studies(
        self,
        *,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        states: Iterable[StudyState] = (),
        name: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[StudySummary]:
        """Lists studies, by default all and the oldest first: those of an owner, with all of some labels, in one of some
        states, whose name contains a text; at most `limit` of them. The summaries have no architectures."""
        request = protocol.list_studies(owner, labels, states, name, newest_first, limit)
        studies: list[StudySummary] = []
        for page in self._connection.pages(protocol.LIST_STUDIES, request):
            studies += map(plain.summary_of, page.studies)
            if limit is not None and len(studies) >= limit:
                return studies[:limit]
        return studies

    def show(self, name: str) -> StudySummary:
        """Returns the current summary of a study. Raises NotFound if there is none of this name."""
        return (self.study(name)).show()

    def trainers(self) -> list[Trainer]:
        """Lists the trainers that the controller has seen since its start, at most 1000, most recently seen first."""
        answer = self._connection.call(protocol.LIST_TRAINERS, v1.ListTrainersRequest())
        return [plain.trainer_of(trainer) for trainer in answer.trainers]

    def _study(self, study: v1.Study) -> Study:
        return Study(study, self._connection, self._in_flight)

    def close(self) -> None:
        """Releases the steps that are still held, and closes the connection."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for in_flight in list(self._in_flight):
            in_flight.give_back(protocol.reason(error))
        self._connection.close()


class Study:
    """A study on a controller. Its `repr` shows the last answer about it; `show()` asks the controller again."""

    def __init__(self, study: v1.Study, connection: Connection, in_flight: set[InFlight]) -> None:
        self.name = study.name
        self._connection = connection
        self._in_flight = in_flight
        self._space = plain.space_of(study)
        self._last = plain.summary_of(study, self._space)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self._last.state.name}, {self._last.progress})"

    def _repr_html_(self) -> str:
        return self._last._repr_html_()

    @property
    def space(self) -> Space:
        """The variables. Raises FailedPrecondition while they are not known, in the state WAITING."""
        if self._space is None:
            raise plain.no_space(self.name)
        return self._space

    def show(self) -> StudySummary:
        """Returns the current summary of the study."""
        answer = self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=self.name))
        return self._heard(answer.study)

    def state(self) -> StudyState:
        """Returns the current state."""
        return (self.show()).state

    def progress(self) -> Progress:
        """Returns the current counters."""
        return (self.show()).progress

    def wait(self, timeout: float | timedelta | None = None) -> StudySummary:
        """Waits until the study has ended, through restarts of the controller, and returns its final summary.

        Raises StudyFailed if it FAILED, NotFound if it is deleted, and TimeoutError after `timeout`, in seconds or as a
        timedelta.
        """
        end = time.monotonic() + (
            float("inf") if timeout is None else checks.seconds("timeout", timeout)
        )
        pause = 0.05
        while True:
            answer = self._connection.call(
                protocol.GET_STUDY, v1.GetStudyRequest(name=self.name), for_ever=timeout is None
            )
            summary = self._heard(answer.study)
            summary.must_not_have_failed()
            if summary.state.has_ended:
                return summary
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{summary}; it has not ended within the timeout, {timeout}")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 2)

    def pause(self) -> None:
        """Stops leasing steps; reports of steps that are already leased still count."""
        request = v1.PauseStudyRequest(name=self.name)
        self._heard((self._connection.call(protocol.PAUSE_STUDY, request)).study)

    def resume(self) -> None:
        """Leases steps again."""
        request = v1.ResumeStudyRequest(name=self.name)
        self._heard((self._connection.call(protocol.RESUME_STUDY, request)).study)

    def stop(self) -> None:
        """Ends the study early; its results stay, and it cannot be resumed."""
        request = v1.StopStudyRequest(name=self.name)
        self._heard((self._connection.call(protocol.STOP_STUDY, request)).study)

    def delete(self) -> None:
        """Deletes the study and its history, in any state."""
        self._connection.call(protocol.DELETE_STUDY, v1.DeleteStudyRequest(name=self.name))

    def trainers(self) -> list[Trainer]:
        """Lists the trainers that have worked on the study since its controller loaded it, most recently seen first."""
        request = v1.ListTrainersRequest(name=self.name)
        answer = self._connection.call(protocol.LIST_TRAINERS, request)
        return [plain.trainer_of(trainer) for trainer in answer.trainers]

    def distribution(self) -> dict[str, dict[str, float] | Normal]:
        """Returns the current distribution of each variable: the probability of each choice for a Categorical, a Normal for an
        Integer."""
        request = v1.GetDistributionRequest(name=self.name)
        answer = self._connection.call(protocol.GET_DISTRIBUTION, request)
        return plain.distribution_of(answer.marginals, self._known_space())

    def trace(self) -> list[dict[str, Any]]:
        """Returns time series of the search from its start until now, at most 256 records, oldest first: applied, generation, time,
        convergence, entropy, delta, signal_to_noise, the quartiles loss_low, loss_median and loss_high, diverged, and means
        of metrics as "metrics.NAME". `pandas.DataFrame(study.trace())` is a table of them."""
        answer = self._connection.call(protocol.GET_TRACE, v1.GetTraceRequest(name=self.name))
        return [plain.trace_record(point) for point in answer.points]

    def best(self) -> Best:
        """Returns the current best guess at the final architecture: the most likely one, or, in a study with limits, the
        most likely of those evaluated within them. Raises FailedPrecondition while there is none."""
        answer = self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=self.name))
        self._heard(answer.study)
        return plain.best_of(answer.study, self.space)

    def history(self) -> list[dict[str, Any]]:
        """Returns a record for each architecture that was ranked, in the order of the steps. `pandas.DataFrame` makes a
        table of them. The warm-up ranks none and has no records.

        The columns are step, generation, outcome, staleness, trainer, time and loss, then each variable by its name,
        "metrics.NAME" and "costs.NAME". A variable whose name is one of these columns, or begins with "metrics.", "costs." or
        "variables.", has the column "variables.NAME", so no two columns have the same name.
        """
        space = self._known_space()
        records: list[dict[str, Any]] = []
        request = v1.ListReportsRequest(study=self.name, page_size=1000)
        for page in self._connection.pages(protocol.LIST_REPORTS, request):
            for report in page.reports:
                records += plain.history_records(report, space)
        return records

    def steps(
        self,
        trainer_id: str | None = None,
        *,
        step_limit: float | timedelta | None = STEP_LIMIT,
        prefetch: int | Literal["auto"] = 0,
    ) -> Generator[Step, None, None]:
        """Leases one step after another until the study ends, extends each lease while the body of the loop runs, and waits
        while the controller is unreachable. The body must report every step. An exception, `break` and Ctrl-C release the
        leased steps; so does SIGTERM, which raises SystemExit in the main thread of a program that does not handle SIGTERM.

        `trainer_id` is the id of this trainer, 1 to 200 characters, unique and the same after a restart: a restarted process
        then gets the step of the killed one at once. By default a new id is drawn, and such a step waits until its lease
        expires. After `step_limit`, in seconds or as a timedelta, the lease of a step is no longer extended, so that another
        trainer gets the step if the loop hangs; None means no limit. Raises StudyFailed, and NotFound if the study is deleted.

        `prefetch` is the number of steps leased ahead of the one in the body, 0 to 64, which hides the round trip to a distant
        controller; "auto" chooses it from measured times. `Step.report` then returns at once, and the loop raises the errors of
        reports. Each report is as many updates stale; the study's `max_staleness` bounds them.
        """
        session = TrainerSession(self.name, trainer_id, step_limit, prefetch)
        space = self._known_space()
        in_flight = InFlight(session, self._connection)
        self._in_flight.add(in_flight)
        is_paused = False
        with sigterm_ends_the_loop():
            try:
                while True:
                    while in_flight.calls.one_ended(0):
                        pass
                    if message := session.begin(time.monotonic()):
                        is_paused = False
                        in_flight.keep()
                        self._last = self._last.at(message)
                        in_flight.lease_ahead()
                        step = Step(message, space, in_flight)
                        yield step
                        session.must_be_reported(step)
                        continue
                    if in_flight.calls.running:
                        in_flight.calls.one_ended()
                        continue
                    answer = session.next() or self._connection.call(
                        protocol.LEASE_STEP, session.lease(), for_ever=True
                    )
                    match session.take(answer, time.monotonic()):
                        case v1.Study() as study:
                            self._heard(study)
                            return
                        case float(pause) if pause:
                            if not is_paused and (is_paused := self._is_paused()):
                                log.warning(
                                    "study %s is paused: waiting until it is resumed", self.name
                                )
                            time.sleep(pause)
            finally:
                in_flight.give_back(protocol.reason(sys.exc_info()[1]))
                self._in_flight.discard(in_flight)

    def _is_paused(self) -> bool:
        request = v1.GetStudyRequest(name=self.name)
        answer = self._connection.call(protocol.GET_STUDY, request, for_ever=True)
        return self._heard(answer.study).state is StudyState.PAUSED

    def _known_space(self) -> Space:
        if self._space is None:
            self.show()
        return self.space

    def _heard(self, study: v1.Study) -> StudySummary:
        self._space = self._space or plain.space_of(study)
        self._last = plain.summary_of(study, self._space)
        return self._last


class Step(protocol.Step):
    """A leased step: train the weights on `train`, then report the losses of `rank`."""

    def __init__(self, message: search.Step, space: Space, in_flight: InFlight) -> None:
        super().__init__(message, space)
        self._in_flight = in_flight

    def report(
        self,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None = None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None = None,
    ) -> Outcome:
        """Reports a loss for each architecture of `rank`, in order. Smaller is better, or larger in a study that maximizes; NaN
        and infinity mean that the architecture diverged. During the warm-up `rank` is empty: report no losses.

        Numbers may be of Python, NumPy or PyTorch, and `losses` a list, an iterator, an array or a tensor of them. `metrics`
        are further metrics for people. `costs` has one entry for each of `rank`, in order, such as `[{"parameters": 2e5}, …]`.
        Waits while the controller is unreachable; when it returns, the report is stored. Raises InvalidArgument for invalid
        values; the step can then be reported again. With steps leased ahead (`prefetch`), the report is sent in the background and
        the outcome is `Outcome.SENT`.
        """
        return self._in_flight.report(self, losses, metrics, costs)


class InFlight:
    """The steps in hand of a session: their leases are extended in the background until they are given back."""

    def __init__(self, session: TrainerSession, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._background = BackgroundThread()
        self.calls = CallThreads()
        """Calls beside the body of the loop, where steps are leased ahead."""
        self._process = os.getpid()
        # Whoever comes second waits until the step is back.
        self._giving = threading.RLock()

    def keep(self) -> None:
        """Extends the lease of whatever is in hand, from now until it is given back."""
        self._background.start(self._extend)

    def lease_ahead(self) -> None:
        """Asks for a further step beside the body of the loop, if fewer wait than should."""
        if request := self._session.lease_ahead(time.monotonic()):
            self.calls.start(self._lease, request)

    def _lease(self, request: search.LeaseStepRequest) -> None:
        answer = None
        try:
            answer = self._connection.call(protocol.LEASE_STEP, request, for_ever=True)
        except Error as error:
            log.debug("no further step is leased ahead: %s", error)
        finally:
            self._session.leased_ahead(answer, time.monotonic())

    def report(
        self,
        step: Step,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None,
    ) -> Outcome:
        """Sends the report of a step, and waits for the answer if no steps are leased ahead."""
        request = self._session.report(step, losses, metrics, costs, time.monotonic())
        if self._session.leases_ahead:
            self.calls.start(self._send, request)
            return Outcome.SENT
        return self._send(request)

    def _send(self, request: search.ReportStepRequest) -> Outcome:
        start = time.monotonic()
        try:
            answer = self._connection.call(protocol.REPORT_STEP, request, for_ever=True)
        except Error:
            self._session.refused(request)
            raise
        self._session.answered(time.monotonic() - start)
        return self._session.reported(request, answer, time.monotonic())

    def give_back(self, reason: str) -> None:
        """Gives back the steps in hand, once the reports that are on their way have arrived."""
        if os.getpid() != self._process:
            return  # The step is that of the process which has forked this one.
        self._background.stop()
        with self._giving:
            end = time.monotonic() + FAREWELL
            while self.calls.running and (left := end - time.monotonic()) > 0:
                try:
                    self.calls.one_ended(left)
                except Error as error:
                    log.warning("a call has failed while the loop ends: %s", error)
            self.calls.abandon()
            try:
                if request := self._session.interrupted():
                    answer = self._connection.try_once(protocol.REPORT_STEP, request, FAREWELL)
                    self._session.reported(request, answer, time.monotonic())
                for release in self._session.releases(reason):
                    self._connection.try_once(protocol.RELEASE_STEP, release, FAREWELL)
            except grpc.RpcError as error:
                log.warning(
                    "a step could not be released; it waits until its lease expires: %s",
                    brief(error),
                )

    def _extend(self) -> None:
        period = self._session.period
        while not self._background.stopped_within(period):
            period = self._session.period
            for request in self._session.extensions(time.monotonic()):
                try:
                    self._connection.try_once(protocol.EXTEND_LEASE, request, period)
                except (grpc.RpcError, ValueError, Error) as error:
                    if self._background.stopped_within(0):
                        return  # The channel, or the connection, was closed meanwhile.
                    if self._session.not_kept(request, error):
                        log.warning(
                            "the lease of step %d cannot be extended: %s",
                            request.step_id,
                            brief(error),
                        )
