"""The labels of the nearest training images in place of the network's last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense, with_gradient_of
from robustbench_lite.errors import UserError
from robustbench_lite.penultimate import Penultimate

ROWS = 256  # images of one pass while the features are gathered


@dataclass(frozen=True)
class KNN(InferenceDefense):
    """The vote of the k nearest of `samples` training images, by the cosine of penultimate features.

    Papernot and McDaniel 2018 (arXiv:1803.04765) vote over every layer and calibrate the vote; here it is the last
    layer of features alone. A vote has no gradient, so attacks follow a soft one, in which each image of a class counts
    by exp(cosine / temperature), as Sitawarin and Wagner 2019 (arXiv:1903.08333), who so defeat it.
    adaptive: pgd on the soft vote (Sitawarin and Wagner 2019).
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "the vote of the nearest training images, by penultimate features"
    source: ClassVar[str] = "Papernot and McDaniel 2018, arXiv:1803.04765"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    differentiable: ClassVar[bool] = False

    k: int = 10
    samples: int = 2000
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k must be >= 1, got {self.k}")
        if self.samples < self.k:
            raise UserError(f"samples must be at least k = {self.k}, got {self.samples}")
        if not self.temperature > 0:
            raise UserError(f"temperature must be > 0, got {self.temperature:g}")

    @property
    def fit_samples(self) -> int:
        """Those among which the nearest are looked for."""
        return self.samples

    def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The network among the images' features. Raises UserError for one that does not end in a linear layer."""
        if len(x) < self.k:
            raise UserError(f"k of knn must be at most the training images that there are, {len(x)}, got {self.k}")
        features = Penultimate(model, x[:1])
        known = torch.cat([_unit(features(part)) for part in x.split(ROWS)])  # type: ignore[no-untyped-call]
        return Nearest(features, known, y, model(x[:1]).shape[1], self)


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


class Nearest(nn.Module):
    """A network that answers by the training images nearest in its features."""

    known: Tensor
    belongs: Tensor

    def __init__(self, features: nn.Module, known: Tensor, y: Tensor, classes: int, options: KNN) -> None:
        super().__init__()
        self.features = features
        self.options = options
        self.register_buffer("known", known)
        self.register_buffer("belongs", torch.nn.functional.one_hot(y, classes).to(known.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms (N, K) of the shares of the vote; equal numbers of votes are told apart by the soft vote."""
        cosine = _unit(self.features(x)) @ self.known.T
        weight = (cosine / self.options.temperature).log_softmax(1)
        soft = (weight.unsqueeze(2) + self.belongs.clamp_min(1e-30).log()).logsumexp(1)
        nearest = cosine.detach().topk(self.options.k, dim=1).indices
        votes = self.belongs[nearest].sum(1) + 0.5 * soft.detach().exp()
        seen = (votes / (self.options.k + 1)).clamp_min(1e-6).log()
        return with_gradient_of(soft, seen)
