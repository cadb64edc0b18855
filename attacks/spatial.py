"""Rotations and translations: the image moved a little, no pixel painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.filters import moved
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class Spatial(Attack):
    """A rotation and a translation that fool the network (Engstrom et al. 2019, arXiv:1712.02779).

    rotation: the largest angle in degrees, in [0, 180]. translation: the largest shift as a share of each side,
    in [0, 1]; default 3/28, the paper's 3 pixels of 28. method: "grid" tries every one of `shifts` x `shifts` x
    `angles` evenly spaced transformations, the farthest from none first; "worst-of-k" tries k random ones. Bilinear,
    what comes in from outside is black. One transformation of each image a step.
    Departures: the order within the grid, which the paper leaves open; the paper keeps the transformation of the
    highest loss, while here labels are enough: the first that fools is proved.

    >>> Spatial(method="worst-of-k", k=20).length
    20
    """

    name: ClassVar[str] = "spatial"
    summary: ClassVar[str] = "rotation and translation, by a grid or the worst of k"
    source: ClassVar[str] = "Engstrom et al. 2019, arXiv:1712.02779"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    own_limits: ClassVar[bool] = True

    rotation: float = 30.0
    translation: float = 3 / 28
    method: Literal["grid", "worst-of-k"] = "grid"
    k: int = 10
    shifts: int = 5
    angles: int = 31

    def __post_init__(self) -> None:
        if self.method not in ("grid", "worst-of-k"):
            raise UserError(f"method must be grid or worst-of-k, got {self.method!r}")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation must be in [0, 180] degrees, got {self.rotation:g}")
        if not 0 <= self.translation <= 1:
            raise UserError(f"translation must be in [0, 1], a share of the side, got {self.translation:g}")
        for name in ("k", "shifts", "angles"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")

    @property
    def length(self) -> int:
        """The transformations."""
        return self.k if self.method == "worst-of-k" else self.shifts**2 * self.angles

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A label for each transformation."""
        return self.length, 0

    def start(self, query: Query, batch: Batch) -> State:
        """The image itself."""
        return State(batch.ball.x.clone())

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """The next transformation of each sample, and what the network says of it."""
        if self.method == "grid":
            turns = self._grid(batch.step)
        else:
            turns = batch.stream.child("turns").uniform((3,), draw=batch.step).double() * 2 - 1
        candidate = moved(
            batch.ball.x, turns[:, 0] * self.rotation, turns[:, 1] * self.translation, turns[:, 2] * self.translation
        )
        candidate = batch.ball.project(candidate)
        query.labels(candidate)
        return State(candidate)

    def _grid(self, step: Tensor) -> Tensor:
        """Points of the grid of [-1, 1]^3, those farthest from its middle first, (N, 3) float64."""
        axes = [
            torch.linspace(-1, 1, count).double() if count > 1 else torch.zeros(1).double()
            for count in (self.angles, self.shifts, self.shifts)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        order = grid.square().sum(1).argsort(descending=True, stable=True)
        return grid[order].to(step.device)[step]
