"""One step of length eps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.errors import UserError


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def middle(count: int = 12) -> Tensor:
    return torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_one_step_along_the_gradient(norm: str) -> None:
    model, x = net(), middle().requires_grad_()
    y = model(x).argmax(1)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    step = gradient.sign() if norm == "linf" else gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    seen = rbl.perturb(model, x.detach(), y, attack="fgsm", norm=norm, eps=0.1)
    assert torch.allclose(seen, x + 0.1 * step, atol=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_sparse_norms_change_the_pixels_of_largest_slope(norm: str) -> None:
    model, x = net(), middle().requires_grad_()
    y = model(x).argmax(1)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    seen = rbl.perturb(model, x.detach(), y, attack="fgsm", norm=norm, eps=2)
    delta = (seen - x.detach()).flatten(1)
    assert ((delta * gradient.flatten(1)) >= 0).all()
    assert delta.abs().amax(1).min() > 0.3
    if norm == "l0":
        assert ((delta != 0).sum(1) == 2).all()
    else:
        assert delta.abs().sum(1).numpy() == pytest.approx(2, rel=1e-4)


def test_it_costs_one_gradient() -> None:
    model, x = net(), middle()
    r = rbl.evaluate(model, x, model(x).argmax(1), attack="fgsm", eps=0.001)
    assert r.robust_accuracy == 1
    assert r.samples["backwards"].tolist() == [1] * 12
    # The clean image, the gradient's own pass, and the proof.
    assert r.samples["forwards"].tolist() == [3] * 12


def test_a_target_is_approached() -> None:
    model, x = net(), middle()
    y = model(x).argmax(1)
    targets = (y + 1) % 3
    seen = rbl.perturb(model, x, y, attack=FGSM(loss="margin"), eps=0.02, targets=targets)
    gap = [model(images).gather(1, targets[:, None]) - model(images).gather(1, y[:, None]) for images in (x, seen)]
    assert (gap[1] > gap[0]).all()


def test_its_options() -> None:
    with pytest.raises(UserError, match=r"^loss: unknown name 'dlrr'; did you mean dlr"):
        FGSM(loss="dlrr")
    with pytest.raises(UserError, match="fgsm has no option 'steps'"):
        rbl.perturb(net(), middle(), torch.zeros(12, dtype=torch.int64), attack="fgsm", attack_options={"steps": 2})
