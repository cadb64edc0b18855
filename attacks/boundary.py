"""Boundary: a random walk along the boundary, from a wrong image towards the clean one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.labels_only import at_goal, find_start, random_directions, to_boundary
from robustbench_lite.attacks.lengths import euclidean
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

_BISECTIONS = 10
_SMALLEST = 1e-7  # below it a step is lost in rounding


@dataclass(frozen=True)
class BoundaryState(State):
    """`candidate`: where the walk is, at the goal. found: (N,) bool, whether there is any; else it is x.

    spherical, source: (N,) the lengths of the two parts of a step, as shares of the distance.
    """

    found: Tensor
    spherical: Tensor
    source: Tensor


@dataclass(frozen=True)
class Boundary(Attack):
    """The nearest image of another label in l2 by labels alone (Brendel et al. 2018, arXiv:1712.04248, algorithm 1).

    steps: moves tried, >= 1. proposals: directions asked about at once in a step, >= 1, of which the first that is
    at the goal counts. spherical_step, source_step: lengths at the beginning of the part along the sphere around the
    clean image and of the part towards it, as shares of the distance, > 0. rate: by how much a success or a failure
    changes the lengths, > 0. tries: noise images asked until one is at the goal, >= 1 (see
    robustbench_lite.attacks.labels_only.find_start); a sample for which there is none fails.
    A step draws Gaussian directions, goes along the sphere and then towards the clean image, and is taken where the
    label stays wrong. One direction is also asked about before its second part: the walk along the sphere is made so
    long that half of these answers are wrong labels, and the step towards the image so long that a quarter are.
    Departures: it begins where a bisection ends; both lengths change with each answer, the authors' code counts a
    hundred or thirty of them; the components of a direction are drawn from 4096 equally likely values.
    """

    name: ClassVar[str] = "boundary"
    summary: ClassVar[str] = "nearest image by labels alone: a random walk along the boundary"
    source: ClassVar[str] = "Brendel et al. 2018, arXiv:1712.04248"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    steps: int = 5000
    proposals: int = 4
    spherical_step: float = 0.01
    source_step: float = 0.01
    rate: float = 0.2
    tries: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "proposals", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("spherical_step", "source_step", "rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")

    @property
    def length(self) -> int:
        """One move a step."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The tries, the bisection, and in each step the proposals and one that goes along the sphere alone."""
        return self.tries + _BISECTIONS + self.steps * (self.proposals + 1), 0

    def start(self, query: Query, batch: Batch) -> BoundaryState:
        """The boundary between a random image of another label and the clean one."""
        image, found = find_start(query, batch, self.tries)
        rows = found.nonzero()[:, 0]
        if len(rows):
            image[rows] = to_boundary(query, batch, image[rows], rows, _BISECTIONS)
        one = torch.ones_like(batch.ball.eps)
        return BoundaryState(image, found, one * self.spherical_step, one * self.source_step)

    def step(self, query: Query, batch: Batch, state: BoundaryState) -> BoundaryState:  # type: ignore[override]
        """Along the sphere and inwards, `proposals` ways at once, and one of them along the sphere alone."""
        rows, many = state.found.nonzero()[:, 0], self.proposals
        if not len(rows):
            return state
        each = rows.repeat_interleave(many)
        draw = batch.step[each] * many + torch.arange(many, device=rows.device).repeat(len(rows))
        way = random_directions(Stream(batch.stream.keys[each]).child("directions"), state.candidate.shape[1:], draw)
        ball, image = take(batch.ball, rows), state.candidate[rows]
        outward = (image - ball.x).unsqueeze(1)
        along = on_sphere(outward, way.reshape(-1, many, *image.shape[1:]), state.spherical[rows])
        along = along.add_(ball.x.unsqueeze(1)).clamp_(ball.low, ball.high)
        first = along[:, 0].clone()
        inward = along.sub_(ball.x.unsqueeze(1))
        shorter = (
            (1 - state.source[rows]) * euclidean(outward, axis=2)[:, 0] / euclidean(inward, axis=2).clamp_min(1e-12).T
        )
        asked = inward.mul_(shorter.T.clamp_max(1)[:, :, None, None, None].float()).add_(ball.x.unsqueeze(1))
        hit = at_goal(query, batch, torch.cat([asked.flatten(0, 1), first]), torch.cat([each, rows]))
        hits, edge = hit[: len(each)].reshape(-1, many), hit[len(each) :]
        which = hits.int().argmax(1)
        moved = torch.where(
            per_row(hits.any(1), image), asked[torch.arange(len(rows), device=rows.device), which], image
        )
        grown = torch.exp(self.rate * (edge.float() - 0.5))
        spherical = (state.spherical[rows] * grown).clamp(_SMALLEST, 1.0)
        source = state.source[rows] * torch.exp(self.rate * many * (hits.float().mean(1) - 0.25))
        return BoundaryState(
            state.candidate.index_copy(0, rows, moved),
            state.found,
            state.spherical.index_copy(0, rows, spherical),
            state.source.index_copy(0, rows, source.clamp(_SMALLEST, 0.5)),
        )

    def finished(self, batch: Batch, state: BoundaryState) -> Tensor:  # type: ignore[override]
        """Samples without a start."""
        return ~state.found


def on_sphere(outward: Tensor, way: Tensor, share: Tensor) -> Tensor:
    """As long as `outward` (N, 1, C, H, W), turned towards each `way` (N, M, C, H, W) by the arc tangent of `share`."""
    squared = euclidean(outward, axis=2).square().clamp_min(1e-24)
    dot = (way.double() * outward).flatten(2).sum(2)
    way = way - outward * _wide(dot / squared)
    size = share.double().unsqueeze(1) * squared.sqrt() / euclidean(way, axis=2).clamp_min(1e-12)
    return (outward + way * _wide(size)) / (1 + share.square())[:, None, None, None, None].sqrt()


def _wide(values: Tensor) -> Tensor:
    return values.float()[:, :, None, None, None]
