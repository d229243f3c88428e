"""A controller of a program's own."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BINARY

import asng

SPACE = asng.Space(op=asng.Categorical(["a", "b"]))


@pytest.fixture(autouse=True)
def binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASNG_CONTROLLER_BIN", str(BINARY))


def ended(pid: int) -> bool:
    """Waits until a process that is no child of this one has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 30)[0])
    finally:
        os.close(descriptor)


def controllers(state_dir: Path) -> list[int]:
    """The processes whose command line has the directory, of those that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # It has ended meanwhile.
            if b"--state-dir" in words and os.fsencode(state_dir) in words:
                found.append(int(entry.name))
    return found


def test_a_search_goes_on_where_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # About other controllers, none of it about this one.
    for name, value in [("LISTEN", "256.0.0.1:1"), ("TLS_CA", "none.pem"), ("LOG", "off")]:
        monkeypatch.setenv(f"ASNG_{name}", value)
    state = tmp_path / "made" / "state"
    with asng.local(state) as controller:
        study = controller.create_study("mine", SPACE, max_steps=4)
        for step in study.steps():
            step.report([1, 2])
            if step.id == 2:
                break
        page = urllib.request.urlopen(controller.page).read().decode()
        assert "mine" in page
        monkeypatch.delenv("ASNG_TLS_CA")
        with asng.connect(controller.address) as other:
            assert [study.name for study in other.list_studies()] == ["mine"]
    assert f"live page at {controller.page}" in capsys.readouterr().err
    assert "shut down" in controller.log.read_text() and not controllers(state)
    with asng.local(state) as controller:
        ids = []
        for step in controller.study("mine").steps():
            ids.append(step.id)
            step.report([1, 2])
    assert ids == [3, 4]


def test_a_directory_has_one_controller(tmp_path: Path) -> None:
    with asng.local(tmp_path) as controller:
        with pytest.raises(
            asng.Error, match=f"already started a controller .* {controller.address}$"
        ):
            asng.local(f"{tmp_path}/../{tmp_path.name}")
    program, _ = start(tmp_path, "input()")
    with pytest.raises(
        asng.Error, match=r"could not start \(status 1\): .*is in use by another controller"
    ):
        asng.local(tmp_path)
    program.communicate("\n")
    asng.local(tmp_path).close()


def test_a_controller_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with asng.local(tmp_path) as controller:
        (killed,) = controllers(tmp_path)
        for step in controller.create_study("mine", SPACE, max_steps=2).steps():
            if step.id == 1:
                os.kill(killed, signal.SIGKILL)
            step.report([1, 2])
        assert controller.show("mine").progress.applied == 2
        assert controllers(tmp_path) != [killed]
    assert not controllers(tmp_path)


def start(state: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    """A program with a controller of its own: its process, and that of the controller."""
    code = f"import asng, os, threading\ncontroller = asng.local({str(state)!r})\nprint(flush=True)\n{then}"
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout and program.stdout.readline() == "\n"
    (controller,) = controllers(state)
    return program, controller


def test_it_ends_with_the_interpreter(tmp_path: Path) -> None:
    # The child is a fork, and leaves the controller alone.
    program, controller = start(
        tmp_path,
        "pid = os.fork()\nif pid:\n  os.waitpid(pid, 0)\n  controller.list_studies()\n  input()\n  print('served')",
    )
    assert program.communicate("\n")[0] == "served\n" and program.returncode == 0
    assert ended(controller)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell children")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_the_program_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    program, controller = start(tmp_path, "input()")
    program.send_signal(number)
    program.communicate()
    assert ended(controller)


def test_it_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    made: list[asng.LocalController] = []
    thread = threading.Thread(target=lambda: made.append(asng.local(tmp_path)))
    thread.start()
    thread.join()
    with made[0] as controller:
        for step in controller.create_study("mine", SPACE, max_steps=20).steps():
            step.report([1, 2])
        assert "terminated" not in controller.log.read_text()


def test_the_study_keeps_it(tmp_path: Path) -> None:
    study = asng.local(tmp_path).create_study("mine", SPACE, max_steps=2)
    (controller,) = controllers(tmp_path)
    assert study.state() is asng.StudyState.RUNNING
    del study
    assert ended(controller)


def test_the_program_is_found_or_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[tuple[Callable[[], object], str]] = [
        (
            lambda: monkeypatch.setenv("ASNG_CONTROLLER_BIN", "nowhere"),
            "ASNG_CONTROLLER_BIN is 'now",
        ),
        (lambda: monkeypatch.delenv("ASNG_CONTROLLER_BIN"), "pip install asng-controller"),
    ]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for setting, message in missing:
        setting()
        with pytest.raises(asng.Error, match=message):
            asng.local(tmp_path / "state")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/asng-controller").symlink_to(Path(BINARY).absolute())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    asng.local(tmp_path / "state").close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(asng.Error, match=re.escape(f"{tmp_path}/file/state: Not a directory")):
        asng.local(tmp_path / "file" / "state")
