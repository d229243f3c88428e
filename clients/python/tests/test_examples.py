"""The examples do what they say."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PACKAGE, Daemon


def run(daemon: Daemon, example: str, *arguments: str | Path) -> str:
    environment = os.environ | {"ASNG_CONTROLLER": f"http://{daemon.address}"}
    command = [sys.executable, PACKAGE / "examples" / example, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_black_box(daemon: Daemon) -> None:
    error = re.search(r"mean squared error (\S+),", run(daemon, "black_box.py"))
    assert error and float(error[1]) < 0.03


def test_workers(daemon: Daemon) -> None:
    said = run(daemon, "workers.py", "3")
    assert said.count("conv5") >= 7
    shares = [int(share) for share in re.findall(r"worker-\d: (\d+) steps", said)]
    assert len(shares) == 3 and sum(shares) == 600


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
def test_torch_module(daemon: Daemon, tmp_path: Path) -> None:
    """With images of noise, as CIFAR-10's files have them; interrupted by nothing, and started twice."""
    noise = random.Random(0)
    for i in range(1, 6):
        rows = [bytes([n % 10]) + noise.randbytes(3072) for n in range(8)]
        (tmp_path / f"data_batch_{i}.bin").write_bytes(b"".join(rows))
    arguments = "--steps 4 --batch 4 --limit 200000 --data".split() + [tmp_path]
    for _ in range(2):
        said = run(daemon, "torch_module.py", *arguments, "--checkpoint", tmp_path / "work")
        assert "after 4 of 4 steps" in said and "accuracy" in said
    assert daemon.study("torch-module").progress.applied == 4
