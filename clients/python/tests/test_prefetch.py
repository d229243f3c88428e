"""Loops with steps leased ahead: several steps in hand, and reports on their way beside the body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import pytest
from conftest import Between, Daemon, Plan

import asng
import asng.aio
from asng._prefetch import Pace
from asng.v1 import search_pb2 as search

SPACE = asng.Space(op=asng.Categorical(["a", "b", "c"]))


def losses(step: asng.Step | asng.aio.Step) -> list[float]:
    return [float("abc".index(arch.op)) for arch in step.rank]


def reports(between: Between) -> list[search.ReportStepRequest]:
    seen = between.requests("ReportStep")
    return [search.ReportStepRequest.FromString(request) for request in seen]


def check(daemon: Daemon, name: str, ids: Iterable[int], staleness: int, steps: int) -> None:
    """Every step was done once, and is as stale as steps are ahead, or one more where replies overtook each other."""
    assert sorted(ids) == list(range(1, steps + 1))
    with asng.connect(daemon.address) as controller:
        study = controller.study(name)
        history = study.history()
        assert {record["outcome"] for record in history} == {"APPLIED"}
        assert max(record["staleness"] for record in history) in (staleness, staleness + 1)
        mean = sum(record["staleness"] for record in history) / len(history)
        assert mean > staleness * 0.7
        (trainer,) = study.trainers()
        assert trainer.applied == steps


def test_steps_ahead_are_done_once(daemon: Daemon, between: Between) -> None:
    ids = []
    with asng.connect(between.address) as controller:
        study = controller.create_study("ahead", SPACE, max_steps=60)
        for step in study.steps(prefetch=3):
            ids.append(step.id)
            assert step.report(losses(step)) is asng.Outcome.SENT
    check(daemon, "ahead", ids, 3, 60)
    sent = reports(between)
    order = {request.step_id: place for place, request in enumerate(sent)}
    named = [request for request in sent if request.after]
    assert named, "no report was sent before the one before it was answered"
    assert all(order.get(request.after, -1) != order[request.step_id] for request in named)
    leases = [search.LeaseStepRequest.FromString(r) for r in between.requests("LeaseStep")]
    assert [request.fresh_start for request in leases].count(True) == 1
    assert len({request.request_id for request in leases}) == len(leases)


def test_steps_ahead_with_asyncio(daemon: Daemon) -> None:
    async def work() -> list[int]:
        ids = []
        async with asng.aio.connect(daemon.address) as controller:
            study = await controller.create_study("ahead-aio", SPACE, max_steps=60)
            async for step in study.steps(prefetch=3):
                ids.append(step.id)
                assert await step.report(losses(step)) is asng.Outcome.SENT
        return ids

    check(daemon, "ahead-aio", asyncio.run(work()), 3, 60)


def test_lost_replies_cost_nothing(daemon: Daemon, between: Between) -> None:
    lost = Plan(grpc.StatusCode.UNAVAILABLE, passes=True)
    away = Plan(grpc.StatusCode.UNAVAILABLE)
    between.plans = {"LeaseStep": [lost, away, lost], "ReportStep": [lost, lost, away, lost, away]}
    with asng.connect(between.address) as controller:
        study = controller.create_study("ahead-lost", SPACE, max_steps=40)
        ids = []
        for step in study.steps(prefetch=2):
            ids.append(step.id)
            step.report(losses(step))
    assert sorted(ids) == list(range(1, 41))
    assert daemon.study("ahead-lost").progress.applied == 40


def test_the_sequential_algorithm_has_one_step_in_hand(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("ahead-0", SPACE, max_steps=20, max_staleness=0)
        for step in study.steps(prefetch=4):
            assert [trainer.holds for trainer in study.trainers()] == [(step.id,)]
            step.report(losses(step))
        assert {record["staleness"] for record in study.history()} == {0}


def test_a_loop_that_is_left_gives_all_steps_back(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("ahead-left", SPACE, max_steps=100)
        for step in study.steps(prefetch=4):
            if step.id == 20:
                (trainer,) = study.trainers()
                assert len(trainer.holds) >= 4
                break
            step.report(losses(step))
    assert daemon.study("ahead-left").progress.expired == 0
    with asng.connect(daemon.address) as controller:
        study = controller.study("ahead-left")
        assert all(not trainer.holds for trainer in study.trainers())
        # What was given back comes first, the step of the body among it.
        assert next(iter(study.steps())).id == 20


def test_an_error_of_a_report_on_its_way_is_raised_by_the_loop(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("ahead-wrong", SPACE, max_steps=100)
        with pytest.raises(asng.InvalidArgument, match="2 rank architectures"):
            for step in study.steps(prefetch=2):
                step.report([1.0, 2.0, 3.0])
                with pytest.raises(asng.Error, match="report each step once"):
                    step.report([1.0, 2.0])
        assert all(not trainer.holds for trainer in study.trainers())


def test_a_controller_that_was_killed_is_waited_for(start: object) -> None:
    daemon: Daemon = start()  # type: ignore[operator]
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("ahead-killed", SPACE, max_steps=60)
        ids = []
        for step in study.steps(prefetch=3):
            ids.append(step.id)
            if step.id in (20, 40):
                daemon.kill()
                daemon.restart()
            step.report(losses(step))
    assert set(ids) == set(range(1, 61))
    assert daemon.study("ahead-killed").progress.applied == 60


def test_the_number_of_steps_ahead() -> None:
    for wrong in (-1, 65, "many", 1.5):
        with pytest.raises((TypeError, ValueError), match="prefetch"):
            Pace(wrong)  # type: ignore[arg-type]
    # As `auto_hides_the_round_trip_and_no_more` of the Rust client.
    for computing, round_trip, ahead in [
        (30, 100, 4),
        (30, 117, 5),
        (30, 1, 1),
        (100, 2, 0),
        (3000, 80, 0),
        (1, 500, 64),
    ]:
        pace = Pace("auto")
        for _ in range(3):
            assert pace.ahead() == 0
            pace.computed(computing)
            pace.answered(round_trip)
        assert pace.ahead() == ahead
