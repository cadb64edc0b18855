"""A multilayer perceptron: the plainest network that is not linear."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn


class MLP:
    """Flatten - Linear 256 - Linear 256 - Linear K with ReLU between, for images of any size."""

    name: ClassVar[str] = "mlp"
    summary: ClassVar[str] = "three linear layers with ReLU between, for small images"
    source: ClassVar[str] = "Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0"

    def build(
        self, architecture: str, *, n_classes: int, shape: tuple[int, int, int], pretrained: bool = False
    ) -> nn.Module:
        """The network; nothing of the architecture is left to choose."""
        del architecture, pretrained
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, n_classes),
        )
