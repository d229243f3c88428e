"""The errors that the client raises, and their texts for errors of gRPC."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from asng import _details_pb2 as details_pb2

if TYPE_CHECKING:
    from asng._options import Place

M = TypeVar("M", bound=Message)


class Error(Exception):
    """Base class of all errors of this package. The message names the problem and the remedy."""


class Violation(NamedTuple):
    """An invalid value: the field or setting, and the reason."""

    field: str
    description: str


class InvalidArgument(Error, ValueError):
    """A value is invalid, according to this package or the controller. `violations` names each field and what is allowed."""

    def __init__(self, message: str, violations: list[Violation]) -> None:
        super().__init__(message)
        self.violations = violations


class NotFound(Error):
    """The study does not exist, or was deleted."""


class AlreadyExists(Error):
    """Another study has this name."""


class FailedPrecondition(Error):
    """The state of the study does not allow this."""


class Unauthenticated(Error):
    """The controller needs a token, or does not accept the one that was sent."""


class PermissionDenied(Error):
    """The token does not allow this."""


class ResourceExhausted(Error):
    """A limit of the controller is reached."""


class Unavailable(Error):
    """No controller answers."""


class StudyFailed(Error):
    """The study has FAILED, because a trainer rejected its settings; the message has the reasons."""


class NotReported(Error):
    """The body of the loop ended without a report of its step."""


_KINDS: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
}

# Texts of gRPC about a server that answers HTTP/2 without gRPC, or HTTP/1.
_HTTP = re.compile(r"Received http2 header with status: (\d+)|an http1\.x server")

_TOKEN = "token=…, token_file=…, or the variables ASNG_TOKEN and ASNG_TOKEN_FILE"
_ADVICE = {
    grpc.StatusCode.ALREADY_EXISTS: "choose another name, or give the same settings; controller.study(name) opens the existing study",
    grpc.StatusCode.UNAUTHENTICATED: f"give a token that the controller accepts: {_TOKEN}",
    grpc.StatusCode.PERMISSION_DENIED: f"give a token with a sufficient role: {_TOKEN}",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the controller or the network is slow; try again",
}


def brief(error: Exception) -> str:
    """Returns an error as one line for a log."""
    if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):  # What gRPC raises is one of these.
        return f"{error.code().name}: {error.details()}"
    return str(error)


def is_for_good(error: Exception) -> bool:
    """Returns whether the controller would answer a repeated request in the same way."""
    return isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) and error.code() in (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    )


class Failure:
    """A call to the controller at `place` that failed, there or on the way."""

    def __init__(self, error: grpc.RpcError, place: Place) -> None:
        # What grpc raises is also a grpc.Call, or an grpc.aio.AioRpcError, with the same methods.
        answer: Any = error
        self.code: grpc.StatusCode = answer.code()
        self.message: str = answer.details() or self.code.name
        self.place = place
        self._advice = _ADVICE.get(self.code)
        if http := _HTTP.search(self.message):
            server = place.host_port
            if (http[1] or "").startswith("5"):
                self.message = f"{server} answers HTTP status {http[1]}, not gRPC: it may be a reverse proxy that does not reach its server"
            else:
                self.message = (
                    f"{server} answers HTTP, not gRPC: it may be the port of the page or of metrics. By default gRPC is on "
                    "port 50051 of a controller"
                )
                self._advice = f'try asng.connect("{server.rpartition(":")[0]}:50051"), or set ASNG_CONTROLLER to this'
        self._status = details_pb2.Status()
        for key, value in answer.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                try:
                    self._status.ParseFromString(value)
                except DecodeError:
                    pass  # Then there are no details.

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self.asked_pause > 0
        return self.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.INTERNAL,
        )

    @property
    def asked_pause(self) -> float:
        """Seconds that the controller asks the client to wait before it retries."""
        return max(
            (d.retry_delay.ToTimedelta().total_seconds() for d in self._all(details_pb2.RetryInfo)),
            default=0,
        )

    @property
    def owner(self) -> str | None:
        """Address of the controller that owns the study, if the status names it."""
        for info in self._all(details_pb2.ErrorInfo):
            if info.reason == "NOT_OWNER":
                return info.metadata.get("address") or None
        return None

    def exception(self) -> Error:
        """Returns the exception to raise."""
        violations = [
            Violation(violation.subject, violation.description)
            for request in self._all(details_pb2.BadRequest)
            for violation in request.field_violations
        ]
        text = self.explanation(violations)
        if self.code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument(text, violations)
        return _KINDS.get(self.code, Error)(text)

    def explanation(self, violations: list[Violation]) -> str:
        lines = [f"{violation.field}: {violation.description}" for violation in violations]
        others = [
            (v.subject, v.description)
            for state in self._all(details_pb2.PreconditionFailure)
            for v in state.violations
        ]
        others += [
            (v.subject, v.description)
            for quota in self._all(details_pb2.QuotaFailure)
            for v in quota.violations
        ]
        # Here the message does without the subject.
        lines += [f"{subject}: {what}" for subject, what in others if what not in self.message]
        advice = self._advice
        if self.code is grpc.StatusCode.UNAVAILABLE:
            advice = advice or self._unavailable()
        text = self.message
        # The message often says what the first of them says.
        for line in [*lines, *([advice] if advice else [])]:
            if line not in text:
                text += f"\n  {line}"
        return text

    def _unavailable(self) -> str:
        if self.owner:
            return f"its owner is {self.owner}: give that address to asng.connect"
        if self._status.details:
            return "the controller cannot do this now; try again"
        if "CERTIFICATE_VERIFY_FAILED" in self.message:
            return "give the authority that signed the controller's certificate as tls_ca=FILE, and use a host name of the certificate"
        if "WRONG_VERSION_NUMBER" in self.message:
            return f"if the server at {self.place.url} does not use TLS, write http://"
        if variable := self.place.proxy:
            host = self.place.host
            return (
                f"the call went through the proxy that the environment variable {variable} names: to reach {host} "
                f"directly, add it to no_proxy (no_proxy={host}) or unset {variable}; the proxy has to allow CONNECT"
            )
        return (
            f"no controller answers at {self.place.url}: start one with `asng-controller`, or give another address to asng.connect or in "
            "ASNG_CONTROLLER; if the controller uses TLS, write https://, and give tls_cert=FILE and tls_key=FILE if it requires "
            "a client certificate"
        )

    def _all(self, kind: type[M]) -> Iterator[M]:
        """Details of a kind. They are known by the last part of their type's name."""
        for detail in self._status.details:
            if detail.type_url.endswith(f"/google.rpc.{kind.DESCRIPTOR.name}"):
                message = kind()
                try:
                    message.ParseFromString(detail.value)
                except DecodeError:
                    continue
                yield message
