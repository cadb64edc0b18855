"""The small convolutional network on which certified and fast adversarial training were shown."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn


class SmallCNN:
    """Conv 16 - Conv 32 (4x4, stride 2) - Linear 100 - Linear K, for images of any size and channels."""

    name: ClassVar[str] = "small-cnn"
    summary: ClassVar[str] = "two convolutions and two linear layers, for small images"
    source: ClassVar[str] = "Wong & Kolter 2018, arXiv:1711.00851; Wong et al. 2020, arXiv:2001.03994"

    def build(
        self, architecture: str, *, n_classes: int, shape: tuple[int, int, int], pretrained: bool = False
    ) -> nn.Module:
        """The network, with the keys of the published weights (`0.weight` ... `7.bias`)."""
        del architecture, pretrained
        channels, height, width = shape
        # A 4x4 kernel at stride 2 with padding 1 halves a side, rounded down.
        features = 32 * math.prod(side // 2 // 2 for side in (height, width))
        return nn.Sequential(
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(features, 100),
            nn.ReLU(),
            nn.Linear(100, n_classes),
        )
