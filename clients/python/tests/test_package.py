"""The package as others get it."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from conftest import PACKAGE, Daemon


def test_the_package_works_where_only_its_wheel_is_installed(
    daemon: Daemon, tmp_path: Path
) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # The wheel is built from the source distribution.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", PACKAGE)
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    listing = run("tar", "-tf", sdist)
    assert "/proto/asng/v1/study.proto" in listing and "_pb2" not in listing
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
    code = f"""
import asng
with asng.connect("{daemon.address}") as controller:
    study = controller.create_study("wheel", asng.Space(op=asng.Categorical(["a", "b"])), max_steps=3)
    for step in study.steps(): step.report([arch.op == "b" for arch in step.rank])
    print(study.best())
"""
    assert "3 of 3 steps" in run(python, "-W", "error", "-c", code)
