"""Patch-wise ascent against a plain loop of its algorithm, and what it does with the overshoot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.patch_wise import PIFGSM
from robustbench_lite.errors import UserError

from ..core.nets import conv, images, labels_of

EPS, STEPS = 0.08, 6


@pytest.fixture
def model() -> nn.Module:
    return conv(channels=2, scale=4.0)


@pytest.fixture
def x() -> Tensor:
    return images(30, (2, 6, 6))


def slope(model: nn.Module, seen: Tensor, y: Tensor) -> Tensor:
    """The gradient of log((1 - p_y) / p_y), which points where that of cross entropy does."""
    seen = seen.detach().requires_grad_()
    p = model(seen).double().softmax(1).gather(1, y[:, None])
    (gradient,) = torch.autograd.grad(torch.log((1 - p) / p).sum(), seen)
    return torch.as_tensor(gradient)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, *, beta: float, size: int) -> Tensor:
    """Algorithm 1 with the project kernel as a convolution: ones about a zero, in float64, where sums cancel."""
    kernel = torch.ones(size, size, dtype=torch.float64)
    kernel[size // 2, size // 2] = 0
    kernel = kernel.expand(x.shape[1], 1, size, size)
    step, total, seen = beta * EPS / STEPS, torch.zeros_like(x), x.clone()
    for _ in range(STEPS):
        sign = slope(model, seen, y).sign()
        total = total + step * sign
        over = (total.abs() - EPS).clamp(min=0) * total.sign()
        handed = step * F.conv2d(over.double(), kernel, padding=size // 2, groups=x.shape[1]).sign().float()
        total = total + handed
        seen = (seen + step * sign + handed).clamp(x - EPS, x + EPS).clamp(0, 1)
    return seen


@pytest.mark.parametrize(("beta", "size"), [(10.0, 3), (2.5, 5), (1.0, 3)])
def test_it_is_the_algorithm_of_the_paper(beta: float, size: int, model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    options = {"steps": STEPS, "amplification": beta, "kernel_size": size}
    ours = rbl.perturb(model, x, y, attack="pi-fgsm", eps=EPS, attack_options=options)
    same = (ours - by_hand(model, x, y, beta=beta, size=size)).flatten(1).abs().amax(1) < 1e-5
    assert float(same.double().mean()) > 0.8  # sums that nearly cancel may have either sign


def test_without_amplification_nothing_overshoots_and_it_is_bim(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    ours, bim = (
        rbl.perturb(
            model, x, y, attack=name, eps=EPS, attack_options={"steps": STEPS, "step_size": 0.9 * EPS / STEPS, **more}
        )
        for name, more in (("pi-fgsm", {"amplification": 1.0}), ("bim", {}))
    )
    assert torch.allclose(ours, bim, atol=1e-6)


def test_it_stays_in_the_ball_and_finds_what_noise_does_not(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    found = rbl.perturb(model, x, y, attack="pi-fgsm", eps=EPS)
    assert (found - x).abs().max() <= EPS + 1e-7
    ours, noise = (
        rbl.evaluate(model, x, y, attack=attack, eps=0.25, checks=False).robust_accuracy
        for attack in ("pi-fgsm", "noise")
    )
    assert ours < noise - 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amplification": 0.0}, "^amplification must be > 0, got 0"),
        ({"kernel_size": 4}, "^kernel_size must be odd and >= 3, got 4"),
        ({"kernel_size": 1}, "^kernel_size must be odd and >= 3, got 1"),
        ({"steps": 0}, "^steps must be >= 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PIFGSM(**options)  # type: ignore[arg-type]


def test_another_norm_is_refused(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(UserError, match=r"^norm of attack pi-fgsm: unknown name 'l2'"):
        rbl.evaluate(model, x, labels_of(model, x), attack="pi-fgsm", norm="l2")
