"""A module as an ONNX file."""

from __future__ import annotations

import inspect
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from asng.torch._batches import move

OPSET = 17
"""The newest that PyTorch 1.13 writes; ONNX Runtime reads it from 1.12 on."""


def export(model: nn.Module, path: str | os.PathLike[str], example_input: Any) -> None:
    """Writes a module in evaluation mode, for batches of any size; see `Result.export_onnx`."""
    if torch.__version__ >= "2":
        try:
            import onnx  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError("export_onnx() needs onnx: run `pip install onnx`") from error
    inputs = example_input if isinstance(example_input, (tuple, list)) else (example_input,)
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
        raise TypeError(
            f"example_input is a {type(example_input).__name__}: give the input of a minibatch, a tensor whose first dimension "
            "is the batch, or a tuple of such tensors, one for each argument of the model's forward"
        )
    device = next((p.device for p in model.parameters()), inputs[0].device)
    inputs = tuple(move(inputs, device))
    was_training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(*inputs)
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        if not all(isinstance(y, Tensor) for y in outputs):
            raise TypeError(
                f"the model returns a {type(output).__name__}: an ONNX file has tensors as outputs, so wrap the model in one "
                "that returns a tensor or a tuple of tensors"
            )
        names = _names("input", len(inputs)), _names("output", len(outputs))
        options: dict[str, Any] = {}
        if "dynamo" in inspect.signature(torch.onnx.export).parameters:
            # The exporter that every release has. The other one needs onnxscript, and opset 18.
            options["dynamo"] = False
        with warnings.catch_warnings():
            # Newer releases of PyTorch discourage this exporter.
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                model,
                inputs,
                os.fspath(path),
                input_names=names[0],
                output_names=names[1],
                dynamic_axes={name: {0: "batch"} for name in [*names[0], *names[1]]},
                opset_version=OPSET,
                **options,
            )
    finally:
        model.train(was_training)


def _names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}{i}" for i in range(count)]
