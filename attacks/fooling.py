"""Images that are noise to us and of a class to the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import cross_entropy
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row


@dataclass(frozen=True)
class FoolingState(State):
    """`done`: (N,) bool, whether the network is sure enough of the candidate."""

    done: Tensor


@dataclass(frozen=True)
class Fooling(Attack):
    """From noise to a class by signs of the gradient of its log-odds (Nguyen et al. 2015, arXiv:1412.1897).

    steps: gradients, >= 1; one is the fooling image of Goodfellow et al. 2015 (arXiv:1412.6572, section 7).
    step_size: change of a pixel in a step, in pixels of [0, 1], > 0. noise: "gaussian" of mean 0.5 and deviation
    `sigma` (> 0), or "uniform" on the box. confidence: the probability at which a sample is finished, in [0, 1).
    Without a target it aims, in each step, at the likeliest class but the image's own.
    A success is, as everywhere, noise that the network takes for the class, however unsure it is. For how many it
    is more than 50 % sure, as both papers count, is `Result.confident` and a line of `rbl evaluate`. The image itself
    plays no part but to choose the random numbers and, without a target, which class does not count.
    Departures: Nguyen et al. ascend an l2-penalised score, or breed; here the steps are those of Goodfellow et al.,
    and pixels are kept in the box.

    >>> Fooling(steps=20, step_size=0.05).length
    20
    """

    name: ClassVar[str] = "fooling"
    summary: ClassVar[str] = "from noise to a class, in one step or many"
    source: ClassVar[str] = "Nguyen et al. 2015, arXiv:1412.1897; Goodfellow et al. 2015, arXiv:1412.6572"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    own_limits: ClassVar[bool] = True
    persists: ClassVar[bool] = True

    steps: int = 1
    step_size: float = 0.25
    noise: Literal["gaussian", "uniform"] = "gaussian"
    sigma: float = 0.25
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if self.noise not in ("gaussian", "uniform"):
            raise UserError(f"noise must be gaussian or uniform, got {self.noise!r}")
        for name in ("step_size", "sigma"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if not 0 <= self.confidence < 1:
            raise UserError(f"confidence must be in [0, 1), got {self.confidence:g}")

    @property
    def length(self) -> int:
        """One gradient a step."""
        return self.steps

    def start(self, query: Query, batch: Batch) -> FoolingState:
        """The noise."""
        shape = batch.ball.x.shape[1:]
        stream = batch.stream.child("noise")
        drawn = stream.uniform(shape) if self.noise == "uniform" else 0.5 + self.sigma * stream.normal(shape)
        return FoolingState(batch.ball.project(drawn), torch.zeros_like(batch.y, dtype=torch.bool))

    def step(self, query: Query, batch: Batch, state: FoolingState) -> FoolingState:  # type: ignore[override]
        """One step of signs, where the network is not sure yet."""
        answer = query.gradient(state.candidate, _odds)
        least = math.log(self.confidence / (1 - self.confidence)) if self.confidence else -math.inf
        done = state.done | (_odds(answer.logits, batch.y, batch.targets) > least)
        candidate = batch.ball.project(state.candidate + self.step_size * answer.gradient.sign())
        return FoolingState(torch.where(per_row(done, candidate), state.candidate, candidate), done)

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those that the network is sure of."""
        assert isinstance(state, FoolingState)
        return state.done


def _odds(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    """Log-odds of the class aimed at, else of the likeliest but the image's own."""
    if targets is None:
        targets = logits.detach().scatter(1, y.unsqueeze(1), float("-inf")).argmax(1)
    return cross_entropy(logits, y, targets)
