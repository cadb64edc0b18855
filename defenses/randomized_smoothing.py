"""A vote over noisy copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import normal_like


@dataclass(frozen=True)
class RandomizedSmoothing(InferenceDefense):
    """The class that the network gives most often to the image with Gaussian noise (Cohen et al. 2019, eq. 1).

    sigma: of the noise, > 0, in pixels; the noisy image is not cut to [0, 1], of which the proof knows nothing. The
    network should have learned from noise of that size: `noise-augmentation` with clip=false.
    Randomised. Verdicts are votes, 100 unless said otherwise; attacks follow the mean of the gradients over their own
    draws. `rbl certify --method smoothing` finds how far the vote is proved to hold, and abstains where it is close; a
    verdict does not abstain: the class ahead counts.
    """

    name: ClassVar[str] = "randomized-smoothing"
    summary: ClassVar[str] = "the class that wins among noisy copies; can be certified"
    source: ClassVar[str] = "Cohen et al. 2019, arXiv:1902.02918"
    randomized: ClassVar[bool] = True
    votes: ClassVar[int | None] = 100

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"sigma must be > 0, got {self.sigma:g}")

    @property
    def sigma_of_votes(self) -> float | None:
        """That of the noise."""
        return self.sigma

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network, given one noisy copy at each call."""
        return Noisy(model, self.sigma)


class Noisy(nn.Module):
    """A network that sees its images with Gaussian noise, another at every call."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model = model
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.model(x + self.sigma * normal_like(x))  # type: ignore[no-any-return]
