"""Normalisation as a part of the network, so that every model here takes pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """`model((x - mean) / std)`, where a grey image is repeated over the channels of `mean`.

    x: (N, C, H, W) in [0, 1], C that of `mean`, or 1. `preprocessing` says what was put inside, for
    the record of a run.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, input_size: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.preprocessing: dict[str, Any] = {"mean": [float(m) for m in mean], "std": [float(s) for s in std]}
        if input_size is not None:
            self.preprocessing["input_size"] = int(input_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of pixels in [0, 1]."""
        if x.shape[1] == 1:
            x = x.expand(-1, self.mean.shape[1], -1, -1)
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits
