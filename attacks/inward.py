"""Inward search: minimum-norm adversarial examples from distant adversarial starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.lengths import length
from robustbench_lite.attacks.linear_models import difference
from robustbench_lite.errors import UserError
from robustbench_lite.hyperplane import to_hyperplane
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.threat import Ball, Threat

_EVERYWHERE = 1e30  # radius of the ball that is the whole box
_SEEK = 6  # steps of ascent for an adversarial start, at most
# By norm, where they are not given.
_DEFAULTS: dict[str, dict[str, float]] = {
    "linf": {"radius": 0.3, "shrink": 0.7, "alpha_max": 0.2, "eta": 1.05},
    "l2": {"radius": 3.0, "shrink": 0.7, "alpha_max": 0.1, "eta": 1.5},
    "l1": {"radius": 30.0, "shrink": 0.8, "alpha_max": 0.2, "eta": 1.2},
}


@dataclass(frozen=True)
class InwardState(State):
    """State of the search.

    `candidate` is the nearest adversarial example of this restart, or the clean image. iterate: (N, C, H, W), the next
    image to be asked about. nearest: (N,) float64, the candidate's distance, inf for none. aim: (N,) int64, the class
    beyond the boundary, -1 as long as none is chosen. inward: (N,) int64, steps taken since the adversarial start, -1
    before it.
    """

    iterate: Tensor
    nearest: Tensor
    aim: Tensor
    inward: Tensor


@dataclass(frozen=True)
class Inward(Attack):
    """Projections on the linearized boundary, from an adversarial image far away inward to the clean image.

    Ascent from the clean image stalls where a network masks its gradients, as one trained for another threat does.
    This attack starts outside: at random noise of norm `radius`, from which it ascends the margin until the image is
    misclassified, for six steps at most. Then it takes the steps of FAB (Croce and Hein 2020, arXiv:1907.02044,
    equations 5 to 9) on the boundary with the class found there: where the iterate is adversarial it is first drawn
    towards the clean image. With `random_start=False` it takes these steps from the clean image on.

    Args:
        steps: gradient queries per restart, >= 1; one forward and one backward pass each.
        restarts: random starts, >= 1; the nearest of all counts. Every second one begins twice as far away.
        radius: norm of the first starts, in the norm of the threat, > 0; by default 0.3 (linf), 3 (l2), 30 (l1).
        reach: the same in multiples of each sample's eps, > 0, in place of radius.
        shrink: share of an adversarial perturbation that the first step inward keeps, in (0, 1); it grows to 0.95.
            By default 0.7, in l1 0.8.
        alpha_max: largest share of the clean image's own projection in the mixture, in [0, 1]; by default 0.2, in
            l2 0.1.
        eta: how far beyond the boundary a projection goes, in shares of its length, >= 1; by default 1.05 (linf), 1.5
            (l2), 1.2 (l1).
        spread: whether each restart seeks a class of its own, in the order of the logits at the start; the first from
            noise, or without `spread` each restart, takes the class that comes first.
        random_start: whether a restart begins at noise. Without it, it begins at the clean image (in a portfolio also
            at the nearest adversarial example) and takes the projections at once, as FAB does: the first leads far
            out where the gradient is small. `shrink` 0.5 and `eta` 1.05 suit it in l2.

    Departures from FAB: the start; one gradient query per step, which also judges the iterate; the growing share; the
    class is that of the start; one class for each restart.
    """

    name: ClassVar[str] = "inward"
    summary: ClassVar[str] = "minimum norm: from distant adversarial starts inward, by projections on linear boundaries"
    source: ClassVar[str] = "own; projections of Croce and Hein 2020, arXiv:1907.02044"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    minimal: ClassVar[bool] = True

    steps: int = 45
    restarts: int = 3
    radius: float | None = None
    reach: float | None = None
    shrink: float | None = None
    alpha_max: float | None = None
    eta: float | None = None
    spread: bool = True
    random_start: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("radius", "reach"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be > 0, got {value:g}")
        if self.radius is not None and self.reach is not None:
            raise UserError("radius and reach are two ways to say one thing; give one of them")
        if self.shrink is not None and not 0 < self.shrink < 1:
            raise UserError(f"shrink must be in (0, 1), got {self.shrink:g}")
        if self.alpha_max is not None and not 0 <= self.alpha_max <= 1:
            raise UserError(f"alpha_max must be in [0, 1], got {self.alpha_max:g}")
        if self.eta is not None and not self.eta >= 1:
            raise UserError(f"eta must be >= 1, got {self.eta:g}")

    @property
    def length(self) -> int:
        """Gradient queries of a restart."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """One gradient query per step."""
        return self.steps * self.restarts, self.steps * self.restarts

    def ball(self, threat: Threat, x: Tensor, eps: Tensor | None = None) -> Ball:
        """The whole box; with `reach` the ball of the farthest starts."""
        each = threat.each(len(x)).to(x) if eps is None else eps
        whole = torch.full_like(each, _EVERYWHERE)
        return threat.around(x, whole if self.reach is None else torch.where(each > 0, 2 * self.reach * each, whole))

    def _set(self, name: str, norm: str) -> float:
        """The value of an option, by norm where it is not given; samples with an eps of their own leave it open."""
        value = getattr(self, name)
        return float(_DEFAULTS[norm][name] if value is None else value)

    def start(self, query: Query, batch: Batch) -> InwardState:
        """Random noise in the distant ball, or where a portfolio says, by default the clean image."""
        return InwardState(
            candidate=batch.ball.x.clone(),
            iterate=self._distant(batch).random(batch.stream) if self.random_start else batch.origin.clone(),
            nearest=torch.full_like(batch.ball.eps, torch.inf, dtype=torch.float64),
            aim=torch.full_like(batch.y, -1),
            inward=torch.full_like(batch.y, -1),
        )

    def step(self, query: Query, batch: Batch, state: InwardState) -> InwardState:  # type: ignore[override]
        """One gradient query: ascent until the iterate is adversarial, then a projection on the boundary."""
        z = state.iterate
        answer = query.gradient(z, gap, state.aim)
        adversarial = reached(answer.logits, batch.y, batch.targets)
        value = gap(answer.logits, batch.y, batch.targets, state.aim).double()
        distance = batch.ball.distance(z)
        nearer = adversarial & (distance < state.nearest)
        others = answer.logits.scatter(1, batch.y.unsqueeze(1), -torch.inf)
        aim = state.aim
        if batch.targets is None:
            aim = torch.where(batch.step == 0, self._sought(batch, others), aim)
        seeking = state.inward < 0
        # A class that was chosen is sought until the iterate is of it.
        there = adversarial & ((aim < 0) | (others.argmax(1) == aim))
        begins = seeking & (there | (batch.step >= (_SEEK if self.random_start else 0)))
        state = replace(
            state,
            candidate=torch.where(per_row(nearer, z), z, state.candidate),
            nearest=torch.where(nearer, distance, state.nearest),
            aim=torch.where(begins & (aim < 0), others.argmax(1), aim),
            inward=torch.where(begins, 0, state.inward),
        )
        seeking = state.inward < 0
        moved = z.clone()
        out, inside = seeking.nonzero()[:, 0], (~seeking).nonzero()[:, 0]
        if len(out):
            ball = take(self._distant(batch), out)
            moved[out] = ball.ascend(z[out], answer.gradient[out].clone(), ball.eps / 2)
        if len(inside):
            first = self._set("shrink", batch.ball.norm)
            share = first + (0.95 - first) * state.inward[inside].double() / self.steps
            share = torch.where(adversarial[inside], share, 1.0).float()
            linear = value[inside], answer.gradient[inside]
            moved[inside] = self._inward(take(batch.ball, inside), z[inside], share, *linear)
        return replace(state, iterate=moved, inward=torch.where(seeking, state.inward, state.inward + 1))

    def _sought(self, batch: Batch, others: Tensor) -> Tensor:
        """The class that this restart seeks, (N,): -1 for any; others: logits (N, K), that of the label -inf."""
        if not self.spread:
            return torch.full_like(batch.attempt, -1)
        rank = batch.attempt - int(self.random_start)  # the label comes last in the order, and is left out
        order = others.argsort(dim=1, descending=True, stable=True)
        chosen = order.gather(1, (rank % (others.shape[1] - 1)).unsqueeze(1))[:, 0]
        return torch.where(rank < 0, -1, chosen)

    def _inward(self, ball: Ball, z: Tensor, share: Tensor, value: Tensor, normal: Tensor) -> Tensor:
        """The iterate drawn to `share` of its distance, by the projection on that ball, then projected as FAB does."""
        x, slope = ball.x, normal.double()
        smaller = type(ball)(x, (ball.distance(z) * share).float(), ball.low, ball.high)
        now = torch.where(per_row(share < 1, z), smaller.project(z), z)
        ahead = value + (slope * (now.double() - z.double())).flatten(1).sum(1)
        clean = value + (slope * (x.double() - z.double())).flatten(1).sum(1)
        change = to_hyperplane(
            ball.norm,
            torch.cat([now, x]),
            torch.cat([normal, normal]),
            -torch.cat([ahead, clean]),
            low=ball.low,
            high=ball.high,
        )
        here, there = torch.split(length(change, ball.norm).clamp_min(1e-8), len(z))
        alpha = per_row((here / (here + there)).clamp_max(self._set("alpha_max", ball.norm)).float(), x)
        mine, its = torch.split(change.mul_(self._set("eta", ball.norm)), len(z))
        return ((now + mine) * (1 - alpha) + (x + its) * alpha).clamp_(ball.low, ball.high)

    def _distant(self, batch: Batch) -> Ball:
        """The ball of the starts around each clean image."""
        ball = batch.ball
        # Without `reach`, or with an eps of 0, the ball is the whole box.
        first = torch.where(ball.eps < _EVERYWHERE, ball.eps / 2, self._set("radius", ball.norm))
        eps = torch.where(batch.attempt % 2 == 0, first, 2 * first)
        if ball.norm == "linf":
            eps = eps.clamp_max(ball.high - ball.low)
        return type(ball)(ball.x, eps, ball.low, ball.high)


def gap(logits: Tensor, y: Tensor, targets: Tensor | None, aim: Tensor) -> Tensor:
    """How far an image is beyond the boundary, (N,): with the class `aim`, or without one (-1) the margin."""
    whole = margin(logits, y, targets)
    if targets is not None:
        return whole
    return torch.where(aim < 0, whole, difference(logits, y, None, aim.clamp_min(0)))
