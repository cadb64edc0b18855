"""Linear bounds, traced back to the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..bounds import Method
from ..certifier import Bounding


@dataclass(frozen=True)
class Crown(Bounding):
    """Each activation between two lines, and the margin traced back through them to the image.

    The lower line of a ReLU is the nearer of its two pieces (adaptive); bounds before each activation are of the same
    kind, where they matter. Departure: the ball is cut by [0, 1], which the paper leaves whole.
    """

    name: ClassVar[str] = "crown"
    summary: ClassVar[str] = "linear bounds traced back to the pixels"
    source: ClassVar[str] = "Zhang et al. 2018, arXiv:1811.00866"
    method: ClassVar[Method] = "crown"
