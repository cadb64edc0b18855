"""SparseFool against what is known of a linear layer: the nearest boundary in l1, and the pixels it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.sparsefool import SparseFool
from robustbench_lite.errors import UserError


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    layer.bias.data = torch.zeros(classes)
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        return model, layer.weight.detach(), x, model(x).argmax(1)


def _found(model: nn.Module, x: Tensor, y: Tensor, norm: str, **options: Any) -> Any:
    return rbl.evaluate(model, x, y, attack=SparseFool(**options), norm=norm, eps=5.0, checks=False).samples


def test_with_two_classes_it_is_the_nearest_in_l1() -> None:
    model, weight, x, y = _linear(2)
    rows = _found(model, x, y, "l1", control=1.0)
    assert (rows.adversarial_prediction != rows.label).all()
    with torch.no_grad():
        logits = model(x).double()
    gap = (logits[:, 0] - logits[:, 1]).abs()
    slope = (weight[0] - weight[1]).double()
    # Numbers of the largest slope go first, each to the end of the box.
    order = slope.abs().argsort(descending=True)
    up = (slope[order] > 0) != (y == 0).unsqueeze(1)
    flat = x.flatten(1).double()[:, order]
    room = torch.where(up, 1 - flat, flat)
    gained = (slope[order].abs() * room).cumsum(1)
    before = gained - slope[order].abs() * room
    least = ((gap.unsqueeze(1) - before).clamp_min(0) / slope[order].abs()).minimum(room)
    distance = torch.tensor(rows.distance_l1.to_numpy())
    optimum = least.sum(1)
    assert (distance >= optimum * (1 - 1e-4)).all()
    assert (distance <= optimum * 1.05 + 0.01).all()
    assert (rows.distance_l0 <= ((least > 0).sum(1) + 1).numpy()).all()


def test_with_more_classes_it_fools_by_few_numbers() -> None:
    model, _, x, y = _linear()
    sparse = _found(model, x, y, "l0")
    dense = rbl.evaluate(model, x, y, attack="deepfool", norm="l2", eps=5.0, checks=False).samples
    assert (sparse.adversarial_prediction != sparse.label).all()
    assert int(dense.distance_l0.median()) > 50
    assert int(sparse.distance_l0.median()) <= 6


def test_a_larger_control_takes_fewer_steps() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        first = nn.Linear(36, 24)
        first.weight.data *= 3
        model, x = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(24, 5)).eval(), torch.rand(30, 1, 6, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    near, far = (_found(model, x, y, "l0", control=control, steps=10) for control in (1.0, 5.0))
    assert (near.adversarial_prediction != near.label).all()
    assert (far.adversarial_prediction != far.label).all()
    assert int(far.backwards.sum()) <= int(near.backwards.sum())
    assert float(far.distance_l1.mean()) > float(near.distance_l1.mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseFool(steps=0), "steps must be >= 1, got 0"),
        (lambda: SparseFool(deepfool_steps=0), "deepfool_steps must be >= 1, got 0"),
        (lambda: SparseFool(classes=0), "classes must be >= 1, got 0"),
        (lambda: SparseFool(control=0.5), "control must be >= 1, got 0.5"),
        (lambda: SparseFool(overshoot=-0.1), "overshoot must be >= 0, got -0.1"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
