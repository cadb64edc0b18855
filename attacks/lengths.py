"""Lengths of changes and of gradients, as minimal attacks measure them."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(change: Tensor, *, axis: int = 1) -> Tensor:
    """The length of everything from `axis` on, (N,) or of (N, M, C, H, W) with axis 2 (N, M), float64."""
    return change.flatten(axis).double().square().sum(axis).sqrt()


def length(change: Tensor, norm: str) -> Tensor:
    """The norm of each row, (N,) float64; in l2 of squares in float32, which is enough to compare and half the time."""
    flat = change.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1).double()
    if norm == "l2":
        return flat.square().sum(1, dtype=torch.float64).sqrt()
    return flat.abs().sum(1, dtype=torch.float64)
