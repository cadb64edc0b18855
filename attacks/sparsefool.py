"""SparseFool: DeepFool finds the boundary, and a linear program goes there by as few pixels as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.linear_models import difference, nearest_boundary
from robustbench_lite.errors import UserError
from robustbench_lite.hyperplane import to_hyperplane
from robustbench_lite.losses import reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class SparseFoolState(State):
    """`candidate`: the image shown, overshoot included. iterate: (N, C, H, W), without it. done: (N,) bool."""

    iterate: Tensor
    done: Tensor


@dataclass(frozen=True)
class SparseFool(Attack):
    """Few changed numbers, found by boundaries in l2 (Modas et al. 2019, arXiv:1811.02248, algorithms 1 and 2).

    A step looks for the boundary by DeepFool in l2, and goes to the boundary's tangent by the shortest change in l1
    within the box: one number after another to the end of the box, those of the largest slope first.

    steps: of these, at most, >= 1; a sample stops where it is fooled. deepfool_steps: iterations of DeepFool at most,
    >= 1. classes: how many wrong classes DeepFool looks at, those of the highest logits, >= 1. control: the tangent is
    laid this many times as far from the iterate as DeepFool's boundary, >= 1 (lambda); larger ones fool in fewer
    steps, by more pixels. overshoot: share by which both changes are lengthened to cross the boundary, >= 0.
    Departures: the network is asked within the box only, so a slope beyond it is that of the box's nearest point; what
    DeepFool shows on its way counts where it is nearer, which in l1 it can be. Numbers are those of the image tensor:
    the channels of a pixel are changed apart, as in the authors' code.
    """

    name: ClassVar[str] = "sparsefool"
    summary: ClassVar[str] = "few numbers changed, by DeepFool's boundaries"
    source: ClassVar[str] = "Modas et al. 2019, arXiv:1811.02248"
    norms: ClassVar[tuple[str, ...]] = ("l1", "l0")
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    steps: int = 20
    deepfool_steps: int = 50
    classes: int = 10
    control: float = 3.0
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        for name in ("steps", "deepfool_steps", "classes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.control >= 1:
            raise UserError(f"control must be >= 1, got {self.control:g}")
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot:g}")

    @property
    def length(self) -> int:
        """One tangent a step."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """In each step DeepFool, a pass and a look an iteration and a gradient for each class, and a tangent."""
        models = self.deepfool_steps * self.classes
        return self.steps * (3 + models + self.deepfool_steps), self.steps * (1 + models)

    def start(self, query: Query, batch: Batch) -> SparseFoolState:
        """The image itself."""
        x = batch.ball.x
        return SparseFoolState(x.clone(), x.clone(), torch.zeros_like(batch.y, dtype=torch.bool))

    def step(self, query: Query, batch: Batch, state: SparseFoolState) -> SparseFoolState:  # type: ignore[override]
        """Lines 4 to 7 of algorithm 1."""
        ball = batch.ball
        rows = (~state.done).nonzero()[:, 0]
        if not len(rows):
            return state
        x = state.iterate[rows]
        moved, other = self._deepfool(query, batch, x, rows)
        far = x + self.control * (moved - x)
        shown = far.clamp(ball.low, ball.high)
        normal = query.gradient(shown, difference, other, rows=rows).gradient
        gain = (normal.double() * (far.double() - x.double())).flatten(1).sum(1)
        x = x + to_hyperplane("l1", x, normal, gain, low=ball.low, high=ball.high)
        image = ball.x[rows]
        shown = (image + (1 + self.overshoot) * (x - image)).clamp(ball.low, ball.high)
        done = reached(query.logits(shown, rows=rows), batch.y[rows])
        return SparseFoolState(
            state.candidate.index_copy(0, rows, shown),
            state.iterate.index_copy(0, rows, x),
            state.done.index_copy(0, rows, done),
        )

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those that are fooled."""
        assert isinstance(state, SparseFoolState)
        return state.done

    def _deepfool(self, query: Query, batch: Batch, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The points that DeepFool finds from x, and the class on the other side of their boundaries."""
        ball, moved, y = batch.ball, x.clone(), batch.y[rows]
        logits = query.logits(x, rows=rows)
        order = logits.scatter(1, y.unsqueeze(1), float("-inf")).argsort(dim=1, descending=True, stable=True)
        asked = torch.zeros_like(logits, dtype=torch.bool)
        asked.scatter_(1, order[:, : min(self.classes, logits.shape[1] - 1)], True)
        other, going = order[:, 0].clone(), torch.arange(len(rows), device=rows.device)
        for _ in range(self.deepfool_steps):
            found, _ = nearest_boundary(query, batch, moved[going], asked[going], rows=rows[going], norm="l2")
            size = found.normal.flatten(1).square().sum(1, dtype=torch.float64)
            # A little further than the model says, as in the authors' code: on the boundary nothing is decided.
            far = ((found.gap.abs() + 1e-4) / size.clamp_min(1e-24)).float()
            total = (moved[going] - x[going]) / (1 + self.overshoot) + found.normal * per_row(far, x)
            moved[going] = (x[going] + (1 + self.overshoot) * total).clamp(ball.low, ball.high)
            logits = query.logits(moved[going], rows=rows[going])
            fooled = reached(logits, y[going])
            other[going] = torch.where(fooled, logits.argmax(1), found.near)
            going = going[~fooled]
            if not len(going):
                break
        return moved, other
