"""One step of a train-time defense, by hand: a network, a batch, and the loss that it states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.defense import TrainingDefense
from robustbench_lite.history import History
from robustbench_lite.recipe import Recipe
from robustbench_lite.training import Trainer, train_model

CLASSES = 3


def network() -> nn.Module:
    """Small, without randomness."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, CLASSES))


def batch(n: int = 12) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 4, 4) and labels that a bright row tells."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % CLASSES
    x = 0.1 + 0.5 * torch.rand((n, 1, 4, 4), generator=generator)
    x[torch.arange(n), 0, y] += 0.3
    return x, y


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy."""
    return cross_entropy(model(x), y)


def trainer_of(*defenses: TrainingDefense, **more: Any) -> Trainer:
    """A trainer within a training of the labels of `batch`."""
    trainer = Trainer(Recipe(), defenses=defenses, **more)
    trainer.classes = CLASSES
    return trainer


def value(defense: TrainingDefense, model: nn.Module, x: Tensor, y: Tensor, trainer: Trainer | None = None) -> Tensor:
    """What the defense makes small, standing on the cross-entropy."""
    torch.manual_seed(7)
    return defense.loss(model, x, y, plain, trainer or trainer_of(defense))


def trained(*defenses: TrainingDefense, history: History | None = None, **recipe: Any) -> nn.Module:
    """The network after a short training on 90 images."""
    x, y = batch(90)
    data = from_arrays(x, y, classes=CLASSES, split="train")
    given: dict[str, Any] = {"epochs": 8, "batch_size": 15, "augment": "none", "lr": 0.1, **recipe}
    return train_model(network(), data, recipe=Recipe(**given), defenses=defenses, history=history)


def accuracy(model: nn.Module) -> float:
    """On the images learned from."""
    x, y = batch(90)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
