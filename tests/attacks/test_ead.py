"""The elastic net against the nearest boundary of a linear layer in l1, within the box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.ead import EAD
from robustbench_lite.errors import UserError


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes, bias=False)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    x = torch.rand((30, 1, 8, 8), generator=generator) * 0.4 + 0.3
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        return model, layer.weight.detach(), x, model(x).argmax(1)


def _optimum(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The steepest numbers moved to the ends of the box, the last as far as is needed, (N,)."""
    logits = x.flatten(1) @ weight.T
    gap = (logits.gather(1, y[:, None]) - logits).double()[:, :, None]
    slope = (weight[None] - weight[y][:, None]).double()
    flat = x.flatten(1).double()[:, None]
    room = torch.where(slope > 0, 1 - flat, flat.expand_as(slope))
    steep, order = slope.abs().sort(2, descending=True)
    room = room.gather(2, order)
    before = (steep * room).cumsum(2) - steep * room
    length = torch.minimum(room, (gap - before).clamp_min(0) / steep.clamp_min(1e-12)).sum(2)
    return length.scatter(1, y[:, None], float("inf")).amin(1)


@pytest.mark.parametrize("rule", ["EN", "L1"])
def test_it_comes_near_the_optimum_and_never_below(rule: str) -> None:
    model, weight, x, y = _linear()
    options = {"steps": 200, "c": 0.1, "searches": 7, "beta": 0.05, "rule": rule}
    rows = rbl.evaluate(model, x, y, attack="ead", norm="l1", eps=2, attack_options=options, checks=False).samples
    optimum, distance = _optimum(weight, x, y), torch.tensor(rows.distance_l1.to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    ratio = (distance / optimum)[optimum > 0.05]
    assert len(ratio) > 20
    assert float(ratio.median()) < 1.05
    assert float(ratio.max()) < 1.25


def test_it_changes_few_numbers() -> None:
    model, _, x, y = _linear()
    options = {"steps": 100, "c": 0.1, "searches": 4, "beta": 0.05}
    found = rbl.evaluate(model, x, y, attack="ead", norm="l1", eps=2, attack_options=options, checks=False)
    plain = rbl.evaluate(model, x, y, attack="cw", norm="l2", eps=2, checks=False)
    assert found.samples.distance_l0.median() < plain.samples.distance_l0.median() / 2
    assert found.samples.distance_l1.median() < plain.samples.distance_l1.median()


def test_it_reaches_the_class_it_aims_at() -> None:
    model, _, x, y = _linear(3)
    options = {"steps": 100, "c": 0.1, "searches": 5}
    found = rbl.evaluate(
        model, x, y, attack="ead", norm="l1", eps=2, target="next", attack_options=options, checks=False
    )
    assert (found.samples.adversarial_prediction == (found.samples.label + 1) % 3).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EAD(steps=0), "steps must be >= 1, got 0"),
        (lambda: EAD(searches=0), "searches must be >= 1, got 0"),
        (lambda: EAD(step_size=0), "step_size must be > 0, got 0"),
        (lambda: EAD(c=-1), "c must be > 0, got -1"),
        (lambda: EAD(beta=0), "beta must be > 0, got 0"),
        (lambda: EAD(confidence=-1), "confidence must be >= 0, got -1"),
        (lambda: EAD(rule="l2"), "rule must be L1 or EN, got 'l2'"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
