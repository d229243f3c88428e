"""SIGINT and SIGTERM, held back while a step is computed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """While in its `with` block, a signal to end waits until `check` is called, or raises at once where `prompt` says so.

    SIGINT becomes KeyboardInterrupt, and SIGTERM becomes SystemExit(143). A second SIGINT raises at once in any case. Outside
    the main thread, which alone receives signals, this does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._prompt = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self._received == number == signal.SIGINT
        self._received = number
        if self._prompt or again:
            self.check()

    def check(self) -> None:
        """Raises what a signal that has come asks for."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)

    @contextmanager
    def prompt(self) -> Iterator[None]:
        """Lets signals raise at once: for waiting."""
        self._prompt = True
        try:
            self.check()
            yield
        finally:
            self._prompt = False
