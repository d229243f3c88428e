"""The number of steps that a loop leases ahead, so that it need not wait for a distant controller."""

from __future__ import annotations

import math
from collections import deque
from statistics import median_high
from typing import Literal

from asng import _checks as checks

MAX_PREFETCH = 64
"""The largest number of steps ahead."""
# The number of measurements whose median counts, and the number without which nothing is leased ahead.
MEASUREMENTS = 15
ENOUGH = 3
# The share of a step's time below which a round trip is no reason to lease ahead.
NEGLIGIBLE = 0.03
# The reserve for round trips that take longer than usual, in steps.
RESERVE = 0.5


class Pace:
    """Measured times, in seconds, and the number of steps ahead that follows from them, as the trainer in Rust has it."""

    def __init__(self, prefetch: int | Literal["auto"]) -> None:
        self._steps = None
        if prefetch != "auto":
            if isinstance(prefetch, str):
                raise checks.refuse(
                    "prefetch", prefetch, f"a number from 0 to {MAX_PREFETCH}, or 'auto'"
                )
            self._steps = checks.whole("prefetch", prefetch, 0, MAX_PREFETCH)
        self._computing: deque[float] = deque(maxlen=MEASUREMENTS)
        self._round_trips: deque[float] = deque(maxlen=MEASUREMENTS)

    @property
    def leases_ahead(self) -> bool:
        """Whether there may ever be steps ahead."""
        return self._steps != 0

    def computed(self, seconds: float) -> None:
        """Records the time of the loop's body, from a step to its report."""
        self._computing.append(seconds)

    def answered(self, seconds: float) -> None:
        """Records the time from a report to its reply."""
        self._round_trips.append(seconds)

    def ahead(self) -> int:
        """Returns the number of steps to hold beside the one in the body of the loop."""
        if self._steps is not None:
            return self._steps
        if min(len(self._computing), len(self._round_trips)) < ENOUGH:
            return 0
        steps = median_high(list(self._round_trips)) / max(median_high(list(self._computing)), 1e-9)
        return 0 if steps < NEGLIGIBLE else min(math.ceil(steps + RESERVE), MAX_PREFETCH)
