"""Small networks of several kinds for the benchmarks: a convolutional one, a residual one, a vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cnn(channels: int, size: int) -> nn.Module:
    """Two convolutions and two linear layers, as small networks with certificates are (arXiv:1711.00851)."""
    side = size // 4
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side * side, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs, H, W); returns (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet(channels: int, _size: int) -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Residual(16, 16, 2), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


class ViT(nn.Module):
    """A vision transformer of 16 patches (Dosovitskiy et al. 2021, arXiv:2010.11929): width 64, two layers."""

    def __init__(self, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, size // 4, stride=size // 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layers = [
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, size, size); returns logits (N, 10)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.layers(tokens).mean(1))
        return logits


ARCHITECTURES = {"cnn": cnn, "resnet": resnet, "vit": ViT}
