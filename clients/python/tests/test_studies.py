"""Queries about studies, and calls that change them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from conftest import Between, Daemon

import asng
import asng.aio
from asng import StudyState
from asng._study import summary_of
from asng.v1 import study_pb2 as v1

SPACE = asng.Space(op=asng.Categorical(["conv3", "<b>"]), width=asng.Integer(8, 64))


def run(study: asng.Study, steps: int) -> None:
    """Does some steps of a study."""
    for step in study.steps("tester"):
        step.report([float(arch.width) for arch in step.rank], {"train_loss": 0.5})
        steps -= 1
        if steps == 0:
            break


def test_a_study_is_paused_resumed_stopped_and_deleted(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("verbs", SPACE, max_steps=9)
        assert repr(study) == "Study('verbs', RUNNING, 0 of 9 steps, convergence 0.25)"
        assert study.state() is StudyState.RUNNING and not study.state().has_ended
        study.pause()
        assert "PAUSED" in repr(study) and study.state() is StudyState.PAUSED
        study.resume()
        run(study, 2)
        assert "RUNNING, 1 of 9 steps" in repr(study)  # As of the last step that came.
        progress = study.progress()
        assert (progress.applied, progress.max_steps, progress.outstanding) == (2, 9, 1)
        assert progress.fraction == 2 / 9
        with pytest.raises(TimeoutError, match="study 'verbs' is RUNNING: 2 of 9 steps"):
            study.wait(timeout=timedelta())
        study.stop()
        assert study.wait().stop_reason == "REQUEST"
        with pytest.raises(asng.FailedPrecondition):
            study.resume()
        study.delete()
        with pytest.raises(asng.NotFound, match="verbs"):
            study.show()


def test_a_study_is_shown(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("shown", SPACE, max_steps=9)
        assert controller.show("shown").best_loss is None
        run(study, 3)
        summary = controller.show("shown")
        assert summary == study.show() and summary.state is StudyState.RUNNING
        assert summary.incumbent and summary.incumbent.width == summary.best_loss
        assert summary.best == study.best() and summary.best_choice == "mode"
        assert re.fullmatch(
            r"study 'shown' is RUNNING: 3 of 9 steps, convergence 0\.\d\d, best loss [\d.]+",
            repr(summary),
        )
        page = study._repr_html_()
        assert "Study shown" in page and '<progress max="9" value="3">' in page
        # Names are text.
        summary = summary_of(daemon.study("shown"), SPACE)
        summary.best.values["op"] = "<b>"  # type: ignore[union-attr]
        assert "op=&lt;b&gt;" in summary._repr_html_()


def test_a_study_maximizes(daemon: Daemon) -> None:
    width = asng.Space(width=asng.Integer(8, 64))
    with asng.connect(daemon.address) as controller:

        def create(direction: Any = None) -> asng.Study:
            return controller.create_study(
                "max", width, max_steps=300, lambda_theta=4, seed=1, direction=direction
            )

        study = create("maximize")
        run(study, 300)
        assert study.best().width > 50
        summary = study.show()
        assert summary.direction == "maximize" and summary.best_loss == 64
        assert repr(summary).endswith(", best value 64") and "best value" in study._repr_html_()
        losses = [record["loss"] for record in study.history()]
        assert max(losses) == 64 and min(losses) >= 8
        for other in (None, "minimize"):
            with pytest.raises(
                asng.AlreadyExists, match="direction is MAXIMIZE there and MINIMIZE here"
            ):
                create(other)
        assert controller.create_study("min", width, max_steps=1).show().direction == "minimize"
        assert controller.create_study("min", width, max_steps=1, direction="minimize")


def test_studies_are_listed(start: Callable[..., Daemon]) -> None:
    with asng.connect(start().address) as controller:
        for name in ["first", "second", "other"]:
            run(controller.create_study(name, SPACE, max_steps=2), 2)
        controller.create_study("open", SPACE, max_steps=2)

        def names(**options: Any) -> list[str]:
            return [study.name for study in controller.list_studies(**options)]

        assert names() == ["first", "second", "other", "open"]
        assert names(newest_first=True, limit=2) == ["open", "other"]
        assert names(states=[StudyState.FINISHED], name="S") == ["first", "second"]
        assert names(owner="nobody") == names(labels={"of": "nobody"}) == []
        study = controller.list_studies(states={StudyState.RUNNING})[0]
        assert repr(study) == "study 'open' is RUNNING: 0 of 2 steps, convergence 0.25"
        wrongs: list[tuple[dict[str, Any], str]] = [
            ({"states": ["RUNNING"]}, "states: expected members of asng.StudyState"),
            ({"limit": 0}, "limit: expected a whole number from 1"),
            ({"owner": 3}, "owner: expected a string"),
        ]
        for wrong, message in wrongs:
            with pytest.raises(asng.InvalidArgument, match=message):
                names(**wrong)
        assert repr(controller).startswith("Controller('http://127.0.0.1:")


def test_trainers_trace_and_distribution(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("looked-at", SPACE, max_steps=9)
        run(study, 3)
        (trainer,) = study.trainers()
        assert (trainer.trainer_id, trainer.applied, trainer.holds) == ("tester", 3, ())
        assert trainer.last_seen and trainer.last_seen.tzinfo
        assert trainer.trainer_id in [each.trainer_id for each in controller.trainers()]
        distribution = study.distribution()
        choices, width = distribution["op"], distribution["width"]
        assert isinstance(choices, dict) and choices.keys() == {"conv3", "<b>"}
        assert abs(sum(choices.values()) - 1) < 1e-9
        assert isinstance(width, asng.Normal) and 8 <= width.mean <= 64 and width.deviation > 0
        last = study.trace()[-1]
        assert last["applied"] == 3 and last["metrics.train_loss"] == 0.5
        assert last["loss_low"] <= last["loss_median"] <= last["loss_high"]


def test_waiting_ends_with_the_study_through_a_restart(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("awaited", SPACE, max_steps=300)

        def work() -> None:
            run(study, 100)
            daemon.kill()
            daemon.restart()
            run(study, 200)

        thread = threading.Thread(target=work)
        thread.start()
        assert study.wait().state is StudyState.FINISHED
        thread.join()


def call(daemon: Daemon, method: str, request: Any) -> None:
    with grpc.insecure_channel(daemon.address) as channel:
        stub: Any = channel.unary_unary(f"/asng.v1.{method}")
        stub(request.SerializeToString())


def test_a_study_without_variables_can_be_held_but_not_searched(daemon: Daemon) -> None:
    spec = v1.StudySpec(space="toy", stop=v1.StopRules(max_steps=2))
    request = v1.CreateStudyRequest(name="waits", spec=spec)
    call(daemon, "StudyService/CreateStudy", request)
    with asng.connect(daemon.address) as controller:
        study = controller.study("waits")
        assert study.state() is StudyState.WAITING and study.show().best is None
        asks: list[Callable[[], object]] = [
            lambda: study.space,
            study.history,
            lambda: next(iter(study.steps())),
        ]
        for ask in asks:
            with pytest.raises(
                asng.FailedPrecondition, match=r"has no variables yet: .*study\.show"
            ):
                ask()
        study.stop()
        assert study.state() is StudyState.STOPPED


def test_every_name_of_a_variable_has_a_column_of_its_own(daemon: Daemon) -> None:
    names = [
        "loss",
        "step",
        "outcome",
        "time",
        "self",
        "costs.size",
        "metrics.lr",
        "variables.loss",
    ]
    space = asng.Space(**{name: asng.Integer(1, 9) for name in [*names, "a name"]})
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("named", space, max_steps=1)
        for step in study.steps():
            rank = step.rank
            step.report([0.5, 0.25], {"lr": 0.1}, [{"size": 3}, {"size": 4}])
        first, second = study.history()
    for record, arch in [(first, rank[0]), (second, rank[1])]:
        assert (record["step"], record["outcome"], record["metrics.lr"]) == (1, "APPLIED", 0.1)
        assert record["self"] == arch["self"] and record["a name"] == arch["a name"]
        for name in set(names) - {"self"}:
            assert record[f"variables.{name}"] == arch[name]
    assert [(each["loss"], each["costs.size"]) for each in (first, second)] == [(0.5, 3), (0.25, 4)]


def test_what_can_be_created_can_be_read(daemon: Daemon) -> None:
    choices = asng.Categorical([f"{number:03}" + 197 * "x" for number in range(500)])
    space = asng.Space(width=asng.Integer(1, 9), **{f"v{i}": choices for i in range(120)})
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("huge", space, max_steps=9)
        size = daemon_size(daemon, "huge")
        assert size > 20_000_000
        assert len(controller.study("huge").space.variables) == 121
        run(study, 1)
        assert "huge" in [each.name for each in controller.list_studies()]
        study.delete()


def daemon_size(daemon: Daemon, name: str) -> int:
    with grpc.insecure_channel(
        daemon.address, [("grpc.max_receive_message_length", -1)]
    ) as channel:
        stub: Any = channel.unary_unary("/asng.v1.StudyService/GetStudy")
        return len(stub(v1.GetStudyRequest(name=name).SerializeToString()))


def test_a_long_history_is_read_through_a_proxy_that_takes_no_large_messages(
    daemon: Daemon, between: Between
) -> None:
    # The proxy between takes 4 MiB, as gRPC does by default.
    space = asng.Space(op=asng.Categorical(["a", "b"]))
    metrics = {f"{number:03}" + 197 * "m": 1.0 for number in range(50)}
    with asng.connect(daemon.address) as direct, asng.connect(between.address) as controller:
        for step in direct.create_study("wide", space, max_steps=500).steps():
            step.report([1, 2], metrics)
        assert len(direct.study("wide").history()) == 1000
        assert len(controller.study("wide").history()) == 1000


def test_asyncio_has_the_same(daemon: Daemon) -> None:
    async def look() -> None:
        async with asng.aio.connect(daemon.address) as controller:
            study = await controller.create_study("aio-verbs", SPACE, max_steps=9, seed=1)
            async for step in study.steps():
                await step.report([1, 2])
                if step.id == 2:
                    break
            await study.pause()
            assert await study.state() is StudyState.PAUSED
            await study.resume()
            assert (await controller.show("aio-verbs")).progress.applied == 2
            assert "aio-verbs" in [each.name for each in await controller.list_studies()]
            assert await study.trainers() and await study.trace() and await study.distribution()
            assert await controller.trainers()
            with pytest.raises(TimeoutError):
                await study.wait(0)
            await study.stop()
            assert (await study.wait()).state is StudyState.STOPPED
            await study.delete()

    asyncio.run(look())
