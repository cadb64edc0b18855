"""PGD against a plain loop written out, and its options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((30, 1, 5, 5), generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, steps: int, mu: float) -> Tensor:
    """Madry's loop with Dong's momentum, from the image itself, in plain torch."""
    size = 2.5 * eps / steps
    seen, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        seen.requires_grad_()
        loss = nn.functional.cross_entropy(model(seen), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen)
        if mu:
            velocity = mu * velocity + gradient / gradient.abs().flatten(1).mean(1).reshape(-1, 1, 1, 1)
            gradient = velocity
        if norm == "linf":
            moved = seen.detach() + size * gradient.sign()
            seen = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        else:
            length = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            delta = seen.detach() + size * gradient / length - x
            far = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            seen = (x + delta * (eps / far).clamp(max=1)).clamp(0, 1)
    return seen.detach()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_it_is_the_loop_of_the_papers(norm: str, mu: float, model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    eps = 0.05 if norm == "linf" else 0.2
    options = {"steps": 6, "random_start": False, "momentum": mu}
    ours = rbl.perturb(model, x, y, attack="pgd", norm=norm, eps=eps, attack_options=options)
    theirs = by_hand(model, x, y, norm=norm, eps=eps, steps=6, mu=mu)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_more_steps_go_further(norm: str, loss: str, model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    eps = {"linf": 0.1, "l2": 0.4, "l1": 1.5, "l0": 3}[norm]
    robust = []
    for steps in (1, 20):
        options = {"steps": steps, "loss": loss}
        found = rbl.evaluate(model, x, y, norm=norm, eps=eps, attack_options=options, checks=False)
        robust.append(found.robust_accuracy)
    assert robust[1] <= robust[0]
    assert robust[1] < 0.9


def test_it_beats_one_step_and_noise(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    pgd, fgsm, noise = (
        rbl.evaluate(model, x, y, attack=name, eps=0.12).robust_accuracy for name in ("pgd", "fgsm", "noise")
    )
    assert pgd <= fgsm < noise


def test_a_random_start_is_random_and_its_own(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    options = {"steps": 1, "step_size": 1e-9}
    start = rbl.perturb(model, x, y, eps=0.1, attack_options=options)
    assert 0.03 < (start - x).abs().mean() < 0.06
    still = rbl.perturb(model, x, y, eps=0.1, attack_options={**options, "random_start": False})
    assert torch.allclose(still, x, atol=1e-6)


def test_the_default_step_size_follows_the_threat_and_the_given_one_does_not() -> None:
    assert PGD(steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.05)
    assert PGD(steps=10, step_size=0.01).resolve(Threat("linf", 0.2)).step_size == 0.01
    assert PGD(steps=10).resolve(Threat("l1", 12)).step_size == 6
    assert PGD().resolve(Threat("linf", 0.0)) == PGD()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "^steps must be >= 1, got 0"),
        ({"restarts": 0}, "^restarts must be >= 1, got 0"),
        ({"step_size": 0.0}, "^step_size must be > 0, got 0"),
        ({"step_size": float("nan")}, "^step_size must be > 0, got nan"),
        ({"momentum": -0.1}, r"^momentum must be >= 0, got -0\.1"),
        ({"momentum": float("nan")}, "^momentum must be >= 0, got nan"),
        ({"loss": "cw"}, "^loss: unknown name 'cw'"),
        ({"restarts": 2, "random_start": False}, "^restarts must be 1 without a random start"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PGD(**options)  # type: ignore[arg-type]
