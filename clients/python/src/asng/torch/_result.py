"""The result of a search."""

from __future__ import annotations

import copy
import io
import os
import textwrap
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from asng import Best
from asng.torch._onnx import export
from asng.torch._supernet import Supernet, calibrate


class Result:
    """The result of a search."""

    def __init__(
        self,
        architecture: Best,
        history: list[dict[str, Any]],
        supernet: Supernet,
        batches: Iterable[Any] | None,
        maximizes: bool = False,
    ) -> None:
        self.architecture = architecture
        """The final architecture of the study, as `asng.Study.best` returns it."""
        self._history = history
        self._supernet = supernet
        self._batches = batches
        self._maximizes = maximizes
        self._model: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Result({self.architecture})"

    def model(self, calibrate_with: Iterable[Any] | None = None) -> nn.Module:
        """Returns the chosen architecture as a plain module with the trained shared weights, in evaluation mode. Each call
        returns a copy of its own; without `calibrate_with`, all copies are equal.

        With batch normalisation in training mode its outputs are the supernet's. For evaluation mode, the running
        statistics are estimated with minibatches of the training loader, or of `calibrate_with`, an iterable of inputs without
        targets: each a tensor, or a tuple of the model's arguments. After a search with a step function, `calibrate_with` has to be
        given if the model has running statistics; with an empty list they stay those of new layers, for a model that is to be
        trained anew.
        """
        if calibrate_with is not None:
            return self._extract(calibrate_with)
        if self._model is None:  # Other minibatches would make other statistics.
            self._model = self._extract(self._batches)
        return copy.deepcopy(self._model)

    def _extract(self, batches: Iterable[Any] | None) -> nn.Module:
        self._supernet.activate(self.architecture)
        model = self._supernet.extract()
        calibrate(model, batches)
        return model

    def export_onnx(
        self, path: str | os.PathLike[str], example_input: Any, model: nn.Module | None = None
    ) -> None:
        """Writes the chosen architecture as an ONNX file of opset 17, in evaluation mode.

        `example_input` is the input of a minibatch: a tensor, or a tuple of tensors for a model with several inputs. The first
        dimension of inputs and outputs is the batch, which the file leaves open; the others are fixed. Inputs are called "input", or
        "input0", "input1", …; outputs likewise. The weights are those of `model()`, or of `model`, which `model()` has
        returned and which was trained further.

        The model is traced, so a `forward` must not turn the size of the batch into a number. PyTorch 2 needs the package onnx.
        """
        export(self.model() if model is None else model, path, example_input)

    def table(self) -> Any:
        """Returns a row for each architecture that was ranked, as `asng.Study.history` has them: a `pandas.DataFrame` if
        pandas is installed, a list of dicts otherwise."""
        try:
            import pandas
        except ImportError:
            return self._history
        return pandas.DataFrame(self._history)

    def plot(self) -> Any:
        """Draws the losses, or maximized values, of the ranked architectures over the steps, and returns the `matplotlib` figure."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ImportError("plot() needs matplotlib: run `pip install matplotlib`") from error
        rows = [row for row in self._history if row["loss"] is not None]
        figure: Any = Figure(figsize=(7, 4), tight_layout=True)
        axes = figure.subplots()
        axes.scatter([row["step"] for row in rows], [row["loss"] for row in rows], s=4)
        loss = "value, maximized" if self._maximizes else "loss on a validation minibatch"
        axes.set(xlabel="step", ylabel=loss)
        axes.set_title(textwrap.fill(str(self.architecture), 100), fontsize="small")
        # Notebooks by themselves show only the figures of pyplot, which would keep this one for ever.
        figure._repr_png_ = partial(_png, figure)
        return figure


def _png(figure: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
