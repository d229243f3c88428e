"""ONNX files of searched models compute what the models do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from interrupted_search import search  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from asng import Best  # noqa: E402
from asng.torch import Result, Supernet, Width  # noqa: E402
from asng.v1 import study_pb2 as v1  # noqa: E402


def difference(file: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference between the outputs of a file and a module, for these inputs."""
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [of_file.name for of_file in session.get_inputs()]
    outputs = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected: Any = model(*inputs)
    if isinstance(expected, Tensor):
        expected = [expected]
    assert [[*y.shape] for y in outputs] == [[*y.shape] for y in expected]
    return max(
        (torch.from_numpy(y) - e).abs().max().item() for y, e in zip(outputs, expected, strict=True)
    )


def test_the_file_of_a_result_computes_what_its_model_does(daemon: Daemon, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, result = search(daemon.address, "onnx", None)
    file = tmp_path / "result.onnx"
    result.export_onnx(file, torch.randn(3, 5))
    described = onnx.load(file)
    assert [(opset.domain, opset.version) for opset in described.opset_import] == [("", 17)]
    assert [put.name for put in [*described.graph.input, *described.graph.output]] == [
        "input",
        "output",
    ]
    # Made before or after, one model is as the other: its running statistics are estimated once.
    model = result.model()
    for batch in (1, 7):
        assert difference(file, model, (torch.randn(batch, 5),)) < 1e-4
    # One that was trained further, and goes on.
    with torch.no_grad():
        model.train().head.bias.add_(1)
    result.export_onnx(file, torch.randn(3, 5), model)
    assert model.training
    assert difference(file, model.eval(), (torch.randn(7, 5),)) < 1e-4
    assert difference(file, result.model(), (torch.randn(7, 5),)) > 0.9


class Encoder(nn.Module):
    """Attention of a searched number of heads, an embedding, and two inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Width("heads", [1, 2, 4])
        self.characters = nn.Embedding(9, 8)
        self.positions = nn.Parameter(torch.randn(6, 8))
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 4 * self.heads) for _ in "qkv")

    def forward(self, characters: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.characters(characters) + self.positions)
        shape = *x.shape[:2], self.heads, 4
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = (q @ k.transpose(2, 3)).masked_fill(characters[:, None, None] == 0, -1e4)
        return (scores.softmax(3) @ v).mean(2).flatten(1) * scale, nn.functional.gelu(scale)


def test_attention_with_two_inputs_and_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    best = Best({"heads": "2"}, v1.Study())
    result = Result(best, [], Supernet(Encoder()), None)

    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randint(0, 9, (batch, 6)), torch.randn(batch, 1)

    file = tmp_path / "encoder.onnx"
    result.export_onnx(file, inputs(2))
    for batch in (1, 7):
        assert difference(file, result.model(), inputs(batch)) < 1e-4
    graph = onnx.load(file).graph
    assert [put.name for put in graph.input] == ["input0", "input1"]
    assert [put.name for put in graph.output] == ["output0", "output1"]


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(
        Best({"w": "2"}, v1.Study()), [], Supernet(nn.Linear(Width("w", [2, 3]), 2)), None
    )
    examples: list[Any] = [[[1.0, 2.0]], None, (), torch.tensor(1.0)]
    for example in examples:
        with pytest.raises(TypeError, match="give the input of a minibatch"):
            result.export_onnx(tmp_path / "none.onnx", example)

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x}

    with pytest.raises(TypeError, match="returns a dict: an ONNX file has tensors"):
        result.export_onnx(tmp_path / "none.onnx", torch.randn(2, 2), Named())
    if torch.__version__ >= "2":
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ImportError, match="pip install onnx"):
            result.export_onnx(tmp_path / "none.onnx", torch.randn(2, 2))
