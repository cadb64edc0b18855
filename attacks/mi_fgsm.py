"""Iterative fast gradient methods that remember: momentum, Nesterov's look ahead, and copies of the image at scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

from .ascent import AscentState, MomentumAscent


@dataclass(frozen=True)
class MIFGSM(MomentumAscent):
    """Ascent along an accumulated gradient (Dong et al. 2018, arXiv:1710.06081, algorithm 1).

    steps: gradients, >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default eps /
    steps. loss: ce, margin or dlr. momentum: decay of the accumulated gradient, >= 0.
    Departures: a gradient is divided by the mean of its absolute values instead of their sum, as in the authors'
    code; `ce` points as cross entropy does without its underflow (see robustbench_lite.losses).
    """

    name: ClassVar[str] = "mi-fgsm"
    summary: ClassVar[str] = "iterative gradient sign with momentum"
    source: ClassVar[str] = "Dong et al. 2018, arXiv:1710.06081"


@dataclass(frozen=True)
class NIFGSM(MomentumAscent):
    """Momentum whose gradient is taken ahead, where the velocity leads (Lin et al. 2020, arXiv:1908.06281, eq. 6-8).

    Hyperparameters and departures are those of `mi-fgsm`; the way ahead in l2: see MomentumAscent.ahead.
    """

    name: ClassVar[str] = "ni-fgsm"
    summary: ClassVar[str] = "iterative gradient sign with Nesterov momentum"
    source: ClassVar[str] = "Lin et al. 2020, arXiv:1908.06281"

    def point(self, batch: Batch, state: AscentState) -> Tensor:
        """Ahead along the velocity."""
        return self.ahead(batch, state)


@dataclass(frozen=True)
class SINIFGSM(MomentumAscent):
    """Nesterov momentum on the gradients of copies of the image at falling scales (Lin et al. 2020, algorithm 1).

    scales: copies, >= 1, the i-th being the image over 2^i from i = 0; a step takes as many gradients. The others
    are those of `mi-fgsm`, as are the departures. One more: `ce` here is steeper than cross entropy on copies that
    are fooled already, which then weigh as much as the others.
    """

    name: ClassVar[str] = "si-ni-fgsm"
    summary: ClassVar[str] = "Nesterov momentum on gradients at several scales of the image"
    source: ClassVar[str] = "Lin et al. 2020, arXiv:1908.06281"

    scales: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales < 1:
            raise UserError(f"scales must be >= 1, got {self.scales}")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient of each copy a step."""
        forwards, backwards = super().calls(threat)
        return self.scales * forwards, self.scales * backwards

    def point(self, batch: Batch, state: AscentState) -> Tensor:
        """Ahead along the velocity."""
        return self.ahead(batch, state)

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The sum over the copies of the gradient in x."""
        total = torch.zeros_like(x)
        for i in range(self.scales):
            total += super().ask(query, batch, x / 2**i) / 2**i
        return total
