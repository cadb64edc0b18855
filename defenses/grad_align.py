"""Gradients that point the same way in the whole ball, so that one step is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_noise
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class GradAlign(TrainingDefense):
    """FGSM training that also aligns the input gradients at an image and near it (Andriushchenko and Flammarion 2020).

    The loss on FGSM's images plus weight times 1 - cos(grad at x, grad at x + u), u uniform in the ball (equation 4).
    eps: of linf. weight: lambda, >= 0; the paper's for CIFAR-10 at 8/255 is 0.2. warmup: share of the training over
    which eps grows from 0, which the paper has not: without it small networks may stay at one answer for all images.
    adaptive: pgd of 50 steps from 10 starts, the paper's own.
    """

    name: ClassVar[str] = "grad-align"
    summary: ClassVar[str] = "one-step adversarial training with aligned input gradients"
    source: ClassVar[str] = "Andriushchenko and Flammarion 2020, arXiv:2007.02617"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 50, "restarts": 10}

    eps: float = 8 / 255
    weight: float = 0.2
    warmup: float = 0.0

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {self.warmup:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """FGSM's loss and the angle between two gradients."""
        eps = self.eps * min(1.0, trainer.done / self.warmup) if self.warmup else self.eps
        first = _gradient(network, x, y)
        second = _gradient(network, x + eps * uniform_noise(x), y)
        angle = (1 - cosine_similarity(first.flatten(1), second.flatten(1))).mean()
        trainer.note("gradient_angle", float(angle.detach()))
        seen = (x + eps * first.detach().sign()).clamp(0, 1)
        return inner(network, seen, y) + self.weight * angle


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(network(x), y, reduction="sum"), x, create_graph=True)[0]
