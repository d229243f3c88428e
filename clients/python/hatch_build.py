"""Generates the messages in src/asng from the contract, whenever a wheel is built or the package is installed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateMessages(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        # In a source distribution beside this file, in a checkout where everybody's contract is.
        proto = next(p for p in (root / "proto", root / "../../proto") if (p / "asng/v1").is_dir())
        run(proto, root / "src", "asng/v1/study.proto", "asng/v1/search.proto")
        run(root / "src", root / "src", "asng/_details.proto")


def run(source: Path, out: Path, *names: str) -> None:
    well_known = files("grpc_tools") / "_proto"
    options = [f"-I{source}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
    if protoc.main(["protoc", *options, *names]) != 0:
        raise RuntimeError(f"cannot compile {', '.join(names)} of {source}")
