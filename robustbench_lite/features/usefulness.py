"""How useful each feature of a network is, and how much of that an attack leaves: the definitions, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..errors import UserError
from ..network import Noise, exact_float32
from ..penultimate import OneFeature, Penultimate
from ..perturbation import attempt, make_attack
from ..streams import Stream
from ..threat import Threat
from .construction import Workshop
from .leakage import features_of
from .targeted import check_attack

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Task:
    """What a feature is asked to tell: class `positive` from class `negative`, or from all others where that is None.

    sign: +1 or -1, which of f and -f is meant.
    """

    positive: int
    negative: int | None
    sign: int


def side(labels: Tensor, positive: int, negative: int | None) -> Tensor:
    """y (N,) int64: +1 for the positive class, -1 for what it is told from, 0 for images that do not count."""
    y = torch.where(labels == positive, 1, -1)
    return y if negative is None else torch.where((labels == positive) | (labels == negative), y, 0)


def rho(values: Tensor, y: Tensor) -> Tensor:
    """E[y f(x)] of features (N, F), with both sides weighing one half, (F,) float64.

    With these weights E[y] = 0, so that it does not matter where a feature has its zero.
    """
    values = values.double()
    return (values[y > 0].mean(0) - values[y < 0].mean(0)) / 2


def centre_and_spread(values: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of features (N, F) with both sides weighing one half, (F,) float64 each.

    In these units no rho is larger than 1. The spread of a feature that is constant is 0 exactly.
    """
    sides = [values[y > 0].double(), values[y < 0].double()]
    centre = (sides[0].mean(0) + sides[1].mean(0)) / 2
    variance = sum(((part - centre).square().mean(0) for part in sides), torch.zeros_like(centre)) / 2
    constant = (values == values[:1]).all(0)
    return centre, torch.where(constant, 0.0, variance.sqrt())


def choose_tasks(values: Tensor, labels: Tensor, classes: int, pair: tuple[int, int] | None = None) -> list[Task]:
    """For each feature (N, F) the class and the sign with which it is most useful; with `pair` the sign alone."""
    pairs: list[tuple[int, int | None]] = [pair] if pair is not None else [(k, None) for k in range(classes)]
    found = []
    for one in pairs:
        y = side(labels, *one)
        spread = centre_and_spread(values, y)[1]
        found.append(torch.where(spread > 0, rho(values, y) / spread.clamp_min(1e-300), 0.0))
    each = torch.stack(found)
    best = each.abs().argmax(0)
    signs = each.gather(0, best.unsqueeze(0))[0].sign()
    return [
        Task(pairs[k][0], pairs[k][1], 1 if s >= 0 else -1) for k, s in zip(best.tolist(), signs.tolist(), strict=True)
    ]


def usefulness(
    workshop: Workshop,
    train: Dataset,
    test: Dataset,
    *,
    attack: str = "pgd",
    norm: str = "l2",
    eps: float = 0.5,
    attack_options: Mapping[str, Any] | None = None,
    pair: tuple[int, int] | None = None,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """rho and gamma of each penultimate feature (Ilyas et al. 2019, arXiv:1905.02175, section 2), a row each.

    rho = E[y f(x)], gamma = E[inf over |delta| <= eps of y f(x + delta)], f brought to mean 0 and variance 1 on the
    images of `train` that count, so that |rho| <= 1 there. The paper's y is -1 or 1: with `pair` the two classes, else
    each feature's own class against all others, both sides weighing one half. Class and sign are chosen on `train` and
    everything else is measured on `test`, so that choosing the best of many does not flatter it. The infimum is what
    the attack finds, from the image itself at worst: gamma is an upper bound, and a feature that it calls robust is so
    against this attack.

    Columns: feature, positive, negative (-1: all others), sign, rho, gamma, kind: `robust` (gamma > 0 within two
    standard errors), `nonrobust` (rho > 0 likewise, gamma not), `useless`; rho_error, gamma_error: standard errors;
    constant: it is the same on all training images. Raises UserError for an attack or a pair that does not fit.
    """
    threat = Threat(norm, eps)
    threat.check_shape(test.shape)
    made = make_attack(attack, attack_options, threat)
    check_attack(made, threat, argument="--attack")
    _check(pair, workshop.n_classes)
    known, values = features_of(workshop.features, train).double(), features_of(workshop.features, test).double()
    tasks = choose_tasks(known, train.labels, workshop.n_classes, pair)
    rows = []
    for number, task in enumerate(tasks):
        y = side(test.labels, task.positive, task.negative) * task.sign
        at = y.nonzero()[:, 0]
        centre, spread = (
            float(one)
            for one in centre_and_spread(known[:, [number]], side(train.labels, task.positive, task.negative))
        )
        constant, scale = not spread, spread or 1.0
        own = (values[:, number] - centre) / scale
        moved = own[at]
        if not constant:
            worst = _worst(workshop, number, test, at, y[at], made, threat, batch_size)
            worst = (worst.double() - centre) / scale
            moved = torch.where(y[at] > 0, torch.minimum(worst, moved), torch.maximum(worst, moved))
        rows.append(
            {
                "feature": number,
                "positive": task.positive,
                "negative": -1 if task.negative is None else task.negative,
                "sign": task.sign,
                **_row(own[at], moved, y[at]),
                "constant": constant,
            }
        )
        if progress is not None:
            progress(1)
    return _frame(rows)


def _check(pair: tuple[int, int] | None, classes: int) -> None:
    if pair is not None and not (pair[0] != pair[1] and all(0 <= k < classes for k in pair)):
        raise UserError(f"--classes: expected two different classes in 0..{classes - 1}, got {pair[0]},{pair[1]}")


def _worst(
    workshop: Workshop, number: int, test: Dataset, at: Tensor, y: Tensor, made: Any, threat: Threat, batch_size: int
) -> Tensor:
    """The feature (n,) float32 where the attack made y f smallest, of the test images at `at`."""
    features = workshop.features.model
    assert isinstance(features, Penultimate)
    module = OneFeature(features, number)
    found = []
    for place, x, labels in zip(
        at.split(batch_size),  # type: ignore[no-untyped-call]
        (x for _, x, _ in test.blocks(at, batch_size)),
        y.split(batch_size),  # type: ignore[no-untyped-call]
        strict=True,
    ):
        place = place.to(workshop.device)
        candidate = attempt(
            module,
            x.to(workshop.device),
            (labels < 0).long().to(workshop.device),
            attack=made,
            norm=threat.norm,
            eps=threat.eps,
            seed=workshop.seed,
            place=place,
            block=workshop.features.block,
        ).candidate
        with exact_float32():
            seen = workshop.features.logits(candidate, Noise(Stream(place), torch.zeros_like(place)))
        found.append(seen[:, number].cpu())
    return torch.cat(found)


def _row(own: Tensor, moved: Tensor, y: Tensor) -> dict[str, Any]:
    useful, useful_error = _mean(own, y)
    robust, robust_error = _mean(moved, y)
    kind = "robust" if robust > 2 * robust_error else "nonrobust" if useful > 2 * useful_error else "useless"
    return {"rho": useful, "gamma": robust, "kind": kind, "rho_error": useful_error, "gamma_error": robust_error}


def _mean(values: Tensor, y: Tensor) -> tuple[float, float]:
    """E[y f] with both sides weighing one half, and its standard error."""
    sides = [values[y > 0], values[y < 0]]
    variance = sum(float(part.var()) / len(part) if len(part) > 1 else 0.0 for part in sides)
    return float(sides[0].mean() - sides[1].mean()) / 2, variance**0.5 / 2


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
