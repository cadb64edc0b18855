"""Training on the images of an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.options import parse_pairs
from robustbench_lite.perturbation import make_attack
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class AdversarialTraining(TrainingDefense):
    """Minimises the loss on what an attack makes of each batch (Madry et al. 2018, arXiv:1706.06083, eq. 2.1).

    attack: any attack by name, given the network as it is at that moment. norm, eps: its threat.
    attack_options: its options as `steps=7,step_size=0.01`; default for pgd: 7 steps, the authors' number.
    clean: share of the loss on the images as they are, in [0, 1); 0.5 with attack=fgsm is the mixture of Goodfellow et
    al. 2015 (arXiv:1412.6572, section 6), whose alpha it is.
    warmup: share of the training over which eps grows from 0. Departure: the authors have none, and a small
    network under a large eps then never leaves the constant answer.
    """

    name: ClassVar[str] = "adversarial-training"
    summary: ClassVar[str] = "trains on the images of an attack"
    source: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083"

    attack: str = "pgd"
    norm: str = "linf"
    eps: float = 8 / 255
    attack_options: str = ""
    clean: float = 0.0
    warmup: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {self.warmup:g}")
        if not 0 <= self.clean < 1:
            raise UserError(f"clean must be in [0, 1), got {self.clean:g}")
        make_attack(self.attack, self._options(), Threat(self.norm, self.eps))

    def _options(self) -> dict[str, str]:
        given = parse_pairs("attack_options", filter(None, self.attack_options.split(",")))
        return {"steps": "7", **given} if self.attack == "pgd" else given

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The loss on adversarial images, alone or beside that on the images."""
        eps = self.eps * min(1.0, trainer.done / self.warmup) if self.warmup else self.eps
        seen = trainer.perturb(network, x, y, attack=self.attack, norm=self.norm, eps=eps, options=self._options())
        if not self.clean:
            return inner(network, seen, y)
        return self.clean * inner(network, x, y) + (1 - self.clean) * inner(network, seen, y)
