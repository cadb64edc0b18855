"""Jitter against a plain loop of its paper, and what its scaling is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.jitter import Jitter
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

from ..core.nets import images, labels_of, mlp

EPS, STEPS = 0.1, 6


class Times(nn.Module):
    """Logits made larger, so that their softmax is 0 and 1."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(x) * self.factor)


@pytest.fixture
def model() -> nn.Module:
    return mlp(scale=4.0)


@pytest.fixture
def x() -> Tensor:
    return images(40)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, *, std: float, scale: float = 10.0) -> Tensor:
    """Ascent by the sign of the gradient of ||softmax(scale z / max|z|) + noise - onehot||^2."""
    place = torch.arange(len(x))
    keys = Stream(torch.zeros_like(place)).child("seed 0").child(place).child("attack jitter").child("jitter")
    seen = x.clone()
    for step in range(STEPS):
        seen.requires_grad_()
        z = model(seen).double()
        p = (scale * z / z.abs().max(1, keepdim=True).values).softmax(1)
        noise = keys.normal((4,), draw=step) * std
        (gradient,) = torch.autograd.grad(((p + noise - torch.eye(4)[y]) ** 2).sum(), seen)
        seen = (seen.detach() + 2.5 * EPS / STEPS * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return seen.detach()


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_it_is_the_loop_of_the_paper(std: float, model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    options = {"steps": STEPS, "random_start": False, "std": std}
    ours = rbl.perturb(model, x, y, attack="jitter", eps=EPS, attack_options=options)
    theirs = by_hand(model, x, y, std=std)
    same = (ours - theirs).flatten(1).abs().amax(1) < 1e-5
    assert float(same.double().mean()) > 0.9  # a gradient of nearly zero may have either sign


def test_how_sure_a_network_is_does_not_matter(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    options = {"steps": STEPS, "random_start": False, "std": 0.0}
    plain, sure = (
        rbl.perturb(net, x, y, attack="jitter", eps=EPS, attack_options=options) for net in (model, Times(model, 256.0))
    )
    assert float(((plain - sure).flatten(1).abs().amax(1) < 1e-6).double().mean()) > 0.9
    sure_net = Times(model, 256.0).eval()
    robust = rbl.evaluate(sure_net, x, y, attack="jitter", eps=EPS, checks=False).robust_accuracy
    assert robust < rbl.evaluate(model, x, y, attack="noise", eps=EPS, checks=False).robust_accuracy - 0.3


def test_noise_belongs_to_the_image_and_to_the_step(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    options = {"steps": STEPS, "random_start": False, "std": 1.0}
    whole = rbl.perturb(model, x, y, attack="jitter", eps=EPS, attack_options=options)
    part = rbl.perturb(model, x[:7], y[:7], attack="jitter", eps=EPS, attack_options=options)
    assert torch.allclose(whole[:7], part, atol=1e-6)
    quiet = rbl.perturb(model, x, y, attack="jitter", eps=EPS, attack_options={**options, "std": 0.0})
    other = rbl.perturb(model, x, y, attack="jitter", eps=EPS, attack_options=options, seed=1)
    assert not torch.allclose(whole, quiet, atol=1e-3) and not torch.allclose(whole, other, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_class_aimed_at(norm: str, model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    targets = (y + 1) % 4
    found = rbl.perturb(model, x, y, attack="jitter", norm=norm, eps=0.4 if norm == "linf" else 2.0, targets=targets)
    # Less than all: where another class is sure, the squared distance from the one aimed at has no slope.
    assert (labels_of(model, x) == targets).double().mean() == 0
    assert (labels_of(model, found) == targets).double().mean() > 0.5


def test_defaults_and_options() -> None:
    assert Jitter(steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.05)
    assert Jitter(restarts=3).attempts == 3
    for options, message in (
        ({"scale": 0.0}, "^scale must be > 0, got 0"),
        ({"std": -0.1}, r"^std must be >= 0, got -0\.1"),
        ({"restarts": 0}, "^restarts must be >= 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            Jitter(**options)
