"""Defensive distillation, which hides gradients and nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defense import TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.data.dataset import Dataset
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class Distillation(TrainingDefense):
    """A teacher at temperature T on labels, a student of the same network at T on its answers, used at T = 1.

    Papernot et al. 2016, section IV. The student's logits are T times as large at T = 1, its softmax saturates in
    float32, and attacks that follow the cross-entropy stand still; Carlini and Wagner 2017 (arXiv:1608.04644) fool it
    as the plain network: attacks on logits and margins (`cw`, `pgd` here) do not notice.
    temperature: T, >= 1; the paper's 100. Other defenses' losses are in both trainings. Departure: the student begins
    at the same weights as the teacher.
    adaptive: apgd-t, whose loss does not feel the scale of the logits (after Carlini and Wagner 2017).
    """

    name: ClassVar[str] = "distillation"
    summary: ClassVar[str] = "learns a teacher's softened answers at a high temperature"
    source: ClassVar[str] = "Papernot et al. 2016, arXiv:1511.04508"
    adaptive: ClassVar[str] = "apgd-t"

    temperature: float = 100.0

    def __post_init__(self) -> None:
        if not self.temperature >= 1:
            raise UserError(f"temperature must be >= 1, got {self.temperature:g}")

    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        """The student, trained after its teacher."""

        def soft(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(network(x) / self.temperature, y)

        teacher = trainer.fit(copy.deepcopy(model), data, loss=soft)

        def taught(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            del y
            return soft(network, x, (trainer.logits(teacher, x) / self.temperature).softmax(1))

        return trainer.fit(model, data, loss=taught)
