"""Work beside a loop: threads for `asng`, tasks for `asng.aio`. The two have the same methods."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class BackgroundThread:
    """Runs a function in a thread until it is stopped."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts the thread, the first time."""
        if self._thread is None:
            self._thread = threading.Thread(target=work, name="asng-lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Asks the function to return."""
        self._stopped.set()

    def stopped_within(self, seconds: float) -> bool:
        """Waits, and returns whether the function is to return."""
        return self._stopped.wait(seconds)


class BackgroundTask:
    """Runs a coroutine function in a task until it is stopped."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts the task, the first time."""
        if self._task is None:
            self._task = asyncio.create_task(work())

    def stop(self) -> None:
        """Cancels the task."""
        if self._task is not None:
            self._task.cancel()

    async def stopped_within(self, seconds: float) -> bool:
        """Waits. A task that is stopped is cancelled here."""
        await asyncio.sleep(seconds)
        return False


class CallThreads:
    """Runs functions side by side, each in a thread. Nobody waits for these at the end of the program."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.running = 0
        """The number of calls whose end was not waited for."""

    def start(self, call: Callable[..., object], *arguments: object) -> None:
        """Starts a call."""

        def run() -> None:
            try:
                call(*arguments)
            except BaseException as error:
                self._ended.put(error)
            else:
                self._ended.put(None)

        self.running += 1
        threading.Thread(target=run, name="asng-call", daemon=True).start()

    def one_ended(self, timeout: float | None = None) -> bool:
        """Waits for the end of a call, and raises what it raised. Returns False if there is none within the timeout."""
        try:
            error = self._ended.get(timeout=timeout) if timeout != 0 else self._ended.get_nowait()
        except queue.Empty:
            return False
        self.running -= 1
        if error is not None:
            raise error
        return True

    def abandon(self) -> None:
        """Waits for no call any more; those that still run end with the connection."""
        self.running = 0


class CallTasks:
    """Runs coroutine functions side by side, each in a task."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def running(self) -> int:
        """The number of calls whose end was not waited for."""
        return len(self._tasks)

    def start(self, call: Callable[..., Coroutine[Any, Any, object]], *arguments: object) -> None:
        """Starts a call."""
        self._tasks.add(asyncio.create_task(call(*arguments)))

    async def one_ended(self, timeout: float | None = None) -> bool:
        """Waits for the end of a call, and raises what it raised. Returns False if there is none within the timeout."""
        if not self._tasks:
            return False
        ended, _ = await asyncio.wait(
            self._tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for task in ended:
            self._tasks.discard(task)
            task.result()
            return True
        return False

    def abandon(self) -> None:
        """Cancels the calls that still run."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
