"""Search spaces, and the architectures in them. Knows of the wire only its messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from asng.v1 import study_pb2 as v1


class Categorical:
    """A variable that is one of several choices, which are words."""

    def __init__(self, choices: Sequence[str]) -> None:
        if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
            raise TypeError('the choices are a list of strings, such as ["conv3", "skip"]')
        self.choices = tuple(choices)

    def __repr__(self) -> str:
        return f"Categorical({list(self.choices)})"

    def _decode(self, number: float) -> str:
        return self.choices[int(number)]

    def _message(self, name: str) -> v1.Variable:
        return v1.Variable(name=name, categorical=v1.Categorical(choices=self.choices))


@dataclass(frozen=True)
class Integer:
    """A variable that is a whole number from `low` to `high`, both included."""

    low: int
    high: int

    def _decode(self, number: float) -> int:
        # A history has the real number that was drawn; halves are rounded away from zero, as the controller does.
        clamped = min(max(number, self.low), self.high)
        return int(math.copysign(math.floor(abs(clamped) + 0.5), clamped))

    def _message(self, name: str) -> v1.Variable:
        return v1.Variable(name=name, integer=v1.Integer(low=self.low, high=self.high))


class Space:
    """What is searched: variables by name, in order. `Space(**{"a name": …})` takes names that are no identifiers."""

    def __init__(self, **variables: Categorical | Integer) -> None:
        for name, variable in variables.items():
            if not isinstance(variable, (Categorical, Integer)):
                raise TypeError(f"{name} is neither an asng.Categorical nor an asng.Integer")
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
    """One value for each variable: `arch.op`, or `arch["op"]` for any name. `arch.values` is a plain dict of all."""

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
    """The architecture that a study has found so far."""

    def __init__(self, values: dict[str, str | int], study: v1.Study) -> None:
        super().__init__(values)
        is_mode = study.chosen.architecture == study.mode
        self.choice: Literal["mode", "within limits"] = "mode" if is_mode else "within limits"
        """How it was chosen: as the most likely of all, or of those that were evaluated and are within the limits."""
        self.costs = dict(study.chosen.costs)
        """Its costs by name, as they were last reported; empty in a study without limits."""
        self.applied = study.progress.applied
        self.max_steps = study.progress.max_steps
        self.convergence = study.progress.convergence

    def __str__(self) -> str:
        which = "the mode: the most likely architecture"
        if self.choice == "within limits":
            which = "the most likely architecture evaluated within the limits"
        costs = "".join(f", {name} {cost:g}" for name, cost in self.costs.items())
        return (
            f"{super().__str__()} ({which} after {self.applied} of {self.max_steps} steps, convergence "
            f"{self.convergence:.2f}{costs})"
        )
