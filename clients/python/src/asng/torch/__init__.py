"""One-shot architecture search of any `nn.Module`: searched parts in a model, and the loop that trains and searches it.

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            width = Width("width", [16, 32, 64])
            self.stem = nn.Conv2d(3, width, 3, padding=1)
            self.op = Choice("op", {"conv3": conv(width, 3), "conv5": conv(width, 5), "skip": nn.Identity()})
            self.blocks = Repeat("depth", lambda i: conv(width, 3), 1, 4)
            self.head = nn.Linear(width, 10)
        ...

    with asng.connect() as controller:
        search = Search(controller, "mine", Net(), max_steps=5000)
        result = search.run(train_loader, valid_loader, loss=F.cross_entropy, checkpoint="work")
    model = result.model()

docs/pytorch.md is the guide. PyTorch 1.13 or later is needed; `import asng` alone does not import it.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "asng.torch needs PyTorch, which is not installed: run `pip install torch`, or see "
        "https://pytorch.org/get-started/locally"
    ) from error

from asng.torch._loop import Report
from asng.torch._result import Result
from asng.torch._search import Search, cosine
from asng.torch._space import Choice, Repeat, Width
from asng.torch._supernet import Supernet
from asng.torch._training import Step

__all__ = ["Choice", "Repeat", "Report", "Result", "Search", "Step", "Supernet", "Width", "cosine"]
