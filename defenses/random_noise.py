"""Noise in front of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import normal_like


@dataclass(frozen=True)
class RandomNoise(InferenceDefense):
    """Adds Gaussian noise to every image at every call (compare Liu et al. 2018, arXiv:1712.00673).

    Randomised, so attacks average over it (EOT) and predictions are taken over many draws.
    adaptive: pgd averaged over the noise (Athalye et al. 2018, arXiv:1802.00420).
    """

    name: ClassVar[str] = "random-noise"
    summary: ClassVar[str] = "adds Gaussian noise to the image at every call"
    source: ClassVar[str] = "compare Liu et al. 2018, arXiv:1712.00673"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    randomized: ClassVar[bool] = True

    sigma: float = 0.1

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UserError(f"sigma must be >= 0, got {self.sigma:g}")

    def transform(self, x: Tensor) -> Tensor:
        """The image with noise of standard deviation sigma, cut to [0, 1]."""
        return (x + self.sigma * normal_like(x)).clamp(0, 1)
