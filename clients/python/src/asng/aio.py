"""The same for asyncio: `asng.aio.connect`, and what it leads to under the same names.

Training belongs in a thread, `await asyncio.to_thread(…)`: the event loop has to keep the step's lease meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
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
    """As `asng.connect`, for an `async with` statement."""
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
        self._channels: dict[Place, grpc.aio.Channel] = {}

    async def call(self, method: Method[Q, R], request: Q, *, for_ever: bool = False) -> R:
        """Calls until there is an answer, or for a while."""
        attempts = Attempts(self._places, for_ever=for_ever)
        while True:
            place = self._places.current
            try:
                return await self._send(place, method, request, REQUEST_TIMEOUT)
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.failed(place, error))

    async def try_once(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        """Calls once. Raises what gRPC raises."""
        return await self._send(self._places.current, method, request, timeout)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def _send(self, place: Place, method: Method[Q, R], request: Q, timeout: float) -> R:
        stub = self._channel(place).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        answer: R = await stub(request, timeout=timeout, metadata=self._options.metadata())
        return answer

    def _channel(self, place: Place) -> grpc.aio.Channel:
        if place not in self._channels:
            self._channels[place] = (
                grpc.aio.secure_channel(
                    place.host_port, self._options.credentials(), CHANNEL_OPTIONS
                )
                if place.tls
                else grpc.aio.insecure_channel(place.host_port, CHANNEL_OPTIONS)
            )
        return self._channels[place]


class Controller:
    """A controller, for an `async with` statement. At its end steps that are still in hand are given back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._hands: set[Hand] = set()

    async def create_study(
        self, name: str, space: Space, *, max_steps: int, **settings: Unpack[Settings]
    ) -> Study:
        """As `asng.Controller.create_study`."""
        request = protocol.create_study(name, space, max_steps, settings)
        return self._study((await self._connection.call(protocol.CREATE_STUDY, request)).study)

    async def study(self, name: str) -> Study:
        """As `asng.Controller.study`."""
        return self._study(
            (await self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=name))).study
        )

    def _study(self, study: v1.Study) -> Study:
        return Study(study.name, protocol.space_of(study), self._connection, self._hands)

    async def close(self) -> None:
        """Gives back what is in hand, and closes the connection."""
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for hand in list(self._hands):
            await hand.give_back(protocol.reason(error))
        await self._connection.close()


class Study:
    """A study on a controller."""

    def __init__(self, name: str, space: Space, connection: Connection, hands: set[Hand]) -> None:
        self.name = name
        self.space = space
        self._connection = connection
        self._hands = hands

    async def steps(self, trainer_id: str | None = None) -> AsyncIterator[Step]:
        """As `asng.Study.steps`, for `async for`."""
        walk = Walk(self.name, trainer_id)
        hand = Hand(walk, self._connection)
        self._hands.add(hand)
        try:
            while True:
                answer = walk.next() or await self._connection.call(
                    protocol.LEASE_STEP, walk.lease(), for_ever=True
                )
                match walk.take(answer):
                    case None:
                        return
                    case float(pause):
                        await asyncio.sleep(pause)
                    case message:
                        hand.keep()
                        step = Step(message, self.space, walk, self._connection)
                        yield step
                        walk.must_be_reported(step)
        finally:
            await hand.give_back(protocol.reason(sys.exc_info()[1]))
            self._hands.discard(hand)

    async def best(self) -> Best:
        """As `asng.Study.best`."""
        study = (
            await self._connection.call(protocol.GET_STUDY, v1.GetStudyRequest(name=self.name))
        ).study
        return protocol.best_of(study, self.space)

    async def history(self) -> list[dict[str, Any]]:
        """As `asng.Study.history`."""
        records: list[dict[str, Any]] = []
        request = v1.ListReportsRequest(study=self.name, page_size=1000)
        while True:
            page = await self._connection.call(protocol.LIST_REPORTS, request)
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

    async def report(
        self,
        losses: Iterable[SupportsFloat],
        metrics: Mapping[str, SupportsFloat] | None = None,
        costs: Iterable[Mapping[str, SupportsFloat]] | None = None,
    ) -> Outcome:
        """As `asng.Step.report`."""
        request = self._walk.report(self, losses, metrics, costs)
        try:
            answer = await self._connection.call(protocol.REPORT_STEP, request, for_ever=True)
        except Error:
            self._walk.refused()
            raise
        return self._walk.reported(answer)


class Hand:
    """What a walk has in hand: a task keeps its lease, and it can be given back."""

    def __init__(self, walk: Walk, connection: Connection) -> None:
        self._walk = walk
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        # Who comes second waits until the step is back.
        self._giving = asyncio.Lock()

    def keep(self) -> None:
        """Keeps the lease of whatever is in hand, from now until it is given back."""
        if self._task is None:
            self._task = asyncio.create_task(self._extend())

    async def give_back(self, reason: str) -> None:
        if self._task:
            self._task.cancel()
        async with self._giving:
            try:
                if request := self._walk.interrupted():
                    self._walk.reported(
                        await self._connection.try_once(protocol.REPORT_STEP, request, FAREWELL)
                    )
                if release := self._walk.release(reason):
                    await self._connection.try_once(protocol.RELEASE_STEP, release, FAREWELL)
            except grpc.RpcError as error:
                log.warning(
                    "a step was not given back, and waits until its lease runs out: %s",
                    brief(error),
                )

    async def _extend(self) -> None:
        while True:
            await asyncio.sleep(self._walk.period)
            request = self._walk.extend()
            if not request:
                continue
            try:
                await self._connection.try_once(protocol.EXTEND_LEASE, request, self._walk.period)
            except grpc.RpcError as error:
                if self._walk.not_kept(request, error):
                    log.warning(
                        "the lease of step %d cannot be extended: %s", request.step_id, brief(error)
                    )
