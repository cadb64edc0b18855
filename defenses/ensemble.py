"""Several networks in place of one: their mean, or their vote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense, with_gradient_of
from robustbench_lite.errors import UserError
from robustbench_lite.foreign import ask
from robustbench_lite.models.weights import written_files

RULES = ("mean", "majority")


@dataclass(frozen=True)
class Ensemble(InferenceDefense):
    """The network together with others: the mean of their softmax, or a vote that turns away what is disputed.

    models: files of weights that `rbl train` wrote, with commas between; with none the network is alone. rule: mean,
    or majority: the class that most networks name wins where more than `quorum` of all name it, else the image is
    rejected. Attacked whole it holds
    little off: Goodfellow et al. 2014, section 10, found 91.1 % error on an ensemble of twelve attacked as one, and
    He et al. 2017 the same of ensembles of weak defenses. The gradient of a vote is that of the mean.
    adaptive: pgd on all members at once (He et al. 2017).
    """

    name: ClassVar[str] = "ensemble"
    summary: ClassVar[str] = "asks several networks: their mean, or a vote that rejects what is disputed"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1412.6572; He et al. 2017, arXiv:1706.04701"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    differentiable: ClassVar[bool] = False

    models: str = ""
    rule: str = "mean"
    quorum: float = 0.5

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if not 0 <= self.quorum < 1:
            raise UserError(f"quorum must be in [0, 1), got {self.quorum:g}")
        written_files(self.models, argument="models")

    @property
    def rejects(self) -> bool:
        """Where there is a vote."""
        return self.rule == "majority"

    @property
    def fit_samples(self) -> int:
        """One, which says what images are."""
        return 1

    def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The networks together. Raises UserError where one does not fit the images or the classes."""
        from robustbench_lite.models import load_written

        del y
        shape, classes = (x.shape[1], x.shape[2], x.shape[3]), model(x[:1]).shape[1]
        files = written_files(self.models, argument="models")
        members = [load_written(file, n_classes=classes, shape=shape, argument="models").module for file in files]
        together = [model, *(member.to(x.device) for member in members)]
        return Voting(together, self.quorum) if self.rejects else Mean(together)


class Mean(nn.Module):
    """The logarithm of the mean softmax of several networks."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def answers(self, x: Tensor) -> Tensor:
        """The logarithms of what each says, (M, N, K)."""
        return torch.stack([ask(model, x).log_softmax(1) for model in self.models])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.answers(x).logsumexp(0) - math.log(len(self.models))


class Voting(Mean):
    """The vote of several networks; equal numbers of votes are told apart by the mean softmax."""

    def __init__(self, models: Sequence[nn.Module], quorum: float) -> None:
        super().__init__(models)
        self.quorum = quorum

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K + 1): logarithms of shares of the votes, the last one that of the quorum."""
        answers, count = self.answers(x), len(self.models)
        mean = answers.logsumexp(0) - math.log(count)
        votes = torch.zeros_like(mean).scatter_add_(
            1, answers.argmax(2).T, torch.ones_like(mean[:, :1]).expand(-1, count)
        )
        # Between the most votes that are too few, with all of the half that tells ties apart, and one vote more.
        needed = torch.full_like(mean[:, :1], math.floor(self.quorum * count + 1e-9) + 0.75)
        seen = torch.cat([votes + 0.5 * mean.detach().exp(), needed], 1).clamp_min(1e-6) / (count + 1)
        soft = torch.cat([mean, torch.full_like(needed, math.log(max(self.quorum, 1e-6)))], 1)
        return with_gradient_of(soft, seen.log())
