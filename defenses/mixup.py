"""Images and labels mixed by pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class Mixup(TrainingDefense):
    """Learns from the mean of two images with the mean of their labels, at random weights (Zhang et al. 2018, eq. 1).

    One weight a batch, of Beta(alpha, alpha), as in the authors' code. alpha: > 0; the paper's 1.
    """

    name: ClassVar[str] = "mixup"
    summary: ClassVar[str] = "learns from mixtures of two images and their labels"
    source: ClassVar[str] = "Zhang et al. 2018, arXiv:1710.09412"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UserError(f"alpha must be > 0, got {self.alpha:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss of the mixture."""
        weight = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        order = torch.randperm(len(x)).to(x.device)
        shares = one_hot(y, trainer.classes).float() if y.ndim == 1 else y
        return inner(network, weight * x + (1 - weight) * x[order], weight * shares + (1 - weight) * shares[order])
