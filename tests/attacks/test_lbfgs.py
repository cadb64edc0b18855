"""Szegedy's attack against the nearest boundary of a linear layer, and its independence of the batch."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.lbfgs import LBFGS, _together
from robustbench_lite.errors import UserError


def _linear(classes: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes, bias=False)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    x = torch.rand((16, 1, 8, 8), generator=generator) * 0.4 + 0.3
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        return model, layer.weight.detach(), x, model(x).argmax(1)


@pytest.mark.parametrize(("loss", "classes"), [("ce", 2), ("margin", 4)])
def test_it_comes_near_the_optimum_and_never_below(loss: str, classes: int) -> None:
    model, weight, x, y = _linear(classes)
    rows = rbl.evaluate(
        model, x, y, attack="lbfgs", norm="l2", eps=1, attack_options={"loss": loss}, checks=False
    ).samples
    logits = x.flatten(1) @ weight.T
    gap = (logits.gather(1, y[:, None]) - logits).double()
    slope = (weight[None] - weight[y][:, None]).double().square().sum(2).sqrt()
    optimum = (gap / slope.clamp_min(1e-12)).scatter(1, y[:, None], float("inf")).amin(1)
    distance = torch.tensor(rows.distance_l2.to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    ratio = (distance / optimum)[optimum > 0.05]
    assert len(ratio) > 8
    assert float(ratio.median()) < 1.05
    assert float(ratio.max()) < 1.25


def test_it_reaches_the_class_it_aims_at() -> None:
    model, _, x, y = _linear(3)
    found = rbl.evaluate(model, x, y, attack="lbfgs", norm="l2", eps=1, target="next", checks=False)
    assert (found.samples.adversarial_prediction == (found.samples.label + 1) % 3).all()


def test_it_stays_in_the_box_where_the_nearest_boundary_is_beyond() -> None:
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 1.0, 1.0]])
    layer.bias.data = torch.tensor([4.0, 0.0])
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x, y = torch.tensor([0.9, 0.1, 0.1, 0.1]).reshape(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    found = rbl.evaluate(model, x, y, attack="lbfgs", norm="l2", eps=1, checks=False)
    # The first pixel to its end, the others share what is left: 3 + 3 v = 4.
    best = (0.1**2 + 3 * (1 / 3 - 0.1) ** 2) ** 0.5
    assert best <= found.samples.distance_l2[0] < best * 1.05
    assert found.adversarial is not None
    assert float(found.adversarial.max()) <= 1


def test_a_sample_alone_is_what_it_is_among_others() -> None:
    model, _, x, y = _linear(3)
    options = {"searches": 4}

    def run(size: int) -> Any:
        return rbl.evaluate(
            model,
            x,
            y,
            attack="lbfgs",
            norm="l2",
            eps=1,
            attack_options=options,
            batch_size=size,
            deterministic=True,
            checks=False,
        ).samples

    many, few = run(16), run(3)
    assert (many.forwards == few.forwards).all()
    assert (many.adversarial_hash == few.adversarial_hash).all()


def test_a_failure_inside_ends_all_threads() -> None:
    def answer(order: list[int], points: list[Any]) -> list[Any]:
        raise ValueError("no answer")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no answer"):
        _together(3, lambda i, ask: ask(torch.zeros(1).numpy()), answer)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LBFGS(searches=0), "searches must be >= 1, got 0"),
        (lambda: LBFGS(steps=0), "steps must be >= 1, got 0"),
        (lambda: LBFGS(memory=0), "memory must be >= 1, got 0"),
        (lambda: LBFGS(c=0), "c must be > 0, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
