"""Losses of train-time defenses that stand one on another, the first outermost, the cross-entropy within."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .defense import Loss, TrainingDefense
from .errors import RblError, UserError
from .registry import guard

if TYPE_CHECKING:
    from .training import Trainer


def check_losses(defenses: Sequence[TrainingDefense], *, argument: str = "defenses") -> None:
    """Raise UserError for losses that cannot stand one on another in this order."""
    for defense in defenses[:-1]:
        if defense.innermost:
            raise _not_last(defense, argument)


def stacked(defenses: Sequence[TrainingDefense], innermost: Loss, trainer: Trainer) -> Loss:
    """The loss of them all. It raises PluginError where one raises, UserError where one forgets those behind it."""
    loss = innermost
    for defense in reversed(defenses):
        if type(defense).loss is not TrainingDefense.loss:
            loss = functools.partial(_through, defense, loss, trainer)
    return loss


def _through(
    defense: TrainingDefense, inner: Loss, trainer: Trainer, network: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    asked = []

    def behind(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        asked.append(True)
        return inner(network, x.clone(), y.clone())  # both defenses may write into what they are given

    try:
        value = defense.loss(network, x, y, behind, trainer)
        if not asked and defense is not trainer.defenses[-1]:
            raise _not_last(defense, "--defense")
        return value
    except RblError:
        raise
    except Exception as error:
        raise guard(f"--defense: {defense.name}.loss", error) from error


def _not_last(defense: TrainingDefense, argument: str) -> UserError:
    return UserError(f"{argument}: {defense.name} takes the place of the loss behind it; give it after the others")
