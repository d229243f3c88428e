"""The result of a search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from asng import Best
from asng.torch._supernet import Supernet, calibrate


class Result:
    """What a search has found."""

    def __init__(
        self,
        architecture: Best,
        history: list[dict[str, Any]],
        supernet: Supernet,
        batches: Iterable[Any] | None,
    ) -> None:
        self.architecture = architecture
        """The final architecture of the study, as `asng.Study.best` returns it."""
        self._history = history
        self._supernet = supernet
        self._batches = batches

    def __repr__(self) -> str:
        return f"Result({self.architecture})"

    def model(self, calibrate_with: Iterable[Any] | None = None) -> nn.Module:
        """Returns the chosen architecture as a plain module with the trained shared weights, in evaluation mode.

        With batch normalisation in training mode its outputs are the supernet's. For evaluation mode, the running
        statistics are estimated with minibatches of the training loader, or of `calibrate_with`, an iterable of inputs without
        targets: each a tensor, or a tuple of the model's arguments. After a search with a step function, `calibrate_with` has to be given if the model has running statistics;
        with an empty list they stay those of new layers, for a model that is to be trained anew.
        """
        self._supernet.activate(self.architecture)
        model = self._supernet.extract()
        calibrate(model, self._batches if calibrate_with is None else calibrate_with)
        return model

    def table(self) -> Any:
        """Returns a row for each architecture that was ranked, as `asng.Study.history` has them: a `pandas.DataFrame` if
        pandas is installed, a list of dicts otherwise."""
        try:
            import pandas
        except ImportError:
            return self._history
        return pandas.DataFrame(self._history)

    def plot(self) -> Any:
        """Draws the losses of the ranked architectures over the steps, and returns the `matplotlib` figure."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ImportError("plot() needs matplotlib: run `pip install matplotlib`") from error
        rows = [row for row in self._history if row["loss"] is not None]
        figure = Figure(figsize=(7, 4), tight_layout=True)
        axes = figure.subplots()
        axes.scatter([row["step"] for row in rows], [row["loss"] for row in rows], s=4)
        axes.set(
            xlabel="step", ylabel="loss on a validation minibatch", title=str(self.architecture)
        )
        return figure
