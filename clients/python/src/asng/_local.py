"""A controller for one program: a child process that keeps its studies in a directory and ends with the program."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from asng._client import Connection, Controller
from asng._errors import Error
from asng._options import Options, PathOrStr, log

NAME = "asng-controller"
# Seconds that a controller has to end, which needs less than its --grace when no call is running.
PATIENCE = 20

# Becomes the controller, which the kernel ends with SIGTERM when the thread that started it has ended, as with its process.
# The parent may have been killed before it could ask for that.
GUARD = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def local(state_dir: PathOrStr) -> LocalController:
    """Starts a controller of this program's own, and returns when it serves.

    It keeps its studies in `state_dir`, which is made if it is not there, and goes on with those that it finds there. It
    listens on free ports of 127.0.0.1, where every program of this machine reaches it, and prints the address of its live page.
    Its log is `controller.log` in `state_dir`. One that is killed is started again.

    It ends with the `with` block, with `close()`, or with the interpreter; on Linux also when this process is killed.

    The program is that of the environment variable ASNG_CONTROLLER_BIN, or `asng-controller` beside this Python, where
    `pip install asng-controller` puts it, or on PATH. Raises Error if there is none, or if it does not start, such as when
    another controller uses `state_dir`.
    """
    path = Path(state_dir).resolve()
    if (other := _processes.get(path)) and not other.is_stopped:
        raise Error(
            f"this program has already started a controller with the state directory {path}: use that one, `close()` it, or "
            f"connect to its address, {other.served.address}"
        )
    process = _processes[path] = Process(find(), path)
    controller = LocalController(process)
    print(f"asng: live page at {controller.page}, log in {controller.log}", file=sys.stderr)
    return controller


class LocalController(Controller):
    """A controller that `asng.local` has started."""

    def __init__(self, process: Process) -> None:
        # The variables of the environment are about other controllers.
        connection = Connection(Options(process.served.address, environ={}))
        super().__init__(connection)
        self._process = process
        # Studies hold the connection: the process ends when nothing can call it any more, or with the interpreter.
        weakref.finalize(connection, process.stop)

    @property
    def address(self) -> str:
        """The address for other processes, such as `asng.connect(address)` in a worker, and for `asngctl --controller`."""
        return self._process.served.address

    @property
    def page(self) -> str:
        """The URL of the live page."""
        return f"http://{self._process.served.http}/"

    @property
    def log(self) -> Path:
        """The file with the log of the controller."""
        return self._process.log

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._process.stop()


# Those of this program, by state directory.
_processes: weakref.WeakValueDictionary[Path, Process] = weakref.WeakValueDictionary()


class Served(NamedTuple):
    """Where a controller serves, as HOST:PORT."""

    address: str
    http: str


class Process:
    """A controller that is started, started again when it is killed, and stopped."""

    def __init__(self, binary: Path, state_dir: Path) -> None:
        self.log = state_dir / "controller.log"
        self._command = [
            str(binary),
            "--state-dir",
            str(state_dir),
            "--log",
            "info",
            "--log-format",
            "text",
        ]
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        except OSError as error:
            raise Error(
                f"cannot write to the state directory {state_dir}: {error.strerror}"
            ) from None
        started: Future[Served] = Future()
        # The process ends with the thread that has started it, so that is not the caller's.
        threading.Thread(target=self._keep, args=[started], name="asng-local", daemon=True).start()
        try:
            self.served = started.result()
        except BaseException:
            self.stop()
            raise

    @property
    def is_stopped(self) -> bool:
        """True if the controller was stopped, or belongs to the process that has forked this one."""
        return self._stopped or os.getpid() != self._owner

    def stop(self) -> None:
        """Ends the controller, unless this is a fork of the process that has started it."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _keep(self, started: Future[Served]) -> None:
        try:
            served = self._start(Served("127.0.0.1:0", "127.0.0.1:0"))
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(served)
        while self._process is not None:
            status = self._process.wait()
            if self._stopped:
                return
            log.error(
                "the controller ended with status %d and is started again; its log is %s",
                status,
                self.log,
            )
            try:
                self._start(served)
            except Error as error:
                if not self._stopped:
                    log.error("%s", error)
                return

    def _start(self, where: Served) -> Served:
        """Starts the process, and waits until it serves or has ended."""
        command = [*self._command, "--listen", where.address, "--http", where.http]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", GUARD, str(self._owner), *command]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ASNG_")
        }
        with open(self.log, "ab") as output:
            begin = output.tell()
            with self._lock:
                if self._stopped:
                    raise Error("the controller was stopped while it started")
                # A session of its own: Ctrl-C in a terminal is for this program, which ends the controller last.
                process = self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        while True:
            try:
                status = process.wait(0.02)
            except subprocess.TimeoutExpired:
                served = self._serving(begin)
                if served and _is_ready(served.http):
                    return served
            else:
                reason = self._last_words(begin)
                raise Error(
                    f"{NAME} could not start (status {status}): {reason}\n  its log is {self.log}"
                )

    def _serving(self, begin: int) -> Served | None:
        line = re.search(r" serving address=(\S+) .*\bhttp=(\S+)", self._logged(begin))
        return Served(line[1], line[2]) if line else None

    def _last_words(self, begin: int) -> str:
        """Returns the last error in the log, or else its last line."""
        lines = self._logged(begin).strip().splitlines() or ["it has logged nothing"]
        errors = [line for line in lines if " ERROR " in line]
        return re.sub(r"^\S+ +ERROR \S+: ", "", (errors or lines)[-1])

    def _logged(self, begin: int) -> str:
        with open(self.log, "rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")


def find() -> Path:
    """Returns the program of the controller."""
    if named := os.environ.get("ASNG_CONTROLLER_BIN"):
        if not os.access(named, os.X_OK):
            raise Error(f"ASNG_CONTROLLER_BIN is {named!r}, which is not a program")
        return Path(named).absolute()
    scripts = {
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    }
    path = os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)])
    found = shutil.which(NAME, path=path)
    if not found:
        raise Error(
            f"{NAME} is not installed: run `pip install {NAME}`, or set ASNG_CONTROLLER_BIN to the file, such "
            "as target/release/asng-controller of a checkout; or use asng.connect for a controller that runs elsewhere"
        )
    return Path(found).absolute()


def _is_ready(address: str) -> bool:
    """Asks the controller's probe, which answers when its studies are loaded."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
