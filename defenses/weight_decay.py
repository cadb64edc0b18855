"""Small weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError, unknown_name

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

Kind = Literal["l2", "l1"]


@dataclass(frozen=True)
class WeightDecay(TrainingDefense):
    """Adds decay times half the sum of squares of all weights, or the sum of their sizes, to the loss.

    Szegedy et al. 2013 (arXiv:1312.6199, table 1) let it grow distances to adversarial images; Goodfellow et al. 2015
    (section 5) find that it worsens accuracy before it helps. decay: >= 0, beside the recipe's `weight_decay`.
    kind: "l2" or "l1"; of matrices and kernels, not of biases.
    """

    name: ClassVar[str] = "weight-decay"
    summary: ClassVar[str] = "keeps the weights small"
    source: ClassVar[str] = "compare Szegedy et al. 2013, arXiv:1312.6199"

    decay: float = 1e-3
    kind: str = "l2"

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise UserError(f"decay must be >= 0, got {self.decay:g}")
        if self.kind not in get_args(Kind):
            raise unknown_name("kind", self.kind, get_args(Kind))

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss and the weights' length."""
        del trainer
        weights = [p for p in network.parameters() if p.ndim > 1]
        sizes = [w.square().sum() / 2 if self.kind == "l2" else w.abs().sum() for w in weights]
        return inner(network, x, y) + self.decay * torch.stack(sizes).sum()
