"""A detector: an image whose prediction changes when it is squeezed is turned away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense, see_through
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.median import Median
from robustbench_lite.errors import UserError

ROWS = 256  # images of one pass while the threshold is found


@dataclass(frozen=True)
class FeatureSqueezing(InferenceDefense):
    """Turns an image away where squeezing it moves the prediction by more than a threshold (Xu et al. 2018).

    What is compared is the softmax of the image as it is, of the image at fewer bits, and of the image smoothed by a
    median; the score is the largest l1 distance (section V of the paper). The threshold is the score that
    `false_positive_rate` of `samples` training images exceed.

    bits, size: of the squeezers, as of `bit-depth` and `median`. A rejected image is not fooled. Attacks see the score
    as the logit of rejection and look for an image that is wrong and unsuspicious, through the rounding as through the
    identity; so the defense fell (He et al. 2017, arXiv:1706.04701).
    adaptive: pgd on margin and score together (He et al. 2017).
    """

    name: ClassVar[str] = "feature-squeezing"
    summary: ClassVar[str] = "rejects images whose prediction changes when they are squeezed"
    source: ClassVar[str] = "Xu et al. 2018, arXiv:1704.01155"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 200, "loss": "margin"}
    differentiable: ClassVar[bool] = False

    bits: int = 4
    size: int = 2
    false_positive_rate: float = 0.05
    samples: int = 1000

    def __post_init__(self) -> None:
        self._squeezers()
        if not 0 < self.false_positive_rate < 1:
            raise UserError(f"false_positive_rate must be between 0 and 1, got {self.false_positive_rate:g}")
        if self.samples < 1:
            raise UserError(f"samples must be >= 1, got {self.samples}")

    @property
    def rejects(self) -> bool:
        """Always."""
        return True

    @property
    def fit_samples(self) -> int:
        """Those that the threshold is found on."""
        return self.samples

    def _squeezers(self) -> tuple[InferenceDefense, ...]:
        return BitDepth(bits=self.bits), Median(size=self.size)

    def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The network with its detector."""
        del y
        squeezed = Squeezed(model, self._squeezers())
        scores = torch.cat([squeezed.score(part, model(part)) for part in x.split(ROWS)])  # type: ignore[no-untyped-call]
        squeezed.threshold = scores.double().quantile(1 - self.false_positive_rate).to(scores.dtype)
        return squeezed


class Squeezed(nn.Module):
    """A network that compares its answers to an image and to the squeezed image."""

    threshold: Tensor

    def __init__(self, model: nn.Module, squeezers: tuple[InferenceDefense, ...]) -> None:
        super().__init__()
        self.model = model
        self.squeezers = squeezers
        self.register_buffer("threshold", torch.tensor(2.0))  # more than two distributions can be apart

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """How far squeezing moves the prediction, (N,) in [0, 2]."""
        seen = logits.softmax(1)
        apart = [(self.model(see_through(s, x)).softmax(1) - seen).abs().sum(1) for s in self.squeezers]
        return torch.stack(apart).amax(0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K + 1), the last of them above the others exactly where the score exceeds the threshold."""
        logits = self.model(x)
        top = logits.amax(1)
        # In units of the logits, so that neither side of the comparison drowns the other.
        spread = (top - logits.mean(1)).detach()
        beyond = (self.score(x, logits) - self.threshold) * spread.clamp_min(1e-6)
        # Neither a tie nor rounding may decide: a score at the threshold is not beyond it.
        least = 1e-4 * (1 + top.detach().abs())
        away = top + beyond + torch.where(beyond > 0, least, -least)
        return torch.cat([logits, away.unsqueeze(1)], 1)
