"""The loop over a study's steps, and what it does not notice."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import pytest
from conftest import PACKAGE, Between, Daemon, Plan

import asng
import asng.aio
from asng import _details_pb2 as details
from asng.v1 import search_pb2 as search

SPACE_CODE = (
    'asng.Space(op=asng.Categorical(["conv3", "conv5", "skip"]), width=asng.Integer(8, 64))'
)
SPACE: asng.Space = eval(SPACE_CODE)


def loss(arch: asng.Architecture) -> float:
    return float((arch.op != "conv5") + abs(arch.width - 24) / 56)


def test_the_readme_is_true_while_the_controller_is_killed(
    start: Callable[..., Daemon], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start()
    example = re.search(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    assert example and "localhost:50051" in example[1]
    for other in ["README.md", "docs/external-trainers.md"]:
        assert example[1] in (PACKAGE / "../.." / other).read_text()
    trained: list[object] = []
    killed = threading.Event()

    def kill() -> None:
        daemon.kill()
        daemon.restart()
        killed.set()

    def train(model: object, arch: asng.Architecture) -> None:
        trained.append(arch)
        if len(trained) == 1000:
            threading.Thread(target=kill).start()

    names = {"asng": asng, "model": None, "train": train, "validate": lambda _, arch: loss(arch)}
    exec(example[1].replace("localhost:50051", daemon.address), names)
    assert killed.is_set()
    assert re.search(
        r"^op=conv5, width=\d+ \(the mode: .* after 2000 of 2000 steps",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert len(trained) == 4000
    assert daemon.study("mine").progress.applied == 2000
    with asng.connect(daemon.address) as controller:
        history = controller.study("mine").history()
    assert [record["step"] for record in history[::2]] == list(range(1, 2001))
    assert {record["outcome"] for record in history} == {"APPLIED"}


@pytest.mark.parametrize("method", ["LeaseStep", "ReportStep"])
def test_a_lost_reply_costs_nothing(daemon: Daemon, between: Between, method: str) -> None:
    lost = Plan(grpc.StatusCode.UNAVAILABLE, passes=True)
    between.plans = {method: [lost, lost]}
    outcomes, ids = [], []
    with asng.connect(between.address) as controller:
        study = controller.create_study(f"lost-{method}", SPACE, max_steps=4)
        for step in study.steps():
            ids.append(step.id)
            outcomes.append(step.report(map(loss, step.rank)))
    assert ids == [1, 2, 3, 4]
    repeated = asng.Outcome.DUPLICATE if method == "ReportStep" else asng.Outcome.APPLIED
    assert outcomes == [repeated, *[asng.Outcome.APPLIED] * 3]
    assert daemon.study(study.name).progress.applied == 4


def test_what_passes_is_waited_for_and_followed(daemon: Daemon, between: Between) -> None:
    def status(**detail: details.RetryInfo | details.ErrorInfo) -> bytes:
        status = details.Status()
        for name, message in detail.items():
            packed = status.details.add()
            packed.type_url = f"type.googleapis.com/google.rpc.{name}"
            packed.value = message.SerializeToString()
        return status.SerializeToString()

    retry = details.RetryInfo()
    retry.retry_delay.FromMilliseconds(1)
    between.plans = {
        "LeaseStep": [
            Plan(grpc.StatusCode.RESOURCE_EXHAUSTED, status(RetryInfo=retry)),
            Plan(grpc.StatusCode.DEADLINE_EXCEEDED),
            Plan(grpc.StatusCode.UNAVAILABLE, b"no status"),
        ],
        "ReportStep": [
            Plan(
                grpc.StatusCode.UNAVAILABLE,
                status(
                    ErrorInfo=details.ErrorInfo(
                        reason="NOT_OWNER", metadata={"address": daemon.address}
                    )
                ),
            )
        ],
    }
    with asng.connect(between.address) as controller:
        for step in controller.create_study("passing", SPACE, max_steps=2).steps():
            step.report(map(loss, step.rank))
    assert daemon.study("passing").progress.applied == 2
    assert len(between.wait_for("LeaseStep", 4)) == 4
    # The second went to the owner itself.
    assert len(between.wait_for("ReportStep", 1)) == 1
    ids = {
        search.LeaseStepRequest.FromString(request).request_id
        for request in between.wait_for("LeaseStep", 4)
    }
    assert len(ids) == 1


def test_another_address_is_tried_when_one_fails(daemon: Daemon) -> None:
    with asng.connect(f"127.0.0.1:1,{daemon.address}") as controller:
        for step in controller.create_study("two", SPACE, max_steps=2).steps():
            step.report(map(loss, step.rank))
    assert daemon.study("two").progress.applied == 2


def test_a_lease_is_kept_while_the_body_works(daemon: Daemon, between: Between) -> None:
    with asng.connect(between.address) as controller:
        study = controller.create_study("kept", SPACE, max_steps=2, lease=1)
        for step in study.steps():
            # Longer than the lease: it is extended every third of it.
            between.wait_for("ExtendLease", 4 * step.id)
            assert step.report(map(loss, step.rank)) is asng.Outcome.APPLIED
    assert daemon.study("kept").progress.expired == 0


def test_a_lost_lease_is_not_asked_for_again(
    between: Between, caplog: pytest.LogCaptureFixture
) -> None:
    between.plans["ExtendLease"] = [Plan(grpc.StatusCode.FAILED_PRECONDITION)]
    with asng.connect(between.address) as controller:
        lost = controller.create_study("lost", SPACE, max_steps=1, lease=1)
        other = controller.create_study("other", SPACE, max_steps=1, lease=1)
        for step in lost.steps():
            (request,) = between.wait_for("ExtendLease", 1)
            for second in other.steps():
                # Meanwhile the other's is extended, and it alone.
                assert between.wait_for("ExtendLease", 4).count(request) == 1
                second.report(map(loss, second.rank))
            assert step.report(map(loss, step.rank)) is asng.Outcome.APPLIED
    warnings = [record.message for record in caplog.records if record.name == "asng"]
    assert warnings == ["the lease of step 1 cannot be extended: FAILED_PRECONDITION: planned"]


def test_a_body_that_hangs_loses_its_lease(
    daemon: Daemon, between: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_with_asyncio() -> None:
        async with asng.aio.connect(between.address) as controller:
            study = await controller.study("hangs")
            async for step in study.steps(step_limit=timedelta(seconds=0.5)):
                await asyncio.to_thread(expires, 2)
                assert await step.report(map(loss, step.rank)) is asng.Outcome.APPLIED
                break

    def expires(times: int) -> None:
        while daemon.study("hangs").progress.expired < times:
            between.wait_for("ExtendLease", 1)

    with asng.connect(between.address) as controller:
        study = controller.create_study("hangs", SPACE, max_steps=9, lease=1)
        for step in study.steps(step_limit=0.5):
            expires(1)
            assert step.report(map(loss, step.rank)) is asng.Outcome.APPLIED
            break
        asyncio.run(hang_with_asyncio())
        with pytest.raises(asng.InvalidArgument, match="step_limit: expected a duration"):
            next(iter(study.steps(step_limit="1h")))  # type: ignore[arg-type]
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2 and "has had it for more than 0.5 s (step_limit)" in errors[0]


@pytest.mark.parametrize("kind", ["plain", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_step_back_at_once(
    between: Between, number: signal.Signals, kind: str
) -> None:
    codes = {
        "plain": f"""
import asng
study = asng.connect("{between.address}").create_study("signalled", {SPACE_CODE}, max_steps=9)
for step in study.steps():
    for inner in study.steps():
        break
    print("works", flush=True)
    input()
""",
        "asyncio": f"""
import asng.aio, asyncio
async def main():
    async with asng.aio.connect("{between.address}") as controller:
        study = await controller.create_study("signalled", {SPACE_CODE}, max_steps=9)
        async for step in study.steps():
            print("works", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
""",
    }
    # The inner loop gives a step back as well.
    released = len(between.requests("ReleaseStep")) + (kind == "plain")
    program = subprocess.Popen(
        [sys.executable, "-c", codes[kind]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout and program.stdout.readline() == "works\n"
    program.send_signal(number)
    _, said = program.communicate()
    assert program.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), said
    assert len(between.wait_for("ReleaseStep", released + 1)) == released + 1


def test_a_program_that_handles_sigterm_itself_is_left_alone(daemon: Daemon) -> None:
    def mine(*_: object) -> None:
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("handled", SPACE, max_steps=9)
        steps = study.steps()
        assert next(steps) and signal.getsignal(signal.SIGTERM) is not before
        with ThreadPoolExecutor() as thread:  # Where no handler can be set.
            assert thread.submit(lambda: next(study.steps()).id).result() == 2
        signal.signal(signal.SIGTERM, mine)
        steps.close()
        assert signal.getsignal(signal.SIGTERM) is mine
        next(steps := study.steps())
        assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, before)
        steps.close()
        for _ in range(2):  # Whichever ends first.
            first, second = study.steps(), study.steps()
            next(first), next(second)
            first.close()
            assert signal.getsignal(signal.SIGTERM) is not before
            second.close()
            assert signal.getsignal(signal.SIGTERM) is before


def test_a_fork_of_the_loop_is_not_the_loop(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("forked", SPACE, max_steps=9)
        for step in study.steps():
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGTERM)
                os._exit(1)
            # The child ends as any other, and gives nothing back.
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
            assert study.progress().outstanding == 1
            assert step.report(map(loss, step.rank)) is asng.Outcome.APPLIED
            break


def test_an_exception_or_break_gives_the_step_back(between: Between) -> None:
    with asng.connect(between.address) as controller:
        study = controller.create_study("back", SPACE, max_steps=9)
        with pytest.raises(ZeroDivisionError):
            for step in study.steps():
                assert step.id == 1
                _ = 1 / 0
        for step in study.steps():
            assert step.id == 1
            step.report(map(loss, step.rank))
            break  # The reply has brought the second.
        steps = study.steps()
        assert next(steps).id == 2
    released = [
        search.ReleaseStepRequest.FromString(request)
        for request in between.wait_for("ReleaseStep", 3)
    ]
    assert [(request.step_id, request.reason) for request in released] == [
        (step, "the loop was left") for step in (1, 2, 2)
    ]


def test_an_exception_that_ends_the_connection_is_the_reason(between: Between) -> None:
    with pytest.raises(ZeroDivisionError), asng.connect(between.address) as controller:
        steps = controller.create_study("reason", SPACE, max_steps=9).steps()
        next(steps)
        _ = 1 / 0
    (request,) = between.wait_for("ReleaseStep", 1)
    assert (
        search.ReleaseStepRequest.FromString(request).reason
        == "ZeroDivisionError: division by zero"
    )


def test_a_report_that_is_interrupted_counts(
    daemon: Daemon, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with asng.connect(between.address) as controller:
        study = controller.create_study("interrupted", SPACE, max_steps=9)
        between.plans = {"ReportStep": [Plan(grpc.StatusCode.UNAVAILABLE, passes=True)]}
        monkeypatch.setattr("asng._client.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            for step in study.steps():
                step.report(map(loss, step.rank))
    (request,) = between.wait_for("ReleaseStep", 1)
    assert search.ReleaseStepRequest.FromString(request).step_id == 2
    assert daemon.study("interrupted").progress.applied == 1


def test_a_step_that_a_killed_process_held_is_taken_up_at_once(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller, asng.connect(daemon.address) as killed:
        study = controller.create_study("again", SPACE, max_steps=9, max_staleness=0)
        held = killed.study("again").steps("gpu-0")
        assert next(held).id == 1
        for step in study.steps("gpu-0"):
            assert step.id == 1
            break


def test_a_step_is_reported_once(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("once", SPACE, max_steps=9)
        with pytest.raises(
            asng.NotReported, match=r"step 1 was not reported: call step\.report\(losses\)"
        ):
            for _ in study.steps():
                pass
        for step in study.steps():
            step.report([1, math.nan], {"train_loss": 0.5})
            with pytest.raises(asng.Error, match="report each step once"):
                step.report([1, 2])
            break
        with pytest.raises(asng.InvalidArgument) as caught:
            for step in study.steps():
                step.report([1])
        assert [violation.field for violation in caught.value.violations] == ["losses"]
        first, second = study.history()
    assert first["loss"] == 1 and math.isnan(second["loss"])
    assert first["metrics.train_loss"] == 0.5


def test_the_best_is_within_the_limits(daemon: Daemon) -> None:
    def costs(step: asng.Step) -> list[dict[str, int]]:
        return [{"width": arch.width} for arch in step.rank]

    rules: dict[str, Any] = {"limits": {"width": 35}, "penalties": {"width": 1e-3}, "seed": 1}
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("limited", SPACE, max_steps=200, **rules)
        (rule,) = daemon.study("limited").spec.costs
        assert (rule.cost, rule.limit, rule.weight) == ("width", 35, 1e-3)
        with pytest.raises(asng.FailedPrecondition, match=r"within its limits \(width 35\)"):
            study.best()
        with pytest.raises(asng.InvalidArgument) as caught:
            for step in study.steps():
                step.report([1, 2])
        assert "costs" in caught.value.violations[0].field
        for step in study.steps():
            # Wider is better, and the mode is in the middle of the range at first.
            step.report(
                [(arch.op != "conv5") - arch.width / 64 for arch in step.rank], {}, costs(step)
            )
            best = study.best()
            assert best.width <= 35 and best.costs == {"width": best.width}
            if step.id == 1:
                assert best.choice == "within limits"
                assert "the most likely architecture evaluated within the limits after" in str(best)
        assert best.op == "conv5"
        assert {record["costs.width"] - record["width"] for record in study.history()} == {0}


def test_a_study_that_is_stopped_ends_the_loop_and_one_that_is_deleted_breaks_it(
    daemon: Daemon,
) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("stopped", SPACE, max_steps=9)
        for step in study.steps():
            study.stop()
            assert step.report(map(loss, step.rank)) is asng.Outcome.STALE
        study = controller.create_study("deleted", SPACE, max_steps=9)
        with pytest.raises(asng.NotFound):
            for step in study.steps():
                study.delete()
                step.report(map(loss, step.rank))


def test_asyncio_is_the_same(daemon: Daemon, between: Between) -> None:
    async def search_all() -> None:
        async with asng.aio.connect(between.address) as controller:
            study = await controller.create_study("aio", SPACE, max_steps=20, lease=1, seed=1)
            async for step in study.steps():
                if step.id == 1:
                    await asyncio.to_thread(between.wait_for, "ExtendLease", 4)
                await step.report(map(loss, step.rank))
            assert (await study.best()).choice == "mode"
            assert len(await study.history()) == 40
            assert (await controller.study("aio")).space.variables.keys() == {"op", "width"}

    between.plans = {"ReportStep": [Plan(grpc.StatusCode.UNAVAILABLE, passes=True)]}
    asyncio.run(search_all())
    progress = daemon.study("aio").progress
    assert (progress.applied, progress.expired, progress.duplicate) == (20, 0, 1)


def test_asyncio_gives_steps_back(between: Between) -> None:
    async def leave() -> None:
        async with asng.aio.connect(between.address) as controller:
            study = await controller.create_study("aio-back", SPACE, max_steps=9)
            async for step in study.steps():
                await step.report(map(loss, step.rank))
                break
            await asyncio.to_thread(between.wait_for, "ReleaseStep", 1)
            with pytest.raises(asng.NotReported):
                async for step in study.steps():
                    assert step.id == 2
            async for _ in study.steps():
                _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        asyncio.run(leave())
    reasons = [
        search.ReleaseStepRequest.FromString(request).reason
        for request in between.wait_for("ReleaseStep", 3)
    ]
    assert reasons[0] == "the loop was left"
    assert reasons[1].startswith("NotReported: step 2")


def test_the_warm_up_ranks_nothing(daemon: Daemon) -> None:
    def check(step: asng.Step | asng.aio.Step) -> list[float]:
        assert len(step.train) == 2 and len(step.rank) == (0 if step.id <= 2 else 2)
        return [loss(arch) for arch in step.rank]

    async def with_asyncio() -> list[dict[str, Any]]:
        async with asng.aio.connect(daemon.address) as controller:
            study = await controller.create_study("aio-warm", SPACE, max_steps=4, warmup_steps=2)
            async for step in study.steps():
                assert await step.report(check(step)) is asng.Outcome.APPLIED
            return await study.history()

    with asng.connect(daemon.address) as controller:
        study = controller.create_study("warm", SPACE, max_steps=4, warmup_steps=2)
        with pytest.raises(asng.InvalidArgument) as caught:
            for step in study.steps():
                step.report([1, 2])
        assert [violation.field for violation in caught.value.violations] == ["losses"]
        assert study.best().choice == "mode"
        for step in study.steps():
            assert step.report(check(step), {"train_loss": 0.5}) is asng.Outcome.APPLIED
        history = study.history()
    for records in [history, asyncio.run(with_asyncio())]:
        assert [record["step"] for record in records] == [3, 3, 4, 4]
    assert daemon.study("warm").progress.applied == 4


def test_histories_are_read_page_by_page(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("long", SPACE, max_steps=1100, lambda_x=0, lambda_theta=2)
        for step in study.steps():
            assert step.train == [] and 0 <= step.progress < 1
            step.report(map(loss, step.rank))
        history = study.history()
    assert len(history) == 2200
    assert all(record["loss"] == loss(asng.Architecture(record)) for record in history)


def test_a_loop_says_that_it_waits_for_a_paused_study(daemon: Daemon) -> None:
    """Once for each pause, however often it asks."""
    messages: list[str] = []
    with asng.connect(daemon.address) as controller:
        study = controller.create_study("waits-paused", SPACE, max_steps=6)

        class Resume(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                messages.append(record.getMessage())
                study.resume()

        handler, log = Resume(), logging.getLogger("asng")
        log.addHandler(handler)
        for step in study.steps():
            step.report([1.0, 2.0])
            if step.id in (1, 4):
                study.pause()
        log.removeHandler(handler)
    assert messages == ["study waits-paused is paused: waiting until it is resumed"] * 2
