"""The examples do what they say."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import BINARY, PACKAGE, Daemon

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")


def run(daemon: Daemon, example: str, *arguments: str | Path) -> str:
    environment = os.environ | {
        "ASNG_CONTROLLER": f"http://{daemon.address}",
        "ASNG_CONTROLLER_BIN": str(BINARY),
    }
    command = [sys.executable, PACKAGE / "examples" / example, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_black_box(daemon: Daemon) -> None:
    said = run(daemon, "black_box.py")
    weights = re.search(r"{'weights': (\S+)}", said)
    assert weights and float(weights[1]) <= 24
    error = re.search(r"mean squared error (\S+),", said)
    assert error and float(error[1]) < 0.03


def test_workers(daemon: Daemon) -> None:
    said = run(daemon, "workers.py", "3")
    assert said.count("conv5") >= 7
    shares = [int(share) for share in re.findall(r"worker-\d: (\d+) steps", said)]
    assert len(shares) == 3 and sum(shares) == 600


@needs_torch
def test_quadrants_killed_in_the_middle_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    script = PACKAGE / "examples/quadrants.py"
    assert script.read_text().split('"""\n\n')[1] in (PACKAGE / "../../README.md").read_text()
    environment = os.environ | {"ASNG_CONTROLLER_BIN": str(BINARY), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir(exist_ok=True)
        command: list[str | Path] = [sys.executable, script]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=tmp_path / name, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    undisturbed, _ = start("undisturbed").communicate()
    assert "after 1000 of 1000 steps" in undisturbed and "Linear" in undisturbed
    with start("killed") as process:
        assert process.stderr
        for line in process.stderr:  # Of the progress bar, which ends each with a carriage return.
            if re.search(r" [5-9]\d\d/1000", line):
                process.kill()
                break
    resumed, progress = start("killed").communicate()
    assert resumed == undisturbed
    assert not re.search(r" [1-3]\d\d/1000", progress)


@needs_torch
def test_fashion_mnist(daemon: Daemon, tmp_path: Path) -> None:
    """With images of noise in files as the data set has them; started again at its end."""
    noise = random.Random(0)
    for part, count in (("train", 32), ("t10k", 10)):
        labels = bytes(n % 10 for n in range(count))
        for name, content in (
            ("images-idx3", bytes(16) + noise.randbytes(28 * 28 * count)),
            ("labels-idx1", bytes(8) + labels),
        ):
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    onnx = tmp_path / "net.onnx"
    arguments = "--steps 4 --batch 4 --limit 200000 --data".split() + [tmp_path]
    arguments += ["--onnx", onnx] if find_spec("onnx") else []
    for _ in range(2):
        said = run(daemon, "fashion_mnist.py", *arguments, "--work", tmp_path / "work")
        assert "after 4 of 4 steps" in said and "test accuracy" in said
    assert (tmp_path / "work/model.pt").exists() and onnx.exists() == bool(find_spec("onnx"))


@needs_torch
def test_transformer(daemon: Daemon, tmp_path: Path) -> None:
    arguments = "--steps 6 --batch 4 --files 15 --work".split() + [tmp_path]
    said = run(daemon, "transformer.py", *arguments)
    assert "after 6 of 6 steps" in said and "depth=" in said
    assert re.search(r"test accuracy 0\.\d+", said)
