"""Searches a small network that tells in which quadrants points lie, in half a minute:

    pip install asng asng-controller torch
    python quadrants.py

Killed and started again, it goes on where it was, and ends as if nothing had happened.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import asng
from asng.torch import Choice, Repeat, Search, Width

torch.manual_seed(0)
x = 3 * torch.randn(4096, 2)
data = TensorDataset(x, (x.prod(1) > 0).long())
train, valid = (DataLoader(half, 64, shuffle=True) for half in random_split(data, [2048, 2048]))

width = Width("width", [8, 16, 32])


def block(index: int) -> nn.Module:
    activation = Choice(f"activation{index}", {"relu": nn.ReLU(), "tanh": nn.Tanh()})
    return nn.Sequential(nn.Linear(width, width), activation)


model = nn.Sequential(nn.Linear(2, width), Repeat("depth", block, 1, 3), nn.Linear(width, 2))
with asng.local("state") as controller:
    search = Search(controller, "quadrants", model, max_steps=1000, seed=0)
    result = search.run(train, valid, loss=nn.functional.cross_entropy, checkpoint="work")
print(result.architecture, result.model())
