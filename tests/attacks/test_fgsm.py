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


@pytest.mark.parametrize(("norm", "eps"), [("l1", 0.1), ("l0", 2)])
def test_sparse_norms_change_the_pixels_of_largest_slope(norm: str, eps: float) -> None:
    model, x = net(), middle().requires_grad_()
    y = model(x).argmax(1)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    seen = rbl.perturb(model, x.detach(), y, attack="fgsm", norm=norm, eps=eps)
    # In l1 whoever falls may have fallen to the other look.
    stands = model(seen).argmax(1) == y if norm == "l1" else torch.ones_like(y, dtype=torch.bool)
    assert stands.sum() >= 6
    delta = (seen - x.detach()).flatten(1)[stands]
    assert ((delta * gradient.flatten(1)[stands]) >= 0).all()
    assert delta.abs().amax(1).min() > (0.3 if norm == "l0" else 0.09)
    if norm == "l0":
        assert ((delta != 0).sum(1) == 2).all()
    else:
        assert delta.abs().sum(1).numpy() == pytest.approx(eps, rel=1e-4)


class Soft(nn.Module):
    """Class 1 where many pixels are a little above one half: what one of them can say is bounded."""

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(10 * (x.flatten(1) - 0.5)).sum(1)
        return torch.stack([-z, z], 1)


def test_l1_looks_at_a_step_spread_over_the_pixels_too() -> None:
    x = torch.full((3, 1, 4, 4), 0.52)
    found = rbl.evaluate(Soft().eval(), x, torch.ones(3, dtype=torch.int64), attack="fgsm", norm="l1", eps=0.5)
    assert found.robust_accuracy == 0
    # One number moved to its end would leave the label as it is.
    x[:, 0, 0, 0] -= 0.5
    assert (Soft()(x).argmax(1) == 1).all()
    assert found.samples["backwards"].tolist() == [1, 1, 1]


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
