"""Small gradients in the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class InputGradient(TrainingDefense):
    """Adds the squared length of the cross-entropy's gradient in the image (Ross and Doshi-Velez 2018, eq. 3).

    weight: lambda, >= 0, of the mean over the batch. It takes a second differentiation: about three times the time.
    adaptive: square, which needs none of the gradients that were made small.
    """

    name: ClassVar[str] = "input-gradient"
    summary: ClassVar[str] = "keeps the loss's gradient in the image small"
    source: ClassVar[str] = "Ross and Doshi-Velez 2018, arXiv:1711.09404"
    adaptive: ClassVar[str] = "square"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 1000}

    weight: float = 10.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss and the gradient's length."""
        x = x.detach().requires_grad_()
        value = cross_entropy(network(x), y, reduction="sum")
        gradient = torch.autograd.grad(value, x, create_graph=True)[0]
        length = gradient.square().flatten(1).sum(1).mean()
        trainer.note("gradient_length", float(length.detach().sqrt()))
        return inner(network, x.detach(), y) + self.weight * length
