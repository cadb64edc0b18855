"""Fast adaptive boundary: onto the boundary's linear model, with a pull towards the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.lengths import length
from robustbench_lite.attacks.linear_models import Boundary, difference, nearest_boundary
from robustbench_lite.errors import UserError
from robustbench_lite.hyperplane import to_hyperplane
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, put, take
from robustbench_lite.threat import Threat

_REACH = {"linf": 0.3, "l2": 1.0, "l1": 5.0}  # the authors' eps of random starts


@dataclass(frozen=True)
class FABState(State):
    """`candidate`: the nearest adversarial image of this restart, or the image.

    iterate: (N, C, H, W), the next to be asked about. nearest: (N,) float64, the candidate's distance, inf for none.
    inner, inner_value: where the final search knows the image's own side of the boundary, and the margin there;
    value: (N,), the margin of the candidate. aim: (N, L) int64, the classes taken in turn, none for all at once.
    near: (N,) int64, the class whose boundary was the nearest in the last step, -1 before the first. slope: (N, K)
    float64, as in `Boundary`.
    """

    iterate: Tensor
    nearest: Tensor
    inner: Tensor
    inner_value: Tensor
    value: Tensor
    aim: Tensor
    near: Tensor
    slope: Tensor


@dataclass(frozen=True)
class FAB(Attack):
    """The nearest adversarial image without a step size (Croce and Hein 2020, arXiv:1907.02044, algorithm 1).

    An iterate goes past the nearest boundary of the network's linear model, mixed with the point that the image
    itself would go to; from the adversarial side it is drawn back towards the image.

    steps: linear models a restart, >= 1; each costs a forward pass and a gradient for every class asked (with a target
    one). alpha_max: largest share of the image's own projection in the mixture, in [0, 1]. eta: how far past the
    boundary, in shares of the way to it, >= 1. beta: share of an adversarial change that is kept by the step back,
    in (0, 1). search: final steps of false position between the image and the nearest image found, >= 0, a forward
    pass each. restarts: those after the first begin at a random point, half as far as the nearest image so far, and
    no farther than half of 0.3 (linf), 1 (l2) or 5 (l1). slack: a restart's first step asks every wrong class for its
    gradient; a later one those whose boundary would be the nearest, had their gradients grown by this factor since
    they were last asked, >= 1, by default 4 in linf and 10 in l2 and l1; 1e30 asks all, as the paper does.
    Departures: slack, which spares most gradients at no measured loss; a target has the boundary with the
    largest other logit, which moves with the iterate, and what counts is to be at the target.
    """

    name: ClassVar[str] = "fab"
    summary: ClassVar[str] = "nearest image by projections on linear boundaries"
    source: ClassVar[str] = "Croce and Hein 2020, arXiv:1907.02044"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    minimal: ClassVar[bool] = True

    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    search: int = 3
    restarts: int = 1
    slack: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("search", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not 0 <= self.alpha_max <= 1:
            raise UserError(f"alpha_max must be in [0, 1], got {self.alpha_max:g}")
        if not self.eta >= 1:
            raise UserError(f"eta must be >= 1, got {self.eta:g}")
        if self.slack is not None and not self.slack >= 1:
            raise UserError(f"slack must be >= 1, got {self.slack:g}")
        if not 0 < self.beta < 1:
            raise UserError(f"beta must be in (0, 1), got {self.beta:g}")

    @property
    def length(self) -> int:
        """The linear models, then the final search."""
        return self.steps + self.search

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def start(self, query: Query, batch: Batch) -> FABState:
        """The image itself, or in a restart a random point near it."""
        x, logits = batch.ball.x, query.logits(batch.ball.x)
        far = torch.full(batch.y.shape, float("inf"), dtype=torch.float64, device=batch.y.device)
        value = margin(logits, batch.y, batch.targets)
        return FABState(
            candidate=x.clone(),
            iterate=_begin(query, batch),
            nearest=far,
            inner=x.clone(),
            inner_value=value,
            value=value.clone(),
            aim=self._classes(logits, batch),
            near=torch.full_like(batch.y, -1),
            slope=torch.full_like(logits, float("inf"), dtype=torch.float64),
        )

    def _classes(self, logits: Tensor, batch: Batch) -> Tensor:
        """The classes to take in turn, (N, L), by the logits of the image."""
        return batch.y.new_empty((len(batch.y), 0))

    def _going(self, batch: Batch, state: FABState) -> Tensor:
        """Which have linear models to make, and are not at the final search."""
        return batch.step < self.steps

    def step(self, query: Query, batch: Batch, state: FABState) -> FABState:  # type: ignore[override]
        """Lines 4 to 17 of algorithm 1; past its steps a look between the image and the nearest found."""
        going = self._going(batch, state)
        moved = state.iterate.clone()
        moving = going.nonzero()[:, 0]
        if len(moving):
            again = going & (batch.step % self.steps == 0) & (batch.step > 0)
            if again.any():
                state = replace(state, iterate=_put(state.iterate, again, _begin(query, batch)))
            boundary = self._boundary(query, batch, state, moving)
            moved[moving] = self._move(batch, state.iterate[moving], boundary, moving)
            state = replace(state, near=state.near.index_copy(0, moving, boundary.near))
            state = replace(state, slope=state.slope.index_copy(0, moving, boundary.slope))
        between = ~going
        if len(moving) < len(going):
            share = state.inner_value / (state.inner_value - state.value).clamp_max(-1e-10)
            moved = _put(moved, between, torch.lerp(state.inner, state.candidate, per_row(share.clamp(0, 1), moved)))
        asked = going | ~torch.isinf(state.nearest)
        rows = asked.nonzero()[:, 0]
        if not len(rows):
            return state
        logits = query.logits(moved[rows], rows=rows)
        value, inside = state.value.clone(), torch.zeros_like(asked)
        value[rows] = margin(logits, batch.y[rows], None if batch.targets is None else batch.targets[rows])
        inside[rows] = reached(logits, batch.y[rows], None if batch.targets is None else batch.targets[rows])
        distance = batch.ball.distance(moved)
        nearer = inside & (distance < state.nearest)
        shorter = between & asked & ~inside
        return FABState(
            candidate=_put(state.candidate, nearer, moved),
            iterate=_put(moved, inside, torch.lerp(batch.ball.x, moved, self.beta)),
            nearest=torch.where(nearer, distance, state.nearest),
            inner=_put(state.inner, shorter, moved),
            inner_value=torch.where(shorter, value, state.inner_value),
            value=torch.where(nearer, value, state.value),
            aim=state.aim,
            near=state.near,
            slope=state.slope,
        )

    def _move(self, batch: Batch, now: Tensor, boundary: Boundary, rows: Tensor) -> Tensor:
        """Equations 5 to 9: the mixture of both projections on the nearest boundary, stretched by eta."""
        ball, x, gap, normal = batch.ball, batch.ball.x[rows], boundary.gap, boundary.normal
        # From the image the same hyperplane is farther by what the normal sees between the two.
        between = (normal.double() * (x.double() - now.double())).flatten(1).sum(1)
        change = to_hyperplane(
            ball.norm,
            torch.cat([now, x]),
            torch.cat([normal, normal]),
            torch.cat([-gap, -gap - between]),
            low=ball.low,
            high=ball.high,
        )
        here, there = torch.split(length(change, ball.norm).clamp_min(1e-8), len(rows))
        alpha = per_row((here / (here + there)).clamp_max(self.alpha_max).float(), x)
        mine, its = torch.split(change.mul_(self.eta), len(rows))
        return ((now + mine) * (1 - alpha) + (x + its) * alpha).clamp_(ball.low, ball.high)

    def _boundary(self, query: Query, batch: Batch, state: FABState, rows: Tensor) -> Boundary:
        """The nearest boundary of the iterates at `rows`, by the linear models of the differences of logits."""
        x, norm = state.iterate[rows], batch.ball.norm
        if batch.targets is not None:
            answer = query.gradient(x, margin, rows=rows)
            gap = margin(answer.logits, batch.y[rows], batch.targets[rows]).double()
            return Boundary(gap, answer.gradient, gap, state.near[rows], state.slope[rows])
        slope = state.slope[rows]
        wrong = torch.ones_like(slope, dtype=torch.bool).scatter_(1, batch.y[rows].unsqueeze(1), False)
        known = state.near[rows] >= 0
        first = torch.zeros_like(wrong).scatter_(1, state.near[rows].clamp_min(0).unsqueeze(1), known.unsqueeze(1))
        asked = wrong & (first | ~known.unsqueeze(1))
        found, logits = nearest_boundary(query, batch, x, asked, rows=rows, norm=norm, slope=slope)
        gap = (logits - logits.gather(1, batch.y[rows].unsqueeze(1))).abs().double()
        slack = (4.0 if norm == "linf" else 10.0) if self.slack is None else self.slack
        likely = gap <= slack * found.way.unsqueeze(1) * found.slope
        likely &= wrong & ~first & known.unsqueeze(1)
        more = likely.any(1).nonzero()[:, 0]
        if not len(more):
            return found
        other, _ = nearest_boundary(
            query, batch, x[more], likely[more], rows=rows[more], norm=norm, slope=found.slope[more]
        )
        return put(found, more, other.or_nearer(take(found, more)))


@dataclass(frozen=True)
class FABT(FAB):
    """FAB along the boundary with one wrong class after another, at the cost of a gradient a step.

    Croce and Hein 2020 (arXiv:1907.02044, section 4; as in AutoAttack, arXiv:2003.01690). classes: how many wrong
    classes are tried, >= 1, those of the highest logits at the image, highest first; any misclassification counts.
    A restart goes through the whole row of them, from the image (or a new random point) for each, and searches between
    the image and the nearest of all at the end. The others are those of `fab`; slack has no use.
    Whoever wants one class of their own takes `fab` with a target.
    """

    name: ClassVar[str] = "fab-t"
    summary: ClassVar[str] = "fab along the likeliest wrong classes in turn"
    targeted: ClassVar[bool] = False

    classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise UserError(f"classes must be >= 1, got {self.classes}")

    @property
    def length(self) -> int:
        """The linear models of every class, then the final search."""
        return self.classes * self.steps + self.search

    def calls(self, threat: Threat) -> tuple[int, int]:
        """At the start, for each linear model a gradient and a look at where it leads, and the final search."""
        models = self.classes * self.steps
        return self.restarts * (1 + 2 * models + self.search), self.restarts * models

    def _classes(self, logits: Tensor, batch: Batch) -> Tensor:
        order = logits.scatter(1, batch.y.unsqueeze(1), float("-inf")).argsort(dim=1, descending=True, stable=True)
        return order[:, : min(self.classes, logits.shape[1] - 1)]

    def _going(self, batch: Batch, state: FABState) -> Tensor:
        return batch.step < state.aim.shape[1] * self.steps

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those for whom no class is left."""
        assert isinstance(state, FABState)
        return batch.step >= state.aim.shape[1] * self.steps + self.search

    def _boundary(self, query: Query, batch: Batch, state: FABState, rows: Tensor) -> Boundary:
        aim = state.aim[rows].gather(1, (batch.step[rows] // self.steps).unsqueeze(1))[:, 0]
        answer = query.gradient(state.iterate[rows], difference, aim, rows=rows)
        gap = difference(answer.logits, batch.y[rows], None, aim).double()
        return Boundary(gap, answer.gradient, gap, aim, state.slope[rows])


def _begin(query: Query, batch: Batch) -> Tensor:
    """The image; in a restart a random point half as far as the nearest so far, at most half of the authors' eps."""
    ball, again = batch.ball, batch.attempt > 0
    if not again.any():
        return ball.x.clone()
    stream, shape = batch.stream.child("start"), ball.x.shape[1:]
    way = stream.normal(shape, batch.step) if ball.norm == "l2" else 2 * stream.uniform(shape, batch.step) - 1
    reach = torch.where(again, query.nearest.clamp_max(_REACH[ball.norm]) / 2, 0)
    moved = ball.x + way * per_row((reach / length(way, ball.norm).clamp_min(1e-30)).float(), way)
    return moved.clamp_(ball.low, ball.high)


def _put(old: Tensor, where: Tensor, new: Tensor) -> Tensor:
    """The images `new` at the rows `where` (N,) bool, the old ones elsewhere; faster than a choice by pixel."""
    rows = where.nonzero()[:, 0]
    return old.index_copy(0, rows, new[rows]) if len(rows) else old
