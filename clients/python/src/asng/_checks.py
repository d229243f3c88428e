"""Checks of what a program gives. Numbers are Python's own or of NumPy or PyTorch, scalars or arrays of one element.

Each function takes the name of the setting for its error, an InvalidArgument that also says what is allowed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from typing import Any, SupportsFloat

from asng._errors import InvalidArgument, Violation

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


def refuse(setting: str, value: object, expected: str) -> InvalidArgument:
    """Returns the error for a value that is not what was expected."""
    given = repr(value)
    description = f"expected {expected}, not {given if len(given) <= 80 else given[:80] + '…'}"
    return InvalidArgument(f"{setting}: {description}", [Violation(setting, description)])


def text(setting: str, value: object) -> str:
    """Returns a string."""
    if not isinstance(value, str):
        raise refuse(setting, value, "a string")
    return value


def real(setting: str, value: object, expected: str = "a number") -> float:
    """Returns a number as a float; text that looks like one is refused."""
    try:
        return float(_scalar(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise refuse(setting, value, expected) from None


def whole(setting: str, value: object, low: int, high: int) -> int:
    """Returns a whole number within [low, high]; a float without a fraction is one."""
    expected = f"a whole number from {low} to {high}"
    try:
        scalar = _scalar(value)
        if isinstance(scalar, bool):
            raise TypeError
        if isinstance(scalar, float):
            number = int(scalar)
            if number != scalar:
                raise ValueError
        else:
            number = operator.index(scalar)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise refuse(setting, value, expected) from None
    if not low <= number <= high:
        raise refuse(setting, value, expected)
    return number


def seconds(setting: str, value: object) -> float:
    """Returns a duration in seconds, given as a number of seconds or a timedelta; 0 or more, and finite."""
    expected = "a duration, as a number of seconds or a timedelta"
    number = (
        value.total_seconds() if isinstance(value, timedelta) else real(setting, value, expected)
    )
    if not 0 <= number < math.inf:
        raise refuse(setting, value, expected)
    return number


def figures(setting: str, value: object) -> dict[str, float]:
    """Returns numbers by name; None stands for none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise refuse(setting, value, "numbers by name, such as {'parameters': 1e6}")
    return {name: real(f"{setting}[{name!r}]", number) for name, number in value.items()}


def losses(value: Iterable[SupportsFloat]) -> list[float]:
    """Returns the losses of a report."""
    return [
        real(f"losses[{index}]", loss)
        for index, loss in enumerate(
            _sequence("losses", value, "a sequence of numbers, one for each of step.rank")
        )
    ]


def costs(value: Iterable[Mapping[str, SupportsFloat]] | None) -> list[dict[str, float]]:
    """Returns the costs of a report; None stands for none."""
    return [
        figures(f"costs[{index}]", each)
        for index, each in enumerate(
            _sequence("costs", () if value is None else value, "a dict for each of step.rank")
        )
    ]


def _scalar(value: object) -> Any:
    """Returns the one element of an array or tensor, and anything else as it is. Raises TypeError for text."""
    item = getattr(value, "item", None)
    scalar = item() if callable(item) else value
    if isinstance(scalar, (str, bytes, bytearray)):
        raise TypeError
    return scalar


def _sequence(setting: str, value: Iterable[Any], expected: str) -> Iterable[Any]:
    """Refuses what has no elements in an order: a single number, a mapping, a set, text."""
    if isinstance(value, (str, bytes, bytearray, Mapping, Set)):
        raise refuse(setting, value, expected)
    try:
        return iter(value)
    except TypeError:
        raise refuse(setting, value, expected) from None
