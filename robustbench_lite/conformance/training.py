"""The checks of a defense that is a way of training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.checks import from_arrays
from ..data.dataset import ArrayDataset
from ..defense import TrainingDefense
from ..models.seeding import seeded
from ..recipe import Recipe
from ..reliability import Word, word_of
from ..training import train_model
from .check import Checks, Failed
from .samples import Shape, images, random_state, random_state_kept, touched

_COUNT = 16
_CLASSES = 3
_RECIPE = Recipe(epochs=1, batch_size=8, augment="none")


def check_training(defense: TrainingDefense, checks: Checks, shapes: Sequence[Shape]) -> None:
    """Add the checks of a train-time defense: one epoch on a few images of each of these shapes."""
    fitted: list[_Fitted] = []
    if not checks.run("fit", lambda: _fits(defense, shapes, fitted)):
        return
    first = fitted[0]
    checks.run("same seed, same weights", lambda: _repeats(defense, first))
    checks.run("data untouched", lambda: _untouched(first))
    checks.run("rows", lambda: _rows(first))
    checks.run("global random state", lambda: _global_state(first))
    checks.run("evaluation", lambda: _evaluation(first))


@dataclass(frozen=True)
class _Fitted:
    """One training: what came of it, and what it touched."""

    shape: Shape
    network: nn.Module
    data: ArrayDataset
    moved: list[str]


def _data(shape: Shape) -> ArrayDataset:
    return from_arrays(images(_COUNT, shape), torch.arange(_COUNT) % _CLASSES, name="conformance", classes=_CLASSES)


def _network(shape: Shape) -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64, _CLASSES),
        )


def _fit(defense: TrainingDefense, shape: Shape) -> _Fitted:
    data = _data(shape)
    with random_state_kept():
        before = random_state()
        network = train_model(_network(shape), data, recipe=_RECIPE, defenses=[defense])
        return _Fitted(shape, network, data, touched(before, random_state()))


def _fits(defense: TrainingDefense, shapes: Sequence[Shape], fitted: list[_Fitted]) -> str:
    if type(defense).fit is TrainingDefense.fit and type(defense).loss is TrainingDefense.loss:
        raise Failed("neither loss nor fit is written: write loss(self, network, x, y, inner, trainer)")
    for shape in shapes:
        fitted.append(_fit(defense, shape))
        network = fitted[-1].network
        with torch.no_grad():
            logits = network(images(4, shape))
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if came != (4, _CLASSES):
            raise Failed(f"the trained network must give (4, {_CLASSES}) logits for 4 images {shape}, got {came}")
        if not bool(torch.isfinite(logits).all()):
            raise Failed(f"the trained network gives NaN or infinite logits for images {shape}")
        if _equal(network, _network(shape)):
            raise Failed("fit left every weight as it was: nothing was trained; return trainer.fit(model, data)")
    return f"one epoch on images of {', '.join('x'.join(map(str, shape)) for shape in shapes)}"


def _equal(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def _repeats(defense: TrainingDefense, first: _Fitted) -> str:
    # What a caller drew before must not matter.
    with seeded(99):
        second = _fit(defense, first.shape)
    if not _equal(first.network, second.network):
        raise Failed(
            "two trainings with the same seed give other weights: something draws from a source that no seed "
            "controls, or remembers an earlier training"
        )
    return "to the last bit"


def _untouched(first: _Fitted) -> str:
    fresh = _data(first.shape)
    if not (torch.equal(first.data.array, fresh.array) and torch.equal(first.data.labels, fresh.labels)):
        raise Failed("fit changes the data set it is given; work on copies")
    return "images and labels are left as they were"


def _rows(first: _Fitted) -> str:
    network, x = first.network, images(4, first.shape, seed=1)
    with torch.no_grad():
        gap = float((network(x)[:1] - network(x[:1])).abs().max())
    if not gap <= 1e-4:
        raise Failed(f"the trained network's logits of an image change by {gap:.2g} with the others of its batch")
    return "an image's logits do not depend on its batch"


def _global_state(first: _Fitted) -> str:
    if first.moved:
        raise Failed(f"fit moves {' and '.join(first.moved)}, on which other results depend")
    return "left as it was found"


def _evaluation(first: _Fitted) -> str:
    from ..evaluation import evaluate

    network, x = first.network, images(8, first.shape, seed=1)
    with torch.no_grad():
        y = network(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = evaluate(network, x, y, attack_options={"steps": 3}, eps=8 / 255, checks=False)
    if word_of(result.verdict) is not Word.UNCHECKED:
        raise Failed(f"robustbench_lite.evaluate says {result.verdict}")
    return "evaluated, model checks passed"
