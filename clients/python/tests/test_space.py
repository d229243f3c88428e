"""Spaces and architectures."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest

from asng import Architecture, Best, Categorical, Integer, InvalidArgument, Space
from asng.v1 import study_pb2 as v1


def test_values_go_by_name_in_the_order_of_the_space() -> None:
    space = Space(
        op=Categorical(["a", "b"]), width=Integer(-9, 9), **{"a name": Categorical(["only"])}
    )
    arch = Architecture(space._decode([1, -4, 0]))
    assert (arch.op, arch.width, arch["a name"]) == ("b", -4, "only")
    assert str(arch) == "op=b, width=-4, a name=only"
    assert arch == copy.deepcopy(arch) and len({arch, copy.copy(arch)}) == 1
    with pytest.raises(AttributeError, match="no variable 'depth'"):
        _ = arch.depth


def test_what_was_drawn_is_clamped_and_rounded_as_the_controller_does() -> None:
    width = Integer(-9, 8)
    assert [width._decode(x) for x in (2.5, -2.5, 3.49, 100.2, -11.0)] == [3, -3, 3, 8, -9]


def test_a_space_goes_to_the_wire_and_back() -> None:
    space = Space(op=Categorical(["a", "b"]), width=Integer(8, 64))
    assert repr(Space._of(space._messages())) == repr(space)


def test_what_is_no_variable_is_refused() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Space(op=["a", "b"]), r"op: expected an asng.Categorical or an asng.Integer"),  # type: ignore[arg-type]
        (lambda: Categorical("abc"), "choices: expected a list of strings"),
        (lambda: Categorical([3, 5]), "choices: expected a list of strings"),  # type: ignore[list-item]
        (lambda: Categorical([]), "choices: expected a list of strings"),
        (lambda: Categorical(3), "choices: expected a list of strings, such as .*, not 3"),  # type: ignore[arg-type]
        (lambda: Integer(8.5, 64), "low: expected a whole number from .* not 8.5"),  # type: ignore[arg-type]
        (lambda: Integer(8, "64"), "high: expected a whole number from .* not '64'"),  # type: ignore[arg-type]
        (lambda: Integer(8, 2**70), "high: expected a whole number"),
    ]
    for make, message in wrong:
        with pytest.raises(InvalidArgument, match=message):
            make()


def test_bounds_may_be_whole_floats() -> None:
    width = Integer(8.0, np.float32(64))  # type: ignore[arg-type]
    assert width == Integer(8, 64) and isinstance(width.high, int)


def test_every_name_of_a_variable_works() -> None:
    names = ["self", "choice", "costs", "convergence", "applied", "max_steps", "name", "cls"]
    space = Space(**{name: Categorical(["a", "b"]) for name in [*names, "values", "_about", "λ"]})
    study = v1.Study(variables=space._messages())
    study.chosen.architecture.values[:] = study.mode.values[:] = [1] * len(space.variables)
    for arch in (Architecture(space._decode([1] * 11)), Best(space._decode([1] * 11), study)):
        assert {getattr(arch, name) for name in names} == {"b"}
        assert arch["values"] == arch["_about"] == arch.λ == "b"
        assert arch == copy.deepcopy(arch) and str(arch).startswith("self=b, choice=b")
