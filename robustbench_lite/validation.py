"""Images held out of a training, attacked after each epoch, so that the best epoch is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .data.dataset import balanced_subset
from .errors import UserError
from .foreign import ask
from .network import frozen
from .recipe import Recipe

if TYPE_CHECKING:
    from .data.dataset import Dataset

STEPS = 10  # of an attack that has steps
_BATCH = 256


@dataclass(frozen=True)
class Seen:
    """What an epoch came to: `row`, for the history, and `value`, the higher the better."""

    row: dict[str, float]
    value: float


@dataclass(frozen=True)
class Validation:
    """Images x (n, C, H, W) of the training set at `index`, labels y (n,), and the attack on them.

    threat: norm and eps; None: nothing is attacked, and accuracy decides.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    attack: str
    threat: tuple[str, float] | None

    @classmethod
    def of(cls, data: Dataset, recipe: Recipe, threat: tuple[str, float] | None) -> Validation | None:
        """As the recipe asks; None where it asks for nothing. Raises UserError where too little is left to learn."""
        if not recipe.validation:
            return None
        if recipe.validation > len(data) // 2:
            raise UserError(
                f"validation: at most half of the {len(data)} training images can be held out, got {recipe.validation}"
            )
        index = balanced_subset(data.labels, recipe.validation)
        return cls(index, data.images(index), data.labels[index], recipe.validation_attack, threat)

    def rest(self, n: int) -> Tensor:
        """The indices of the images that are learned from."""
        kept = torch.ones(n, dtype=torch.bool)
        kept[self.index] = False
        return kept.nonzero()[:, 0]

    def look(self, network: nn.Module, device: torch.device) -> Seen:
        """Accuracy, and where there is a threat the share that stands after one attempt of the attack."""
        from .perturbation import perturb

        right = stood = 0
        options = {"steps": STEPS} if _has_steps(self.attack) else {}
        for first in range(0, len(self.y), _BATCH):
            x, y = self.x[first : first + _BATCH].to(device), self.y[first : first + _BATCH].to(device)
            with frozen(network), torch.no_grad():
                correct = ask(network, x).argmax(1) == y
                right += int(correct.sum())
                if self.threat is not None:
                    norm, eps = self.threat
                    moved = perturb(network, x, y, attack=self.attack, norm=norm, eps=eps, attack_options=options)
                    stood += int((correct & (ask(network, moved).argmax(1) == y)).sum())
        row = {"validation_accuracy": right / len(self.y)}
        if self.threat is None:
            return Seen(row, row["validation_accuracy"])
        row["validation_robust_accuracy"] = stood / len(self.y)
        # Of two epochs that stand alike the more accurate one.
        return Seen(row, stood + right / (len(self.y) + 1))


def _has_steps(attack: str) -> bool:
    from .options import option_types
    from .registry import load

    cls = load("attacks", attack, argument="validation_attack")
    return isinstance(cls, type) and "steps" in option_types(cls)
