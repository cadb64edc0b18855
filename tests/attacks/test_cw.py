"""Carlini and Wagner's attacks against the nearest boundary of a linear layer, and against the paper's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.cw import CW
from robustbench_lite.errors import UserError


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes, bias=False)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        return model, layer.weight.detach(), x, model(x).argmax(1)


def _optimum(weight: Tensor, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance to the nearest boundary, (N,); for l0 the fewest numbers set to an end of the box that cross it."""
    logits = x.flatten(1) @ weight.T
    gap = (logits.gather(1, y[:, None]) - logits).double()
    slope = (weight[None] - weight[y][:, None]).double()
    if norm == "l0":
        flat = x.flatten(1).double()[:, None]
        gains = torch.where(slope > 0, slope * (1 - flat), -slope * flat).sort(2, descending=True).values
        distance = ((gains.cumsum(2) <= gap[:, :, None]).sum(2) + 1).double()
    else:
        dual = slope.abs().sum(2) if norm == "linf" else slope.square().sum(2).sqrt()
        distance = gap / dual.clamp_min(1e-12)
    return distance.scatter(1, y[:, None], float("inf")).amin(1)


@pytest.mark.parametrize(("norm", "most"), [("l2", 1.05), ("linf", 1.1), ("l0", 1.25)])
def test_it_comes_near_the_optimum_and_never_below(norm: str, most: float) -> None:
    model, weight, x, y = _linear()
    found = rbl.evaluate(model, x, y, attack="cw", norm=norm, eps=1, checks=False)
    rows, optimum = found.samples, _optimum(weight, x, y, norm)
    distance = torch.tensor(rows[f"distance_{norm}"].to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    ratio = (distance / optimum)[optimum > (0.005 if norm == "linf" else 0.05)]
    assert len(ratio) > 20
    assert float(ratio.median()) < most
    # In whole numbers, one more than one or two is no great fault.
    assert float(((distance - int(norm == "l0")) / optimum)[optimum > 0.005].max()) < 1.25


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_it_reaches_the_class_it_aims_at(norm: str) -> None:
    model, _, x, y = _linear(3)
    found = rbl.evaluate(model, x, y, attack="cw", norm=norm, eps=1, target="next", checks=False)
    assert (found.samples.adversarial_prediction == (found.samples.label + 1) % 3).all()


def test_it_finds_nearer_images_than_the_papers_loop_with_fewer_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    model.eval().requires_grad_(False)
    x = torch.rand((12, 1, 6, 6), generator=generator)
    y = model(x).argmax(1)
    paper, asked = _paper(model, x, y, searches=5, steps=100)
    assert torch.isfinite(paper).all()
    rows = rbl.evaluate(model, x, y, attack="cw", norm="l2", eps=1, checks=False).samples
    ours = torch.tensor(rows.distance_l2.to_numpy())
    assert float((ours / paper).median()) < 1.005
    assert float((ours / paper).max()) < 1.1
    assert rows.backwards.mean() < asked / 2


def _paper(model: nn.Module, x: Tensor, y: Tensor, *, searches: int, steps: int) -> tuple[Tensor, int]:
    """Section VI.A as it stands: the nearest distances, and the gradients that each image took."""
    best = torch.full((len(x),), float("inf"), dtype=torch.float64)
    c, little, enough = torch.full((len(x),), 0.1), torch.zeros(len(x)), torch.full((len(x),), float("inf"))
    for _ in range(searches):
        w = torch.atanh((2 * x - 1) * 0.999999).requires_grad_()
        adam = torch.optim.Adam([w], lr=0.01)
        found = torch.zeros(len(x), dtype=torch.bool)
        for _ in range(steps):
            image = (torch.tanh(w) + 1) / 2
            logits = model(image)
            own = logits.gather(1, y[:, None])[:, 0]
            other = logits.scatter(1, y[:, None], float("-inf")).amax(1)
            adam.zero_grad()
            ((image - x).square().flatten(1).sum(1) + c * (own - other).clamp_min(0)).sum().backward()
            adam.step()
            hit = (logits.argmax(1) != y).detach()
            distance = (image - x).detach().double().flatten(1).norm(dim=1)
            best, found = torch.where(hit & (distance < best), distance, best), found | hit
        enough, little = torch.where(found, c, enough), torch.where(found, little, c)
        c = torch.where(torch.isinf(enough), c * 10, (little + enough) / 2)
    return best, searches * steps


def test_black_pixels_move() -> None:
    # At the end of tanh's range the slope is nil: an attack that begins there cannot brighten a black image.
    layer = nn.Linear(16, 2)
    layer.weight.data = torch.stack([torch.zeros(16), torch.ones(16)])
    layer.bias.data = torch.tensor([1.5, 0.0])
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x, y = torch.zeros((3, 1, 4, 4)), torch.zeros(3, dtype=torch.int64)
    rows = rbl.evaluate(model, x, y, attack="cw", norm="l2", eps=1, checks=False).samples
    assert (rows.distance_l2 < 1.1 * 1.5 / 4).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CW(steps=0), "steps must be >= 1, got 0"),
        (lambda: CW(searches=0), "searches must be >= 1, got 0"),
        (lambda: CW(step_size=0.6), r"step_size must be in \(0, 0.5\], got 0.6"),
        (lambda: CW(c=0), "c must be > 0, got 0"),
        (lambda: CW(confidence=-1), "confidence must be >= 0, got -1"),
        (lambda: CW(pace=0), "pace must be > 0, got 0"),
        (lambda: CW(gain=1), r"gain must be in \[0, 1\), got 1"),
        (lambda: CW(freeze=0), r"freeze must be in \(0, 1\), got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
