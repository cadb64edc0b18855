"""Images that are misclassified already are regularised most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.losses import divergence
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

_LEAST = 1e-12


@dataclass(frozen=True)
class Mart(TrainingDefense):
    """Boosted cross-entropy on PGD's images, and the divergence weighted by how wrong an image is (Wang et al. 2020).

    -log p_y(x') - log(1 - max of the others) + weight KL(p(x) || p(x')) (1 - p_y(x)) (equation 11, table 1). It takes
    the place of the loss it stands on. norm, eps: the threat; steps: of PGD; weight: lambda, >= 0; the paper's 5.
    """

    name: ClassVar[str] = "mart"
    summary: ClassVar[str] = "adversarial training that weighs misclassified images most"
    source: ClassVar[str] = "Wang et al. 2020, openreview rklOg6EFwS"
    innermost: ClassVar[bool] = True

    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 10
    weight: float = 5.0

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The paper's loss, of labels that are not mixed."""
        del inner
        if y.ndim == 2:
            raise UserError("--defense mart: it takes labels, not shares of them; leave out mixup and label-smoothing")
        seen = trainer.perturb(network, x, y, attack="pgd", norm=self.norm, eps=self.eps, options={"steps": self.steps})
        clean, moved = network(x), network(seen)
        label = y.unsqueeze(1)
        shares = moved.softmax(1)
        other = shares.scatter(1, label, 0).amax(1)
        boosted = -moved.log_softmax(1).gather(1, label)[:, 0] - (1 - other).clamp_min(_LEAST).log()
        wrong = 1 - clean.softmax(1).gather(1, label)[:, 0]
        value: Tensor = (boosted + self.weight * divergence(clean, moved) * wrong).mean()
        return value
