"""JSMA: pairs of numbers pushed to their limit, chosen from the Jacobian to favour one class over all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import reached
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

_TABLE = 2**22  # pairs looked at in one go


@dataclass(frozen=True)
class JSMAState(State):
    """`candidate`: the present iterate. aim: (N,) int64, the class. spent: (N,) int64, numbers pushed so far.

    done: (N,) bool, where the goal is reached or nothing is left to push.
    """

    aim: Tensor
    spent: Tensor
    done: Tensor


@dataclass(frozen=True)
class JSMA(Attack):
    """An image of a chosen class by few changed numbers (Papernot et al. 2016, arXiv:1511.07528, algorithms 2 and 3).

    Each step adds theta to the two numbers of the image whose sum of slopes a of the class aimed at is positive, b of
    all the others together negative, and -a b largest; a number at the end of the box is not looked at again. theta:
    what a push adds, in pixels of [0, 1], in [-1, 1], not 0; a negative one takes away. gamma: share of the numbers
    that may be pushed, in (0, 1] (the paper's 14.5 %). pairs: pushed a step, by one Jacobian, >= 1 (the paper's 1).
    steps: at most, >= 1; a sample stops at its goal. Without a target the aim is the likeliest wrong class of the
    image, and any wrong class will do.
    A step costs two gradients. Slopes are those of the logits, as the paper advises.
    Departures: where no pair fulfils both conditions the paper's search has no answer; here it then takes the pair
    that raises the class aimed at most against the mean of the others, if it raises it at all. A number that lacks
    less than a hundredth of theta to the end of the box counts as being there, as white that is not quite white. Only
    pairs that may be the best are compared: of two numbers the better in both slopes comes first.
    """

    name: ClassVar[str] = "jsma"
    summary: ClassVar[str] = "pairs of numbers pushed to their limit, by the Jacobian's saliency map"
    source: ClassVar[str] = "Papernot et al. 2016, arXiv:1511.07528"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    minimal: ClassVar[bool] = True

    theta: float = 1.0
    gamma: float = 0.145
    pairs: int = 1
    steps: int = 2000

    def __post_init__(self) -> None:
        for name in ("pairs", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not (-1 <= self.theta <= 1 and self.theta != 0):
            raise UserError(f"theta must be in [-1, 1] and not 0, got {self.theta:g}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must be in (0, 1], got {self.gamma:g}")

    @property
    def length(self) -> int:
        """One Jacobian a step, and a look at the last iterate."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The class aimed at, and two gradients a step."""
        return 1 + 2 * self.steps, 2 * self.steps

    def start(self, query: Query, batch: Batch) -> JSMAState:
        """The image itself, and the class to aim at."""
        x, aim = batch.ball.x, batch.targets
        if aim is None:
            logits = query.logits(x)
            aim = logits.scatter(1, batch.y.unsqueeze(1), float("-inf")).argmax(1)
        return JSMAState(x.clone(), aim, torch.zeros_like(batch.y), torch.zeros_like(batch.y, dtype=torch.bool))

    def step(self, query: Query, batch: Batch, state: JSMAState) -> JSMAState:  # type: ignore[override]
        """The loop of algorithm 2, with the pairs of algorithm 3."""
        rows = (~state.done).nonzero()[:, 0]
        if not len(rows):
            return state
        image = state.candidate[rows]
        both = torch.cat([image, image])
        others = torch.arange(len(both), device=both.device) >= len(rows)
        answer = query.gradient(both, _slopes, state.aim[rows].repeat(2), others, rows=rows.repeat(2))
        logits = answer.logits[: len(rows)]
        arrived = reached(logits, batch.y[rows], None if batch.targets is None else batch.targets[rows])
        favour, against = (answer.gradient.flatten(1).double() * (1 if self.theta > 0 else -1)).chunk(2)
        end = batch.ball.high if self.theta > 0 else batch.ball.low
        free = (end - image.flatten(1)).abs() > abs(self.theta) / 100
        allowed = 2 * max(1, int(self.gamma * free.shape[1] / 2))
        change, spent = torch.zeros_like(favour), state.spent[rows]
        for _ in range(self.pairs):
            place, found = best_pair(favour, -against, free, logits.shape[1])
            found &= ~arrived & (spent < allowed)
            push = torch.where(found, self.theta, 0.0).double().unsqueeze(1).expand(-1, 2)
            change.scatter_add_(1, place, push)
            free = free.scatter(1, place, torch.zeros_like(place, dtype=torch.bool))
            spent = spent + 2 * found
        moved = state.candidate.index_copy(0, rows, image + change.reshape(image.shape).float())
        still = spent == state.spent[rows]
        return JSMAState(
            batch.ball.project(moved),
            state.aim,
            state.spent.index_copy(0, rows, spent),
            state.done.index_copy(0, rows, still),
        )

    def finished(self, batch: Batch, state: JSMAState) -> Tensor:  # type: ignore[override]
        """Those at their goal, and those with nothing left to push."""
        return state.done


def best_pair(favour: Tensor, relief: Tensor, free: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The two free numbers of each row of most saliency, (N, 2) int64, and whether there are any worth a push, (N,).

    favour: (N, D), the slopes of the class aimed at; relief: (N, D), those of all the others together, negated.

    >>> best_pair(torch.tensor([[1.0, 3, 2]]), torch.tensor([[2.0, -1, 2]]), torch.ones(1, 3, dtype=torch.bool), 10)
    (tensor([[2, 0]]), tensor([True]))
    """
    order = favour.where(free, -torch.inf).argsort(dim=1, descending=True, stable=True)
    worth = relief.where(free, -torch.inf).gather(1, order)
    # One that two others match in both slopes is in no best pair: the second best relief so far tells.
    none = torch.full_like(worth[:, :1], -torch.inf)
    first = torch.cat([none, worth.cummax(1).values[:, :-1]], 1)
    second = torch.cat([none, torch.minimum(worth, first).cummax(1).values[:, :-1]], 1)
    kept = worth > second
    count = max(2, int(kept.sum(1).max()))
    if count > order.shape[1]:
        return torch.zeros((len(order), 2), dtype=torch.int64, device=order.device), torch.zeros_like(free[:, 0])
    chosen = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    kept, place = kept.gather(1, chosen), order.gather(1, chosen)
    a, r = favour.gather(1, place), relief.gather(1, place)
    best, found = torch.zeros_like(place[:, 0]), torch.zeros_like(kept[:, 0])
    upper = torch.ones((count, count), dtype=torch.bool, device=place.device).triu(1)
    for rows in torch.split(torch.arange(len(place), device=place.device), max(1, _TABLE // count**2)):
        pairs = upper & kept[rows].unsqueeze(2) & kept[rows].unsqueeze(1)
        own = a[rows].unsqueeze(2) + a[rows].unsqueeze(1)
        other = r[rows].unsqueeze(2) + r[rows].unsqueeze(1)
        salient = (own * other).where(pairs & (own > 0) & (other > 0), -torch.inf).flatten(1)
        instead = (own + other / (classes - 1)).where(pairs, -torch.inf).flatten(1)
        any_salient = salient.amax(1) > -torch.inf
        best[rows] = torch.where(any_salient, salient.argmax(1), instead.argmax(1))
        found[rows] = any_salient | (instead.amax(1) > 0)
    pair = torch.stack([best // count, best % count], 1)
    return place.gather(1, pair), found


def _slopes(logits: Tensor, _y: Tensor, _targets: Tensor | None, aim: Tensor, others: Tensor) -> Tensor:
    """The logit of the class aimed at, or where `others` the sum of all the others."""
    own = logits.gather(1, aim.unsqueeze(1))[:, 0]
    return torch.where(others, logits.sum(1) - own, own)
