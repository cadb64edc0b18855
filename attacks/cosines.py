"""The waves of the cosine transform, for attacks that move along frequencies."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def cosines(count: int, length: int) -> Tensor:
    """The `count` lowest waves of the cosine transform (type II) as orthonormal columns, (length, count)."""
    place, wave = torch.arange(length).double().unsqueeze(1) + 0.5, torch.arange(count).double()
    columns: Tensor = torch.cos(math.pi * place * wave / length) * (2 / length) ** 0.5
    columns[:, 0] /= 2**0.5
    found: Tensor = columns.float()
    return found
