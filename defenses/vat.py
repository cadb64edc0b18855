"""Predictions that stay the same where they would move most, labels or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.losses import divergence

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class VAT(TrainingDefense):
    """Virtual adversarial training (Miyato et al. 2018): weight times KL(p(x) || p(x + r)), p(x) held fixed.

    r has length eps in l2 and points where the divergence grows most: `iterations` steps of the power method from a
    random direction, through its gradient at xi times it (algorithm 1). The label has no part in it: with
    `--unlabeled` as many images without one join each batch (semi-supervised).
    eps: > 0 in pixels; the paper's 2.1 for MNIST. xi: > 0. Departures: xi is 0.01 and not 1e-6, of which nothing
    is left in float32; x + r is not cut to the box, as in the paper.
    """

    name: ClassVar[str] = "vat"
    summary: ClassVar[str] = "predictions that stay put, for labelled and unlabelled images"
    source: ClassVar[str] = "Miyato et al. 2018, arXiv:1704.03976"

    eps: float = 2.1
    weight: float = 1.0
    iterations: int = 1
    xi: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("eps", "xi"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")
        if self.iterations < 1:
            raise UserError(f"iterations must be >= 1, got {self.iterations}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss of the labelled and the divergence of all images."""
        every = torch.cat([x, trainer.without_labels(len(x))])
        with torch.no_grad():
            clean = network(every)
        direction = _unit(torch.randn_like(every))
        for _ in range(self.iterations):
            near = (every + self.xi * direction).requires_grad_()
            moved = divergence(clean, network(near)).sum()
            direction = _unit(torch.autograd.grad(moved, near)[0])
        smooth = divergence(clean, network(every + self.eps * direction)).mean()
        trainer.note("divergence", float(smooth.detach()))
        value: Tensor = inner(network, x, y) + self.weight * smooth
        return value


def _unit(x: Tensor) -> Tensor:
    length: Tensor = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return x / length.reshape(-1, 1, 1, 1)
