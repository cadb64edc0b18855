"""Accuracy and stability as two terms of one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.losses import divergence
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class Trades(TrainingDefense):
    """The loss on images plus beta times the divergence to what moves the prediction most (Zhang et al. 2019, eq. 5).

    norm, eps: the threat. steps: of the inner ascent of that divergence. beta: 1 / lambda of the paper, >= 0; 6 for
    CIFAR-10, 1 for MNIST. warmup: share of the training over which eps grows from 0. Departures: the authors have no
    warmup; theirs takes steps of 0.007 at eps 0.031 and of 0.01 at 0.3, here 2.25 eps / steps.
    """

    name: ClassVar[str] = "trades"
    summary: ClassVar[str] = "accuracy on images, stability of predictions around them"
    source: ClassVar[str] = "Zhang et al. 2019, arXiv:1901.08573"

    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 10
    beta: float = 6.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not self.beta >= 0:
            raise UserError(f"beta must be >= 0, got {self.beta:g}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {self.warmup:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """Both terms, in one pass of the network each."""
        eps = self.eps * min(1.0, trainer.done / self.warmup) if self.warmup else self.eps
        seen = trainer.perturb(network, x, y, attack="tpgd", norm=self.norm, eps=eps, options={"steps": self.steps})
        moved = network(seen)
        return inner(network, x, y) + self.beta * divergence(network(x), moved).mean()
