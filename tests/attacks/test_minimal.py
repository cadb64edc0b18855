"""Minimal attacks against what is known: the nearest boundary of a linear layer, in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.ddn import DDN
from robustbench_lite.attacks.deepfool import DeepFool
from robustbench_lite.attacks.fmn import FMN
from robustbench_lite.errors import UserError

CASES = [
    ("ddn", "l2", {"steps": 100}),
    ("fmn", "l2", {"steps": 100}),
    ("fmn", "linf", {"steps": 100}),
    ("deepfool", "l2", {}),
    ("deepfool", "linf", {}),
]


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    layer.bias.data = torch.zeros(classes)
    # Far enough from the faces of the box that the nearest boundary is not beyond them.
    x = torch.rand((60, 1, 8, 8), generator=generator) * 0.4 + 0.3
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach(), layer.bias.detach(), x


def _optimum(weight: Tensor, logits: Tensor, y: Tensor, norm: str, aims: Tensor | None = None) -> Tensor:
    """Distance to the nearest boundary (or to the target's region, a lower bound), (N,) float64."""
    gap = (logits.gather(1, y[:, None]) - logits).double()
    slope = (weight[y][:, None] - weight[None]).double()
    dual = slope.abs().sum(2) if norm == "linf" else slope.square().sum(2).sqrt()
    distance = (gap / dual.clamp_min(1e-12)).scatter(1, y[:, None], float("inf"))
    return distance.amin(1) if aims is None else distance.gather(1, aims[:, None])[:, 0]


@pytest.mark.parametrize(("attack", "norm", "options"), CASES)
def test_it_comes_near_the_optimum_and_never_below(attack: str, norm: str, options: dict[str, Any]) -> None:
    model, weight, _, x = _linear()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=0.3, attack_options=options)
    optimum = _optimum(weight, logits, y, norm)
    assert float(optimum.max()) < (0.45 if norm == "linf" else 2.0)
    rows = found.samples
    distance = torch.tensor(rows[f"distance_{norm}"].to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    ratio = (distance / optimum)[optimum > (0.005 if norm == "linf" else 0.05)]
    assert len(ratio) > 30
    assert float(ratio.max()) < 1.25
    # The cross entropy of ddn points at a mixture of the wrong classes, not at the nearest.
    assert float(ratio.median()) < (1.2 if attack == "ddn" else 1.05)
    assert (rows.success == (rows[f"distance_{norm}"] <= 0.3)).all()


@pytest.mark.parametrize(("attack", "norm", "options"), [case for case in CASES if case[0] != "deepfool"])
def test_it_reaches_the_class_it_aims_at(attack: str, norm: str, options: dict[str, Any]) -> None:
    model, weight, _, x = _linear(3)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=0.3, target="next", attack_options=options)
    rows = found.samples
    assert (rows.adversarial_prediction == (rows.label + 1) % 3).all()
    bound = _optimum(weight, logits, y, norm, (y + 1) % 3)
    assert (torch.tensor(rows[f"distance_{norm}"].to_numpy()) >= bound * (1 - 1e-4)).all()


def test_deepfool_stops_where_it_has_crossed() -> None:
    model, *_, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    found = rbl.evaluate(model, x, y, attack="deepfool", norm="l2", eps=0.3)
    # One linear model is exact: three gradients of one pass, a look before, a look after, the clean pass, the proof.
    assert (found.samples.backwards == 3).all()
    assert int(found.samples.forwards.max()) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDN(steps=0), "steps must be >= 1, got 0"),
        (lambda: DDN(init_norm=0), "init_norm must be > 0, got 0"),
        (lambda: DDN(gamma=1.0), r"gamma must be in \(0, 1\), got 1"),
        (lambda: FMN(step_size=-1), "step_size must be > 0, got -1"),
        (lambda: FMN(gamma_final=0), r"gamma_final must be in \(0, 1\), got 0"),
        (lambda: DeepFool(classes=0), "classes must be >= 1, got 0"),
        (lambda: DeepFool(overshoot=-0.1), "overshoot must be >= 0, got -0.1"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
