"""input-gradient: the squared length by hand, and shorter gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defenses.input_gradient import InputGradient
from robustbench_lite.errors import UserError

from .steps import batch, network, plain, trained, value


def lengths(model: nn.Module) -> torch.Tensor:
    x, y = batch(90)
    x.requires_grad_()
    found: torch.Tensor = torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)[0].flatten(1).norm(dim=1)
    return found


def test_the_length_by_hand_and_its_own_gradient() -> None:
    x, y = batch()
    model = network()
    found = value(InputGradient(weight=2.0), model, x, y)
    total = 0.0
    for i in range(len(x)):
        one = x[i : i + 1].clone().requires_grad_()
        total += float(torch.autograd.grad(plain(model, one, y[i : i + 1]), one)[0].square().sum())
    assert found.item() == pytest.approx(plain(model, x, y).item() + 2 * total / len(x), rel=1e-5)
    weights = list(model.parameters())
    with_it = torch.autograd.grad(value(InputGradient(weight=2.0), model, x, y), weights)
    without = torch.autograd.grad(value(InputGradient(weight=0.0), model, x, y), weights, allow_unused=True)
    assert not torch.allclose(with_it[0], without[0])


def test_training_shortens_gradients() -> None:
    assert float(lengths(trained(InputGradient(weight=5.0))).mean()) < 0.8 * float(lengths(trained()).mean())


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^weight must be >= 0"):
        InputGradient(weight=-1.0)
