"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction at the image (Goodfellow et al. 2015, arXiv:1412.6572).

    loss: ce, margin or dlr. Departures: any norm, the step being steepest in it (the "fast gradient method"); in l1,
    where that puts few pixels at their ends, farther than the gradient tells, a step as long along the gradient itself
    is looked at too, which costs a forward pass.
    """

    name: ClassVar[str] = "fgsm"
    summary: ClassVar[str] = "one step of length eps along the steepest direction"
    source: ClassVar[str] = "Goodfellow et al. 2015, arXiv:1412.6572"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    loss: str = "ce"

    def __post_init__(self) -> None:
        get_loss(self.loss)

    @property
    def length(self) -> int:
        """One gradient."""
        return 1

    def calls(self, threat: Threat) -> tuple[int, int]:
        """One gradient; in l1 a look at the other step."""
        return (2 if threat.norm == "l1" else 1), 1

    def start(self, query: Query, batch: Batch) -> State:
        """The image itself."""
        return State(batch.ball.x.clone())

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """The one step."""
        gradient = query.gradient(state.candidate, get_loss(self.loss)).gradient
        if batch.ball.norm == "l1":
            length = gradient.flatten(1).abs().sum(1, dtype=torch.float64).clamp_min(1e-300)
            spread = gradient.double() * per_row(batch.ball.eps / length, gradient)
            query.logits(batch.ball.project((state.candidate + spread).to(gradient.dtype)))
        return State(batch.ball.ascend(state.candidate, gradient, batch.ball.eps))
