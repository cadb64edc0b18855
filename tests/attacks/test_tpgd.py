"""The inner loop of TRADES against its formula, blind to the label."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.tpgd import TPGD
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

from ..core.nets import images, labels_of, mlp

EPS, STEPS = 0.1, 6


@pytest.fixture
def model() -> nn.Module:
    return mlp(scale=4.0)


@pytest.fixture
def x() -> Tensor:
    return images(40)


def test_it_is_the_loop_of_the_paper(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    ours = rbl.perturb(model, x, y, attack="tpgd", eps=EPS, attack_options={"steps": STEPS, "noise": 0.01})
    place = torch.arange(len(x))
    stream = Stream(torch.zeros_like(place)).child("seed 0").child(place).child("attack tpgd")
    seen = (x + 0.01 * stream.normal(x.shape[1:])).clamp(0, 1)
    clean = model(x).detach().double().softmax(1)
    for _ in range(STEPS):
        seen.requires_grad_()
        loss = F.kl_div(model(seen).double().log_softmax(1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen)
        seen = (seen.detach() + 2.25 * EPS / STEPS * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    same = (ours - seen.detach()).flatten(1).abs().amax(1) < 1e-5
    assert float(same.double().mean()) > 0.9  # a gradient of nearly zero may have either sign


def test_the_label_does_not_matter(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    one, two = (rbl.perturb(model, x, labels, attack="tpgd", eps=EPS) for labels in (y, (y + 1) % 4))
    assert torch.equal(one, two)


def test_next_to_the_image_the_divergence_has_a_slope(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    near = rbl.perturb(model, x, y, attack="tpgd", norm="l2", eps=1.0, attack_options={"steps": 1})
    assert ((near - x).flatten(1).norm(dim=1) > 0.5).all()
    still = nn.Sequential(model, Still()).eval()
    kept = rbl.perturb(still, x, y, attack="tpgd", norm="l2", eps=1.0, attack_options={"steps": 3})
    assert (kept - x).abs().max() < 0.01  # a network that says one thing of all images: the noise of the start alone


class Still(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits * 0


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.6)])
def test_it_finds_what_noise_does_not(norm: str, eps: float, model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    ours, noise = (
        rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=eps, checks=False).robust_accuracy
        for attack in ("tpgd", "noise")
    )
    assert ours < noise - 0.3


def test_defaults_and_options(model: nn.Module, x: Tensor) -> None:
    assert TPGD(steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.045)
    with pytest.raises(UserError, match=r"^noise must be >= 0, got -0\.1"):
        TPGD(noise=-0.1)
    with pytest.raises(UserError, match=r"^target: attack tpgd cannot aim at a class"):
        rbl.evaluate(model, x, labels_of(model, x), attack="tpgd", target="next", eps=EPS)
