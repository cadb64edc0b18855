"""randomized-smoothing: the noise is whole, verdicts are votes, and attacks go through the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.defenses.randomized_smoothing import RandomizedSmoothing
from robustbench_lite.errors import UserError
from robustbench_lite.network import Network, Noise
from robustbench_lite.streams import Stream, drawing


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Loud(nn.Module):
    """Now and then class 1 by a thousand, else class 0 by two: the mean of logits and the vote differ."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full((len(x),), 2.0), 1000.0 * (x[:, 0, 0, 0] > 0.5)], 1) + 0 * x[:, 0, 0, :1]


def test_the_noise_is_normal_and_is_not_cut() -> None:
    keys = torch.arange(400)
    x = torch.ones(400, 1, 8, 8)
    with drawing(Stream(keys), torch.zeros_like(keys)):
        seen = RandomizedSmoothing(sigma=0.3).wrap(Same())(x) - 1
    assert float(seen.std()) == pytest.approx(0.3, rel=0.02)
    assert float(seen.mean()) == pytest.approx(0, abs=0.01)
    assert float((seen > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_verdict_is_a_vote_and_the_mean_is_not() -> None:
    x = torch.full((6, 1, 1, 1), 0.3)
    keys = torch.arange(6)
    module = RandomizedSmoothing(sigma=0.25).wrap(Loud())  # a share Phi(-0.8), one in five, is loud
    noise = Noise(Stream(keys), torch.zeros_like(keys))
    voted = Network(module, hard_votes=True).logits(x, noise, draws=400)
    assert torch.allclose(voted.sum(1), torch.ones(6))
    assert (voted.argmax(1) == 0).all()
    assert voted[:, 1].mean() == pytest.approx(0.212, abs=0.03)
    assert (Network(module).logits(x, noise, draws=400).argmax(1) == 1).all()
    # A query, which says no number, gets logits.
    assert Network(module, hard_votes=True, eot=50).logits(x, noise).max() > 1


def test_an_evaluation_votes_a_hundred_times_with_draws_of_its_own() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    y = network(x).argmax(1)
    asked: dict[str, Any] = {"attack": "pgd", "norm": "l2", "eps": 0.1, "attack_options": {"steps": 2}, "checks": False}
    found = [
        rbl.evaluate(network, x, y, defenses=[RandomizedSmoothing(sigma=0.1)], batch_size=n, **asked) for n in (5, 2)
    ]
    first = found[0].run.specification
    assert (first.votes, first.eot) == (100, 8)
    margins = found[0].column("margin")
    assert torch.allclose(margins * 100, (margins * 100).round(), atol=1e-3)
    assert torch.equal(margins, found[1].column("margin"))
    assert torch.equal(found[0].success, found[1].success)


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^sigma must be > 0, got 0"):
        RandomizedSmoothing(sigma=0.0)
