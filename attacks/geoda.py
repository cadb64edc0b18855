"""GeoDA: the boundary taken for a plane, whose normal is estimated from labels in a space of low frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.cosines import cosines
from robustbench_lite.attacks.labels_only import (
    at_goal,
    estimated_normal,
    find_start,
    random_directions,
    to_boundary,
)
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream

_BISECTIONS = 20  # much nearer the boundary than perturbations reach


@dataclass(frozen=True)
class GeoDAState(State):
    """`candidate`: the present image at the boundary. found: (N,) bool, whether there is any; else it is x."""

    found: Tensor


@dataclass(frozen=True)
class GeoDA(Attack):
    """The nearest image of another label by labels alone (Rahmati et al. 2020, arXiv:2003.06468, algorithm 1).

    steps: normals estimated, >= 1. directions: queries of the first estimate, >= 1. ratio: lambda of the paper, in
    (0, 1]: each estimate takes ratio^(-2/3) times the queries of the one before (equation 19). sigma: standard
    deviation of the perturbations in pixels of [0, 1], > 0. side: of the square of lowest frequencies of the cosine
    transform that perturbations are made of, >= 1, at most the image's; default a third of the image's shorter side,
    which is the paper's 75 of 224. tries: noise images asked until one is at the goal, >= 1 (see
    robustbench_lite.attacks.labels_only.find_start); a sample for which there is none fails.
    A step weighs perturbations of the boundary point by their labels, goes from the clean image along the sum (linf:
    along its signs) until the label is wrong, and bisects.
    Departures: from the labels their mean is subtracted, and of the perturbations what the box cuts off, as
    HopSkipJump does; the way out is doubled from a tenth of the present distance, where the authors' code goes on in
    equal paces of its own for each norm; where no point of it is at the goal the boundary point stays.
    """

    name: ClassVar[str] = "geoda"
    summary: ClassVar[str] = "nearest image by labels alone: the boundary taken for a plane"
    source: ClassVar[str] = "Rahmati et al. 2020, arXiv:2003.06468"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    minimal: ClassVar[bool] = True

    steps: int = 10
    directions: int = 70
    ratio: float = 0.6
    sigma: float = 0.0002
    side: int | None = None
    tries: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "directions", "side", "tries"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio must be in (0, 1], got {self.ratio:g}")
        if not self.sigma > 0:
            raise UserError(f"sigma must be > 0, got {self.sigma:g}")

    @property
    def length(self) -> int:
        """One normal a step."""
        return self.steps

    def start(self, query: Query, batch: Batch) -> GeoDAState:
        """The boundary between a random image of another label and the clean one."""
        image, found = find_start(query, batch, self.tries)
        rows = found.nonzero()[:, 0]
        if len(rows):
            image[rows] = to_boundary(query, batch, image[rows], rows, _BISECTIONS)
        return GeoDAState(image, found)

    def step(self, query: Query, batch: Batch, state: GeoDAState) -> GeoDAState:  # type: ignore[override]
        """Estimate the normal; from the clean image along it; back to the boundary."""
        rows = state.found.nonzero()[:, 0]
        if not len(rows):
            return state
        image, ball = state.candidate[rows], take(batch.ball, rows)
        direction = ball.steepest(self._normal(query, batch, image, rows))
        moved, pending = image.clone(), torch.arange(len(rows), device=rows.device)
        size = (ball.distance(image) / 10).float()
        for _ in range(16):
            there = (ball.x[pending] + direction[pending] * per_row(size[pending], image)).clamp_(ball.low, ball.high)
            hit = at_goal(query, batch, there, rows[pending])
            moved[pending[hit]] = there[hit]
            pending = pending[~hit]
            if not len(pending):
                break
            size[pending] *= 2
        reached = torch.ones_like(rows, dtype=torch.bool)
        reached[pending] = False
        at = reached.nonzero()[:, 0]
        if len(at):
            moved[at] = to_boundary(query, batch, moved[at], rows[at], _BISECTIONS)
        return GeoDAState(state.candidate.index_copy(0, rows, moved), state.found)

    def finished(self, batch: Batch, state: GeoDAState) -> Tensor:  # type: ignore[override]
        """Samples without a start."""
        return ~state.found

    def _normal(self, query: Query, batch: Batch, image: Tensor, rows: Tensor) -> Tensor:
        """Equation 7, in the space of low frequencies (section 3.3)."""
        channels, height, width = image.shape[1:]
        side = max(1, round(min(height, width) / 3)) if self.side is None else self.side
        down, across = (cosines(min(side, length), length).to(image.device) for length in (height, width))
        counts = (self.directions * self.ratio ** (-2 / 3 * batch.step[rows].double())).long()
        stream = Stream(batch.stream.keys[rows]).child("directions").child(batch.step[rows])
        shape = torch.Size((channels, down.shape[1], across.shape[1]))

        def offsets(which: Tensor, draw: Tensor) -> Tensor:
            weights = random_directions(Stream(stream.keys[which]), shape, draw).mul_(self.sigma * 2**0.5)
            waves: Tensor = torch.einsum("ij,ncjk,lk->ncil", down, weights, across)
            return waves

        return estimated_normal(query, batch, image, rows, counts=counts, offsets=offsets)
