"""The basic iterative method: the fast gradient sign method in small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .ascent import LossAscent


@dataclass(frozen=True)
class BIM(LossAscent):
    """Steps of steepest ascent from the image, each back into the ball (Kurakin et al. 2017, arXiv:1607.02533).

    steps: gradients, >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default 1.25
    eps / steps. loss: ce, margin or dlr.
    Departures: the paper's steps are 1/255 long and min(255 eps + 4, 319 eps) in number; the defaults are the same
    at eps 8/255, and cover as much of the ball elsewhere. Any norm in which a step can be steepest. `ce` points as
    cross entropy does without its underflow (see robustbench_lite.losses).
    """

    name: ClassVar[str] = "bim"
    summary: ClassVar[str] = "steepest ascent in small steps from the image"
    source: ClassVar[str] = "Kurakin et al. 2017, arXiv:1607.02533"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    reach: ClassVar[float] = 1.25
