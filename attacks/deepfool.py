"""DeepFool: to the nearest boundary of the network's linear model, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.linear_models import difference
from robustbench_lite.errors import UserError
from robustbench_lite.losses import reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_ROWS = 2048  # gradients of one question


@dataclass(frozen=True)
class DeepFoolState(State):
    """`candidate`: the image shown, overshoot included. total: (N, C, H, W), the sum of the steps. done: (N,) bool."""

    total: Tensor
    done: Tensor


@dataclass(frozen=True)
class DeepFool(Attack):
    """The nearest boundary of a linearised classifier (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2).

    steps: iterations at most, >= 1; a sample stops where it is fooled. overshoot: share by which the sum of the
    steps is lengthened to cross the boundary, >= 0. classes: how many wrong classes are looked at, those of the
    highest logits at the image, >= 1. An iteration costs two forward passes and a backward one for each of them.
    Departure: the iterate is kept in the box.
    """

    name: ClassVar[str] = "deepfool"
    summary: ClassVar[str] = "nearest image by linear models of the boundaries"
    source: ClassVar[str] = "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "classes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot:g}")

    @property
    def length(self) -> int:
        """One linear model a step."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """In each step a look at where it is, and a pass with a gradient for each class."""
        return 2 * self.steps, self.classes * self.steps

    def start(self, query: Query, batch: Batch) -> DeepFoolState:
        """The image itself."""
        x = batch.ball.x
        return DeepFoolState(x.clone(), torch.zeros_like(x), torch.zeros_like(batch.y, dtype=torch.bool))

    def step(self, query: Query, batch: Batch, state: DeepFoolState) -> DeepFoolState:  # type: ignore[override]
        """Lines 5 to 13 of algorithm 2; eq. 11 for linf."""
        ball, x = batch.ball, batch.ball.x
        logits = query.logits(state.candidate)
        done = state.done | reached(logits, batch.y)
        rows = (~done).nonzero()[:, 0]
        if not len(rows):
            return DeepFoolState(state.candidate, state.total, done)
        others = logits[rows].scatter(1, batch.y[rows].unsqueeze(1), float("-inf"))
        order = others.argsort(dim=1, descending=True, stable=True)[:, : min(self.classes, logits.shape[1] - 1)]
        step = torch.cat([_nearest(query, batch, state.candidate, part, order[at]) for part, at in _parts(rows, order)])
        total = state.total.index_add(0, rows, step)
        candidate = ball.project(x + (1 + self.overshoot) * total)
        return DeepFoolState(torch.where(per_row(done, x), state.candidate, candidate), total, done)

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those that are fooled."""
        assert isinstance(state, DeepFoolState)
        return state.done


def _parts(rows: Tensor, order: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows, with their places, in parts whose questions are not too large."""
    places = torch.split(torch.arange(len(rows), device=rows.device), max(1, _ROWS // order.shape[1]))
    return [(rows[place], place) for place in places]


def _nearest(query: Query, batch: Batch, x: Tensor, rows: Tensor, order: Tensor) -> Tensor:
    """The step of each sample at `rows` to its nearest linear boundary with a class of `order` (M, L)."""
    answer = query.gradient(x[rows], difference, order, rows=rows)
    gap = difference(answer.logits, batch.y[rows], None, order).double().abs()
    slope = answer.gradient.flatten(2).double()
    dual = slope.abs().sum(2) if batch.ball.norm == "linf" else slope.square().sum(2).sqrt()
    best = (gap / dual.clamp_min(1e-300)).argmin(1)
    at = torch.arange(len(rows), device=rows.device)
    slope, gap, dual = slope[at, best], gap[at, best].unsqueeze(1), dual[at, best].unsqueeze(1).clamp_min(1e-300)
    # A little further than the model says, as in the authors' code: on the boundary nothing is decided.
    step = (gap + 1e-4) / dual * (slope.sign() if batch.ball.norm == "linf" else slope / dual)
    return step.to(x.dtype).reshape(len(rows), *x.shape[1:])
