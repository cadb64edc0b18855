"""Labels with a little of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class LabelSmoothing(TrainingDefense):
    """Learns (1 - share) of the label and `share` spread over all classes (Szegedy et al. 2016, section 7).

    As a defense (Warde-Farley and Goodfellow 2016) it fails: gradients fade where logits stop to differ, and attacks
    that look for the margin are not held up. share: in [0, 1).
    adaptive: apgd-t, whose loss of margins neither fades nor feels the scale of the logits.
    """

    name: ClassVar[str] = "label-smoothing"
    summary: ClassVar[str] = "learns labels with a little of every class"
    source: ClassVar[str] = "Szegedy et al. 2016, arXiv:1512.00567"
    adaptive: ClassVar[str] = "apgd-t"

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"share must be in [0, 1), got {self.share:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss of smoothed labels."""
        shares = one_hot(y, trainer.classes).float() if y.ndim == 1 else y
        return inner(network, x, (1 - self.share) * shares + self.share / trainer.classes)
