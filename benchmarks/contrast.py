"""A network for MNIST whose first layer learns how black is black: what docs/defenses.md trains to withstand `auto`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Contrast(nn.Module):
    """Each pixel through a sigmoid whose slope and middle are learned.

    Strokes are nearly black or white, and linf 0.3 moves no black to white: a steep sigmoid takes most of it out and,
    unlike a threshold, has a gradient everywhere.
    """

    def __init__(self, slope: float = 12.0, middle: float = 0.5) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.middle = nn.Parameter(torch.tensor(middle))

    def forward(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), in [0, 1] as before."""
        return torch.sigmoid(self.slope * (x - self.middle))


def make(width: int = 32, features: int = 128) -> nn.Module:
    """Two strided convolutions and two linear layers behind it, for images of 28 x 28."""
    return nn.Sequential(
        Contrast(),
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 49, features),
        nn.ReLU(),
        nn.Linear(features, 10),
    )
