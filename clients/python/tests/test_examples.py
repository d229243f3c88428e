"""The examples do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PACKAGE, Daemon

CIFAR10 = PACKAGE / "../../data/cifar-10-batches-bin"


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
@pytest.mark.skipif(not CIFAR10.exists(), reason="`cargo xtask setup cifar10` has not been run")
def test_supernet(daemon: Daemon) -> None:
    assert "after 3 of 3 steps" in run(
        daemon, "supernet.py", "--data", CIFAR10, "--steps", "3", "--batch", "8"
    )
    assert daemon.study("supernet").progress.diverged == 0
