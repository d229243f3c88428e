"""Work beside a loop: a thread for `asng`, a task for `asng.aio`. The two have the same methods."""

from __future__ import annotations

import asyncio
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
