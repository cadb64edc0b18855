"""Free adversarial training: one gradient for the images and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

_DELTA = "free-at delta"


@dataclass(frozen=True)
class FreeAT(TrainingDefense):
    """Learns several times from each batch, whose perturbation each backward pass moves too (Shafahi et al. 2019).

    eps: of linf. replays: passes over a batch, >= 1, by which the epochs are divided; the paper's 8. The perturbation
    moves by eps along the gradient's sign, is cut to the ball, and goes on to the next batch (algorithm 1).
    adaptive: pgd from 10 starts, as the paper evaluates.
    """

    name: ClassVar[str] = "free-at"
    summary: ClassVar[str] = "adversarial training at no cost: one gradient for images and weights"
    source: ClassVar[str] = "Shafahi et al. 2019, arXiv:1904.12843"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 50, "restarts": 10}

    eps: float = 8 / 255
    replays: int = 8

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if self.replays < 1:
            raise UserError(f"replays must be >= 1, got {self.replays}")

    @property
    def passes(self) -> int:
        """The replays."""
        return self.replays

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The loss at the present perturbation, which its backward pass moves."""
        known = trainer.memory.get(_DELTA)
        # A smaller batch, the last of an epoch, moves its rows alone.
        delta = torch.zeros_like(x) if known is None or len(known) < len(x) else known[: len(x)]
        if known is not None and len(known) < len(x):
            delta[: len(known)] = known
        seen = (x + delta).clamp(0, 1).requires_grad_()

        def move(gradient: Tensor) -> None:
            moved = (delta + self.eps * gradient.detach().sign()).clamp(-self.eps, self.eps)
            trainer.memory[_DELTA] = moved if known is None else torch.cat([moved, known[len(x) :]])

        seen.register_hook(move)  # type: ignore[no-untyped-call]
        return inner(network, seen, y)
