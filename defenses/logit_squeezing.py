"""Small logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class LogitSqueezing(TrainingDefense):
    """Learns from noisy images and adds weight times the mean length of the logits (Kannan et al. 2018, section 3.2).

    sigma: of the Gaussian noise, in pixels, >= 0; the paper's 0.5, for MNIST. weight: >= 0; the paper's 0.05. It
    flattens what gradients see rather than where classes meet (Engstrom et al. 2018, arXiv:1807.10272; Mosbach et al.
    2018, arXiv:1810.12042): attacks with enough steps and restarts go through.
    adaptive: pgd with many steps and restarts (Engstrom et al. 2018; Mosbach et al. 2018).
    """

    name: ClassVar[str] = "logit-squeezing"
    summary: ClassVar[str] = "learns from noise with small logits"
    source: ClassVar[str] = "Kannan et al. 2018, arXiv:1803.06373"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 200, "restarts": 5}

    sigma: float = 0.5
    weight: float = 0.05

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UserError(f"sigma must be >= 0, got {self.sigma:g}")
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss and the length of the logits that it saw last."""
        del trainer
        seen: list[Tensor] = []

        def watch(_network: nn.Module, _inputs: Any, logits: Tensor) -> None:
            seen.append(logits)

        handle = network.register_forward_hook(watch)
        try:
            value = inner(network, (x + self.sigma * torch.randn_like(x)).clamp(0, 1), y)
        finally:
            handle.remove()
        length: Tensor = seen[-1].norm(dim=1).mean()
        return value + self.weight * length
