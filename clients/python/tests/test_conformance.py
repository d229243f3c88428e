"""A controller that misbehaves on purpose finds nothing wrong with the loops."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conftest import BINARY

import asng
import asng.aio

SPACE = asng.Space(op=asng.Categorical(["a", "b"]), width=asng.Integer(1, 9))
STEPS = 1000
"""More than the check needs: it is the check that ends the study."""


def work(step: asng.Step | asng.aio.Step) -> list[float]:
    """Takes longer than the check's leases of a second, so that they are to be extended; one architecture diverges."""
    time.sleep(1.3)
    losses = [float(arch.width) for arch in step.rank]
    return [math.nan, *losses[1:]] if step.id == 3 else losses


def plain(address: str) -> None:
    with asng.connect(address) as controller:
        for step in controller.create_study("mine", SPACE, max_steps=STEPS, warmup_steps=1).steps():
            step.report(work(step))


def with_asyncio(address: str) -> None:
    async def loop() -> None:
        async with asng.aio.connect(address) as controller:
            study = await controller.create_study("mine", SPACE, max_steps=STEPS, warmup_steps=1)
            async for step in study.steps():
                await step.report(await asyncio.to_thread(work, step))

    asyncio.run(loop())


def check(trainer: Callable[[str], None]) -> Any:
    """What the check finds."""
    asngctl = Path(BINARY).with_name("asngctl")
    command = [str(asngctl), *"conformance --listen 127.0.0.1:0 --output json".split()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stderr
        try:
            listening = re.search(r"http://[\d.:]+\d", process.stderr.readline())
            assert listening
            trainer(listening[0])
            return json.loads(process.stdout.read())
        finally:
            process.kill()


def test_the_loops_pass_the_conformance_check() -> None:
    trainers = [plain, with_asyncio]
    with ThreadPoolExecutor() as beside_each_other:
        for found in beside_each_other.map(check, trainers):
            not_passed = {
                finding["rule"]: finding["verdict"]
                for finding in found["findings"]
                if finding["verdict"] != "passed"
            }
            # The study comes with its variables, and the loops ask for it by its name.
            assert not_passed == {
                "unserved": "not seen",
                "description": "not seen",
                "ordered": "not seen",
            }, found
