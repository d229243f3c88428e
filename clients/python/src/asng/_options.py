"""How controllers are reached: the options of `connect`, the environment variables that stand in for them, and their checks."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc

from asng import _checks as checks
from asng._errors import Error

log = logging.getLogger("asng")

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # Studies may be larger than the 4 MiB that gRPC takes by default: the limit is the controller's, when one is created.
    ("grpc.max_receive_message_length", -1),
    # Peers that do not answer a ping in this time are gone.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # When to try again is decided in one place, and that is not gRPC.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

# Where a controller serves gRPC by default.
PORT = 50051

PathOrStr = str | os.PathLike[str]


# The variables that gRPC takes a proxy from, and those that list the hosts to be reached without it; the first that is set.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


class Place(NamedTuple):
    """The address of a controller."""

    host: str
    port: int
    tls: bool

    @property
    def host_port(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_port}"

    @property
    def proxy(self) -> str | None:
        """The environment variable by which gRPC reaches this address through a proxy. Loopback is always reached directly."""
        variable = next((name for name in PROXY_VARIABLES if name in os.environ), None)
        if _is_loopback(self.host) or not variable or not os.environ[variable]:
            return None
        exceptions = next((os.environ[n] for n in NO_PROXY_VARIABLES if n in os.environ), "")
        suffixes = [entry.strip().lower() for entry in exceptions.split(",")]
        direct = any(suffix and self.host.lower().endswith(suffix) for suffix in suffixes)
        return None if direct else variable

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        return [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not _is_loopback(self.host)))]


class Options:
    """The options of `connect`, checked. Those that are not given are taken from `environ`."""

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
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        def of(given: PathOrStr | None, variable: str) -> str | None:
            return os.fspath(given) if given is not None else environ.get(variable) or None

        self._ca, self._cert, self._key = (
            of(tls_ca, "ASNG_TLS_CA"),
            of(tls_cert, "ASNG_TLS_CERT"),
            of(tls_key, "ASNG_TLS_KEY"),
        )
        if (self._cert is None) != (self._key is None):
            raise Error(
                "tls_cert, a certificate, needs tls_key, its private key, and the other way round"
            )
        # A file goes before a token, but what is given here before the environment.
        self._token_file = (
            None if token is not None and token_file is None else of(token_file, "ASNG_TOKEN_FILE")
        )
        self._token = None if self._token_file else token or environ.get("ASNG_TOKEN") or None
        self._insecure = _boolean(environ, "ASNG_INSECURE") if insecure is None else insecure
        self._header = self._read_token()
        addresses = address or environ.get("ASNG_CONTROLLER") or f"http://127.0.0.1:{PORT}"
        checks.text("address", addresses)
        self.places = [self.place(address.strip()) for address in addresses.split(",")]

    def place(self, address: str) -> Place:
        """Checks an address, also one that a controller names: `[http://|https://]HOST[:PORT]`.

        Without a scheme it is https:// if TLS options are given, else http://. A missing port is 50051 with every scheme.
        """
        # The address may hold a password: it is not shown.
        if "@" in address:
            raise Error(
                "the address of a server takes no user name and no password; give a token with token=… or token_file=…"
            )
        tls_options = bool(self._ca or self._cert)
        has_scheme = "://" in address
        bare = f"[{address}]" if _is_ipv6(address) else address
        url = address if has_scheme else f"{'https' if tls_options else 'http'}://{bare}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # The port is no number, or a bracket is missing.
            host = port = None
        if (
            not host
            or port == 0
            or any(sign.isspace() for sign in host)
            or parts.netloc.endswith(":")
            or parts.scheme not in ("http", "https")
            or parts.path not in ("", "/")
            or parts.query
        ):
            raise Error(
                f"{address!r} is not an address such as localhost:{PORT}, gpu-box or https://controller.example.org:{PORT}"
            )
        tls = parts.scheme == "https"
        if tls_options and not tls:
            raise Error(f"TLS options are given, but {url} does not use TLS: write https://")
        if (self._token or self._token_file) and not (tls or self._insecure or _is_loopback(host)):
            raise Error(
                f"a token would be sent to {url} unencrypted; use https://, or give insecure=True "
                "if nobody else is on the way"
            )
        return Place(host, PORT if port is None else port, tls)

    def credentials(self) -> grpc.ChannelCredentials:
        """Those of a TLS connection. Reads the files."""
        system = ssl.get_default_verify_paths().cafile
        # Without a file of the system's authorities gRPC takes its own.
        authorities = _read(self._ca or system) if self._ca or system else None
        key, chain = (
            (_read(self._key), _read(self._cert)) if self._key and self._cert else (None, None)
        )
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call. A token's file is read each time, so that it can be replaced."""
        try:
            self._header = self._read_token()
        except Error as error:
            log.warning("the previous token stays in use: %s", error)
        return self._header

    def _read_token(self) -> tuple[tuple[str, str], ...]:
        token = self._token
        if self._token_file:
            lines = _read(self._token_file).decode(errors="replace").splitlines()
            token = lines[0] if lines else ""
        if token is None:
            return ()
        token = token.strip()
        if not token or not all("!" <= sign <= "~" for sign in token):
            raise Error("a token must be one word of ASCII letters, digits and punctuation")
        return (("authorization", f"Bearer {token}"),)


def _boolean(environ: Mapping[str, str], variable: str) -> bool:
    """Returns the value of a variable that is on or off. An empty one counts as unset, which is off."""
    value = environ.get(variable, "")
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("", "0", "false", "no", "off"):
        return False
    raise Error(f"{variable} is {value!r}; expected 1, true, yes, on, 0, false, no or off")


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Error(f"cannot read {file}: {error.strerror}") from None
