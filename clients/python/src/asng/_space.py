"""Search spaces and the architectures in them. This module uses the messages of the proto and makes no calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from asng._checks import refuse, whole
from asng.v1 import study_pb2 as v1

MAX_INT64 = 2**63 - 1


class Categorical:
    """A variable that takes one of several choices, each a string."""

    def __init__(self, choices: Sequence[str]) -> None:
        expected = 'a list of strings, such as ["conv3", "skip"]'
        try:
            self.choices = () if isinstance(choices, str) else tuple(choices)
        except TypeError:
            raise refuse("choices", choices, expected) from None
        if not self.choices or not all(isinstance(choice, str) for choice in self.choices):
            raise refuse("choices", choices, expected)

    def __repr__(self) -> str:
        return f"Categorical({list(self.choices)})"

    def _decode(self, number: float) -> str:
        return self.choices[int(number)]

    def _message(self, name: str) -> v1.Variable:
        return v1.Variable(name=name, categorical=v1.Categorical(choices=self.choices))


@dataclass(frozen=True)
class Integer:
    """A variable that takes an integer from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for bound in ("low", "high"):
            number = whole(bound, getattr(self, bound), -MAX_INT64, MAX_INT64)
            object.__setattr__(self, bound, number)

    def _decode(self, number: float) -> int:
        # A history has the real number that was drawn; halves are rounded away from zero, as the controller does.
        clamped = min(max(number, self.low), self.high)
        return int(math.copysign(math.floor(abs(clamped) + 0.5), clamped))

    def _message(self, name: str) -> v1.Variable:
        return v1.Variable(name=name, integer=v1.Integer(low=self.low, high=self.high))


class Space:
    """The variables of a search, by name and in order. `Space(**{"a name": …})` takes names that are not identifiers."""

    def __init__(self, /, **variables: Categorical | Integer) -> None:
        for name, variable in variables.items():
            if not isinstance(variable, (Categorical, Integer)):
                raise refuse(name, variable, "an asng.Categorical or an asng.Integer")
        self.variables = variables

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}={kind}' for name, kind in self.variables.items())})"

    @staticmethod
    def _of(variables: Iterable[v1.Variable]) -> Space:
        space = Space()
        for variable in variables:
            if variable.WhichOneof("kind") == "integer":
                space.variables[variable.name] = Integer(
                    variable.integer.low, variable.integer.high
                )
            else:
                space.variables[variable.name] = Categorical(variable.categorical.choices)
        return space

    def _messages(self) -> list[v1.Variable]:
        return [variable._message(name) for name, variable in self.variables.items()]

    def _decode(self, numbers: Iterable[float]) -> dict[str, str | int]:
        """Names the values of an architecture or a draw, given in the order of the variables."""
        pairs = zip(self.variables.items(), numbers, strict=True)
        return {name: variable._decode(number) for (name, variable), number in pairs}


class Architecture:
    """One value for each variable of a space.

    `arch["op"]` is the value of any variable, and `arch.values` a dict of all. `arch.op` is the same for a name that is an
    identifier, unless it is `values` or begins with an underscore.
    """

    def __init__(self, values: dict[str, str | int]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __getattr__(self, name: str) -> Any:
        # Only called for names that are no attributes. Copying asks before there are values.
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"the space has no variable {name!r}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items())

    def __repr__(self) -> str:
        return f"Architecture({self.values})"


class Best(Architecture):
    """The current best guess at the final architecture of a search.

    A variable that has the name of one of the attributes below replaces it, so that every architecture is read in the same
    way; `StudySummary` has the same values under other names.
    """

    choice: Literal["mode", "within limits"]
    """How it was chosen: the most likely of all architectures, or of those that were evaluated within the limits."""
    costs: dict[str, float]
    """Its costs by name, as they were last reported; empty in a study without limits."""
    applied: int
    """Number of applied reports."""
    max_steps: int
    """Number of applied reports after which the search is finished."""
    convergence: float
    """Convergence of the distribution, 0 to 1."""

    def __init__(self, values: dict[str, str | int], study: v1.Study) -> None:
        super().__init__(values)
        progress, costs = study.progress, dict(study.chosen.costs)
        is_mode = study.chosen.architecture == study.mode
        attributes = {
            "choice": "mode" if is_mode else "within limits",
            "costs": costs,
            "applied": progress.applied,
            "max_steps": progress.max_steps,
            "convergence": progress.convergence,
        }
        self.__dict__ |= {name: it for name, it in attributes.items() if name not in values}
        which = (
            "the mode: the most likely architecture"
            if is_mode
            else "the most likely architecture evaluated within the limits"
        )
        self._about = (
            f"{which} after {progress.applied} of {progress.max_steps} steps, convergence {progress.convergence:.2f}"
            + "".join(f", {name} {cost:g}" for name, cost in costs.items())
        )

    def __str__(self) -> str:
        return f"{super().__str__()} ({self._about})"
