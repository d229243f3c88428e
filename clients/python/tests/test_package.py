"""The package as others get it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

from conftest import PACKAGE, Daemon

import asng


def test_the_client_that_waits_is_that_for_asyncio() -> None:
    code = "import unasync; assert unasync.client() == unasync.TARGET.read_text(), 'run python unasync.py'"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE, check=True)


def test_the_import_is_quick_and_brings_no_pytorch() -> None:
    code = "import asng, sys; assert not {'torch', 'numpy', 'asng.aio'} & sys.modules.keys()"
    times = [time.monotonic()]
    for _ in range(5):
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.monotonic())
    # The first run compiles it, and others may be disturbed.
    assert min(end - start for start, end in itertools.pairwise(times)) < 0.3


def test_a_step_takes_the_client_less_than_a_millisecond(daemon: Daemon) -> None:
    space = asng.Space(**{f"op{i}": asng.Categorical(["a", "b", "c"]) for i in range(20)})
    with asng.connect(daemon.address) as controller:
        times = [time.process_time()]
        for step in controller.create_study("quick", space, max_steps=500).steps():
            step.report([1, 2])
            if step.id % 100 == 0:
                times.append(time.process_time())
    quickest = min(end - start for start, end in itertools.pairwise(times)) / 100
    print(f"{1000 * quickest:.2f} ms of client time a step")
    assert quickest < 0.001


def test_a_search_needs_nothing_but_the_two_wheels(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dist = tmp_path / "dist"
    # The wheel is built from the source distribution.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, PACKAGE)
    (sdist,) = dist.glob("*.tar.gz")
    listing = run("tar", "-tf", sdist)
    assert "/proto/asng/v1/study.proto" in listing and "_pb2" not in listing
    # A debug build for this machine alone; `cargo xtask dist` makes that of a release.
    options: list[str | Path] = [
        "--profile",
        "dev",
        "--locked",
        "--auditwheel",
        "skip",
        "--out",
        dist,
    ]
    maturin = Path(sys.executable).with_name("maturin")
    run(maturin, "build", *options, "--manifest-path", PACKAGE / "../../controller/Cargo.toml")

    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    wheels = sorted(dist.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *wheels)
    for wheel in wheels:
        files = zipfile.ZipFile(wheel).namelist()
        assert {"LICENSE-MIT", "LICENSE-APACHE"} <= {Path(file).name for file in files}
    assert any(file.endswith(".cyclonedx.json") for file in files), files
    code = """
import asng
with asng.local("state") as controller:
    study = controller.create_study("wheel", asng.Space(op=asng.Categorical(["a", "b"])), max_steps=3)
    for step in study.steps(): step.report([arch.op == "b" for arch in step.rank])
    print(study.best())
"""
    assert "3 of 3 steps" in run(python, "-W", "error", "-c", code)
    assert "asngctl" in run(tmp_path / "venv/bin/asngctl", "--version")
