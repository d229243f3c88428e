"""Real controllers, killed and restarted, and a server that does its worst between them and the client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from asng.v1 import study_pb2 as v1

PACKAGE = Path(__file__).parents[1]
BINARY = os.environ.get("ASNG_CONTROLLER_BINARY", PACKAGE / "../../target/debug/asng-controller")


class Daemon:
    """A controller in a process of its own."""

    def __init__(self, state_dir: Path, *arguments: str | Path) -> None:
        self._command = [BINARY, "--state-dir", state_dir, *arguments]
        self.address = self._start("127.0.0.1:0")

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def _start(self, listen: str) -> str:
        environment = os.environ | {"ASNG_HTTP": "127.0.0.1:0"}
        self._process = subprocess.Popen(
            [*self._command, "--listen", listen], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr
        for line in self._process.stderr:
            print(line, end="")  # pytest shows it for a test that fails.
            if serving := re.search(r" serving address=(\S+) .*http=(\S+)", line):
                self.http = serving[2]
                # Keeps the pipe empty.
                threading.Thread(target=self._process.stderr.read, daemon=True).start()
                return serving[1]
        raise AssertionError("the controller has not started")

    def kill(self) -> None:
        """As the kernel or a power cut would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """After `kill`: the same state, the same port."""
        self._start(self.address)

    def study(self, name: str) -> v1.Study:
        """A study as the controller itself sees it."""
        with grpc.insecure_channel(self.address) as channel:
            stub = channel.unary_unary(
                "/asng.v1.StudyService/GetStudy",
                request_serializer=v1.GetStudyRequest.SerializeToString,
                response_deserializer=v1.GetStudyResponse.FromString,
            )
            answer: v1.GetStudyResponse = stub(v1.GetStudyRequest(name=name))
            return answer.study


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        ours = variable.startswith("ASNG_") and variable != "ASNG_CONTROLLER_BINARY"
        if ours or variable.endswith("_proxy"):
            monkeypatch.delenv(variable)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts controllers with options."""
    started: list[Daemon] = []

    def start(*arguments: str | Path) -> Daemon:
        daemon = Daemon(tmp_path / f"state-{len(started)}", *arguments)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A controller for all tests that leave it alone."""
    daemon = Daemon(tmp_path_factory.mktemp("state"))
    yield daemon
    daemon.kill()


class Between(grpc.GenericRpcHandler):
    """A server that passes every call on to a controller, notes it, and then does what was planned for its method."""

    def __init__(self, daemon: Daemon) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.plans: dict[str, list[Plan]] = {}
        self._noted = threading.Condition()
        self._channel = grpc.insecure_channel(daemon.address)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def wait_for(self, name: str, count: int) -> list[bytes]:
        """Waits until a method has been called so often, and returns the requests."""

        with self._noted:
            assert self._noted.wait_for(lambda: len(self.requests(name)) >= count, timeout=30), (
                f"{name} is not called"
            )
            return self.requests(name)

    def requests(self, name: str) -> list[bytes]:
        """The requests of a method until now."""
        return [request for method, request in self.seen if method == name]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        name = details.method.rpartition("/")[2]

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._noted:
                self.seen.append((name, request))
                plan = self.plans[name].pop(0) if self.plans.get(name) else None
                self._noted.notify_all()
            if plan and not plan.passes:
                plan.fail(context)
            stub: Any = self._channel.unary_unary(details.method)
            try:
                answer: bytes = stub(request)
            except grpc.RpcError as error:
                failure: Any = error
                context.abort(failure.code(), failure.details())
            if plan:
                plan.fail(context)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


class Plan:
    """How a call ends: with a status, after the controller has seen it (`passes`) or before."""

    def __init__(
        self, code: grpc.StatusCode, details: bytes = b"", *, passes: bool = False
    ) -> None:
        self._code = code
        self._details = details
        self.passes = passes

    def fail(self, context: grpc.ServicerContext) -> None:
        if self._details:
            context.set_trailing_metadata((("grpc-status-details-bin", self._details),))
        context.abort(self._code, "planned")


@pytest.fixture
def between(daemon: Daemon) -> Iterator[Between]:
    between = Between(daemon)
    yield between
    between.stop()
