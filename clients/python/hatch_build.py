"""Generates the message classes in src/asng from the .proto files, whenever a wheel is built or the package is installed."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# As protoc writes it, less the check that the protobuf at run time is no older than the one that protoc belongs to: so the
# result is the same whichever grpcio-tools has a wheel for this Python, and runs with every protobuf that pyproject.toml names.
MODULE = '''"""Generated from {proto} by hatch_build.py."""

{imports}from google.protobuf import descriptor_pool
from google.protobuf.internal import builder

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile({descriptor!r})
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, __name__, globals())
'''


class GenerateMessages(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        # The source distribution has a copy of the .proto files; a checkout has them for all its parts.
        proto = next(p for p in (root / "proto", root / "../../proto") if (p / "asng/v1").is_dir())
        generate(proto, root / "src", "asng/v1/study.proto", "asng/v1/search.proto")
        generate(root / "src", root / "src", "asng/_details.proto")


def generate(source: Path, out: Path, *protos: str) -> None:
    """Writes a module and its types for each of `protos`, which lie in `source`."""
    with TemporaryDirectory() as directory:
        result = Path(directory) / "descriptors"
        options = [f"-I{source}", f"-I{files('grpc_tools') / '_proto'}", f"--pyi_out={directory}"]
        if protoc.main(["protoc", *options, f"--descriptor_set_out={result}", *protos]) != 0:
            raise RuntimeError(f"cannot compile {', '.join(protos)} of {source}")
        for file in FileDescriptorSet.FromString(result.read_bytes()).file:
            imports = [module(name).replace("/", ".") for name in file.dependency]
            text = MODULE.format(
                proto=file.name,
                imports="".join(f"import {name}\n" for name in imports),
                descriptor=file.SerializeToString(),
            )
            (out / f"{module(file.name)}.py").write_text(text)
            types = f"{module(file.name)}.pyi"
            shutil.copyfile(Path(directory) / types, out / types)


def module(proto: str) -> str:
    return proto.removesuffix(".proto") + "_pb2"
