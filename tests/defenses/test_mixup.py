"""mixup: mixtures of images with the same mixtures of labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.mixup import Mixup
from robustbench_lite.errors import UserError

from .steps import accuracy, batch, network, plain, trained, trainer_of


def test_image_and_label_are_mixed_alike() -> None:
    """Images that are their label, so that whatever is mixed shows in both."""
    y = torch.arange(12) % 3
    x = torch.nn.functional.one_hot(y, 3).float().reshape(12, 1, 1, 3)
    weights = []

    def inner(_network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert torch.allclose(x.flatten(1), y, atol=1e-6)
        weights.append(float(y.amax(1).min()))
        return y.sum()

    defense, model = Mixup(alpha=0.7), network()
    for seed in range(200):
        torch.manual_seed(seed)
        defense.loss(model, x, y, inner, trainer_of(defense))
    assert min(weights) < 0.6 and max(weights) > 0.97


def test_beta_has_its_mean_and_spread() -> None:
    """Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); seen through images of zeros and ones."""
    x = torch.cat([torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)])
    y = torch.tensor([0, 1])
    drawn: list[float] = []

    def inner(_network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if float(x[0]) not in (0.0, 1.0):
            drawn.append(float(x[0]))
        return y.sum()

    model = network()
    torch.manual_seed(0)
    for _ in range(4000):
        Mixup(alpha=2.0).loss(model, x, y, inner, trainer_of())
    found = torch.tensor(drawn)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found.var()) == pytest.approx(1 / 20, abs=0.005)


def test_it_learns() -> None:
    assert accuracy(trained(Mixup(), epochs=12)) > 0.9


def test_options_out_of_range() -> None:
    x, y = batch()
    with pytest.raises(UserError, match=r"^alpha must be > 0, got 0"):
        Mixup(alpha=0.0).loss(network(), x, y, plain, trainer_of())
