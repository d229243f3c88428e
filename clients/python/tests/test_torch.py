"""asng.torch: what a model's searched parts compute, and searches with real controllers."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import PACKAGE, Daemon

import asng

torch = pytest.importorskip("torch")

import ddp_search  # noqa: E402
from interrupted_search import STEPS, Net, data, search  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset  # noqa: E402

from asng.torch import Choice, Repeat, Report, Search, Step, Supernet, Width  # noqa: E402
from asng.torch._batches import Batches, random_state, set_random_state  # noqa: E402
from asng.torch._signals import Signals  # noqa: E402
from asng.torch._supernet import calibrate  # noqa: E402


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# The searched parts.


def test_the_space_follows_from_the_model() -> None:
    inner = Choice("inner", {"a": nn.Identity(), "b": nn.Tanh()})
    outer = Choice("outer", {"plain": nn.ReLU(), "nested": inner})
    blocks = Repeat("depth", lambda i: nn.Linear(4, 4), 1, 3)
    supernet = Supernet(nn.Sequential(nn.Linear(4, Width("width", [2, 4])), outer, blocks))
    assert repr(supernet.space) == repr(
        asng.Space(
            width=asng.Categorical(["2", "4"]),
            outer=asng.Categorical(["plain", "nested"]),
            inner=asng.Categorical(["a", "b"]),
            depth=asng.Integer(1, 3),
        )
    )


def test_parts_of_one_name_choose_together() -> None:
    first, second = (Choice("op", {"a": nn.Identity(), "b": nn.Tanh()}) for _ in range(2))
    supernet = Supernet(nn.Sequential(first, second))
    assert list(supernet.space.variables) == ["op"]
    supernet.activate({"op": "b"})
    x = torch.randn(3)
    assert torch.equal(supernet.model(x), x.tanh().tanh())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: Choice("op", {"a": nn.Identity(), "c": nn.Tanh()}), "other names"),
        (lambda: Choice("op", {"b": nn.Identity(), "a": nn.Tanh()}), "other names"),
        (lambda: nn.Linear(1, Width("op", [2, 3])), "other names"),
        (
            lambda: nn.utils.weight_norm(nn.Linear(2, Width("w", [2, 3]))),
            "its parameters are bias, weight_g, weight_v",
        ),
        (lambda: nn.LSTM(3, Width("hidden", [4, 8])), "is a LSTM with a searched hidden_size"),
    ],
)
def test_what_does_not_fit_together_is_refused(part: Any, said: str) -> None:
    first = Choice("op", {"a": nn.Identity(), "b": nn.Tanh()})
    with pytest.raises((ValueError, TypeError), match=said):
        Supernet(nn.Sequential(first, part()))


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to search"):
        Supernet(nn.Linear(2, 2))

    def block(i: int) -> nn.Module:
        return nn.Identity()

    for low, high in [(3, 3), (-1, 2), (1, 2.5), (1, "2")]:
        with pytest.raises(ValueError, match="(low|high) of Repeat 'depth': expected a whole"):
            Repeat("depth", block, low, high)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the factory of Repeat 'depth' is a int"):
        Repeat("depth", 1, 3, block)  # type: ignore[arg-type]
    identity: Any = nn.Identity()
    wrong: list[tuple[Any, str]] = [
        ([identity], "the options of Choice 'op' are a list: give a dict"),
        ({}, "Choice 'op' has no options"),
        ({3: identity}, "a label of Choice 'op': expected a string, not 3"),
    ]
    for kinds, said in wrong:
        with pytest.raises((TypeError, ValueError), match=said):
            Choice("op", kinds)
    for part in (
        lambda: Choice(3, {"a": identity}),  # type: ignore[arg-type]
        lambda: Repeat(3, block, 1, 2),  # type: ignore[arg-type]
        lambda: Width(3, [1, 2]),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="the name of a .*: expected a string, not 3"):
            part()
    with pytest.raises(TypeError, match="option 'b' of Choice 'op' is a builtin"):
        Choice("op", {"a": nn.Identity(), "b": torch.tanh})
    lists: list[Any] = [[], [0, 2], [4, 2], [2, 2], ["2"]]
    for choices in lists:
        with pytest.raises(ValueError, match="(a choice|the choices) of Width 'w'"):
            Width("w", choices)
    with pytest.raises(ValueError, match="computed from Width 'w' is 0 where that is 4"):
        Width("w", [4, 8]) // 8
    used = nn.Sequential(Choice("op", {"a": nn.Identity()}))
    Supernet(used)
    with pytest.raises(ValueError, match="that of another Search"):
        Supernet(used)
    with pytest.raises(ValueError, match="has the variables"):
        Supernet(Choice("op", {"a": nn.Identity()})).activate({"other": "a"})


def test_a_repeat_runs_its_first_modules() -> None:
    repeat = Repeat("depth", lambda i: nn.Linear(2, 2), 0, 3)
    supernet = Supernet(repeat)
    x = torch.randn(4, 2)
    modules = list(repeat)
    for n in range(4):
        supernet.activate({"depth": n})
        y = x
        for module in modules[:n]:
            y = module(y)
        assert torch.equal(repeat(x), y) and list(repeat) == modules[:n]
        assert len(supernet.extract()) == n


def test_a_model_that_is_refused_is_left_as_it_is(daemon: Daemon) -> None:
    """The model can be mended, or given to another search: the cell of a notebook is run again."""
    model = Net()
    state = copy.deepcopy(model)
    with asng.connect(daemon.address) as controller:
        wrong: list[Any] = [{"max_steps": 4, "seed": -1}, {"max_steps": "100"}]
        for settings in wrong:
            with pytest.raises(asng.InvalidArgument, match="expected a whole number"):
                Search(controller, "left", model, **settings)
        with pytest.raises(ValueError, match="two searched parts are called 'op'"):
            Supernet(nn.Sequential(model, Choice("op", {"other": nn.Identity()})))
        assert repr(model) == repr(state) and model.norm.running_mean is not None
        with pytest.raises(TypeError, match="the controller is a str: give that of asng.connect"):
            Search(daemon.address, "left", model, max_steps=4)  # type: ignore[arg-type]
        with pytest.raises(asng.NotFound):
            controller.study("left")
        Search(controller, "left", model, max_steps=4)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_models_that_change_their_layers_are_refused() -> None:
    op = Choice("op", {"a": nn.Identity(), "b": nn.Tanh()})
    # As PyTorch 2 marks them.
    compiled, in_place = nn.Identity(), nn.Identity()
    compiled._orig_mod = nn.Sequential(op)
    in_place._compiled_call_impl = in_place.forward
    parametrized = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, Width("w", [2, 3])))
    for part, said in [
        (compiled, "1 is compiled: give the module itself"),
        (in_place, "1 is compiled: give the module itself"),
        (nn.LazyLinear(3), "1 is a LazyLinear whose parameters are made when it runs first"),
        (parametrized, "its parameters are bias instead of weight and bias"),
    ]:
        with pytest.raises(TypeError, match=said):
            Supernet(nn.Sequential(op, part))


def test_running_statistics_are_those_of_the_layer() -> None:
    """Of each kind of layer, in its own type, whatever the type of other layers is."""
    width = Width("w", [2, 4])
    model = nn.Sequential(
        nn.Linear(3, 4).double(),
        nn.Sequential(
            nn.Conv1d(5, width, 1),
            nn.BatchNorm1d(width),
            nn.InstanceNorm1d(width, affine=True, track_running_stats=True),
        ),
    )
    supernet = Supernet(model)
    supernet.activate({"w": "2"})
    plain = supernet.extract()[1]
    x = torch.randn(6, 5, 7)
    assert torch.equal(model[1](x), plain(x))
    calibrate(plain, [x, 2 * x])
    assert [norm.running_mean.dtype for norm in plain[1:]] == [torch.float32] * 2
    convolved = [plain[0](batch).mean((0, 2)) for batch in (x, 2 * x)]
    assert torch.allclose(plain[1].running_mean, (convolved[0] + convolved[1]) / 2, atol=1e-6)
    assert plain[2].running_var.mean() < 2 and not torch.equal(plain[2].running_var, torch.ones(2))


def test_a_supernet_can_be_copied_and_pickled() -> None:
    model = Net()
    supernet = Supernet(model)
    supernet.activate({"width": "6", "op": "narrow", "depth": 2})
    x = torch.randn(9, 5)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))
    again = pickle.loads(pickle.dumps(supernet))
    again.activate({"width": "4", "op": "narrow", "depth": 1})
    supernet.activate({"width": "4", "op": "narrow", "depth": 1})
    assert torch.equal(again.model(x), model(x))


LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda w: nn.Sequential(nn.Linear(3, w), nn.Linear(w, 2)), (5, 3)),
    "shared": (lambda w: nn.Sequential(*[nn.Linear(w, w)] * 2, nn.Linear(w, w)), (5, "w")),
    "conv": (lambda w: nn.Sequential(nn.Conv2d(3, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, 2, 1)), (2, 3, 4, 4)),
    "depthwise": (lambda w: nn.Conv2d(w, w, 3, groups=w), (2, "w", 4, 4)),
    "expanded": (lambda w: nn.Sequential(nn.Linear(w, 4 * w), nn.Linear(w * 4, w // 2)), (5, "w")),
    "transposed": (lambda w: nn.ConvTranspose2d(w, w // 2, 3), (2, "w", 4, 4)),
    "norms": (lambda w: nn.Sequential(nn.BatchNorm1d(w), nn.GroupNorm(2, w)), (6, "w", 3)),
    "layer norm": (lambda w: nn.LayerNorm(w), (2, 3, "w")),
    "embedding": (lambda w: nn.Sequential(nn.Embedding(7, w), nn.Linear(w, 2, bias=False)), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_a_width_slices_the_weights(kind: str) -> None:
    make, shape = LAYERS[kind]
    supernet = Supernet(make(Width("w", [2, 4, 8])))
    for n in (2, 4, 8):
        supernet.activate({"w": str(n)})
        x = (
            torch.randn([n if size == "w" else size for size in shape])
            if shape
            else torch.arange(7)
        )
        fixed = make(n)
        for part, whole in zip(fixed.parameters(), supernet.model.parameters(), strict=True):
            part.data = whole.data[tuple(slice(size) for size in part.shape)].clone()
        assert torch.equal(supernet.model(x), fixed(x))
        plain = supernet.extract()
        assert torch.equal(plain(x), fixed(x))
        assert repr(plain) == repr(fixed)
        assert [p.shape for p in plain.parameters()] == [p.shape for p in fixed.parameters()]
        assert supernet.parameters() == sum(p.numel() for p in fixed.parameters())


@dataclass(frozen=True)
class Config:
    heads: int
    name: str = "heads"


class Sizes(NamedTuple):
    heads: int


@pytest.mark.parametrize(
    "holder",
    [
        lambda heads: heads,
        lambda heads: {"all": [heads]},
        lambda heads: Config(heads),
        lambda heads: Sizes(heads),
    ],
)
@pytest.mark.parametrize("name", ["heads", "_heads"])
def test_attributes_of_a_module_follow_its_width(name: str, holder: Callable[[int], Any]) -> None:
    class Heads(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            setattr(self, name, holder(heads))
            self.project = nn.Linear(6, heads * 2)

        def forward(self, x: Tensor) -> Tensor:
            held = getattr(self, name)
            heads = held["all"][0] if isinstance(held, dict) else getattr(held, "heads", held)
            return self.project(x).view(len(x), heads, 2)

    given = Width("heads", [1, 2, 4])
    supernet = Supernet(Heads(given))
    x = torch.randn(5, 6)
    for heads in ("1", "4", "2"):
        supernet.activate({"heads": heads})
        assert supernet.model(x).shape == (5, int(heads), 2)
        plain = supernet.extract()
        assert getattr(plain, name) == holder(int(heads))
        assert b"asng" not in pickle.dumps(getattr(plain, name))
        assert torch.equal(plain(x), supernet.model(x))


def test_a_model_is_an_ordinary_one_before_the_search() -> None:
    width = Width("w", [2, 4])
    model = nn.Sequential(nn.Linear(3, width), Choice("op", {"a": nn.Tanh(), "b": nn.ReLU()}))
    x = torch.randn(2, 3)
    assert torch.equal(model(x), model[0](x).tanh()) and model(x).shape == (2, 4)
    for again in (copy.deepcopy(width), pickle.loads(pickle.dumps(width * 3)) // 3):
        assert isinstance(again, Width) and (again.name, again.numbers) == ("w", (2, 4))
    assert type(width + 1) is int and type(width * 2.5) is float


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = Width("w", [2, 4])
            self.embedding = nn.Embedding(7, width)
            self.op = Choice("op", {"a": nn.Identity(), "b": nn.Tanh()})
            self.head = nn.Linear(width, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.op(self.embedding(x)))

    supernet = Supernet(Tied())
    supernet.activate({"w": "2", "op": "b"})
    plain = supernet.extract()
    assert plain.head.weight is plain.embedding.weight and supernet.parameters() == 14
    assert torch.equal(plain(torch.arange(7)), supernet.model(torch.arange(7)))


def test_an_extracted_model_is_free_of_asng() -> None:
    model = Net()
    supernet = Supernet(model)
    supernet.activate({"width": "6", "op": "drop", "depth": 2})
    plain = supernet.extract()
    assert {type(module).__module__.split(".")[0] for module in plain.modules()} == {
        "torch",
        "interrupted_search",
    }
    assert "asng" not in repr([vars(module) for module in plain.modules()])
    pickle.dumps(plain)
    assert isinstance(plain.norm.running_mean, Tensor) and plain.norm.track_running_stats
    plain.op.eval(), model.op.eval()
    x = torch.randn(9, 5)
    assert torch.equal(plain(x), model(x))


class Noise(Dataset[Any]):
    """Examples with random numbers of Python, NumPy and PyTorch, as random transforms draw them."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> list[float]:
        return [i, random.random(), float(np.random.rand()), torch.rand(1).item()]


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "generator": True},
        {"shuffle": True, "num_workers": 2},
        {"sampler": DistributedSampler(Noise(), 1, 0)},
    ],
)
def test_the_position_in_a_loader_is_restored(options: dict[str, Any]) -> None:
    """Within an epoch, at its end and after several, beside others who draw random numbers."""

    def make() -> Batches:
        generator = (
            {"generator": torch.Generator().manual_seed(3)} if "generator" in options else {}
        )
        return Batches(DataLoader(Noise(), 4, **{**options, **generator}), "train_loader")

    batches = make()
    seen, states = [], []
    for _ in range(8):
        states.append((batches.state_dict(), random_state(batches.generators())))
        seen.append(torch.stack(batches.next()))
        torch.rand(1), random.random()
    assert len({tuple(batch[0].tolist()) for batch in seen}) > 4
    for position in (0, 1, 3, 7):
        random.seed(), torch.seed()
        batches = make()
        batches.load_state_dict(states[position][0])
        set_random_state(states[position][1], batches.generators())
        for expected in seen[position:]:
            assert torch.equal(torch.stack(batches.next()), expected)
            torch.rand(1), random.random()


# Searches.


def loaders(**options: Any) -> tuple[Any, Any]:
    return data(**options), data(**options)


def test_losses_are_those_of_the_plain_loop(daemon: Daemon) -> None:
    """The same network, chosen with ifs, in a loop as the README has it."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.small, self.large, self.head = (nn.Linear(5, 5) for _ in range(4))

        def forward(self, x: Tensor, op: str) -> Tensor:
            chosen = {
                "small": self.small,
                "large": lambda x: self.large(x).relu(),
                "skip": nn.Identity(),
            }
            return self.head(chosen[op](self.stem(x)))

    plain = Plain()
    small, large = copy.deepcopy(plain.small), nn.Sequential(copy.deepcopy(plain.large), nn.ReLU())
    op = Choice("op", {"small": small, "large": large, "skip": nn.Identity()})
    searched = nn.Sequential(copy.deepcopy(plain.stem), op, copy.deepcopy(plain.head))
    batches = [tuple(next(iter(data()))) for _ in range(2)]
    with asng.connect(daemon.address) as controller:
        settings: Any = {"max_steps": 12, "warmup_steps": 3, "seed": 5}
        study = controller.create_study("plain-loop", asng.Space(op=op.variable), **settings)
        sgd = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
        for step in study.steps():
            sgd.param_groups[0]["lr"] = 0.25 * (1 + math.cos(math.pi * step.progress))
            sgd.zero_grad(set_to_none=True)
            for arch in step.train:
                (F.cross_entropy(plain(batches[0][0], arch.op), batches[0][1]) / 2).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            sgd.step()
            with torch.no_grad():
                losses = [
                    F.cross_entropy(plain(batches[1][0], a.op), batches[1][1]) for a in step.rank
                ]
            step.report(losses)
        search = Search(controller, "torch", searched, **settings)
        sgd = torch.optim.SGD(searched.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
        result = search.run(
            batches[:1], batches[1:], loss=F.cross_entropy, optimizer=sgd, clip_grad_norm=0.5
        )
        assert [row["loss"] for row in result._history] == [row["loss"] for row in study.history()]
        assert len(result._history) == 18
        assert result.architecture == study.best()
    assert torch.equal(op.options[0].weight, plain.small.weight)


def test_parameters_that_no_architecture_uses_do_not_move(daemon: Daemon) -> None:
    options = {label: nn.Linear(5, 3) for label in "abcdef"}
    model = Choice("op", options)
    before = copy.deepcopy(model)
    moved: list[bool] = []

    def check(report: Report) -> None:
        nonlocal before
        for label, module, old in zip(options, model.options, before.options, strict=True):
            touched = label in {arch.op for arch in report.step.train}
            assert torch.equal(module.weight, old.weight) != touched
            moved.append(touched)
        before = copy.deepcopy(model)

    with asng.connect(daemon.address) as controller:
        Search(controller, "untouched", model, max_steps=8, seed=1).run(
            *loaders(), loss=F.cross_entropy, callbacks=[check]
        )
    assert len(moved) == 48 and True in moved and False in moved


def test_the_result_is_a_plain_model_with_the_shared_weights(daemon: Daemon) -> None:
    x = torch.randn(9, 5)
    search_, result = search(daemon.address, "result", None)
    model = result.model()
    assert not model.training and {type(m).__module__.split(".")[0] for m in model.modules()} <= {
        "torch",
        "interrupted_search",
    }
    search_.activate(result.architecture)
    search_.model.eval()
    model.norm.train()
    assert (model(x) - search_.model(x)).abs().max() < 1e-6
    # In evaluation mode the running statistics are those of the training data, whatever else is in the minibatch.
    calibrated = result.model()
    images = torch.cat([batch[0] for batch in data()])
    assert torch.allclose(calibrated(x)[:1], calibrated(x[:1]), atol=1e-6)
    assert torch.allclose(calibrated(images), search_.model(images), atol=0.2)
    table = result.table()
    assert len(table) == 2 * (STEPS - 4) and "width=" in repr(result)
    # With pandas, a DataFrame.
    columns = table[0] if isinstance(table, list) else table.columns
    assert {"step", "loss", "width", "op", "depth"} < set(columns)


def run_interrupted(
    daemon: Daemon, name: str, directory: Path, where: str, minutes: float, workers: int = 0
) -> int:
    """Runs the search in a process of its own, until that ends itself. Returns its exit status."""
    script = Path(__file__).with_name("interrupted_search.py")
    arguments: list[str | Path] = [
        daemon.address,
        name,
        directory,
        where,
        str(minutes),
        str(workers),
    ]
    # No pipe, whose end would come with that of the last worker.
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run([sys.executable, script, *arguments], stderr=errors)
        errors.seek(0)
        print(errors.read())
    return done.returncode


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon) -> Any:
    return search(daemon.address, "undisturbed", None)


@pytest.mark.parametrize("minutes", [0, 10])
@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("KILL-training", -signal.SIGKILL),
        ("KILL-reported", -signal.SIGKILL),
        ("TERM-training", 128 + signal.SIGTERM),
        ("INT-training", -signal.SIGINT),
    ],
)
def test_an_interrupted_search_ends_as_an_undisturbed_one(
    daemon: Daemon, undisturbed: Any, tmp_path: Path, where: str, status: int, minutes: float
) -> None:
    """With checkpoints after each step, and with the first one alone, from where all steps are computed again."""
    name = f"{where}-{minutes}"
    assert run_interrupted(daemon, name, tmp_path, where, minutes) == status
    applied = daemon.study(name).progress.applied
    assert applied == (11 if where == "KILL-reported" else 10)
    resumed, result = search(daemon.address, name, tmp_path)
    expected, expected_result = undisturbed
    for key, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    assert result.architecture == expected_result.architecture
    losses = [[row["loss"] for row in r._history] for r in (result, expected_result)]
    assert losses[0] == losses[1] and len(losses[0]) == 24
    # Once more, there is nothing to do, and the result is the same.
    again, _ = search(daemon.address, name, tmp_path)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key


def test_a_search_goes_on_while_workers_of_a_killed_one_are_there(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Workers notice after seconds that their process is gone. With them, the minibatches are those of a search with workers."""
    expected, _ = search(daemon.address, "not-killed", None, workers=1)
    options: Any = {"where": "KILL-training", "minutes": 10, "workers": 1}
    assert run_interrupted(daemon, "killed", tmp_path, **options) == -signal.SIGKILL
    resumed, _ = search(daemon.address, "killed", tmp_path, workers=1)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_sigterm_ends_the_wait_for_a_controller(
    start: Callable[..., Daemon], undisturbed: Any, tmp_path: Path
) -> None:
    """The controller goes before a step is reported; the search started again reports it."""
    daemon = start()

    def kill(report: Report) -> None:
        if report.step.id == 7:
            daemon.kill()

    class WhenItWaits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            signal.raise_signal(signal.SIGTERM)

    handler, log = WhenItWaits(), logging.getLogger("asng")
    log.addHandler(handler)
    with pytest.raises(SystemExit) as ended:
        search(daemon.address, "waiting", tmp_path, callbacks=[kill])
    log.removeHandler(handler)
    assert ended.value.code == 128 + signal.SIGTERM
    daemon.restart()
    resumed, result = search(daemon.address, "waiting", tmp_path)
    assert [row["loss"] for row in result._history] == [r["loss"] for r in undisturbed[1]._history]
    for key, value in undisturbed[0].model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_the_end_of_a_search_waits_for_the_controller(
    start: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ever, as all of the search does, although other calls have no patience here."""
    monkeypatch.setattr("asng._attempts.PATIENCE", 0)
    daemon = start()

    def kill(report: Report) -> None:
        if report.step.id == STEPS:
            daemon.kill()

    class WhenItWaits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.removeHandler(self)
            daemon.restart()

    log = logging.getLogger("asng")
    log.addHandler(WhenItWaits())
    _, result = search(daemon.address, "waits-at-the-end", None, callbacks=[kill])
    assert result.architecture.applied == STEPS


def test_a_checkpoint_belongs_to_one_process_and_one_study(
    daemon: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from asng.torch._checkpoint import Checkpoint

    search(daemon.address, "one", tmp_path)
    with pytest.raises(ValueError, match="is of the study 'one', and this one is 'another'"):
        search(daemon.address, "another", tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    torch.save({**state, "study": "recreated"}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="another study that was called 'recreated'"):
        search(daemon.address, "recreated", tmp_path)
    torch.save(state, tmp_path / "checkpoint.pt")
    held = Checkpoint(tmp_path)
    assert run_interrupted(daemon, "one", tmp_path, "", 10) == 1
    assert "another process uses the checkpoint in" in capfd.readouterr().out
    held.close()
    assert run_interrupted(daemon, "one", tmp_path, "", 10) == 0


@pytest.mark.parametrize("minutes", [0, 10])
def test_a_search_on_a_full_disk_ends_and_goes_on(
    daemon: Daemon, undisturbed: Any, tmp_path: Path, minutes: float
) -> None:
    """The disk takes neither a checkpoint nor a line of the journal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report: Report) -> None:
        if report.step.id == 11:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    options: Any = {"address": daemon.address, "name": f"full-{minutes}", "directory": tmp_path}
    try:
        with pytest.raises(
            OSError, match="File too large; the search has ended and can be"
        ) as full:
            search(**options, minutes=minutes, callbacks=[fill])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.filename == str(tmp_path)
    resumed, _ = search(**options)
    for key, value in undisturbed[0].model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_a_checkpoint_that_does_not_fit_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    def run(
        name: str,
        model: nn.Module,
        optimizer: Callable[..., Any] = torch.optim.SGD,
        train_loader: Any = None,
        end_after: int = 0,
    ) -> None:
        def end(report: Report) -> None:
            if report.step.id == end_after:
                raise KeyboardInterrupt

        with asng.connect(daemon.address) as controller:
            Search(controller, name, model, max_steps=6).run(
                train_loader or data(),
                data(),
                loss=F.cross_entropy,
                optimizer=optimizer(model.parameters(), lr=0.1),
                checkpoint=tmp_path / name,
                callbacks=[end],
            )

    def net(features: int) -> nn.Module:
        op = Choice("op", {"a": nn.ReLU(), "b": nn.Tanh()})
        return nn.Sequential(nn.Linear(5, features), op, nn.Linear(features, 3))

    generator = torch.Generator()
    own = DataLoader(data().dataset, 8, shuffle=True, generator=generator)
    other: list[tuple[Any, str]] = [
        ({"model": net(4), "train_loader": list(data())[:1]}, "fewer than 3 minibatches"),
        ({"model": net(5)}, "size mismatch for 0.weight"),
        ({"model": net(4), "optimizer": torch.optim.Adam}, "was SGD, and is Adam"),
        ({"model": net(4), "train_loader": own}, "have 1 generators of their own, and had 0"),
    ]
    with pytest.raises(KeyboardInterrupt):
        run("fits", net(4), end_after=3)
    for arguments, said in other:
        with pytest.raises(ValueError, match=f"does not fit this search: (?s:.*){said}"):
            run("fits", **arguments)
    run("fits", net(4))
    file = tmp_path / "fits" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint.pt cannot be read"):
        run("fits", net(4))


def spin(started: Any) -> None:
    started.set()
    while True:
        pass


def test_signals_are_left_to_those_who_handle_them() -> None:
    """A signal that came during the last step is raised at the end; other handlers stay, and forked children end by SIGTERM."""
    with pytest.raises(SystemExit, match="143"), Signals():
        signal.raise_signal(signal.SIGTERM)
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with Signals():
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)
    with Signals():
        fork = multiprocessing.get_context("fork")
        started = fork.Event()
        child = fork.Process(target=spin, args=[started])
        child.start()
        started.wait()
        child.terminate()
        child.join(20)
        child.kill()
    assert child.exitcode == -signal.SIGTERM


def test_a_loss_that_is_not_finite_counts_as_diverged(daemon: Daemon) -> None:
    class Diverging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(math.nan))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    op = Choice("op", {"fine": nn.Identity(), "diverging": Diverging()})
    model = nn.Sequential(nn.Linear(5, 3), op)
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "diverging", model, max_steps=60, warmup_steps=4, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        result = search.run(*loaders(), loss=F.cross_entropy, optimizer=optimizer)
    assert result.architecture.op == "fine"
    assert torch.isfinite(model[0].weight).all()
    losses = {(row["op"], math.isfinite(row["loss"])) for row in result._history}
    assert losses == {("fine", True), ("diverging", False)}
    assert daemon.study("diverging").progress.diverged > 0


def test_errors_of_a_model_are_no_divergence(daemon: Daemon) -> None:
    model = nn.Sequential(nn.Linear(5, Width("w", [2, 4]) + 0), nn.Linear(4, Width("w", [2, 4])))
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "error", nn.Sequential(model, nn.Linear(4, 3)), max_steps=9)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            search.run(*loaders(), loss=F.cross_entropy)
    assert daemon.study("error").progress.applied < 9


def test_workers_of_loaders_are_forked_beside_the_client(daemon: Daemon, tmp_path: Path) -> None:
    """An epoch is a minibatch here: each step starts two workers, one of its own for each loader. Nothing is written of it."""
    program = """
import sys
import asng
from asng.torch import Search
from interrupted_search import DataLoader, F, Net, data

with asng.connect(sys.argv[1]) as controller:
    search = Search(controller, "loader-workers", Net(), max_steps=12, warmup_steps=0, lease=3)
    loaders = [DataLoader(data().dataset, 30, num_workers=1) for _ in range(2)]
    search.run(*loaders, loss=F.cross_entropy, checkpoint=sys.argv[2], progress_bar=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, daemon.address, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.study("loader-workers").progress.applied == 12


def test_runs_in_a_running_event_loop(daemon: Daemon) -> None:
    async def notebook() -> Any:
        return search(daemon.address, "event-loop", None)[1]

    assert asyncio.run(notebook()).architecture.applied == STEPS


def test_wrong_arguments_are_refused_before_the_search(daemon: Daemon) -> None:
    model = Net()
    other = torch.optim.SGD(Net().parameters(), lr=1)
    sgd = torch.optim.SGD(model.parameters(), lr=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": other}, "none of the model's parameters"),
        ({"optimizer": torch.optim.Adam}, "the optimizer is <class .*Adam.*: give an instance"),
        (
            {"optimizer": sgd, "scheduler": torch.optim.lr_scheduler.StepLR(other, 1)},
            "the scheduler is that of another optimizer",
        ),
        (
            {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(sgd)},
            "the scheduler is <.*ReduceLROnPlateau.* that needs no loss",
        ),
        ({"scheduler": "cosine"}, "the scheduler is 'cosine': give a function"),
        ({"scheduler": torch.optim.lr_scheduler.StepLR}, "the scheduler is <class .*StepLR"),
        ({"amp": True}, "amp is True: give torch.bfloat16"),
        ({"costs": "parameters"}, r"costs is 'parameters': give a list, \['parameters'\]"),
        ({"loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss: give an instance"),
        ({"train_loader": data().dataset}, "train_loader is a TensorDataset.*: give a DataLoader"),
        ({"log": 3}, "log is a int"),
    ]
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "wrong", model, max_steps=4)
        for arguments, said in wrong:
            train_loader, valid_loader = loaders()
            options: Any = {"train_loader": train_loader, "loss": F.cross_entropy, **arguments}
            with pytest.raises((TypeError, ValueError), match=said):
                search.run(valid_loader=valid_loader, **options)
    assert daemon.study("wrong").progress.outstanding == 0


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (nn.CrossEntropyLoss(reduction="none"), TypeError, r"the loss is a Tensor of shape \(8,\)"),
        (lambda *pair: F.cross_entropy(*pair).item(), TypeError, "the loss is a float: return"),
        (lambda *pair: F.cross_entropy(*pair).detach(), RuntimeError, "does not require grad"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(
    daemon: Daemon, loss: Any, error: type[Exception], said: str
) -> None:
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "wrong-loss", Net(), max_steps=4)
        with pytest.raises(error, match=said):
            search.run(*loaders(), loss=loss)


def test_frozen_parameters_stay(daemon: Daemon) -> None:
    """Also in architectures that have no others: those of the pretrained part without the adapter."""
    stem, adapter = nn.Linear(5, 3).requires_grad_(False), nn.Linear(3, 3)
    before = [copy.deepcopy(module) for module in (stem, adapter)]
    model = nn.Sequential(stem, Choice("op", {"skip": nn.Identity(), "adapter": adapter}))
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "frozen", model, max_steps=20)
        result = search.run(*loaders(), loss=F.cross_entropy)
    assert {row["op"] for row in result._history} == {"skip", "adapter"}
    assert torch.equal(stem.weight, before[0].weight)
    assert not torch.equal(adapter.weight, before[1].weight)


class Sentences(NamedTuple):
    words: nn.utils.rnn.PackedSequence
    more: dict[str, Any]


def test_minibatches_keep_their_types(daemon: Daemon) -> None:
    """Named tuples, packed sequences and dicts; a latency is that of their first example."""
    latencies: list[int] = []

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(5, 4)
            self.op = Choice("op", {"a": nn.Tanh(), "b": nn.Identity()})
            self.head = nn.Linear(4, 3)

        def forward(self, x: Sentences) -> dict[str, Any]:
            assert x.more["scale"] == 2 and x.more["mask"].dtype is torch.bool
            latencies.append(len(x.more["mask"]))
            return {"logits": self.head(self.op(self.gru(x.words)[1][0]))}

    words = nn.utils.rnn.pack_sequence([torch.randn(4, 5) for _ in range(8)])
    x = Sentences(words, {"mask": torch.ones(8).bool(), "scale": 2})
    batches = [(x, {"label": torch.arange(8) % 3})]
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "types", Reader(), max_steps=4)
        search.run(
            batches,
            batches,
            loss=lambda output, target: F.cross_entropy(output["logits"], target["label"]),
            costs=["latency_ms"],
        )
    assert set(latencies) == {8, 1}


def test_a_study_that_has_begun_without_these_weights_is_told(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with asng.connect(daemon.address) as controller:
        options: Any = {"loss": F.cross_entropy, "progress_bar": False}
        search = Search(controller, "begun", Net(), max_steps=4)
        search.run(*loaders(), **options)
        search.run(*loaders(), **options)
        assert not caplog.records
        Search(controller, "begun", Net(), max_steps=4).run(*loaders(), **options)
        (record,) = caplog.records
        assert "study 'begun' has begun before (4 of 4 steps" in record.getMessage()


def test_a_step_function_takes_the_place_of_loaders(daemon: Daemon) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = next(iter(data()))
    seen: list[Step] = []
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "function", model, max_steps=6)

        def compute(step: Step) -> list[float]:
            seen.append(step)
            assert optimizer.param_groups[0]["lr"] == 0.1 * (1 - step.progress)
            optimizer.zero_grad()
            for arch in step.train:
                search.activate(arch)
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            losses = []
            for arch in step.rank:
                search.activate(arch)
                losses.append(F.cross_entropy(model(x), y).item())
            return losses

        options: Any = {"optimizer": optimizer, "scheduler": lambda progress: 1 - progress}
        result = search.run(step=compute, **options)
        assert [step.id for step in seen] == [1, 2, 3, 4, 5, 6]
        assert [len(step.rank) for step in seen] == [0, 0, 0, 0, 2, 2]
        with pytest.raises(ValueError, match="calibrate_with="):
            result.model()
        assert result.model(calibrate_with=[(x,)])(x).shape == (8, 3)
        wrong: list[dict[str, Any]] = [{}, {"step": compute, "loss": F.cross_entropy}]
        for arguments in wrong:
            with pytest.raises(TypeError, match="give"):
                search.run(**arguments)
        with pytest.raises(TypeError, match="give the optimizer that the step function uses"):
            search.run(step=compute, checkpoint="work")
        other = Search(controller, "function-wrong", Net(), max_steps=2, warmup_steps=0)
        with pytest.raises(ValueError, match="returned 1 losses: return one for each of the 2"):
            other.run(step=lambda step: [1.0])
        nothing: Any = lambda step: None  # noqa: E731
        with pytest.raises(ValueError, match="losses: expected a sequence of numbers"):
            other.run(step=nothing)


def test_a_step_function_s_values_are_maximized(daemon: Daemon) -> None:
    figures: list[dict[str, float]] = []

    def depth(step: Step) -> list[float]:
        return [float(arch["depth"]) for arch in step.rank]

    options: Any = {"max_steps": 200, "lambda_x": 0, "lambda_theta": 4, "seed": 1}
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "torch-max", Net(), direction="maximize", **options)
        result = search.run(step=depth, log=lambda metrics, step: figures.append(metrics))
        most = max(row["depth"] for row in result._history)
        assert result.architecture["depth"] == most > 1
        assert "loss" not in figures[-1] and 0 < figures[-1]["value"] <= most
        with pytest.raises(TypeError, match="direction='maximize' needs `step`"):
            search.run(*loaders(), loss=F.cross_entropy)


def test_costs_are_counted_measured_or_computed(daemon: Daemon) -> None:
    def layers(module: nn.Module) -> int:
        return sum(isinstance(part, nn.Linear) for part in module.modules())

    with asng.connect(daemon.address) as controller:
        search = Search(
            controller, "costs", Net(), max_steps=8, warmup_steps=2, limits={"parameters": 150}
        )
        result = search.run(
            *loaders(), loss=F.cross_entropy, costs={"layers": layers, "latency_ms": None}
        )
        for row in result._history:
            search.activate(asng.Architecture({name: row[name] for name in search.space.variables}))
            plain = search.supernet.extract()
            assert (
                row["costs.layers"] == 2 + (row["op"] == "narrow") + row["depth"] == layers(plain)
            )
            assert row["costs.parameters"] == sum(p.numel() for p in plain.parameters())
            assert 0 < row["costs.latency_ms"] < 1000
        search = Search(controller, "unknown", Net(), max_steps=2, limits={"joules": 1})
        with pytest.raises(ValueError, match="no function for the cost 'joules'"):
            search.run(*loaders(), loss=F.cross_entropy)


def test_callbacks_and_logs_get_each_step(daemon: Daemon) -> None:
    reports: list[Report] = []
    figures: dict[int, dict[str, float]] = {}

    class Writer:
        """As TensorBoard's SummaryWriter."""

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            figures.setdefault(step, {})[tag] = value

    with asng.connect(daemon.address) as controller:
        Search(controller, "callbacks", Net(), max_steps=4).run(
            *loaders(), loss=F.cross_entropy, callbacks=[reports.append], log=Writer()
        )
    assert [report.outcome for report in reports] == [asng.Outcome.APPLIED] * 4
    assert [len(report.losses) for report in reports] == [0, 0, 2, 2]
    assert [sorted(figures[n]) for n in (1, 4)] == [
        ["learning_rate", "train_loss"],
        ["learning_rate", "loss", "train_loss"],
    ]
    assert figures[4]["loss"] == sum(reports[3].losses) / 2
    assert [round(figures[n]["learning_rate"], 6) for n in (1, 3)] == [0.025, 0.0125]


def test_computes_in_reduced_precision(daemon: Daemon) -> None:
    kinds: set[Any] = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kinds.add(output.dtype)
        return F.cross_entropy(output.float(), target)

    with asng.connect(daemon.address) as controller:
        model = Net()
        search = Search(controller, "bfloat16", model, max_steps=4)
        search.run(*loaders(), loss=loss, amp=torch.bfloat16, device="cpu")
    assert kinds == {torch.bfloat16} and model.stem.weight.dtype is torch.float32


def test_loaders_of_another_kind_are_refused(daemon: Daemon) -> None:
    with asng.connect(daemon.address) as controller:
        search = Search(controller, "optimizer", Net(), max_steps=4)
        with pytest.raises(ValueError, match="train_loader yields no minibatch"):
            search.run([], [], loss=F.cross_entropy)
        with pytest.raises(TypeError, match=r"yield \(input, target\)"):
            search.run([torch.zeros(2)], [], loss=F.cross_entropy)


def test_plots_the_losses(daemon: Daemon) -> None:
    pytest.importorskip("matplotlib")
    _, result = search(daemon.address, "plot", None)
    assert len(result.plot().axes[0].collections[0].get_offsets()) == 2 * (STEPS - 4)


def test_without_pytorch_the_rest_works_and_this_says_what_to_install() -> None:
    program = """
import sys
import tempfile
import textwrap
sys.modules["torch"] = None
import asng
try:
    import asng.torch
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install torch" in done.stdout
    program = "import sys, asng; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_several_processes_search_as_one(daemon: Daemon, tmp_path: Path) -> None:
    """Under torchrun, ended by SIGTERM in the middle and started again, beside one process alone."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    torchrun += ["--monitor_interval=0.1"]
    torchrun += ["-r", "1", "-t", "1"]  # Without these, PyTorch 1.13's fails with Python 3.11.
    script: list[str | Path] = [
        Path(__file__).with_name("ddp_search.py"),
        daemon.address,
        "ddp",
        tmp_path,
    ]
    for stop_at in ("6", "0"):
        done = subprocess.run([*torchrun, *script, stop_at], capture_output=True, text=True)
        print(done.stderr)
        assert (done.returncode == 0) == (stop_at == "0")
        if stop_at == "6":
            assert daemon.study("ddp").progress.applied == 6
    alone, result = ddp_search.search(daemon.address, "ddp-alone", None)
    for rank in range(2):
        state, architecture, rows = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert architecture == result.architecture.values and rows == 16
        for key, value in alone.model.state_dict().items():
            assert torch.allclose(state[key], value, atol=1e-12), key


def test_the_guide_is_true(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each snippet of docs/pytorch.md, and that of the README, runs with fewer steps and smaller images."""
    guide = (PACKAGE / "../../docs/pytorch.md").read_text()
    (short,) = re.findall(
        r"```python\n(from asng.torch.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL
    )
    snippets = [
        textwrap.dedent(indent + body)
        for indent, body in re.findall(r"```python\n( *)(.*?)```", guide, re.DOTALL)
    ]
    assert len(snippets) == 9
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    examples = TensorDataset(torch.randn(16, 1, 4, 4), torch.arange(16) % 10)
    names: dict[str, Any] = {
        "train_set": examples,
        "valid_set": examples,
        "train_loader": DataLoader(examples, 8, shuffle=True),
        "valid_loader": DataLoader(examples, 8),
        "draw_minibatch": lambda: examples[torch.randint(16, (8,)).tolist()],
    }
    for snippet in snippets:
        if "export_onnx" in snippet and not find_spec("onnx"):
            continue  # PyTorch 2 needs it.
        exec(snippet.replace("localhost:50051", daemon.address).replace("4000", "4"), names)
        if "penalties" in snippet:
            names["costs"] = names["result"].architecture.costs
    parts = {"stem": nn.Conv2d(1, 4, 3), "head": nn.Sequential(nn.Flatten(), nn.Linear(16, 10))}
    names |= parts | {f"conv{k}": nn.Conv2d(4, 4, k, padding=k // 2) for k in (3, 5)}
    monkeypatch.chdir(tmp_path / "work")
    short = short.replace("localhost:50051", daemon.address).replace('"mine"', '"readme"')
    exec(short.replace("2000", "4"), names)
    assert names["trained"](examples[:3][0]).shape == (3, 10)
    for study in ("first", "second", "third", "small", "parallel"):
        assert daemon.study(study).progress.applied == 4
    assert len(names["losses"]) == 4
    assert set(names["costs"]) == {"macs", "parameters", "latency_ms"}
    supernet = Supernet(names["attention"])
    supernet.activate({"heads": "2"})
    assert supernet.model(torch.randn(3, 7, 64)).shape == (3, 7, 64)
    assert names["mlp"](torch.randn(3, 32)).shape == (3, 10)


def test_processes_of_torchrun_have_to_form_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with asng.connect() as controller, pytest.raises(RuntimeError, match="init_process_group"):
        Search(controller, "group", Net(), max_steps=4)
