"""The attack that gradient masking was made for: PGD as the textbooks have it, on cross-entropy in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from robustbench_lite.attack import Batch
from robustbench_lite.attacks.pgd import PGD, PGDState
from robustbench_lite.query import Query


def saturating(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    """Cross-entropy by the softmax, (N,): where that rounds to 1 its gradient is zero."""
    return (
        cross_entropy(logits, y, reduction="none")
        if targets is None
        else -cross_entropy(logits, targets, reduction="none")
    )


@dataclass(frozen=True)
class TextbookPGD(PGD):
    """Signed steps on a cross-entropy that saturates: what a network that is very sure of itself withstands.

    It stands beside attacks that are not fooled, in tables that show what masking is worth; use `pgd`.
    """

    name: ClassVar[str] = "textbook-pgd"
    summary: ClassVar[str] = "PGD on a cross-entropy that saturates, to show what masking hides"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def step(self, query: Query, batch: Batch, state: PGDState) -> PGDState:  # type: ignore[override]
        """One projected step."""
        gradient = query.gradient(state.candidate, saturating).gradient
        assert self.step_size is not None, "resolved"
        return PGDState(batch.ball.project(state.candidate + self.step_size * gradient.sign()), state.velocity)
