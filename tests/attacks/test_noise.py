"""The control: of the allowed size, and blind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.errors import UserError
from robustbench_lite.threat import distances


def grey(count: int = 200) -> Tensor:
    return torch.full((count, 1, 4, 4), 0.5)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def noise(norm: str, distribution: str) -> Tensor:
    attack = rbl.perturb(
        net(),
        grey(),
        torch.zeros(200, dtype=torch.int64),
        attack="noise",
        norm=norm,
        eps=0.2,
        attack_options={"distribution": distribution},
    )
    return attack - 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gaussian_noise_lies_on_the_surface(norm: str) -> None:
    delta = noise(norm, "gaussian")
    length = distances(torch.zeros_like(delta), delta)[norm]
    assert length.numpy() == pytest.approx(0.2, rel=1e-4)
    assert abs(float(delta.mean())) < 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_noise_fills_the_ball(norm: str) -> None:
    delta = noise(norm, "uniform")
    length = distances(torch.zeros_like(delta), delta)[norm] / 0.2
    assert (length <= 1).all()
    if norm == "linf":
        assert abs(float(delta.abs().mean()) - 0.1) < 0.005
        assert float(delta.std()) == pytest.approx(0.2 / 3**0.5, rel=0.05)
    else:
        # The radius of a uniform point of a ball of 16 dimensions: its mean is 16 / 17.
        assert float(length.mean()) == pytest.approx(16 / 17, abs=0.02)


def test_it_asks_the_network_nothing_but_the_verdict() -> None:
    model, x = net(), torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    r = rbl.evaluate(model, x, model(x).argmax(1), attack="noise", eps=1e-6, attack_options={"restarts": 4})
    assert r.samples["forwards"].tolist() == [5] * 10
    assert r.backwards == 0


def test_its_options() -> None:
    with pytest.raises(UserError, match=r"^restarts must be >= 1, got 0"):
        Noise(restarts=0)
    with pytest.raises(UserError, match="distribution must be one of uniform, gaussian, got 'normal'"):
        rbl.perturb(
            net(), grey(2), torch.zeros(2, dtype=torch.int64), attack="noise", attack_options={"distribution": "normal"}
        )
