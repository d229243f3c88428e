"""Reaching controllers: addresses, TLS, tokens, and errors that say what to do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BINARY, Daemon

import asng
import asng.aio
from asng._options import PROXY_VARIABLES, Options

SPACE = asng.Space(op=asng.Categorical(["a", "b"]))


def urls(address: str | None, **options: str | bool) -> list[str]:
    return [place.url for place in Options(address, **options).places]  # type: ignore[arg-type]


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert urls(None) == ["http://127.0.0.1:50051"]
    assert urls("a:1, https://b,[::1]:2") == ["http://a:1", "https://b:50051", "http://[::1]:2"]
    assert urls("gpu-box,[::1], ::1") == ["http://gpu-box:50051", *["http://[::1]:50051"] * 2]
    assert urls("http://a, HTTPS://B") == ["http://a:50051", "https://b:50051"]
    assert urls("a:1,b", tls_ca="ca.pem") == ["https://a:1", "https://b:50051"]
    monkeypatch.setenv("ASNG_CONTROLLER", "http://c:3")
    assert urls(None) == ["http://c:3"]
    monkeypatch.setenv("ASNG_CONTROLLER", "")
    assert urls(None) == ["http://127.0.0.1:50051"]
    for wrong in [
        "ftp://a",
        "http://",
        "http://a/x",
        "a:b",
        "a,,b",
        "a:",
        "a:0",
        "a:70000",
        "a b",
        "1:2:3",
    ]:
        with pytest.raises(asng.Error, match="is not an address such as localhost:50051"):
            urls(wrong)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    for address in ["http://me:secret@a:1", "me:secret@a"]:
        with pytest.raises(asng.Error, match="token_file") as caught:
            urls(address)
        assert "secret" not in str(caught.value)


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "INSECURE"]:
        monkeypatch.setenv(f"ASNG_{name}", "")
    assert urls("a:1") == ["http://a:1"]
    with pytest.raises(asng.Error, match="insecure=True"):
        urls("10.1.2.3:1", token="secret")
    for word in ["1", "true", "Yes", "ON"]:
        monkeypatch.setenv("ASNG_INSECURE", word)
        assert urls("10.1.2.3:1", token="secret")
    for word in ["0", "False", "no", "off"]:
        monkeypatch.setenv("ASNG_INSECURE", word)
        with pytest.raises(asng.Error, match="insecure=True"):
            urls("10.1.2.3:1", token="secret")
    monkeypatch.setenv("ASNG_INSECURE", "maybe")
    with pytest.raises(asng.Error, match="ASNG_INSECURE is 'maybe'; expected 1, true, yes, on, 0"):
        urls("a")


def test_the_port_of_the_page_is_not_that_of_grpc(daemon: Daemon) -> None:
    with (
        asng.connect(daemon.http) as controller,
        pytest.raises(asng.Error, match=r"answers HTTP, not gRPC") as caught,
    ):
        controller.study("mine")
    assert daemon.http in str(caught.value) and "127.0.0.1:50051" in str(caught.value)


def test_a_server_of_http1_is_not_one_of_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asng._attempts.PATIENCE", 0)

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # It was closed.
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            asng.connect(address) as controller,
            pytest.raises(asng.Unavailable, match=f"{address} answers HTTP, not gRPC"),
        ):
            controller.study("mine")


def test_loopback_is_reached_without_a_proxy(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in PROXY_VARIABLES:
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    for host in ["127.0.0.1", "localhost"]:
        with asng.connect(f"{host}:{daemon.port}") as controller:
            controller.list_studies()
        assert asyncio.run(listed(f"{host}:{daemon.port}"))


async def listed(address: str) -> bool:
    async with asng.aio.connect(address) as controller:
        await controller.list_studies()
        return True


def test_an_error_names_the_proxy_that_was_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asng._attempts.PATIENCE", 0)
    monkeypatch.setenv("no_proxy", "nobody.invalid")

    def advice() -> str:
        with (
            asng.connect("gpu-box.invalid") as controller,
            pytest.raises(asng.Unavailable) as caught,
        ):
            controller.list_studies()
        return str(caught.value)

    for variable in reversed(PROXY_VARIABLES):
        # Each goes before those that are set already.
        monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:1")
        said = advice()
        assert f"through the proxy that the environment variable {variable} names" in said
        assert "no_proxy=gpu-box.invalid" in said and "secret" not in said
    monkeypatch.setenv("no_proxy", "nobody.invalid, .invalid")
    assert "proxy" not in advice() and "start one with `asng-controller`" in advice()


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(asng.Error, match="write https://"):
        urls("http://a", tls_ca="ca.pem")
    with pytest.raises(asng.Error, match="tls_key"):
        urls("https://a", tls_cert="c.pem")
    with pytest.raises(asng.Error, match="insecure=True") as caught:
        urls("10.1.2.3:1", token="secret")
    assert "secret" not in str(caught.value)
    assert urls("10.1.2.3:1", token="secret", insecure=True) and urls("localhost:1", token="secret")
    with pytest.raises(asng.InvalidArgument, match="address: expected a string, not 50051"):
        urls(50051)  # type: ignore[arg-type]
    with pytest.raises(asng.Error, match="one word"):
        urls("localhost", token="two words")
    with pytest.raises(asng.Error, match="cannot read .*: No such file"):
        urls("localhost", token_file=str(tmp_path / "none"))


def test_a_connection_that_is_closed_is_no_longer_used(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("closed", SPACE, max_steps=2)
    calls: list[Callable[[], object]] = [
        study.show,
        controller.list_studies,
        lambda: next(study.steps()),
    ]
    for call in calls:
        with pytest.raises(asng.Error, match="is closed; open another with connect"):
            call()


def start_with_tls(start: Callable[..., Daemon], certs: Path) -> Daemon:
    subprocess.run(
        [BINARY, "certs", "--out", certs, "--host", "localhost"], check=True, capture_output=True
    )
    server = ("--tls-cert", certs / "server.pem", "--tls-key", certs / "server-key.pem")
    return start(*server, "--tls-client-ca", certs / "ca.pem")


def test_mutual_tls(
    start: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs = tmp_path / "certs"
    daemon = start_with_tls(start, certs)
    address = f"localhost:{daemon.port}"
    client: dict[str, Any] = {"tls_cert": certs / "client.pem", "tls_key": certs / "client-key.pem"}
    with asng.connect(address, tls_ca=certs / "ca.pem", **client) as controller:
        controller.create_study("mine", SPACE, max_steps=2)
    for name, file in [("CA", "ca"), ("CERT", "client"), ("KEY", "client-key")]:
        monkeypatch.setenv(f"ASNG_TLS_{name}", str(certs / f"{file}.pem"))
    with asng.connect(address) as controller:
        assert controller.study("mine").name == "mine"


def test_errors_of_tls_say_what_to_do(
    start: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asng._attempts.PATIENCE", 0)
    certs = tmp_path / "certs"
    daemon = start_with_tls(start, certs)
    cases: list[tuple[str, dict[str, Any], str]] = [
        (f"https://localhost:{daemon.port}", {}, "tls_ca=FILE"),
        (f"https://localhost:{daemon.port}", {"tls_ca": certs / "ca.pem"}, "tls_cert=FILE"),
        (f"http://localhost:{daemon.port}", {}, "write https://"),
        ("http://localhost:1", {}, "start one with `asng-controller`"),
    ]
    for url, options, advice in cases:
        with asng.connect(url, **options) as controller, pytest.raises(asng.Unavailable) as caught:
            controller.study("mine")
        assert advice in str(caught.value), (url, options)


def test_tokens(start: Callable[..., Daemon], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    entries = [
        f'[[token]]\nname = "{role}"\nrole = "{role}"\ntoken = "{role}-secret-of-20-letters"\n'
        for role in ("admin", "trainer")
    ]
    tokens.write_text("".join(entries))
    daemon = start("--token-file", tokens)
    with (
        asng.connect(daemon.address) as controller,
        pytest.raises(asng.Unauthenticated, match="ASNG_TOKEN"),
    ):
        controller.study("mine")
    with asng.connect(daemon.address, token="admin-secret-of-20-letters") as controller:
        controller.create_study("mine", SPACE, max_steps=2)
    file = tmp_path / "token"
    file.write_text("trainer-secret-of-20-letters\nnot this\n")
    with asng.connect(daemon.address, token_file=file) as controller:
        with pytest.raises(asng.PermissionDenied, match="a token with a sufficient role"):
            controller.create_study("other", SPACE, max_steps=2)
        for step in controller.study("mine").steps():
            step.report([0, 1])
        file.unlink()  # The token that was read last stays.
        assert controller.study("mine").name == "mine"
        file.write_text("admin-secret-of-20-letters")
        controller.create_study("other", SPACE, max_steps=2)


def test_a_study_is_created_once(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        controller.create_study("twice", SPACE, max_steps=2, algorithm="sng", seed=3)
        controller.create_study("twice", SPACE, max_steps=2, algorithm="sng", seed=3)
        with pytest.raises(asng.AlreadyExists, match=r"controller\.study\(name\)"):
            controller.create_study("twice", SPACE, max_steps=3)
        with pytest.raises(asng.NotFound, match='"none"'):
            controller.study("none")
        with pytest.raises(asng.InvalidArgument, match="name: expected a string, not 3"):
            controller.study(3)  # type: ignore[arg-type]
        with pytest.raises(asng.InvalidArgument, match="max_steps") as caught:
            controller.create_study("in valid", SPACE, max_steps=0)
        assert [violation.field for violation in caught.value.violations] == [
            "name",
            "spec.stop.max_steps",
        ]
        with pytest.raises(
            TypeError, match="no such setting; there are direction, algorithm, alpha"
        ):
            controller.create_study("typo", SPACE, max_steps=2, alfa=1)  # type: ignore[call-arg]
    assert daemon.study("twice").spec.algorithm.seed == 3
