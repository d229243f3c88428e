"""One-shot search of a transformer encoder: its depth, and the heads and the feed-forward width of each layer.

    pip install asng asng-controller torch
    python transformer.py

It learns to tell English from Python, by the characters of one line. The lines are those of Python's own standard library: in
documentation strings, and outside of them. Run again after it was killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import asng
from asng.torch import Repeat, Search, Width

LENGTH = 40  # characters of a line
FEATURES = 64
HEAD = 16  # features of an attention head


class Attention(nn.Module):
    """Self-attention with a searched number of heads. It is made of linear layers, which can have a `Width`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.heads = Width(name, [1, 2, 4])  # In the search, this is the current number.
        self.query, self.key, self.value = (nn.Linear(FEATURES, HEAD * self.heads) for _ in "qkv")
        self.output = nn.Linear(HEAD * self.heads, FEATURES)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        shape = *x.shape[:2], self.heads, HEAD
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = (q @ k.transpose(2, 3) / HEAD**0.5).masked_fill(padding[:, None, None], -1e4)
        return self.output((scores.softmax(3) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of the encoder, normalised before attention and feed-forward network."""

    def __init__(self, i: int) -> None:
        super().__init__()
        hidden = Width(f"layer{i}.hidden", [32, 64, 128, 256])
        self.attention = Attention(f"layer{i}.heads")
        self.feed_forward = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.GELU(), nn.Linear(hidden, FEATURES)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(FEATURES) for _ in range(2)])

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), padding)
        return x + self.feed_forward(self.norms[1](x))


class Encoder(nn.Module):
    """Classifies lines of characters, with the mean over the characters of the last layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, FEATURES)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, FEATURES))
        self.layers = Repeat("depth", Layer, 1, 4)
        self.head = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 2))

    def forward(self, characters: Tensor) -> Tensor:
        padding = characters == 0
        x = self.characters(characters) + self.positions
        for layer in self.layers:  # A layer has two inputs, so it is called here, not by Repeat.
            x = layer(x, padding)
        there = (~padding).unsqueeze(2).float()
        return self.head((x * there).sum(1) / there.sum(1))


def documentation(source: str) -> set[int]:
    """The numbers of the lines of a program's documentation strings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    strings = [node.body[0] for node in nodes if ast.get_docstring(node)]
    return {n for s in strings for n in range(s.lineno, (s.end_lineno or s.lineno) + 1)}


def lines(files: list[Path]) -> TensorDataset:
    """Characters, with zeros behind the end of a line, and classes: 0 is Python and 1 English, as many of each."""
    classes: tuple[list[bytes], list[bytes]] = ([], [])
    for file in files:
        source = file.read_text(encoding="utf-8")
        english = documentation(source)
        for number, line in enumerate(source.splitlines(), 1):
            line = line.strip(" \"'")
            # Neither comments nor examples, which are of both.
            if len(line) >= 10 and line.isascii() and not line.startswith(("#", ">>>", "...")):
                classes[number in english].append(line[:LENGTH].encode().ljust(LENGTH, b"\0"))
    most = min(map(len, classes))
    chosen = [[*line] for of_class in classes for line in random.sample(of_class, most)]
    return TensorDataset(torch.tensor(chosen), torch.arange(2).repeat_interleave(most))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("transformer"), help="what is kept")
    parser.add_argument("--files", type=int, default=150, help="how many of the library")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()

    random.seed(0)
    torch.manual_seed(0)
    # No file has lines in two parts: to train the weights, to rank the architectures, to test the result.
    files = sorted(Path(ast.__file__).parent.glob("*.py"))
    files = random.sample(files, min(options.files, len(files)))
    train, valid, test = (
        DataLoader(lines(files[part::3]), options.batch, shuffle=True) for part in range(3)
    )
    with asng.local(options.work / "controller") as controller:
        model = Encoder()
        search = Search(controller, "transformer", model, max_steps=options.steps)
        result = search.run(
            train,
            valid,
            loss=F.cross_entropy,
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
            checkpoint=options.work / "checkpoint",
        )
    print(result)
    found = result.model().cpu()
    with torch.no_grad():
        hits = torch.cat([found(x).argmax(1) == y for x, y in test])
    print(f"test accuracy {hits.float().mean():.3f}")
    torch.save(found.state_dict(), options.work / "model.pt")


if __name__ == "__main__":
    main()
