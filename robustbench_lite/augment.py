"""What a training does to each image before anything else sees it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, how: str, *, generator: torch.Generator) -> Tensor:
    """Each image of x (N, C, H, W) shifted ("crop", over black) and mirrored ("crop-flip") at random."""
    if how == "none":
        return x
    n, channels, height, width = x.shape
    top, left = height // 8, width // 8
    padded = F.pad(x, (left, left, top, top))
    down = torch.randint(0, 2 * top + 1, (n, 1), generator=generator)
    right = torch.randint(0, 2 * left + 1, (n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = right + torch.arange(width)
    if how == "crop-flip":
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(n)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns[:, None, None, :]]
