"""A linear layer that counts what it is shown, images for it, and how far its boundaries are, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lite.attack import Batch
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat


class Counted(nn.Module):
    """A linear layer that counts the images it is shown."""

    def __init__(self, classes: int = 4, *, bias: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layer = nn.Linear(64, classes)
        self.layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
        self.layer.bias.data = torch.zeros(classes)
        self.layer.bias.data[0] = bias
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.layer(x.flatten(1))
        return logits

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """As a query answers."""
        del rows
        with torch.no_grad():
            logits: Tensor = self(x)
        return logits.argmax(1)


def images(count: int) -> Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(6)) * 0.4 + 0.3


def optimum(model: Counted, x: Tensor, norm: str, aims: Tensor | None = None) -> Tensor:
    """Distance to the nearest boundary (or to the target's, a lower bound), (N,) float64."""
    weight, y = model.layer.weight.detach(), model.labels(x)
    with torch.no_grad():
        logits = model(x).double()
    gap = logits.gather(1, y[:, None]) - logits
    slope = (weight[y][:, None] - weight[None]).double()
    dual = slope.abs().sum(2) if norm == "linf" else slope.square().sum(2).sqrt()
    distance = (gap / dual.clamp_min(1e-12)).scatter(1, y[:, None], float("inf"))
    found: Tensor = distance.amin(1) if aims is None else distance.gather(1, aims[:, None])[:, 0]
    return found


def batch_of(x: Tensor, y: Tensor, norm: str, *, targets: Tensor | None = None) -> Batch:
    zero = torch.zeros(len(x), dtype=torch.int64)
    ball = Threat(norm, 0.3).around(x, torch.full((len(x),), 1e30))
    return Batch(ball, y, targets, zero, Stream(torch.arange(len(x))), zero)
