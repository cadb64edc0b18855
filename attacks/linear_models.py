"""Boundaries between classes by the network's linear model: what minimal attacks by projection share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.attacks.lengths import length
from robustbench_lite.query import Query
from robustbench_lite.rows import put, take

_ROWS = 256  # images of one question
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True)
class Boundary:
    """A linear boundary for each of M images: how far beyond it (in logits, (M,) float64), and its normal.

    way: (M,) float64, the distance by the linear model. near: (M,) int64, the class on its other side. slope: (M, K)
    float64, the dual norm of each class's normal when it was last asked for, inf for never.
    """

    gap: Tensor
    normal: Tensor
    way: Tensor
    near: Tensor
    slope: Tensor

    def or_nearer(self, other: Boundary) -> Boundary:
        """This where it is nearer than the other, which is of the same images and knows no more slopes."""
        rows = (other.way <= self.way).nonzero()[:, 0]
        return put(self, rows, replace(take(other, rows), slope=self.slope[rows]))


def difference(logits: Tensor, y: Tensor, _: Tensor | None, other: Tensor) -> Tensor:
    """The logit of a class above that of the label, (M,); of several classes (M, L) each."""
    above = logits.gather(1, other if other.ndim > 1 else other.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1))
    return above.reshape(other.shape)


def nearest_boundary(
    query: Query, batch: Batch, x: Tensor, asked: Tensor, *, rows: Tensor, norm: str, slope: Tensor | None = None
) -> tuple[Boundary, Tensor]:
    """The boundary nearest in `norm` of those with the classes `asked` (M, K) bool, of images x at `rows`; the logits.

    At least one class is asked of each image, a gradient for each. slope: the sizes known so far, (M, K).
    """
    way = torch.full(rows.shape, float("inf"), dtype=torch.float64, device=rows.device)
    gap, normal, near = torch.zeros_like(way), torch.zeros_like(x), torch.zeros_like(rows)
    logits = torch.zeros_like(asked, dtype=x.dtype)
    slope = torch.full_like(logits, float("inf"), dtype=torch.float64) if slope is None else slope.clone()
    for pairs in torch.split(asked.nonzero(), _ROWS):
        at, other = pairs.unbind(1)
        answer = query.gradient(x[at], difference, other, rows=rows[at])
        above = difference(answer.logits, batch.y[rows[at]], None, other).double()
        size = length(answer.gradient, _DUAL[norm])
        far = above.abs() / (size + 1e-12)
        least = way.scatter_reduce(0, at, far, "amin")
        best = ((far == least[at]) & (far < way[at])).nonzero()[:, 0]
        best = best[torch.cat([best.new_ones(1), at[best].diff()]) > 0] if len(best) else best  # of equals the first
        way, to = least, at[best]
        gap[to], normal[to], near[to] = above[best], answer.gradient[best], other[best]
        slope[at, other], logits[at] = size, answer.logits
    return Boundary(gap, normal, way, near, slope), logits
