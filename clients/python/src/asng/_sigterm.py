"""SIGTERM while a loop over steps is open: it ends the loop as Ctrl-C does, so that the step in hand is given back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Loops that are open in the main thread, and the process that has set the handler.
_loops = 0
_process = 0


@contextmanager
def sigterm_ends_the_loop() -> Iterator[None]:
    """While this is entered in the main thread, SIGTERM raises SystemExit(143) there, as SIGINT raises KeyboardInterrupt.

    A program that handles SIGTERM itself is left alone. The default action returns with the last loop that is open.
    """
    global _loops, _process
    # Python runs handlers in the main thread, and lets no other set them.
    counts = threading.current_thread() is threading.main_thread()
    if counts:
        if _loops == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            _process = os.getpid()
            signal.signal(signal.SIGTERM, _raise)
        _loops += 1
    try:
        yield
    finally:
        if counts:
            _loops -= 1
            # A generator that nobody holds any more may be closed in another thread.
            in_main = threading.current_thread() is threading.main_thread()
            if in_main and _loops == 0 and signal.getsignal(signal.SIGTERM) is _raise:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, _: FrameType | None) -> None:
    if os.getpid() != _process:
        # A forked child, such as a worker of a data loader, has inherited the handler but not the loop.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    # The status that a shell shows for a program that SIGTERM has ended.
    raise SystemExit(128 + number)
