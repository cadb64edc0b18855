"""Fast adversarial training: one step from a random start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

_STEPS, _OVERFITTED = "fast-at steps", "fast-at overfitted"
_LOOK = 300  # steps between two looks at what several steps of attack leave
_IMAGES = 64
_FAR = 0.3  # of accuracy, between one step and several: it is robust to its own step alone


@dataclass(frozen=True)
class FastAT(TrainingDefense):
    """One gradient step from a uniform start, with a learning rate that rises and falls (Wong et al. 2020).

    eps: of linf. step_share: length of the step as a share of eps, > 0; the paper's is 1.25. warmup: share of the
    training over which eps grows from 0, which the paper has not: without it small networks stay constant for a while.
    Catastrophic overfitting, where the network withstands that one step and falls to several, is looked for every 300
    steps: the history has `single_step_accuracy` and `multi_step_accuracy` (PGD of 10 steps, 64 images), and where
    the second falls 30 points behind the first it is said once.
    Departure: images are made by the network in evaluation mode, the authors' code has it in training mode.
    adaptive: pgd of 50 steps from 10 starts, the paper's own, which shows catastrophic overfitting.
    """

    name: ClassVar[str] = "fast-at"
    summary: ClassVar[str] = "adversarial training with one step from a random start"
    source: ClassVar[str] = "Wong et al. 2020, arXiv:2001.03994"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 50, "restarts": 10}
    recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 5e-3,
        "schedule": "cyclic",
        "batch_size": 100,
        "weight_decay": 0.0,
        "augment": "none",
    }

    eps: float = 8 / 255
    step_share: float = 1.25
    warmup: float = 0.0

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if not self.step_share > 0:
            raise UserError(f"step_share must be > 0, got {self.step_share:g}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {self.warmup:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The loss on what one step makes of the batch."""
        eps = self.eps * min(1.0, trainer.done / self.warmup) if self.warmup else self.eps
        start = x + eps * (2 * torch.rand_like(x) - 1)
        gradient = trainer.gradient(network, start, lambda logits: cross_entropy(logits, y, reduction="sum"))
        moved = start.add_(gradient.sign_(), alpha=self.step_share * eps)
        seen = moved.clamp_(x - eps, x + eps).clamp_(0, 1)
        steps = trainer.memory.setdefault(_STEPS, torch.zeros(1))
        if int(steps) % _LOOK == 0:
            self._look(network, x[:_IMAGES], seen[:_IMAGES], y[:_IMAGES], trainer)
        steps += 1
        return inner(network, seen, y)

    def _look(self, network: nn.Module, x: Tensor, seen: Tensor, y: Tensor, trainer: Trainer) -> None:
        label = y.argmax(1) if y.ndim == 2 else y
        moved = trainer.perturb(network, x, label, attack="pgd", norm=self.norm, eps=self.eps, options={"steps": 10})
        single, multi = (float((trainer.logits(network, z).argmax(1) == label).float().mean()) for z in (seen, moved))
        trainer.note("single_step_accuracy", single)
        trainer.note("multi_step_accuracy", multi)
        if single - multi > _FAR and _OVERFITTED not in trainer.memory:
            trainer.memory[_OVERFITTED] = torch.ones(1)
            trainer.say(
                f"fast-at: catastrophic overfitting: {100 * single:.0f} % withstand its own step and "
                f"{100 * multi:.0f} % ten steps; lower step_share or eps, or take n-fgsm or grad-align"
            )
