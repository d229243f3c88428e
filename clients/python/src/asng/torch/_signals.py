"""SIGINT and SIGTERM, held back while a step is computed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """While in its `with` block, a signal to end waits until `check` is called, or raises at once where `prompt` says so.

    SIGINT becomes KeyboardInterrupt, and SIGTERM becomes SystemExit(143), at the end of the block at the latest. A second
    SIGINT raises at once in any case. A program that handles SIGTERM itself, or ignores SIGINT, goes on to do so. Outside the
    main thread, which alone receives signals, this does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._prompt = False
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._receive)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and os.getpid() != self._process:
            # A forked child, such as a worker of a pool, has inherited the handler but not the search.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
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
