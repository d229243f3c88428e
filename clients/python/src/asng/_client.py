"""The client: calls that wait, and a thread that keeps the lease of the step in hand."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar

import grpc
from google.protobuf.message import Message

from asng import _protocol as protocol
from asng._attempts import FAREWELL, REQUEST_TIMEOUT, Attempts, Places
from asng._errors import Error, brief
from asng._options import CHANNEL_OPTIONS, Options, PathOrStr, Place, log
from asng._protocol import Method, Outcome, Settings, Walk
from asng._space import Best, Space
from asng.v1 import search_pb2 as search
from asng.v1 import study_pb2 as v1

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

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
    """Names a controller, for a `with` statement; the connection is made when it is first used.

    `address` is a host, host:port or a URL, https:// for TLS; several, separated by commas, if several controllers share a
    database. Without a scheme and a port it is https:// if TLS options are given, and port 50051. What is not given is taken from the environment: ASNG_CONTROLLER, by default http://127.0.0.1:50051,
    ASNG_TOKEN, ASNG_TOKEN_FILE, ASNG_TLS_CA, ASNG_TLS_CERT, ASNG_TLS_KEY, ASNG_INSECURE. A variable
    that is empty counts as unset.

    `tls_ca`, `tls_cert` and `tls_key` are PEM files: of the authorities that may have signed the controller's
    certificate, and of this client's certificate and key, for controllers that ask for one. The first line of `token_file` is
    read again for every call. `insecure` sends the token even where others can read it.
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
    """Channels to whichever controller answers."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._places = Places(options)
        self._channels: dict[Place, grpc.Channel] = {}
        self._lock = threading.Lock()

    def call(self, method: Method[Q, R], request: Q, *, for_ever: bool = False) -> R:
        """Calls until there is an answer, or for a while."""
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

    def close(self) -> None:
        with self._lock:
            for channel in self._channels.values():
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
        with self._lock:
            if place not in self._channels:
                self._channels[place] = (
                    grpc.secure_channel(
                        place.host_port, self._options.credentials(), CHANNEL_OPTIONS
                    )
                    if place.tls
                    else grpc.insecure_channel(place.host_port, CHANNEL_OPTIONS)
                )
            return self._channels[place]


class Controller:
    """A controller, for a `with` statement. At its end steps that are still in hand are given back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._hands: set[Hand] = set()

    def create_study(
        self, name: str, space: Space, *, max_steps: int, **settings: Unpack[Settings]
    ) -> Study:
        """Creates a study of `max_steps` steps. The same again is the same study, which goes on where it is. `settings`
        are those of `asng.Settings`. Raises AlreadyExists if a study of this name is another one."""
        request = protocol.create_study(name, space, max_steps, settings)
        return self._study(self._connection.call(protocol.CREATE_STUDY, request).study)

    def study(self, name: str) -> Study:
        """The study of this name, whoever has created it. Raises NotFound if there is none."""
        return self._study(
            self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=name)).study
        )

    def _study(self, study: v1.Study) -> Study:
        return Study(study.name, protocol.space_of(study), self._connection, self._hands)

    def close(self) -> None:
        """Gives back what is in hand, and closes the connection."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for hand in list(self._hands):
            hand.give_back(protocol.reason(error))
        self._connection.close()


class Study:
    """A study on a controller."""

    def __init__(self, name: str, space: Space, connection: Connection, hands: set[Hand]) -> None:
        self.name = name
        self.space = space
        self._connection = connection
        self._hands = hands

    def steps(self, trainer_id: str | None = None) -> Iterator[Step]:
        """Leases step after step until the study ends, keeps each lease while the body of the loop works, and waits for the
        controller when it is away. Every step is to be reported. An exception or `break` gives the step in hand back.

        `trainer_id` says who this is: the same after a restart, so that a step left behind by a process that was killed
        is taken up at once, and another for each trainer. By default one is drawn, and such a step waits until its lease
        has run out. Raises StudyFailed, and NotFound when the study is deleted.
        """
        walk = Walk(self.name, trainer_id)
        hand = Hand(walk, self._connection)
        self._hands.add(hand)
        try:
            while True:
                answer = walk.next() or self._connection.call(
                    protocol.LEASE_STEP, walk.lease(), for_ever=True
                )
                match walk.take(answer):
                    case None:
                        return
                    case float(pause):
                        time.sleep(pause)
                    case message:
                        hand.keep()
                        step = Step(message, self.space, walk, self._connection)
                        yield step
                        walk.must_be_reported(step)
        finally:
            hand.give_back(protocol.reason(sys.exc_info()[1]))
            self._hands.discard(hand)

    def best(self) -> Best:
        """The final architecture as things stand: the most likely one, or, if that is not known to be within the study's
        limits, the most likely of those evaluated that were. Raises FailedPrecondition while there is none."""
        study = self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=self.name)).study
        return protocol.best_of(study, self.space)

    def history(self) -> list[dict[str, Any]]:
        """A record for each architecture that was ranked, in the order of the steps: the step's figures, `loss`, each
        variable by its name, "metrics.NAME" and "costs.NAME". `pandas.DataFrame(study.history())` is a table of them. The
        warm-up ranks none and has no records."""
        records: list[dict[str, Any]] = []
        request = v1.ListReportsRequest(study=self.name, page_size=1000)
        while True:
            page = self._connection.call(protocol.LIST_REPORTS, request)
            for report in page.reports:
                records += protocol.records_of(report, self.space)
            if not page.next_page_token:
                return records
            request.page_token = page.next_page_token


class Step(protocol.Step):
    """A step in hand: train on `train`, then report the losses of `rank`."""

    def __init__(
        self, message: search.Step, space: Space, walk: Walk, connection: Connection
    ) -> None:
        super().__init__(message, space)
        self._walk = walk
        self._connection = connection

    def report(
        self,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None = None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None = None,
    ) -> Outcome:
        """Reports a loss for each of `rank`, in order; smaller is better, NaN or infinite for one that diverged. In the
        warm-up `rank` is empty, and so is what is reported. `metrics` are further figures for people. `costs` are those of
        each of `rank`, in order, such as `[{"parameters": 2e5}, …]`.
        Waits for as long as the controller is away; when this returns the report is stored."""
        request = self._walk.report(self, losses, metrics, costs)
        try:
            answer = self._connection.call(protocol.REPORT_STEP, request, for_ever=True)
        except Error:
            self._walk.refused()
            raise
        return self._walk.reported(answer)


class Hand:
    """What a walk has in hand: a thread keeps its lease, and it can be given back."""

    def __init__(self, walk: Walk, connection: Connection) -> None:
        self._walk = walk
        self._connection = connection
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self) -> None:
        """Keeps the lease of whatever is in hand, from now until it is given back."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._extend, name="asng-lease", daemon=True)
            self._thread.start()

    def give_back(self, reason: str) -> None:
        self._ended.set()
        try:
            if request := self._walk.interrupted():
                self._walk.reported(
                    self._connection.try_once(protocol.REPORT_STEP, request, FAREWELL)
                )
            if release := self._walk.release(reason):
                self._connection.try_once(protocol.RELEASE_STEP, release, FAREWELL)
        except grpc.RpcError as error:
            log.warning(
                "a step was not given back, and waits until its lease runs out: %s", brief(error)
            )

    def _extend(self) -> None:
        while not self._ended.wait(self._walk.period):
            request = self._walk.extend()
            if not request:
                continue
            try:
                self._connection.try_once(protocol.EXTEND_LEASE, request, self._walk.period)
            except (grpc.RpcError, ValueError) as error:
                if self._ended.is_set():
                    return  # ValueError: the channel is closed.
                if self._walk.not_kept(request, error):
                    log.warning(
                        "the lease of step %d cannot be extended: %s", request.step_id, brief(error)
                    )
