"""Settings and figures: what is plain works, and what is wrong is an error that names the setting and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import Daemon

import asng
from asng import _checks as checks

SPACE = asng.Space(op=asng.Categorical(["a", "b"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "adam"}, "algorithm: expected 'asng', 'sng' or 'random', not 'adam'"),
        ({"algorithm": 3}, "algorithm: expected a string, not 3"),
        ({"direction": "max"}, "direction: expected 'minimize' or 'maximize', not 'max'"),
        ({"direction": -1}, "direction: expected a string, not -1"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 18446744073709551615, not -1"),
        ({"seed": "7"}, "seed: expected a whole number from .* not '7'"),
        ({"seed": True}, "seed: expected a whole number from .* not True"),
        ({"max_steps": 1.5}, "max_steps: expected a whole number from .* not 1.5"),
        ({"max_steps": None}, "max_steps: expected a whole number from .* not None"),
        ({"max_steps": math.nan}, "max_steps: expected a whole number"),
        ({"lambda_x": 2**40}, "lambda_x: expected a whole number from 0 to 4294967295"),
        ({"lambda_theta": np.array([2, 3])}, r"lambda_theta: .* not array\(\[2, 3\]\)"),
        ({"alpha": "high"}, "alpha: expected a number, not 'high'"),
        ({"lease": "60s"}, "lease: expected a duration, as a number of seconds or a timedelta"),
        ({"lease": math.inf}, "lease: expected a duration"),
        ({"lease": timedelta(days=2)}, "lease: expected a duration from 1 s to 24 h"),
        ({"limits": 1e6}, "limits: expected numbers by name, such as .* not 1000000.0"),
        ({"limits": {"width": None}}, r"limits\['width'\]: expected a number, not None"),
        ({"penalties": {3: 1.0}}, "penalties: expected numbers by name"),
        ({"name": None}, "name: expected a string, not None"),
        ({"space": "enas-micro"}, "space: expected an asng.Space, not 'enas-micro'"),
        # The controller checks values that the message can hold.
        ({"lambda_theta": 1}, "spec.algorithm.lambda_theta: "),
        ({"lease": 0.5}, "spec.lease: "),
        ({"max_steps": 0}, "spec.stop.max_steps: "),
    ],
)
def test_a_wrong_setting_is_named(daemon: Daemon, settings: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"name": "wrong", "space": SPACE, "max_steps": 2}
    with (
        asng.connect(daemon.address) as controller,
        pytest.raises(asng.InvalidArgument, match=message) as caught,
    ):
        controller.create_study(**(right | settings))
    assert isinstance(caught.value, ValueError)
    assert caught.value.violations[0].field == message.partition(":")[0].replace("\\", "")


def test_a_setting_that_is_plain_works(daemon: Daemon) -> None:
    settings: dict[str, Any] = {
        "max_steps": 1e4,
        "algorithm": None,
        "alpha": np.float32(1.5),
        "lambda_x": np.int64(0),
        "seed": np.uint64(2**64 - 1),
        "lease": timedelta(minutes=2),
        "limits": None,
        "penalties": {"width": np.array([0.5])},
    }
    with asng.connect(daemon.address) as controller:
        controller.create_study("plain", SPACE, **settings)
    spec = daemon.study("plain").spec
    algorithm = spec.algorithm
    assert (spec.stop.max_steps, spec.lease.seconds, spec.costs[0].weight) == (10_000, 120, 0.5)
    assert (algorithm.alpha, algorithm.lambda_x, algorithm.seed) == (1.5, 0, 2**64 - 1)
    assert not spec.costs[0].HasField("limit") and algorithm.algorithm == 0


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ((0.5,), "losses: expected a sequence of numbers, one for each of step.rank, not 0.5"),
        ((np.float64(0.5),), "losses: expected a sequence"),
        ((np.array(0.5),), "losses: expected a sequence"),
        (({0: 1.0, 1: 2.0},), r"losses: expected a sequence of numbers, .* not \{0: 1.0, 1: 2.0\}"),
        (({1.0, 2.0},), "losses: expected a sequence"),
        (("12",), "losses: expected a sequence of numbers, one for each of step.rank, not '12'"),
        ((["1.0", "2"],), r"losses\[0\]: expected a number, not '1.0'"),
        (([1, np.str_("2")],), r"losses\[1\]: expected a number"),
        (([1, None],), r"losses\[1\]: expected a number, not None"),
        (([1, 2j],), r"losses\[1\]: expected a number, not 2j"),
        ((np.ones((2, 2)),), r"losses\[0\]: expected a number, not array\(\[1., 1.\]\)"),
        (([1, 2], {"lr": "fast"}), r"metrics\['lr'\]: expected a number, not 'fast'"),
        (([1, 2], [3]), "metrics: expected numbers by name"),
        (([1, 2], None, {"width": 3}), "costs: expected a dict for each of step.rank"),
        (([1, 2], None, [3, 4]), r"costs\[0\]: expected numbers by name"),
        (([1, 2], None, [{"width": 3}, {"width": "4"}]), r"costs\[1\]\['width'\]: expected a numb"),
        (([1],), "losses: "),
    ],
)
def test_a_wrong_report_is_named_and_the_step_stays_in_hand(
    daemon: Daemon, report: tuple[Any, ...], message: str
) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("reports", SPACE, max_steps=1000)
        for step in study.steps("reports"):
            with pytest.raises(asng.InvalidArgument, match=message):
                step.report(*report)
            assert step.report([1, 2]) is asng.Outcome.APPLIED
            break


@pytest.mark.parametrize(
    "given",
    [
        (1, 2),
        iter([1, 2]),
        [Fraction(1), Decimal(2)],
        [np.float16(1), np.array([2])],
        np.array([1, 2]),
        np.array([[1.0], [2.0]]),
        [True, 2],
        {"first": 1, "second": 2}.values(),
    ],
    ids=str,
)
def test_losses_are_any_sequence_of_numbers(given: Any) -> None:
    assert checks.losses(given) == [1.0, 2.0]


def test_tensors_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    one, two = torch.tensor(1.0, requires_grad=True), torch.tensor([2.0])
    for losses in ([one, two], torch.tensor([1.0, 2.0]), torch.stack([one, two[0]]).half()):
        assert checks.losses(losses) == [1.0, 2.0]
    assert checks.whole("max_steps", torch.tensor(7), 1, 9) == 7
    wrong: list[Callable[[], object]] = [
        lambda: checks.losses(one),
        lambda: checks.losses(torch.ones(2, 2)),
        lambda: checks.whole("max_steps", torch.tensor(1.5), 1, 9),
        lambda: checks.seconds("lease", torch.ones(3)),
    ]
    for call in wrong:
        with pytest.raises(asng.InvalidArgument, match="expected"):
            call()
