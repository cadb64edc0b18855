"""Intervals, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..bounds import Method
from ..certifier import Bounding


@dataclass(frozen=True)
class IntervalBounds(Bounding):
    """Every number of every layer between two, and the margin in one piece with the last layer.

    Fast, and empty but for networks that were trained for it (`ibp`). In a norm other than linf the ball is replaced
    by the box around it.
    """

    name: ClassVar[str] = "interval"
    summary: ClassVar[str] = "intervals from layer to layer; for networks trained for it"
    source: ClassVar[str] = "Gowal et al. 2018, arXiv:1810.12715"
    method: ClassVar[Method] = "interval"
