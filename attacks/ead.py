"""Elastic net: the nearest image in l1, by shrinking and thresholding, with a search over the margin's weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Ball, Threat

_RULES = ("L1", "EN")


@dataclass(frozen=True)
class EADState(State):
    """`candidate`: the best image at the goal so far by the decision rule, at first x.

    image, slack: (N, C, H, W), the iterate and the point ahead of it whose gradient is taken. The rest is (N,): age,
    steps of this search; searches done; c, with what is known to be too little and enough; best, what the decision
    rule says of the candidate; least, the objective when progress was last looked for; found, in this search.
    """

    image: Tensor
    slack: Tensor
    age: Tensor
    searches: Tensor
    c: Tensor
    little: Tensor
    enough: Tensor
    best: Tensor
    least: Tensor
    found: Tensor


@dataclass(frozen=True)
class EAD(Attack):
    """The nearest adversarial image in l1 as an elastic net (Chen et al. 2018, arXiv:1709.04114, algorithm 1).

    It makes c max(confidence - margin, 0) + |d|_2^2 + beta |d|_1 small by FISTA: a gradient step on the first two
    terms, then each pixel's change shortened by beta (eq. 5), c bisected between searches, times 10 until one succeeds.

    steps: iterations of a search at most, >= 1. searches: >= 1. step_size: the first, > 0; it falls as the square root
    of what is left. c: the first, > 0. beta: weight of the l1 term, in pixels, > 0 (the paper tries 0.001 to 0.05).
    confidence: margin wanted, in logits, >= 0. rule: which image at the goal is kept, the least |d|_1 (L1) or the
    least elastic net (EN).
    Departures: every image asked about is judged, the nearest in l1 is what the result shows, whatever the rule; a
    search ends early for each sample by itself, where a tenth of the steps brought its objective no ten-thousandth.
    """

    name: ClassVar[str] = "ead"
    summary: ClassVar[str] = "nearest image in l1 by an elastic net"
    source: ClassVar[str] = "Chen et al. 2018, arXiv:1709.04114"
    norms: ClassVar[tuple[str, ...]] = ("l1",)
    minimal: ClassVar[bool] = True

    steps: int = 1000
    searches: int = 9
    step_size: float = 0.01
    c: float = 0.001
    beta: float = 0.01
    confidence: float = 0.0
    rule: str = "EN"

    def __post_init__(self) -> None:
        for name in ("steps", "searches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("step_size", "c", "beta"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if not self.confidence >= 0:
            raise UserError(f"confidence must be >= 0, got {self.confidence:g}")
        if self.rule not in _RULES:
            raise UserError(f"rule must be L1 or EN, got {self.rule!r}")

    @property
    def length(self) -> int:
        """One gradient a step, every search to its last."""
        return self.steps * self.searches

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step of each search."""
        return self.length, self.length

    def start(self, query: Query, batch: Batch) -> EADState:
        """The image itself."""
        x, zero = batch.ball.x, torch.zeros_like(batch.ball.eps).double()
        none, far = torch.zeros_like(batch.y), torch.full_like(zero, float("inf"))
        return EADState(
            x.clone(), x.clone(), x.clone(), none, none, zero + self.c, zero, far.clone(), far.clone(), far, none > 0
        )

    def step(self, query: Query, batch: Batch, state: EADState) -> EADState:  # type: ignore[override]
        """One step of FISTA from the point ahead, which is judged too."""
        x = batch.ball.x
        answer = query.gradient(state.slack, margin)
        value = margin(answer.logits, batch.y, batch.targets).double()
        short = (self.confidence - value).clamp_min(0)
        ahead = state.slack - x
        square = ahead.flatten(1).square().sum(1, dtype=torch.float64)
        length = ahead.flatten(1).abs().sum(1, dtype=torch.float64)
        elastic = square + self.beta * length
        inside = reached(answer.logits, batch.y, batch.targets) & (value >= self.confidence)
        worth = length if self.rule == "L1" else elastic
        better = inside & (worth < state.best)
        # Line 4 of algorithm 1: the gradient step and the thresholding.
        left = (1 - state.age.double() / self.steps).clamp_min(0).sqrt()
        size = per_row((self.step_size * left).float(), x)
        weight = torch.where(short > 0, -state.c, 0.0).float()
        push = answer.gradient.mul_(per_row(weight, x)).add_(ahead, alpha=2)
        moved = _shrink(state.slack - push.mul_(size), batch.ball, self.beta)
        age = state.age + 1
        momentum = per_row((state.age.double() / (age + 2)).float(), x)
        slack = (moved + (moved - state.image).mul_(momentum)).clamp_(batch.ball.low, batch.ball.high)
        objective = elastic + state.c * short
        looks = state.age % max(1, self.steps // 10) == 0
        stuck = looks & ~(objective <= state.least * (1 - 1e-4))
        state = replace(
            state,
            candidate=torch.where(per_row(better, x), state.slack, state.candidate),
            image=moved,
            slack=slack,
            age=age,
            best=torch.where(better, worth, state.best),
            least=torch.where(looks, objective, state.least),
            found=state.found | inside,
        )
        over = stuck | (age >= self.steps)
        return self._next_search(state, x, over) if bool(over.any()) else state

    def finished(self, batch: Batch, state: EADState) -> Tensor | None:  # type: ignore[override]
        """Those whose searches are done."""
        return state.searches >= self.searches

    def _next_search(self, state: EADState, x: Tensor, over: Tensor) -> EADState:
        little = torch.where(over & ~state.found, state.c, state.little)
        enough = torch.where(over & state.found, state.c, state.enough)
        c = torch.where(torch.isfinite(enough), (little + enough) / 2, state.c * 10)
        wide = per_row(over, x)
        return replace(
            state,
            image=torch.where(wide, x, state.image),
            slack=torch.where(wide, x, state.slack),
            age=torch.where(over, 0, state.age),
            searches=state.searches + over.long(),
            c=torch.where(over, c, state.c),
            little=little,
            enough=enough,
            least=torch.where(over, float("inf"), state.least),
            found=state.found & ~over,
        )


def _shrink(image: Tensor, ball: Ball, by: float) -> Tensor:
    """Each pixel's change shortened by `by`, what is left of it kept in the box (eq. 5)."""
    change = image - ball.x
    return (ball.x + change.sign() * (change.abs() - by).clamp_min(0)).clamp_(ball.low, ball.high)
