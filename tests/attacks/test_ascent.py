"""The iterative fast gradient methods against plain loops of their papers, and their options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.bim import BIM
from robustbench_lite.attacks.mi_fgsm import MIFGSM
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat

NAMES = ("bim", "mi-fgsm")
MU = 0.9


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((30, 2, 5, 5), generator=torch.Generator().manual_seed(1))


def slope(model: nn.Module, seen: Tensor, y: Tensor) -> Tensor:
    """The gradient of log((1 - p_y) / p_y)."""
    seen = seen.detach().requires_grad_()
    p = model(seen).softmax(1).gather(1, y.unsqueeze(1))
    (gradient,) = torch.autograd.grad(torch.log((1 - p) / p).sum(), seen)
    return torch.as_tensor(gradient)


def climb(x: Tensor, seen: Tensor, direction: Tensor, *, norm: str, eps: float, size: float) -> Tensor:
    """A step of the paper: along the sign in linf, along the unit direction in l2."""
    if norm == "linf":
        moved = seen + size * direction.sign()
        return torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
    delta = seen + size * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) - x
    far = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return torch.clamp(x + delta * (eps / far).clamp(max=1), 0, 1)


def by_hand(name: str, model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, steps: int) -> Tensor:
    """The papers' loops in plain torch."""
    size = eps / steps
    seen, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        gradient = slope(model, seen, y)
        if name == "mi-fgsm":
            velocity = MU * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
            gradient = velocity
        seen = climb(x, seen, gradient, norm=norm, eps=eps, size=size)
    return seen


def eps_of(norm: str) -> float:
    return 0.05 if norm == "linf" else 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["bim", "mi-fgsm"])
def test_it_is_the_loop_of_the_paper(name: str, norm: str, model: nn.Module, x: Tensor) -> None:
    y, eps = model(x).argmax(1), eps_of(norm)
    options: dict[str, float] = {"steps": 6, "step_size": eps / 6}
    if name != "bim":
        options["momentum"] = MU
    ours = rbl.perturb(model, x, y, attack=name, norm=norm, eps=eps, attack_options=options)
    theirs = by_hand(name, model, x, y, norm=norm, eps=eps, steps=6)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_one_step_and_noise_do_not(name: str, norm: str, model: nn.Module, x: Tensor) -> None:
    y, eps = model(x).argmax(1), 2 * eps_of(norm)
    ours, fgsm, noise = (
        rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=eps, checks=False).robust_accuracy
        for attack in (name, "fgsm", "noise")
    )
    assert ours <= fgsm + 0.05
    assert ours < noise - 0.3


@pytest.mark.parametrize("name", NAMES)
def test_the_vertex_is_reached_on_a_linear_network(name: str, x: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 2)).eval()
    middle = x * 0.5 + 0.25
    eps = 0.1
    weight = net[1].weight[1] - net[1].weight[0]  # type: ignore[index]
    gain = eps * weight.abs().sum()
    logits = net(middle)
    y = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    robust = rbl.evaluate(net, middle, y, attack=name, eps=eps, checks=False).robust_accuracy
    assert robust == pytest.approx(float((margin > gain).float().mean()))


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_the_class_aimed_at(name: str, model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    targets = (y + 1) % 3
    found = rbl.perturb(model, x, y, attack=name, eps=0.4, targets=targets)
    assert (model(found).argmax(1) == targets).float().mean() > 0.9


def test_the_default_step_size_follows_the_threat_and_the_given_one_does_not() -> None:
    assert BIM(steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.025)
    assert MIFGSM(steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.02)
    assert MIFGSM(step_size=0.01).resolve(Threat("linf", 0.2)).step_size == 0.01
    assert MIFGSM().resolve(Threat("linf", 0.0)) == MIFGSM()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "^steps must be >= 1, got 0"),
        ({"step_size": 0.0}, "^step_size must be > 0, got 0"),
        ({"step_size": float("nan")}, "^step_size must be > 0, got nan"),
        ({"momentum": -0.1}, r"^momentum must be >= 0, got -0\.1"),
        ({"momentum": float("nan")}, "^momentum must be >= 0, got nan"),
        ({"loss": "cw"}, "^loss: unknown name 'cw'"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MIFGSM(**options)  # type: ignore[arg-type]
