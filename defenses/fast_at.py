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
from robustbench_lite.streams import uniform_noise
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer

_WAY_OUT = "set recovery=4, lower step_share or eps, or take n-fgsm or grad-align"
_OVERFITTED, _RECOVERING, _LOOKED = "fast-at overfitted", "fast-at recovering", "fast-at looked"
_LOOK, _LOOK_OFTEN = 300, 50  # batches between two looks at what several steps of attack leave; often: to recover
_IMAGES = 64
_FAR, _APART = 0.3, 0.1  # of accuracy, between one step and several: told as overfitted; recovered from


@dataclass(frozen=True)
class FastAT(TrainingDefense):
    """One gradient step from a uniform start, with a learning rate that rises and falls (Wong et al. 2020).

    eps: of linf. step_share: length of the step as a share of eps, > 0; the paper's is 1.25. warmup: share of the
    training over which eps grows from 0, which the paper has not: without it small networks stay constant for a while.
    Catastrophic overfitting, where the network withstands that one step and falls to several, is looked for at an
    epoch's first batch and every 300 from there: the history has `single_step_accuracy` and `multi_step_accuracy` (PGD
    of 10 steps, 64 images), and where the second falls 30 points behind the first it is said once.
    recovery: steps of the attack on a batch, >= 2, from a look (every 50 batches then) at which the second is more than
    10 points behind until one at which it is not, after Li et al. 2020 (arXiv:2006.03089, section 4); 0 for never, as
    the paper has it.
    finish: share of the training, in [0, 1), at whose end every batch takes `recovery` steps: weaker attacks first,
    stronger ones later, as in Cai et al. 2018 (arXiv:1805.04807); the paper has it not.
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
    recovery: int = 0
    finish: float = 0.0

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if not self.step_share > 0:
            raise UserError(f"step_share must be > 0, got {self.step_share:g}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup must be in [0, 1], got {self.warmup:g}")
        if self.recovery < 0 or self.recovery == 1:
            raise UserError(f"recovery must be 0 or >= 2, got {self.recovery}")
        if not 0 <= self.finish < 1:
            raise UserError(f"finish must be in [0, 1), got {self.finish:g}")
        if self.finish and not self.recovery:
            raise UserError(
                f"finish is a share of batches of `recovery` steps: set recovery=4 too, got {self.finish:g}"
            )

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The loss on what one step makes of the batch, or several while the network recovers and at the end."""
        eps = self.eps * min(1.0, trainer.done / self.warmup) if self.warmup else self.eps
        recovering = trainer.memory.setdefault(_RECOVERING, torch.zeros(1))
        start = uniform_noise(x).mul_(eps).add_(x)
        ending = trainer.done >= 1 - self.finish
        look = self._is_due(trainer)
        seen = start
        if look or not (recovering or ending):
            begun = start.clone() if look else start  # after a look it may be needed again
            seen = self._moved(network, x, begun, y, trainer, (eps, self.step_share * eps))
        if look:
            self._look(network, (x[:_IMAGES], seen[:_IMAGES]), y[:_IMAGES], eps, trainer)
        if recovering or ending:
            seen = start
            for _ in range(self.recovery):
                seen = self._moved(network, x, seen, y, trainer, (eps, 2.5 / self.recovery * eps))
        return inner(network, seen, y)

    @staticmethod
    def _moved(
        network: nn.Module, x: Tensor, start: Tensor, y: Tensor, trainer: Trainer, sizes: tuple[float, float]
    ) -> Tensor:
        """One step of steepest ascent from `start`, which is overwritten; sizes: of the ball and of the step."""
        eps, length = sizes
        gradient = trainer.gradient(network, start, lambda logits: cross_entropy(logits, y, reduction="sum"))
        return start.add_(gradient.sign_(), alpha=length).clamp_(x - eps, x + eps).clamp_(0, 1)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether to look now: once at such a batch, of which another loss may ask more than once."""
        place = torch.tensor([trainer.epoch, trainer.batch])
        if trainer.batch % (_LOOK_OFTEN if self.recovery else _LOOK) or _is(trainer.memory.get(_LOOKED), place):
            return False
        trainer.memory[_LOOKED] = place
        return True

    def _look(self, network: nn.Module, images: tuple[Tensor, Tensor], y: Tensor, eps: float, trainer: Trainer) -> None:
        x, seen = images
        label = y.argmax(1) if y.ndim == 2 else y
        moved = trainer.perturb(network, x, label, attack="pgd", norm=self.norm, eps=eps, options={"steps": 10})
        single, multi = (float((trainer.logits(network, z).argmax(1) == label).float().mean()) for z in (seen, moved))
        trainer.note("single_step_accuracy", single)
        trainer.note("multi_step_accuracy", multi)
        if self.recovery:
            trainer.memory[_RECOVERING].fill_(single - multi > _APART)
            trainer.note("recovering", float(trainer.memory[_RECOVERING]))
        if single - multi > _FAR and _OVERFITTED not in trainer.memory:
            trainer.memory[_OVERFITTED] = torch.ones(1)
            trainer.say(
                f"fast-at: catastrophic overfitting: {100 * single:.0f} % withstand its own step and "
                f"{100 * multi:.0f} % ten steps; "
                + (f"batches take {self.recovery} steps until it has passed" if self.recovery else _WAY_OUT)
            )


def _is(known: Tensor | None, place: Tensor) -> bool:
    return known is not None and torch.equal(known.cpu(), place)
