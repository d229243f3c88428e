"""How controllers are reached: what a person gives to connect or sets in the environment, and what it means."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import random
import ssl
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc

from asng._errors import Error, Failure

log = logging.getLogger("asng")

# For a call and its answer, in seconds.
REQUEST_TIMEOUT = 30.0
# For calls outside a loop, until a controller answers; within a loop there is no end.
PATIENCE = 30.0
# For giving a step back.
FAREWELL = 5.0

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # Peers that do not answer a ping in this time are gone.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # When to try again is decided in one place, and that is not gRPC.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

PathOrStr = str | os.PathLike[str]


class Place(NamedTuple):
    """Where a controller is."""

    host_port: str
    tls: bool

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_port}"


class Options:
    """Checked options. Those that are not given are taken from the environment, as Rust programs take them."""

    def __init__(
        self,
        address: str | None,
        *,
        token: str | None = None,
        token_file: PathOrStr | None = None,
        tls_ca: PathOrStr | None = None,
        tls_cert: PathOrStr | None = None,
        tls_key: PathOrStr | None = None,
        insecure: bool | None = None,
    ) -> None:
        def of(given: PathOrStr | None, variable: str) -> str | None:
            return os.fspath(given) if given is not None else os.environ.get(variable) or None

        self._ca, self._cert, self._key = of(tls_ca, "ASNG_TLS_CA"), of(tls_cert, "ASNG_TLS_CERT"), of(tls_key, "ASNG_TLS_KEY")
        if (self._cert is None) != (self._key is None):
            raise Error("tls_cert, a certificate, needs tls_key, its private key, and the other way round")
        # A file goes before a token, but what is given here before the environment.
        self._token_file = None if token is not None and token_file is None else of(token_file, "ASNG_TOKEN_FILE")
        self._token = None if self._token_file else token or os.environ.get("ASNG_TOKEN") or None
        in_environment = os.environ.get("ASNG_INSECURE", "").lower() in ("1", "true", "yes", "on")
        self._insecure = in_environment if insecure is None else insecure
        self.metadata()
        addresses = address or os.environ.get("ASNG_CONTROLLER") or "http://127.0.0.1:50051"
        self.places = [self.place(address.strip()) for address in addresses.split(",")]

    def place(self, address: str) -> Place:
        """Checks an address, also one that a controller names: a URL, or host:port."""
        tls_options = bool(self._ca or self._cert)
        url = address if "://" in address else f"{'https' if tls_options else 'http'}://{address}"
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        try:
            host, port = parts.hostname, parts.port or (443 if tls else 80)
        except ValueError:  # The port is no number.
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
            raise Error(f"{address!r} is not an address such as localhost:50051 or https://controller.example.org:50051")
        if tls_options and not tls:
            raise Error(f"TLS options are given, but {url} is without TLS; write https://")
        if (self._token or self._token_file) and not (tls or self._insecure or is_loopback(host)):
            raise Error(
                f"a token would cross the network to {url} where others can read it; use https://, or give insecure=True "
                "if nobody else is on the way"
            )
        return Place(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tls)

    def credentials(self) -> grpc.ChannelCredentials:
        """Those of a TLS connection. Reads the files."""
        system = ssl.get_default_verify_paths().cafile
        # Without a file of the system's authorities gRPC takes its own.
        authorities = _read(self._ca or system) if self._ca or system else None
        key, chain = (_read(self._key), _read(self._cert)) if self._key and self._cert else (None, None)
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call. A token's file is read each time, so that it can be replaced."""
        token = self._token
        if self._token_file:
            token = next(iter(_read(self._token_file).decode(errors="replace").splitlines()), "")
        if token is None:
            return ()
        token = token.strip()
        if not token or not all("!" <= sign <= "~" for sign in token):
            raise Error("a token is one word of ASCII letters, digits and signs")
        return (("authorization", f"Bearer {token}"),)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Error(f"cannot read {file}: {error.strerror}") from None


class Places:
    """Which controller is asked: with several addresses the one that answered last, and when it fails the next one; where a
    controller names another as the owner of a study, that one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._list = list(options.places)
        self.current = self._list[0]

    def __len__(self) -> int:
        return len(self._list)

    def leave(self, place: Place, failure: Failure) -> None:
        """Turns from a place that fails, unless another call has done so."""
        if failure.owner:
            scheme = "" if "://" in failure.owner else "https://" if place.tls else "http://"
            owner = self._options.place(scheme + failure.owner)
            if place.tls and not owner.tls:
                raise Error(f"{place.url} names {owner.url} as the study's owner, which is without TLS: not followed")
            if owner not in self._list:
                # One at most, or an address that is new each time would let the list grow for ever.
                self._list[len(self._options.places) :] = [owner]
            self.current = owner
        elif self.current == place:
            self.current = self._list[(self._list.index(place) + 1) % len(self._list)]


class Attempts:
    """How often a call is tried: until there is an answer, with growing pauses of random length, or longer ones if the
    controller asks for them. An answer may be an error, one that another try would not mend."""

    def __init__(self, places: Places, *, for_ever: bool) -> None:
        self._places = places
        self._end = math.inf if for_ever else time.monotonic() + PATIENCE
        self._pause = 0.05
        self._hops = 0

    def failed(self, place: Place, error: grpc.RpcError) -> float:
        """Returns in how many seconds to try again, or raises what the caller is to get."""
        failure = Failure(error, place.url)
        if not failure.is_transient:
            raise failure.exception() from error
        if failure.code is grpc.StatusCode.UNAVAILABLE:
            self._places.leave(place, failure)
            self._hops += 1
            if self._places.current != place and self._hops < len(self._places):
                return 0
        self._hops = 0
        pause = max(self._pause * random.uniform(1, 2), failure.asked_pause)
        self._pause = min(2 * self._pause, 5)
        if time.monotonic() + pause > self._end:
            raise failure.exception() from error
        log.warning("%s does not answer; trying again in %.1f s: %s", place.url, pause, failure.message)
        return pause
