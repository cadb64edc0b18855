"""Weights moved against the loss, so that a flat minimum is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class AWP(TrainingDefense):
    """Adversarial weight perturbation, around any other loss: give it before that defense (Wu et al. 2020).

    Every weight tensor w of a layer is moved by gamma |w| along its gradient's direction, up the loss; the gradient
    there moves the weights as they were (equations 7 to 10). Images that the inner defense had made by
    an attack stay; one that makes them itself (fast-at) makes them again.
    gamma: > 0; the paper's for adversarial training is 0.01, for TRADES 0.005. warmup: share of the training before
    weights are moved.
    """

    name: ClassVar[str] = "awp"
    summary: ClassVar[str] = "moves the weights against the loss of the defense behind it"
    source: ClassVar[str] = "Wu et al. 2020, arXiv:2004.05884"

    gamma: float = 0.01
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"gamma must be > 0, got {self.gamma:g}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup must be in [0, 1), got {self.warmup:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss at weights that were moved up it."""
        value = inner(network, x, y)
        if trainer.done < self.warmup:
            return value
        weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        kept = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.add_(gradient, alpha=float(self.gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))

        def back() -> None:
            with torch.no_grad():
                for weight, before in zip(weights, kept, strict=True):
                    weight.copy_(before)

        trainer.after_backward(back)
        with trainer.same_images():
            return inner(network, x, y)
