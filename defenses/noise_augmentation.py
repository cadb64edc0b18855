"""Training on noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError, unknown_name
from robustbench_lite.streams import uniform_noise

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

Kind = Literal["gaussian", "uniform", "sign"]


@dataclass(frozen=True)
class NoiseAugmentation(TrainingDefense):
    """Learns from images with noise of size eps: what adversarial training is compared with (Goodfellow et al. 2015).

    kind: "gaussian" of standard deviation eps, "uniform" in [-eps, eps], or eps times a random "sign". clip: cut the
    noisy image to [0, 1]; randomized smoothing, whose noise is not cut, wants it false.
    Against an attack it does next to nothing (section 6 of arXiv:1412.6572: noise has no length along the gradient);
    it is what randomized smoothing is trained with (Cohen et al. 2019).
    """

    name: ClassVar[str] = "noise-augmentation"
    summary: ClassVar[str] = "learns from images with random noise"
    source: ClassVar[str] = "Goodfellow et al. 2015, arXiv:1412.6572"

    eps: float = 0.1
    kind: str = "gaussian"
    clip: bool = True

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise UserError(f"eps must be >= 0, got {self.eps:g}")
        if self.kind not in get_args(Kind):
            raise unknown_name("kind", self.kind, get_args(Kind))

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss of the noisy images."""
        del trainer
        if self.kind == "gaussian":
            noise = torch.randn_like(x)
        else:
            noise = uniform_noise(x)
            noise = torch.where(noise < 0, -1.0, 1.0) if self.kind == "sign" else noise
        noisy = x + self.eps * noise
        return inner(network, noisy.clamp(0, 1) if self.clip else noisy, y)
