"""A model with searched parts as a supernet: its search space, and one architecture of it at a time.

Weights are shared in place. The model's modules stay the objects that they are, and so do its parameters: an optimizer made
before goes on to work. Layers that have a `Width` become layers that slice their parameters in `forward`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from asng import Architecture, Categorical, Integer, Space
from asng.torch._space import Choice, Repeat, Width

Values = Mapping[str, "str | int"]

CALIBRATION_BATCHES = 20
"""Minibatches from which the running statistics of batch normalisation are estimated."""


class Parts:
    """The searched parts of a model, which it does not change. Raises ValueError or TypeError for a model that cannot be searched."""

    def __init__(self, model: nn.Module) -> None:
        self.parts: list[Choice | Repeat] = []
        self.widths: list[tuple[nn.Module, str, Any]] = []
        """Attributes of modules in which there are widths: the module, the name and the value."""
        self.sliced: list[nn.Module] = []
        """Layers whose parameters have widths."""
        self.norms: list[_NormBase] = []
        """Layers with running statistics."""
        self.variables: dict[str, Categorical | Integer] = {}
        self.initial: dict[str, str | int] = {}
        """The first choices, and the largest depths and widths."""
        for path, module in model.named_modules():
            self._add(path or "the model", module)
        if not self.variables:
            raise ValueError(
                "the model has nothing to search: use asng.torch's Choice, Repeat or Width in it"
            )
        self.space = Space(**self.variables)

    def _add(self, path: str, module: nn.Module) -> None:
        """Registers the searched parts of one module."""
        if isinstance(module, Sliced) or (isinstance(module, (Choice, Repeat)) and module.taken):
            raise ValueError(
                "the model is that of another Search, which has changed it: make a new one, or call `run` of that Search again"
            )
        # By torch.compile(model), or by model.compile().
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise TypeError(
                f"{path} is compiled: give the module itself, and compile the module that `result.model()` returns"
            )
        if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
            raise TypeError(
                f"{path} is a {type(module).__name__} whose parameters are made when it runs first: give it its input size, or "
                "run it on an example before"
            )
        if isinstance(module, (Choice, Repeat)):
            first = module.labels[0] if isinstance(module, Choice) else module.high
            self._declare(module.name, module.variable, first)
            self.parts.append(module)
        if isinstance(module, _NormBase) and module.track_running_stats:
            self.norms.append(module)
        attributes = [
            (name, value) for name, value in vars(module).items() if any(_widths_in(value))
        ]
        if not attributes:
            return
        for name, value in attributes:
            for width in _widths_in(value):
                self._declare(width.name, width.variable, width.labels[-1])
            self.widths.append((module, name, value))
        own = [*module._parameters]
        if isinstance(module, _SLICEABLE):
            if own not in (["weight"], ["weight", "bias"]):
                raise TypeError(
                    f"{path} is a {type(module).__name__} with a searched {attributes[0][0]}, and its parameters are "
                    f"{', '.join(own) or 'none'} instead of weight and bias, which alone can be sliced: give it a fixed number"
                )
            self.sliced.append(module)
        elif own and type(module).__module__.startswith("torch."):
            raise TypeError(
                f"{path} is a {type(module).__name__} with a searched {attributes[0][0]}, which cannot be sliced: give widths to "
                "linear, convolution, normalisation and embedding layers, and build others from these"
            )

    def _declare(self, name: str, variable: Categorical | Integer, initial: str | int) -> None:
        self.initial.setdefault(name, initial)
        other = self.variables.setdefault(name, variable)
        if repr(other) != repr(variable):
            raise ValueError(
                f"two searched parts are called {name!r}, and so choose together, but one is {other} and the other "
                f"{variable}: give them the same values, or other names"
            )


class Supernet:
    """A model with searched parts. Its `space` has a variable for each name, in the order of the model's modules.

    Batch normalisation uses the statistics of the minibatch from now on, when evaluating as well: running ones would be a
    mixture of all architectures.
    """

    def __init__(self, model: nn.Module) -> None:
        found = Parts(model)
        self.model = model
        self.space = found.space
        self.architecture: Architecture
        """The architecture that the model computes."""
        self._parts, self._widths, self._norms = found.parts, found.widths, found.norms
        for part in self._parts:
            part.taken = True
        for norm in self._norms:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        for layer in found.sliced:
            layer.__class__ = _sliced_class(type(layer))
        self.activate(found.initial)

    def activate(self, architecture: Architecture | Values) -> None:
        """Makes the model compute this architecture until another one is activated."""
        values = architecture.values if isinstance(architecture, Architecture) else architecture
        if values.keys() != self.space.variables.keys():
            raise ValueError(
                f"the architecture has the variables {list(values)}, and the model {list(self.space.variables)}"
            )
        for part in self._parts:
            part.choose(values[part.name])
        for module, name, value in self._widths:
            vars(module)[name] = _resolve(value, values)
        self.architecture = Architecture(dict(values))

    def is_frozen(self) -> bool:
        """Returns whether the active architecture has no parameters that need a gradient."""
        return not any(
            parameter is not None and parameter.requires_grad
            for module in _running(self.model)
            for parameter in module._parameters.values()
        )

    def parameters(self) -> int:
        """Returns the number of parameters that the active architecture uses: those of the modules that run, as sliced, and
        each once where modules share them."""
        return sum(
            {
                id(whole): used.numel()
                for module in _running(self.model)
                for whole, used in _parameters_of(module).values()
            }.values()
        )

    def extract(self) -> nn.Module:
        """Returns the active architecture as a plain module, with copies of the shared weights and without any class of asng.

        Batch normalisation is as the model had it. Its running statistics are those of a new layer; see `calibrate`.
        """
        memo: dict[int, Any] = {}
        # Parameters that several layers slice in the same way stay shared.
        shared: dict[tuple[int, torch.Size], nn.Parameter] = {}
        # Inner modules first, so that the copy of a module has the copies of what is in it.
        for module in reversed(list(_running(self.model))):
            if id(module) in memo:
                continue
            if isinstance(module, Choice):
                memo[id(module)] = copy.deepcopy(module.chosen, memo)
            elif isinstance(module, Repeat):
                memo[id(module)] = nn.Sequential(*(copy.deepcopy(part, memo) for part in module))
            elif isinstance(module, Sliced):
                memo[id(module)] = _plain(module, memo, shared)
        plain = copy.deepcopy(self.model, memo)
        for norm in self._norms:
            if copied := memo.get(id(norm)):
                like = next(self.model.parameters()) if copied.weight is None else copied.weight
                _restore_statistics(copied, like)
        return plain


class Sliced(nn.Module):
    """A layer of PyTorch that uses the first part of its parameters in each dimension, as large as its attributes say."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = self._parameters
        sliced = {name: used for name, (_, used) in _parameters_of(self).items()}
        self.__dict__["_parameters"] = {**whole, **sliced}
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.__dict__["_parameters"] = whole

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made here, and has no name that pickle would find.
        return _new_sliced, (type(self).__mro__[2],), vars(self)


_SLICEABLE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, _ConvNd, _NormBase)


def _sizes(layer: Any, name: str) -> tuple[int, ...]:
    """Returns the size of a parameter of a layer at its current attributes."""
    if isinstance(layer, _ConvNd):
        if name == "bias":
            return (layer.out_channels,)
        if layer.transposed:
            return (layer.in_channels, layer.out_channels // layer.groups)
        return (layer.out_channels, layer.in_channels // layer.groups)
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)[: 2 if name == "weight" else 1]
    if isinstance(layer, nn.Embedding):
        return (layer.num_embeddings, layer.embedding_dim)
    if isinstance(layer, nn.LayerNorm):
        return tuple(layer.normalized_shape)
    return (layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features,)


_sliced_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _sliced_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns the class of layers of this kind that slice their parameters."""
    if issubclass(kind, Sliced):
        return kind
    if kind not in _sliced_classes:
        _sliced_classes[kind] = type(f"Sliced{kind.__name__}", (Sliced, kind), {})
    return _sliced_classes[kind]


def _new_sliced(kind: type[nn.Module]) -> nn.Module:
    layer: nn.Module = object.__new__(_sliced_class(kind))
    return layer


def _parameters_of(module: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Returns the module's own parameters by name, each whole and as it is used."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not isinstance(module, Sliced):
        return {name: (p, p) for name, p in own.items()}
    return {
        name: (p, p[tuple(slice(size) for size in _sizes(module, name))]) for name, p in own.items()
    }


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules of the active architecture, each before those in it."""
    yield module
    if isinstance(module, Choice):
        parts: Iterable[nn.Module] = [module.chosen]
    else:
        parts = module if isinstance(module, Repeat) else module.children()
    for part in parts:
        yield from _running(part)


def _plain(
    layer: Sliced, memo: dict[int, Any], shared: dict[tuple[int, torch.Size], nn.Parameter]
) -> nn.Module:
    """Returns a copy of a layer with parameters of the size that it uses."""
    kind = type(layer).__mro__[2]
    plain: Any = object.__new__(kind)
    state = {name: value for name, value in vars(layer).items() if name != "_parameters"}
    plain.__dict__.update(copy.deepcopy(state, memo))
    plain.__dict__["_parameters"] = copy.copy(layer._parameters)
    for name, (whole, used) in _parameters_of(layer).items():
        parameter = nn.Parameter(used.detach().clone(), requires_grad=whole.requires_grad)
        plain._parameters[name] = shared.setdefault((id(whole), used.shape), parameter)
    return plain


def _restore_statistics(layer: _NormBase, like: Tensor) -> None:
    """Gives a normalisation the running statistics of a new layer, with a tensor's device and type."""
    layer.track_running_stats = True
    layer.running_mean = like.new_zeros(layer.num_features)
    layer.running_var = like.new_ones(layer.num_features)
    layer.num_batches_tracked = torch.tensor(0, device=like.device)


def calibrate(model: nn.Module, batches: Iterable[Any] | None) -> None:
    """Estimates the running statistics of normalisation layers: the means over some minibatches of inputs.

    Leaves the model in evaluation mode.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    model.eval()
    if not layers:
        return
    if batches is None:
        raise ValueError(
            "the running statistics of batch normalisation are to be estimated with minibatches, and the search had no loader: "
            "give calibrate_with=, an iterable of inputs, or of tuples of them"
        )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    with torch.no_grad():
        for n, inputs in enumerate(islice(batches, CALIBRATION_BATCHES)):
            for layer in layers:
                layer.momentum = 1 / (n + 1)  # The mean over all minibatches.
            model(*inputs if isinstance(inputs, (tuple, list)) else (inputs,))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _widths_in(value: Any) -> Iterator[Width]:
    """Yields the widths in an attribute: the value itself, or in tuples, lists, dicts and objects such as dataclasses."""
    if isinstance(value, Width):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _widths_in(item)
    elif isinstance(value, dict):
        yield from _widths_in(list(value.values()))
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, Tensor, type)):
        # No deeper, as an object may lead back to itself.
        yield from (item for item in vars(value).values() if isinstance(item, Width))


def _resolve(value: Any, values: Values) -> Any:
    """Returns an attribute with the numbers of an architecture in place of its widths."""
    if isinstance(value, Width):
        return value.number(values[value.name])
    if not any(_widths_in(value)):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_resolve(item, values) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_resolve(item, values) for item in value)
    resolved = copy.copy(value)
    items = resolved if isinstance(resolved, dict) else vars(resolved)
    items.update({key: _resolve(item, values) for key, item in items.items()})
    return resolved
