"""Targeted Auto-PGD: one run for each of the likeliest wrong classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.attacks.apgd import APGD, APGDState
from robustbench_lite.errors import UserError
from robustbench_lite.losses import dlr
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class APGDT(APGD):
    """Auto-PGD on the targeted difference of logits ratio, aimed at one wrong class after another.

    Croce and Hein 2020 (arXiv:2003.01690, eq. 7). classes: how many wrong classes are tried, >= 1, those of the
    highest logits at the clean image, highest first; any misclassification is a success. restarts: how often
    the whole row of classes is gone through. The others are those of `apgd-ce`. A run costs `steps` + 1
    gradients and a forward pass for the order of the classes.
    Departures: with fewer wrong classes than `classes` what is left over stops after its first step; the start is
    random as in the authors' code. Whoever wants one class of their own takes `apgd-dlr` with a target.
    """

    name: ClassVar[str] = "apgd-t"
    summary: ClassVar[str] = "auto-PGD aimed at the likeliest wrong classes in turn"
    source: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690"
    targeted: ClassVar[bool] = False
    loss: ClassVar[str] = "dlr"

    classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise UserError(f"classes must be >= 1, got {self.classes}")

    @property
    def attempts(self) -> int:
        """One for each class, in each restart."""
        return self.classes * self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """As one run, and a forward pass before each, which orders the classes."""
        forwards, backwards = super().calls(threat)
        return forwards + self.attempts, backwards

    def choose(self, query: Query, batch: Batch) -> Tensor:
        """The wrong class whose rank at the clean image is the number of the attempt."""
        logits = query.logits(batch.ball.x).scatter(1, batch.y.unsqueeze(1), float("-inf"))
        order = logits.argsort(dim=1, descending=True, stable=True)[:, :-1]
        rank = batch.attempt % self.classes
        aim = order.gather(1, rank.clamp_max(order.shape[1] - 1).unsqueeze(1))[:, 0]
        return torch.where(rank < order.shape[1], aim, -1)

    def ask(
        self, query: Query, batch: Batch, x: Tensor, *, aim: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same of the ratio that has the attack's own choice as its target."""
        answer = query.gradient(x, _ratio, aim, rows=rows)
        return answer.gradient, _ratio(answer.logits, batch.y if rows is None else batch.y[rows], None, aim)

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those for whom no class was left."""
        assert isinstance(state, APGDState)
        return state.aim < 0


def _ratio(logits: Tensor, y: Tensor, _: Tensor | None, aim: Tensor) -> Tensor:
    return dlr(logits, y, aim.clamp_min(0))
