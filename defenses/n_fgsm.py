"""One step from far noise, without a way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_noise
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class NFGSM(TrainingDefense):
    """Uniform noise of `noise` times eps, then a step of eps, not cut to the ball (de Jorge et al. 2022).

    eps: of linf; noise: k of the paper, >= 0. What leaves the ball stays there: that is what keeps one step from
    overfitting (section 4). The images are cut to [0, 1].
    adaptive: pgd of 50 steps from 10 starts, the paper's own.
    """

    name: ClassVar[str] = "n-fgsm"
    summary: ClassVar[str] = "one step from noise larger than eps, not cut to the ball"
    source: ClassVar[str] = "de Jorge et al. 2022, arXiv:2202.01181"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 50, "restarts": 10}

    eps: float = 8 / 255
    noise: float = 2.0

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if not self.noise >= 0:
            raise UserError(f"noise must be >= 0, got {self.noise:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The loss behind noise and step."""
        start = x + self.noise * self.eps * uniform_noise(x)
        gradient = trainer.gradient(network, start, lambda logits: cross_entropy(logits, y, reduction="sum"))
        return inner(network, (start + self.eps * gradient.sign()).clamp(0, 1), y)
