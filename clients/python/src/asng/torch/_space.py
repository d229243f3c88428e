"""The searched parts of a model: which module runs, how many run, and how wide layers are.

A model with such parts is an ordinary module. Until a `Supernet` is made of it, it runs the first choice of each `Choice`
and all modules of each `Repeat`, at the largest of each `Width`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from asng import Categorical, Integer
from asng._checks import MAX_UINT32, text, whole


class Choice(nn.Module):
    """One of several modules, by label. `forward` passes its arguments to the chosen module.

    Two choices of one `name` choose together; their labels have to be the same.
    """

    def __init__(self, name: str, options: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
        super().__init__()
        self.name = text("the name of a Choice", name)
        if not isinstance(options, (Mapping, nn.ModuleDict)):
            raise TypeError(
                f"the options of Choice {name!r} are a {type(options).__name__}: give a dict of modules by label"
            )
        if not options:
            raise ValueError(f"Choice {name!r} has no options: give a dict of modules by label")
        for label, module in options.items():
            text(f"a label of Choice {name!r}", label)
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"option {label!r} of Choice {name!r} is a {type(module).__name__}: give an nn.Module"
                )
        self.labels = list(options)
        self.options = nn.ModuleList(options.values())
        self.active = 0
        """Index of the chosen module."""
        self.taken = False
        """True for a part of a `Supernet`."""

    @property
    def variable(self) -> Categorical:
        """The variable of the search space."""
        return Categorical(self.labels)

    @property
    def chosen(self) -> nn.Module:
        """The module that runs."""
        return self.options[self.active]

    def choose(self, value: str | int) -> None:
        """Makes the module of this label the chosen one."""
        self.active = self.labels.index(str(value))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.chosen(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.labels}"


class Repeat(nn.Sequential):
    """A searched depth: the first n modules run, one after the other, with n from `low` to `high`, both included.

    `factory(i)` makes module i, for i from 0 to high - 1. With n = 0, which `low = 0` allows, the output is the input.
    Iteration yields the n modules that run, for models that call them with more than one argument.
    """

    def __init__(self, name: str, factory: Callable[[int], nn.Module], low: int, high: int) -> None:
        name = text("the name of a Repeat", name)
        if not callable(factory):
            raise TypeError(
                f"the factory of Repeat {name!r} is a {type(factory).__name__}: give a function of an index that makes a module"
            )
        low = whole(f"low of Repeat {name!r}", low, 0, MAX_UINT32)
        high = whole(f"high of Repeat {name!r}", high, low + 1, MAX_UINT32)
        super().__init__(*(factory(i) for i in range(high)))
        self.name = name
        self.low = low
        self.high = high
        self.active = high
        """The number of modules that run."""
        self.taken = False
        """True for a part of a `Supernet`."""

    @property
    def variable(self) -> Integer:
        """The variable of the search space."""
        return Integer(self.low, self.high)

    def choose(self, value: str | int) -> None:
        """Sets the number of modules that run."""
        self.active = int(value)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._modules.values())[: self.active])

    def __len__(self) -> int:
        # While modules are added, the length is that of the container.
        return self.__dict__.get("active", len(self._modules))

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.low} to {self.high}"


class Width(int):
    """A searched number of channels or features, for any layer of PyTorch that slices: `nn.Conv2d(3, width, 3)`.

    Give the same width to the layers that write, normalise and read these features. It is an integer, the largest of
    `choices`, so layers are created with all their weights; in the search, a layer uses the first ones of each dimension.
    `width * 2` and `width // 4` are widths as well, which follow the same variable. Other arithmetic gives a plain integer.

    In the search, attributes of modules that hold a width (`self.width = width`) are set to the current number, so a
    `forward` may read them.
    """

    def __new__(cls, name: str, choices: Sequence[int]) -> Width:
        name = text("the name of a Width", name)
        numbers = tuple(whole(f"a choice of Width {name!r}", n, 1, MAX_UINT32) for n in choices)
        if not numbers or list(numbers) != sorted(set(numbers)):
            raise ValueError(
                f"the choices of Width {name!r} are {list(numbers)}: give different numbers, the smallest first"
            )
        return cls._of(name, tuple(str(n) for n in numbers), numbers)

    name: str
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    """The number of each label: as given, or multiplied and divided since."""

    @classmethod
    def _of(cls, name: str, labels: tuple[str, ...], numbers: tuple[int, ...]) -> Width:
        if numbers[0] < 1:
            raise ValueError(
                f"a width computed from Width {name!r} is {numbers[0]} where that is {labels[0]}: it has to be at least 1"
            )
        width = int.__new__(cls, numbers[-1])
        width.name, width.labels, width.numbers = name, labels, numbers
        return width

    @property
    def variable(self) -> Categorical:
        """The variable of the search space, with the numbers as labels."""
        return Categorical(self.labels)

    def number(self, value: str | int) -> int:
        """The number for a value of the variable."""
        return self.numbers[self.labels.index(str(value))]

    def __mul__(self, factor: int) -> int:
        if type(factor) is not int:
            return int(self) * factor
        return Width._of(self.name, self.labels, tuple(n * factor for n in self.numbers))

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> int:
        if type(divisor) is not int:
            return int(self) // divisor
        return Width._of(self.name, self.labels, tuple(n // divisor for n in self.numbers))

    def __copy__(self) -> Width:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Width:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Width._of, (self.name, self.labels, self.numbers)

    def __repr__(self) -> str:
        return f"Width({self.name!r}, {list(self.numbers)})"
