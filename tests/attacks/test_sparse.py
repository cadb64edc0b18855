"""Minimal attacks in l1 and l0 against a linear layer, whose nearest boundary within the box is known exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.fmn import FMN
from robustbench_lite.attacks.sigma_zero import SigmaZero
from robustbench_lite.errors import UserError

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("fmn", "l1", {}),
    ("fmn", "l0", {}),
    ("sigma-zero", "l0", {"steps": 300}),
]


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    layer.bias.data = torch.zeros(classes)
    # Each image leans towards one class, so that several numbers must change.
    lean = layer.weight.data[torch.arange(60) % classes].reshape(60, 1, 8, 8).sign()
    x = torch.rand((60, 1, 8, 8), generator=generator) * 0.4 + 0.3 + 0.15 * lean
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach(), x


def _nearest(weight: Tensor, x: Tensor, y: Tensor, norm: str, aims: Tensor | None = None) -> Tensor:
    """The distance at which a wrong class draws level (or the target with the label, a lower bound), (N,) float64."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for row, image in enumerate(x.flatten(1).double()):
        own = int(y[row])
        for other in range(len(weight)) if aims is None else [int(aims[row])]:
            slope = (weight[other] - weight[own]).double()
            gap = -float(slope @ image)
            room = torch.where(slope > 0, 1 - image, image)
            gain = slope.abs() * room
            order = (slope.abs() if norm == "l1" else gain).argsort(descending=True)
            total = gain[order].cumsum(0).numpy()
            if other == own or total[-1] < gap:
                continue
            last = int(np.searchsorted(total, gap))
            if norm == "l0":
                far = float(last + 1)
            else:
                before = float(total[last] - gain[order[last]])
                far = float(room[order[:last]].sum() + (gap - before) / slope.abs()[order[last]])
            best[row] = min(float(best[row]), far)
    return best


@pytest.mark.parametrize(("attack", "norm", "options"), CASES)
def test_it_comes_near_the_optimum_and_never_below(attack: str, norm: str, options: dict[str, Any]) -> None:
    model, weight, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=5, attack_options=options, checks=False)
    optimum = _nearest(weight, x, y, norm)
    rows = found.samples
    distance = torch.tensor(rows[f"distance_{norm}"].to_numpy()).double()
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    # Numbers are whole in l0: one more than the fewest is no sign of a bad search.
    spare = 1.0 if norm == "l0" else 0.0
    ratio = (distance - spare) / optimum
    assert float(ratio.max()) < 1.25
    assert float((distance / optimum).median()) < 1.05
    assert (rows.success == (rows[f"distance_{norm}"] <= 5)).all()


@pytest.mark.parametrize(("attack", "norm", "options"), CASES)
def test_it_reaches_the_class_it_aims_at(attack: str, norm: str, options: dict[str, Any]) -> None:
    model, weight, x = _linear(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    found = rbl.evaluate(
        model, x, y, attack=attack, norm=norm, eps=5, target="next", attack_options=options, checks=False
    )
    rows = found.samples
    assert (rows.adversarial_prediction == (rows.label + 1) % 3).all()
    bound = _nearest(weight, x, y, norm, (y + 1) % 3)
    assert (torch.tensor(rows[f"distance_{norm}"].to_numpy()) >= bound * (1 - 1e-4)).all()


def _curved() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    x = torch.rand((30, 1, 8, 8), generator=generator)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])
    return own[:, 0] - logits.scatter(1, y[:, None], -1e9).amax(1)


def _sigma_zero(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The authors' loop with Adam written out: the fewest numbers at which each image was wrong."""
    delta, mean, square = (torch.zeros_like(x) for _ in range(3))
    best, threshold = torch.full((len(x),), torch.inf), torch.full((len(x), 1, 1, 1), 0.3)
    for step in range(steps):
        size, after = (0.1 + 0.45 * (1 + math.cos(math.pi * k / steps)) for k in (step, step + 1))
        delta.requires_grad_()
        logits = model(x + delta)
        wrong = logits.argmax(1) != y
        best = torch.where(wrong, torch.minimum(best, (delta != 0).flatten(1).sum(1)), best)
        smooth = (delta.square() / (delta.square() + 1e-3)).flatten(1).mean(1)
        (slope,) = torch.autograd.grad((_margin(logits, y).clamp(min=0) + smooth).sum(), delta)
        slope = slope / slope.flatten(1).abs().amax(1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        root = (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        moved = delta.detach() - size * mean / (1 - 0.9 ** (step + 1)) / root
        delta = (x + moved).clamp(0, 1) - x
        threshold = (threshold + 0.01 * after * torch.where(wrong, 1, -1).reshape(-1, 1, 1, 1)).clamp(0, 1)
        delta = torch.where(delta.abs() < threshold, 0, delta)
    wrong = model(x + delta).argmax(1) != y
    return torch.where(wrong, torch.minimum(best, (delta != 0).flatten(1).sum(1)), best)


def test_sigma_zero_is_the_loop_of_the_paper() -> None:
    model, x, y = _curved()
    options = {"steps": 40}
    found = rbl.evaluate(model, x, y, attack="sigma-zero", norm="l0", eps=5, attack_options=options, checks=False)
    ours = torch.tensor(found.samples.distance_l0.to_numpy()).double()
    theirs = _sigma_zero(model, x, y, 40).double()
    # Rounding grows from step to step, and now and then crosses a threshold.
    assert float((ours == theirs).double().mean()) > 0.8
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), rel=0.05)


def test_more_steps_need_fewer_numbers() -> None:
    model, x, y = _curved()
    for attack, norm in (("fmn", "l1"), ("fmn", "l0"), ("sigma-zero", "l0")):
        mean = []
        for steps in (4, 60):
            options = {"steps": steps}
            found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=5, attack_options=options, checks=False)
            mean.append(float(found.samples[f"distance_{norm}"].fillna(64).mean()))
        assert mean[1] < mean[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FMN(gamma=1), r"gamma must be in \(0, 1\), got 1"),
        (lambda: SigmaZero(steps=0), "steps must be >= 1, got 0"),
        (lambda: SigmaZero(step_size=0), "step_size must be > 0, got 0"),
        (lambda: SigmaZero(sigma=-1), "sigma must be > 0, got -1"),
        (lambda: SigmaZero(rate=float("nan")), "rate must be > 0, got nan"),
        (lambda: SigmaZero(threshold=1.5), r"threshold must be in \[0, 1\], got 1.5"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
