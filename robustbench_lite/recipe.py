"""How a network is trained: the recipe, its learning rates and its optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from .errors import UserError
from .options import configure

if TYPE_CHECKING:
    from .defense import TrainingDefense

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["one-cycle", "cosine", "cyclic", "step", "constant"]
Augment = Literal["none", "crop", "crop-flip"]
Precision = Literal["float32", "bf16", "f16"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults suit small images and a processor without an accelerator.

    epochs: passes over the training set; None takes `epochs_for` its size.
    lr: the highest learning rate. schedule: "one-cycle" rises over the first three tenths and falls to zero as a
    cosine, "cosine" only falls, "cyclic" rises in a line over the first four tenths and falls in a line to zero
    (Wong et al. 2020, arXiv:2001.03994), "step" is divided by 10 at one half and at three quarters, "constant" stays.
    optimizer: "sgd" has Nesterov momentum 0.9; "adam" adds `weight_decay` to the gradient, "adamw" does not.
    accumulate: batches whose gradients are averaged for one step.
    precision: "bf16" or "f16" computes in it what can be (autocast), with weights and optimizer in float32.
    ema: decay of a running average of the weights, which is then what is kept; 0 for none.
    augment: "crop" shifts each image by up to an eighth of its side, "crop-flip" mirrors half of them too.
    validation: images held out of the training set, balanced over the classes; after each epoch they are attacked by
    `validation_attack` (10 steps of it, where it has steps, at the norm and eps of the defense that states them; else
    they are classified as they are), and the best epoch is kept. 0 for none: the last is kept.
    seed: of the order, the augmentation and what the network itself draws (dropout).

    Raises UserError for a value out of its range.
    """

    epochs: int | None = None
    batch_size: int = 64
    lr: float = 0.05
    optimizer: Optimizer = "sgd"
    weight_decay: float = 5e-4
    schedule: Schedule = "one-cycle"
    label_smoothing: float = 0.0
    augment: Augment = "crop"
    accumulate: int = 1
    precision: Precision = "float32"
    ema: float = 0.0
    validation: int = 0
    validation_attack: str = "pgd"
    seed: int = 0

    def __post_init__(self) -> None:
        _want("epochs", self.epochs, self.epochs is None or self.epochs >= 1, "at least 1")
        _want("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _want("lr", self.lr, 0 < self.lr < math.inf, "a positive number")
        _want("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _want("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        _want("accumulate", self.accumulate, self.accumulate >= 1, "at least 1")
        _want("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        _want("validation", self.validation, self.validation >= 0, "at least 0")
        _want("seed", self.seed, 0 <= self.seed < 2**31, "in 0..2147483647")
        for name, kind in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("augment", Augment),
            ("precision", Precision),
        ):
            choices = get_args(kind)
            _want(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def resolve(self, n: int) -> Recipe:
        """The same recipe with its epochs settled for a training set of `n` images."""
        return self if self.epochs is not None else dataclasses.replace(self, epochs=epochs_for(n))


def _want(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise UserError(f"{name} must be {expected}, got {value!r}")


def recipe_for(defenses: Iterable[TrainingDefense], given: Mapping[str, Any], *, argument: str) -> Recipe:
    """The recipe that the user gave (by name, as text or as values), with the defenses' own for what was left open.

    Of two defenses the first that states a value is heard. Raises UserError as `configure` does, for `argument`.
    """
    own = [defense.recipe for defense in defenses]
    stated: dict[str, Any] = {name: value for recipe in reversed(own) for name, value in recipe.items()}
    return configure(Recipe, {**stated, **given}, argument=argument)


def epochs_for(n: int) -> int:
    """Epochs for a training set of `n` images: fewer the larger it is, 20 for the 1,437 digits, 5 to 50.

    >>> epochs_for(1437), epochs_for(60_000)
    (20, 5)
    """
    return min(50, max(5, round(20 * math.sqrt(1437 / n))))


def make_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer of these parameters."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Give the optimizer the learning rate for when the part `done`, in [0, 1], of a training is over."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * lr_factor(recipe.schedule, done)


def lr_factor(schedule: str, done: float) -> float:
    """The share of the highest learning rate when the part `done`, in [0, 1], of a training is over."""
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    if schedule == "cyclic":
        return done / 0.4 if done < 0.4 else (1 - done) / 0.6
    rise = 0.3 if schedule == "one-cycle" else 0.0
    if done < rise:
        return done / rise
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
