"""Probability margin attack: margin decomposition in probabilities in place of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attacks.md import MD, OTHER, WHOLE, contest


@dataclass(frozen=True)
class PMA(MD):
    """Ascent of the probability margin p_max - p_y (Xie et al. 2024, arXiv:2411.15210).

    Its gradient weighs the untargeted against the targeted cross entropy by the probabilities themselves. Stages,
    step sizes and hyperparameters are those of `md`, as in the authors' code, with probabilities for logits.
    Departure: log(1 + p_max - p_y) grows instead, and log p_max and log(1 - p_y) in the first stage. Each orders
    images as the original does and its gradient points the same way, but it never underflows: where p_y rounds
    to 1 the gradients of the originals are zero in float32 and the attack stands still.
    """

    name: ClassVar[str] = "pma"
    summary: ClassVar[str] = "probability margin attack: the margin of probabilities, in two stages"
    source: ClassVar[str] = "Xie et al. 2024, arXiv:2411.15210"

    steps: int = 100

    @property
    def parts(self) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
        """The loss in probabilities."""
        return probability_parts


def probability_parts(logits: Tensor, y: Tensor, targets: Tensor | None, part: Tensor) -> Tensor:
    """log(1 - p_y), log p_max or log(1 + p_max - p_y), (N,)."""
    winner, loser = contest(logits, y, targets)
    whole = torch.logsumexp(logits, 1)
    # 1 - p_y is summed up from the others: a difference from 1 would round to zero.
    rest = torch.logsumexp(logits.scatter(1, loser, float("-inf")), 1)
    up = logits.gather(1, winner)[:, 0]
    both = torch.logaddexp(up, rest)
    return torch.where(part == WHOLE, both, torch.where(part == OTHER, up, rest)) - whole
