"""Noise that belongs to the image, of the size that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream, drawing


def test_noise_has_its_size_and_stays_in_the_box() -> None:
    x = torch.full((50, 3, 16, 16), 0.5)
    with drawing(Stream(torch.arange(50)), torch.zeros(50, dtype=torch.int64)):
        seen = RandomNoise(sigma=0.1).transform(x)
    assert float((seen - x).std()) == pytest.approx(0.1, rel=0.03)
    assert abs(float((seen - x).mean())) < 0.002
    with drawing(Stream(torch.arange(50)), torch.zeros(50, dtype=torch.int64)):
        loud = RandomNoise(sigma=3.0).transform(x)
    assert 0 <= loud.min() < loud.max() <= 1


def test_it_differs_from_call_to_call() -> None:
    x = torch.full((2, 1, 4, 4), 0.5)
    defense = RandomNoise(sigma=0.1)
    assert not torch.equal(defense.transform(x), defense.transform(x))
    assert torch.equal(RandomNoise(sigma=0.0).transform(x), x)


def test_its_gradient_is_its_own() -> None:
    x = torch.full((2, 1, 4, 4), 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(RandomNoise(sigma=0.01).transform(x).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_an_evaluation_is_the_same_twice_and_is_judged_on_many_draws() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(20, 1, 4, 4)
    y = model(x).argmax(1)
    runs = [
        rbl.evaluate(model, x, y, eps=0.05, defenses=[RandomNoise(sigma=0.1)], attack_options={"steps": 3}).run
        for _ in range(2)
    ]
    assert runs[0].table.equals(runs[1].table)
    assert (runs[0].specification.votes, runs[0].specification.eot) == (16, 8)
    assert runs[0].specification.defenses[0].randomized


def test_sigma_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^sigma must be >= 0, got -0\.1"):
        RandomNoise(sigma=-0.1)
    with pytest.raises(UserError, match=r"^sigma must be >= 0, got nan"):
        RandomNoise(sigma=float("nan"))
