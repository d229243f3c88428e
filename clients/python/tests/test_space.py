"""Spaces and architectures."""

from __future__ import annotations

import copy

import pytest

from asng import Architecture, Categorical, Integer, Space


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
    with pytest.raises(TypeError, match="op is neither"):
        Space(op=["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of strings"):
        Categorical("abc")
    with pytest.raises(TypeError, match="a list of strings"):
        Categorical([3, 5])  # type: ignore[list-item]
