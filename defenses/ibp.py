"""Training on the worst that intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.bounds import intervals, least_margins
from robustbench_lite.bounds_ball import box_around
from robustbench_lite.bounds_graph import steps_of
from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat
from robustbench_lite.training import hard

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class IBP(TrainingDefense):
    """kappa times the loss on images, the rest on the worst logits of interval bounds (Gowal et al. 2018, eq. 12).

    eps: of linf. kappa: weight of the loss on images in the end; it falls from 1 while eps grows from 0, over the share
    `ramp` of the training after the share `warmup`. The worst logits are those of the label's least margins, the last
    layer in one piece with the difference (section 3, "elision of the last layer"). What certifies it: the method
    interval, and crown where more is wanted.
    Bounds are those of evaluation mode: batch norm with its running mean and variance, no dropout.
    Departures: the paper ramps over 10,000 of 60,000 steps after 2,000; here the ramp is half of the training, as short
    trainings want, and the learning rate is divided by 10 at one half and three quarters of it.
    """

    name: ClassVar[str] = "ibp"
    summary: ClassVar[str] = "learns from the worst logits of interval bounds; can be certified"
    source: ClassVar[str] = "Gowal et al. 2018, arXiv:1810.12715"
    recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 5e-4,
        "schedule": "step",
        "batch_size": 100,
        "weight_decay": 0.0,
        "augment": "none",
    }

    eps: float = 8 / 255
    kappa: float = 0.5
    warmup: float = 0.05
    ramp: float = 0.5

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if not 0 <= self.kappa <= 1:
            raise UserError(f"kappa must be in [0, 1], got {self.kappa:g}")
        for name in ("warmup", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name):g}")

    def grown(self, done: float) -> float:
        """How much of eps there is, and of the fall of kappa, when the share `done` of the training is over."""
        if done < self.warmup:
            return 0.0
        return min(1.0, (done - self.warmup) / self.ramp) if self.ramp else 1.0

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """Both terms."""
        clean = inner(network, x, y)
        grown = self.grown(trainer.done)
        kappa = 1 - (1 - self.kappa) * grown
        if kappa == 1:
            return clean
        label = hard(y)
        steps = steps_of(network, x.shape[1:])
        least = least_margins(steps, intervals(steps, box_around(x, self.eps * grown)), label)
        # The label's logit counts as 0, every other as what it can be above it.
        worst = torch.cat([torch.zeros_like(least[:, :1]), -least], 1)
        return kappa * clean + (1 - kappa) * cross_entropy(worst, torch.zeros_like(label))
